//! Outbound frames and the verdict over each: one table for the host's tests, `BPF_PROG_TEST_RUN` and real taps.

use imds_ebpf::{
    abi::{IMDS_IPV4, IMDS_MAC, LARGE_FRAME_MAX, MacAddr, Reason, SMALL_FRAME_MAX},
    classify::Verdict::{self, Drop, HairpinArp, Pass, Punt},
};

/// The MAC that is bound to the tap.
pub const GUEST_MAC: MacAddr = MacAddr([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);
/// Another MAC behind the same tap: a nested guest, or a forger.
pub const OTHER_MAC: MacAddr = MacAddr([0x52, 0x54, 0x00, 0x65, 0x43, 0x21]);
/// The guest's default gateway, whose MAC a guest uses that has no on-link route to the address.
pub const GATEWAY_MAC: MacAddr = MacAddr([0x02, 0x00, 0x00, 0x00, 0x00, 0x01]);
/// Everyone.
pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);
/// The guest's address.
pub const GUEST_IP: [u8; 4] = [10, 0, 0, 7];

/// One frame and what is to happen to it.
#[derive(Clone, Debug)]
pub struct Case {
    /// What the frame is.
    pub name: &'static str,
    /// The frame as it leaves the guest, tags inline.
    pub frame: Vec<u8>,
    /// On a tap that [`GUEST_MAC`] is bound to.
    pub verdict: Verdict,
    /// On a tap that nothing is bound to.
    pub unbound: Verdict,
}

/// The whole table.
pub fn table() -> Vec<Case> {
    [
        requests(),
        neighbours(),
        link_layer(),
        ipv4_headers(),
        arp_messages(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Metadata requests in all their ordinary shapes, and what else may be sent to the address.
#[rustfmt::skip]
fn requests() -> Vec<Case> {
    let to_port = |port| Ipv4::default().frame(&tcp(port, 0));
    let of_length = |length: usize| Ipv4::default().frame(&tcp(80, length - 54));
    let mut udp = tcp(80, 0);
    udp.truncate(8);
    vec![
        case("SYN to port 80 by the gateway", to_port(80), Punt),
        case("SYN by the service's own MAC", eth(IMDS_MAC, GUEST_MAC, &[], 0x0800, &Ipv4::default().packet(&tcp(80, 0))), Punt),
        case("SYN in a broadcast frame", eth(BROADCAST, GUEST_MAC, &[], 0x0800, &Ipv4::default().packet(&tcp(80, 0))), Punt),
        case("a request of 200 bytes", Ipv4::default().frame(&tcp(80, 200)), Punt),
        case("SYN padded to the Ethernet minimum", padded(to_port(80), 60), Punt),
        case("from a source of another network", Ipv4 { source: [192, 168, 7, 7], ..Ipv4::default() }.frame(&tcp(80, 0)), Punt),
        case("from source 0.0.0.0", Ipv4 { source: [0; 4], ..Ipv4::default() }.frame(&tcp(80, 0)), Punt),
        case("with IP TTL 1", Ipv4 { ttl: 1, ..Ipv4::default() }.frame(&tcp(80, 0)), Punt),
        case("without the don't-fragment flag", Ipv4 { fragment: 0, ..Ipv4::default() }.frame(&tcp(80, 0)), Punt),
        case("with the reserved flag (RFC 3514)", Ipv4 { fragment: 0x8000, ..Ipv4::default() }.frame(&tcp(80, 0)), Punt),
        case("the longest small record", of_length(SMALL_FRAME_MAX), Punt),
        case("the shortest large record", of_length(SMALL_FRAME_MAX + 1), Punt),
        case("a full Ethernet frame", of_length(1514), Punt),
        case("two segments in one, left by an offload", of_length(2974), Punt),
        case("the longest large record", of_length(LARGE_FRAME_MAX), Punt),
        case("longer than the offered window", of_length(LARGE_FRAME_MAX + 1), Drop(Reason::FrameTooLong)),
        case("TCP to port 443", to_port(443), Drop(Reason::NotHttpPort)),
        case("TCP to port 0x5000, which is 80 the wrong way round", to_port(0x5000), Drop(Reason::NotHttpPort)),
        case("TCP from port 80 to another", Ipv4::default().frame(&tcp_from(80, 5000)), Drop(Reason::NotHttpPort)),
        case("UDP", Ipv4 { protocol: 17, ..Ipv4::default() }.frame(&udp), Drop(Reason::NotTcp)),
        case("ICMP echo", Ipv4 { protocol: 1, ..Ipv4::default() }.frame(&[8, 0, 0, 0, 0, 1, 0, 1]), Drop(Reason::NotTcp)),
        case("IP protocol 0", Ipv4 { protocol: 0, ..Ipv4::default() }.frame(&tcp(80, 0)), Drop(Reason::NotTcp)),
        case("first fragment", Ipv4 { fragment: 0x2000, ..Ipv4::default() }.frame(&tcp(80, 0)), Drop(Reason::Fragment)),
        case("last fragment", Ipv4 { fragment: 0x0001, ..Ipv4::default() }.frame(&tcp(80, 0)), Drop(Reason::Fragment)),
        case("fragment of UDP", Ipv4 { fragment: 0x2000, protocol: 17, ..Ipv4::default() }.frame(&udp), Drop(Reason::Fragment)),
        case("SYN from another MAC", eth(GATEWAY_MAC, OTHER_MAC, &[], 0x0800, &Ipv4::default().packet(&tcp(80, 0))), Drop(Reason::SourceMacForged)),
        case("UDP from another MAC", eth(GATEWAY_MAC, OTHER_MAC, &[], 0x0800, &Ipv4 { protocol: 17, ..Ipv4::default() }.packet(&udp)), Drop(Reason::SourceMacForged)),
        case("SYN from the service's MAC", eth(GATEWAY_MAC, IMDS_MAC, &[], 0x0800, &Ipv4::default().packet(&tcp(80, 0))), Drop(Reason::SourceMacForged)),
        case("source is the address", Ipv4 { source: IMDS_IPV4, destination: [10, 0, 0, 1], ..Ipv4::default() }.frame(&tcp(80, 0)), Drop(Reason::AddressClaimed)),
        case("source and destination are the address", Ipv4 { source: IMDS_IPV4, ..Ipv4::default() }.frame(&tcp(80, 0)), Drop(Reason::AddressClaimed)),
        case("UDP broadcast from the address", Ipv4 { source: IMDS_IPV4, destination: [255; 4], protocol: 17, ..Ipv4::default() }.frame(&udp), Drop(Reason::AddressClaimed)),
        case("fragment from the address", Ipv4 { source: IMDS_IPV4, destination: [10, 0, 0, 1], fragment: 0x2000, ..Ipv4::default() }.frame(&tcp(80, 0)), Drop(Reason::AddressClaimed)),
        case("source is the address, from another MAC", eth(GATEWAY_MAC, OTHER_MAC, &[], 0x0800, &Ipv4 { source: IMDS_IPV4, destination: [10, 0, 0, 1], ..Ipv4::default() }.packet(&tcp(80, 0))), Drop(Reason::SourceMacForged)),
    ]
}

/// The guest's other traffic.
#[rustfmt::skip]
fn neighbours() -> Vec<Case> {
    let to = |destination| Ipv4 { destination, ..Ipv4::default() }.frame(&tcp(80, 0));
    vec![
        case("HTTP to the world", to([93, 184, 216, 34]), Pass),
        case("HTTP to the world from a nested guest", eth(GATEWAY_MAC, OTHER_MAC, &[], 0x0800, &Ipv4 { destination: [93, 184, 216, 34], ..Ipv4::default() }.packet(&tcp(80, 0))), Pass),
        case("DNS at 169.254.169.253", to([169, 254, 169, 253]), Pass),
        case("NTP at 169.254.169.123", to([169, 254, 169, 123]), Pass),
        case("169.254.169.255", to([169, 254, 169, 255]), Pass),
        case("169.254.254.169, the address the wrong way round", to([169, 254, 254, 169]), Pass),
        case("254.169.254.169", to([254, 169, 254, 169]), Pass),
        case("broadcast", to([255; 4]), Pass),
        case("the address in the payload", Ipv4 { destination: [10, 0, 0, 1], ..Ipv4::default() }.frame(&[169, 254, 169, 254].repeat(8)), Pass),
        case("the address in the options", Ipv4 { destination: [10, 0, 0, 1], options: vec![0x83, 7, 4, 169, 254, 169, 254, 0], ..Ipv4::default() }.frame(&tcp(80, 0)), Pass),
        case("a fragment for another", Ipv4 { destination: [10, 0, 0, 1], fragment: 0x2000, ..Ipv4::default() }.frame(&tcp(80, 0)), Pass),
        case("a malformed header for another", Ipv4 { destination: [10, 0, 0, 1], version_and_length: Some(0x41), ..Ipv4::default() }.frame(&tcp(80, 0)), Pass),
        case("IPv6", eth(GATEWAY_MAC, GUEST_MAC, &[], 0x86dd, &[0x60; 60]), Pass),
        case("IPv6 with the address where IPv4 has it", eth(GATEWAY_MAC, GUEST_MAC, &[], 0x86dd, &Ipv4::default().packet(&tcp(80, 0))), Pass),
        case("802.3 with LLC (spanning tree)", eth(MacAddr([0x01, 0x80, 0xc2, 0, 0, 0]), GUEST_MAC, &[], 38, &[0x42; 46]), Pass),
        case("802.3 SNAP around IPv4 for the address, which nobody receives", eth(GATEWAY_MAC, GUEST_MAC, &[], 48, &[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &Ipv4::default().packet(&tcp(80, 0))].concat()), Pass),
        case("LLDP", eth(MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x0e]), GUEST_MAC, &[], 0x88cc, &[2; 46]), Pass),
        case("RARP, as QEMU announces a migrated guest", eth(BROADCAST, GUEST_MAC, &[], 0x8035, &Arp { operation: 3, ..Arp::default() }.message()), Pass),
    ]
}

/// Tags, and frames that end early.
#[rustfmt::skip]
fn link_layer() -> Vec<Case> {
    let request = Ipv4::default().packet(&tcp(80, 0));
    let elsewhere = Ipv4 { destination: [10, 0, 0, 1], ..Ipv4::default() }.packet(&tcp(80, 0));
    let tagged = |tags: &[u16], packet: &[u8]| eth(GATEWAY_MAC, GUEST_MAC, tags, 0x0800, packet);
    let vlan = Drop(Reason::VlanTagged);
    let truncated = Drop(Reason::Truncated);
    vec![
        case("802.1Q around a request", tagged(&[0x8100], &request), vlan),
        case("802.1ad around a request", tagged(&[0x88a8], &request), vlan),
        case("the old QinQ type around a request", tagged(&[0x9100], &request), vlan),
        case("two tags around a request", tagged(&[0x88a8, 0x8100], &request), vlan),
        case("three tags around a request", tagged(&[0x8100, 0x8100, 0x8100], &request), vlan),
        case("eight tags around a request", tagged(&[0x8100; 8], &request), vlan),
        case("a tag around a request from another MAC", eth(GATEWAY_MAC, OTHER_MAC, &[0x8100], 0x0800, &request), Drop(Reason::SourceMacForged)),
        case("a tag around a claim of the address", tagged(&[0x8100], &Ipv4 { source: IMDS_IPV4, ..Ipv4::default() }.packet(&tcp(80, 0))), vlan),
        case("a tag around an ARP request for the address", eth(BROADCAST, GUEST_MAC, &[0x8100], 0x0806, &Arp::default().message()), vlan),
        early("ten tags", tagged(&[0x8100; 10], &elsewhere), vlan),
        case("802.1Q around other traffic", tagged(&[0x8100], &elsewhere), Pass),
        case("two tags around other traffic", tagged(&[0x88a8, 0x8100], &elsewhere), Pass),
        case("a tag around IPv6", eth(GATEWAY_MAC, GUEST_MAC, &[0x8100], 0x86dd, &[0x60; 60]), Pass),
        case("a tag around ARP for another", eth(BROADCAST, GUEST_MAC, &[0x8100], 0x0806, &Arp { target_ip: [10, 0, 0, 1], ..Arp::default() }.message()), Pass),
        early("IPv4 without a packet", tagged(&[], &[]), truncated),
        early("IPv4 that ends before its destination's last byte", tagged(&[], &request[..19]), truncated),
        early("IPv4 that ends within its source, which is the address so far", tagged(&[], &Ipv4 { source: IMDS_IPV4, ..Ipv4::default() }.packet(&[])[..15]), truncated),
        early("tagged IPv4 that ends early", tagged(&[0x8100], &request[..19]), truncated),
        early("a frame that ends within its tag", tagged(&[0x8100], &[])[..16].to_vec(), truncated),
        early("ARP that ends within its target", eth(BROADCAST, GUEST_MAC, &[], 0x0806, &Arp::default().message()[..27]), truncated),
        case("IPv4 for another that ends behind its destination", tagged(&[], &elsewhere[..20]), Pass),
        case("IPv4 for the address that ends before the port's last byte", tagged(&[], &request[..23]), truncated),
        case("IPv4 for the address that ends behind the port", tagged(&[], &request[..24]), Punt),
        case("other EtherType without payload", eth(GATEWAY_MAC, GUEST_MAC, &[], 0x86dd, &[]), Pass),
    ]
}

/// Options, and headers that lie.
#[rustfmt::skip]
fn ipv4_headers() -> Vec<Case> {
    let with_options = |bytes| Ipv4 { options: vec![1; bytes], ..Ipv4::default() };
    let first_byte = |byte| Ipv4 { version_and_length: Some(byte), ..Ipv4::default() }.frame(&tcp(80, 0));
    let malformed = Drop(Reason::MalformedIpHeader);
    // What stands where the port would be without options is not the port.
    let misleading = Ipv4 { options: vec![1, 1, 0, 80, 1, 1, 1, 1], ..Ipv4::default() };
    vec![
        case("four bytes of options", with_options(4).frame(&tcp(80, 0)), Punt),
        case("40 bytes of options", with_options(40).frame(&tcp(80, 0)), Punt),
        case("options and another port", with_options(8).frame(&tcp(22, 0)), Drop(Reason::NotHttpPort)),
        case("port 80 in the options only", misleading.frame(&tcp(22, 0)), Drop(Reason::NotHttpPort)),
        case("options, and the frame ends before the port", Ipv4 { options: vec![1; 40], ..Ipv4::default() }.frame(&[0, 80, 0]), Drop(Reason::Truncated)),
        case("header length that reaches behind the frame", first_byte(0x4f), Drop(Reason::Truncated)),
        case("IP version 6 in an IPv4 frame", first_byte(0x65), malformed),
        case("IP version 0", first_byte(0x05), malformed),
        case("header length 0", first_byte(0x40), malformed),
        case("header length 16", first_byte(0x44), malformed),
        case("malformed header with the address as source", Ipv4 { source: IMDS_IPV4, destination: [10, 0, 0, 1], version_and_length: Some(0x44), ..Ipv4::default() }.frame(&tcp(80, 0)), malformed),
    ]
}

/// Questions for the address, claims of it, and odd messages about it.
#[rustfmt::skip]
fn arp_messages() -> Vec<Case> {
    let arp = |arp: Arp| arp.frame(BROADCAST);
    let default = Arp::default;
    let odd = Drop(Reason::ArpNotRequest);
    let claimed = Drop(Reason::AddressClaimed);
    vec![
        case("request, broadcast", arp(default()), HairpinArp),
        case("request, unicast to the service", default().frame(IMDS_MAC), HairpinArp),
        case("request, unicast to the gateway", default().frame(GATEWAY_MAC), HairpinArp),
        case("request, padded to the Ethernet minimum", padded(arp(default()), 60), HairpinArp),
        case("request with a target MAC filled in", arp(Arp { target_mac: IMDS_MAC, ..default() }), HairpinArp),
        case("request from a link-local address", arp(Arp { sender_ip: [169, 254, 3, 4], ..default() }), HairpinArp),
        case("probe (RFC 5227)", arp(Arp { sender_ip: [0; 4], ..default() }), HairpinArp),
        case("request in a multicast frame", default().frame(MacAddr([0x01, 0, 0x5e, 0, 0, 1])), odd),
        case("request from another MAC", eth(BROADCAST, OTHER_MAC, &[], 0x0806, &Arp { sender_mac: OTHER_MAC, ..default() }.message()), Drop(Reason::SourceMacForged)),
        case("request with another sender MAC inside", arp(Arp { sender_mac: OTHER_MAC, ..default() }), Drop(Reason::SourceMacForged)),
        case("announcement of the address", arp(Arp { sender_ip: IMDS_IPV4, ..default() }), claimed),
        case("gratuitous reply with the address", arp(Arp { operation: 2, sender_ip: IMDS_IPV4, ..default() }), claimed),
        case("reply that the guest has the address", arp(Arp { operation: 2, sender_ip: IMDS_IPV4, target_ip: [10, 0, 0, 1], ..default() }), claimed),
        case("request for another from the address", arp(Arp { sender_ip: IMDS_IPV4, target_ip: [10, 0, 0, 1], ..default() }), claimed),
        case("claim with another sender MAC inside", arp(Arp { sender_ip: IMDS_IPV4, sender_mac: OTHER_MAC, ..default() }), claimed),
        case("malformed claim", arp(Arp { fixed: [0, 6, 0x08, 0, 6, 4], sender_ip: IMDS_IPV4, ..default() }), claimed),
        case("reply to the address", arp(Arp { operation: 2, ..default() }), odd),
        case("operation 0", arp(Arp { operation: 0, ..default() }), odd),
        case("inverse ARP about the address", arp(Arp { operation: 8, ..default() }), odd),
        case("hardware type 6", arp(Arp { fixed: [0, 6, 0x08, 0, 6, 4], ..default() }), odd),
        case("protocol type IPv6", arp(Arp { fixed: [0, 1, 0x86, 0xdd, 6, 4], ..default() }), odd),
        case("hardware address length 8", arp(Arp { fixed: [0, 1, 0x08, 0, 8, 4], ..default() }), odd),
        case("protocol address length 16", arp(Arp { fixed: [0, 1, 0x08, 0, 6, 16], ..default() }), odd),
        case("request for the gateway", arp(Arp { target_ip: [10, 0, 0, 1], ..default() }), Pass),
        case("request for 169.254.169.253", arp(Arp { target_ip: [169, 254, 169, 253], ..default() }), Pass),
        case("announcement of the guest's own address", arp(Arp { target_ip: GUEST_IP, ..default() }), Pass),
        case("request for the gateway from a nested guest", eth(BROADCAST, OTHER_MAC, &[], 0x0806, &Arp { target_ip: [10, 0, 0, 1], sender_mac: OTHER_MAC, ..default() }.message()), Pass),
    ]
}

/// A frame that passes does so on any tap; any other is dropped as long as nothing is bound.
fn case(name: &'static str, frame: Vec<u8>, verdict: Verdict) -> Case {
    let unbound = if verdict == Pass {
        Pass
    } else {
        Drop(Reason::TapUnbound)
    };
    Case {
        name,
        frame,
        verdict,
        unbound,
    }
}

/// A frame that is dropped before anyone asks what is bound to its tap.
fn early(name: &'static str, frame: Vec<u8>, verdict: Verdict) -> Case {
    Case {
        name,
        frame,
        verdict,
        unbound: verdict,
    }
}

/// An Ethernet frame with tags of the given types, each for VLAN 100.
pub fn eth(destination: MacAddr, source: MacAddr, tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [destination.0, source.0].concat();
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend(100_u16.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A frame with zeroes behind it, as network cards pad them.
pub fn padded(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.resize(length.max(frame.len()), 0);
    frame
}

/// The fields of an IPv4 header; by default those of a request's packet.
#[derive(Clone, Debug)]
pub struct Ipv4 {
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// Protocol number.
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// The first byte, where it is not what version and options make it.
    pub version_and_length: Option<u8>,
}

impl Default for Ipv4 {
    fn default() -> Self {
        Self {
            source: GUEST_IP,
            destination: IMDS_IPV4,
            protocol: 6,
            ttl: 64,
            fragment: 0x4000,
            options: Vec::new(),
            version_and_length: None,
        }
    }
}

impl Ipv4 {
    /// The packet with this header, its checksum right.
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let header_length = 20 + self.options.len();
        let first = self
            .version_and_length
            .unwrap_or(0x40 | (header_length / 4) as u8);
        let total_length = (header_length + payload.len()) as u16;
        let mut packet = vec![first, 0];
        packet.extend(total_length.to_be_bytes());
        packet.extend([0x12, 0x34]);
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([self.ttl, self.protocol, 0, 0]);
        packet.extend(self.source);
        packet.extend(self.destination);
        packet.extend(&self.options);
        let checksum = internet_checksum(&packet);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet.extend(payload);
        packet
    }

    /// The frame with this packet, from the guest by its gateway.
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        eth(GATEWAY_MAC, GUEST_MAC, &[], 0x0800, &self.packet(payload))
    }
}

/// A TCP segment to `port` with `length` bytes of payload, its checksum left to an offload. Without payload it is a SYN.
pub fn tcp(port: u16, length: usize) -> Vec<u8> {
    let mut segment = tcp_from(49152, port);
    segment[13] = if length == 0 { 0x02 } else { 0x18 };
    segment.resize(20 + length, b'x');
    segment
}

fn tcp_from(source: u16, destination: u16) -> Vec<u8> {
    let mut segment = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    segment
}

/// The fields of an ARP message; by default those of the guest's request for the address.
#[derive(Clone, Debug)]
pub struct Arp {
    /// Hardware type, protocol type and the lengths of their addresses.
    pub fixed: [u8; 6],
    /// 1 asks, 2 answers.
    pub operation: u16,
    /// Sender's MAC.
    pub sender_mac: MacAddr,
    /// Sender's address.
    pub sender_ip: [u8; 4],
    /// Target's MAC, unknown in a request.
    pub target_mac: MacAddr,
    /// Target's address.
    pub target_ip: [u8; 4],
}

impl Default for Arp {
    fn default() -> Self {
        Self {
            fixed: [0, 1, 0x08, 0, 6, 4],
            operation: 1,
            sender_mac: GUEST_MAC,
            sender_ip: GUEST_IP,
            target_mac: MacAddr([0; 6]),
            target_ip: IMDS_IPV4,
        }
    }
}

impl Arp {
    /// The message.
    pub fn message(&self) -> Vec<u8> {
        let mut message = self.fixed.to_vec();
        message.extend(self.operation.to_be_bytes());
        message.extend(self.sender_mac.0);
        message.extend(self.sender_ip);
        message.extend(self.target_mac.0);
        message.extend(self.target_ip);
        message
    }

    /// The frame with it, from the guest.
    pub fn frame(&self, destination: MacAddr) -> Vec<u8> {
        eth(destination, GUEST_MAC, &[], 0x0806, &self.message())
    }
}

/// RFC 1071, over bytes whose checksum field is zero.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
