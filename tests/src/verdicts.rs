//! Frames and the verdict over each: one table for the host's tests, `BPF_PROG_TEST_RUN` and real taps.

mod encapsulated;
mod lengths;

use imds_ebpf::{
    abi::{
        IMDS_IPV4, IMDS_IPV6, IMDS_MAC, LARGE_FRAME_MAX, MEDIUM_FRAME_MAX, MacAddr, Reason, SMALL_FRAME_MAX,
    },
    classify::{
        SOLICITED_NODE, UNSPECIFIED,
        Verdict::{self, Drop, HairpinArp, HairpinNdp, Pass, Punt},
    },
};

use crate::frames::{
    ALL_NODES, Arp, BROADCAST, GATEWAY_MAC, GUEST_IP, GUEST_IPV6, GUEST_MAC, Ipv4, Ipv6, LINK_LOCAL,
    OTHER_IPV6, OTHER_MAC, SAME_GROUP, eth, ndp, padded, snap, tcp, tcp_from,
};

/// One frame and what is to happen to it.
#[derive(Clone, Debug)]
pub struct Case {
    /// What the frame is.
    pub name: &'static str,
    /// The frame as it leaves the guest, tags inline.
    pub frame: Vec<u8>,
    /// On a tap that [`GUEST_MAC`] is bound to, on both addresses.
    pub verdict: Verdict,
    /// On a tap that nothing is bound to.
    pub unbound: Verdict,
}

/// What guests send.
pub fn table() -> Vec<Case> {
    [
        requests(),
        expired_packets(),
        neighbours(),
        link_layer(),
        ipv4_headers(),
        arp_messages(),
        ipv6_packets(),
        extension_headers(),
        discovery(),
        encapsulated::snapped(),
        encapsulated::tunnels(),
        lengths::lengths(),
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
        case("the shortest medium record", of_length(SMALL_FRAME_MAX + 1), Punt),
        case("the longest medium record", of_length(MEDIUM_FRAME_MAX), Punt),
        case("the shortest large record", of_length(MEDIUM_FRAME_MAX + 1), Punt),
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

/// What a router of the guest says of packets that expired: only word of the service's own is let through.
#[rustfmt::skip]
fn expired_packets() -> Vec<Case> {
    let not_tcp = Drop(Reason::NotTcp);
    let ours = || Ipv4 { source: IMDS_IPV4, destination: GUEST_IP, ttl: 0, ..Ipv4::default() };
    let quoted = || ours().packet(&tcp_from(80, 49152));
    let icmp = |kind: u8, code: u8, quote: &[u8]| [&[kind, code, 0, 0, 0, 0, 0, 0][..], quote].concat();
    let expired = |quote: &[u8]| icmp(11, 0, quote);
    let v4 = |message: &[u8]| Ipv4 { protocol: 1, ..Ipv4::default() }.frame(message);
    let ours_v6 = || Ipv6 { source: IMDS_IPV6, destination: GUEST_IPV6, hop_limit: 0, ..Ipv6::default() };
    let quoted_v6 = || ours_v6().packet(&tcp_from(80, 49152));
    let v6 = |message: &[u8]| Ipv6 { next: 58, ..Ipv6::default() }.frame(message);
    vec![
        case("word that a packet of the service expired", v4(&expired(&quoted())), Punt),
        case("the same with no more than eight bytes behind the quoted header", v4(&expired(&quoted()[..28])), Punt),
        case("the same from a router of another network", Ipv4 { protocol: 1, source: [172, 17, 0, 1], ..Ipv4::default() }.frame(&expired(&quoted())), Punt),
        case("the same behind options", Ipv4 { protocol: 1, options: vec![1; 8], ..Ipv4::default() }.frame(&expired(&quoted())), Punt),
        case("the same to a port of a container", v4(&expired(&Ipv4 { destination: [172, 17, 0, 2], ..ours() }.packet(&tcp_from(80, 5)))), Punt),
        case("word that ends within the quoted sequence number", v4(&expired(&quoted()[..27])), not_tcp),
        case("word that quotes nothing", v4(&expired(&[])), not_tcp),
        case("word that a fragment was not joined in time", v4(&icmp(11, 1, &quoted())), not_tcp),
        case("word that the port is unreachable", v4(&icmp(3, 3, &quoted())), not_tcp),
        case("a redirect of the service's packets", v4(&icmp(5, 1, &quoted())), not_tcp),
        case("word that a packet of another expired", v4(&expired(&Ipv4 { source: [169, 254, 169, 253], ..ours() }.packet(&tcp_from(80, 49152)))), not_tcp),
        case("word that the guest's own packet expired", v4(&expired(&Ipv4::default().packet(&tcp(80, 0)))), not_tcp),
        case("word that UDP of the service expired", v4(&expired(&Ipv4 { protocol: 17, ..ours() }.packet(&tcp_from(80, 49152)))), not_tcp),
        case("word that another port's packet expired", v4(&expired(&ours().packet(&tcp_from(443, 49152)))), not_tcp),
        case("word of a packet with options, which the service does not send", v4(&expired(&Ipv4 { options: vec![1; 4], ..ours() }.packet(&tcp_from(80, 49152)))), not_tcp),
        case("word of an IPv6 packet in ICMP for IPv4", v4(&expired(&quoted_v6())), not_tcp),
        case("ICMP that ends before its code", v4(&[11]), not_tcp),
        case("a fragment of such word", Ipv4 { protocol: 1, fragment: 0x2000, ..Ipv4::default() }.frame(&expired(&quoted())), Drop(Reason::Fragment)),
        case("such word from another MAC", eth(GATEWAY_MAC, OTHER_MAC, &[], 0x0800, &Ipv4 { protocol: 1, ..Ipv4::default() }.packet(&expired(&quoted()))), Drop(Reason::SourceMacForged)),
        case("such word in a tag", eth(GATEWAY_MAC, GUEST_MAC, &[0x8100], 0x0800, &Ipv4 { protocol: 1, ..Ipv4::default() }.packet(&expired(&quoted()))), Drop(Reason::VlanTagged)),
        case("such word from the address itself", Ipv4 { protocol: 1, source: IMDS_IPV4, ..Ipv4::default() }.frame(&expired(&quoted())), Drop(Reason::AddressClaimed)),
        case("such word longer than anyone quotes", v4(&[expired(&quoted()), vec![0; LARGE_FRAME_MAX]].concat()), Drop(Reason::FrameTooLong)),
        case("such word to another", Ipv4 { protocol: 1, destination: [10, 0, 0, 1], ..Ipv4::default() }.frame(&expired(&quoted())), Pass),
        case("word that an IPv6 packet of the service expired", v6(&icmp(3, 0, &quoted_v6())), Punt),
        case("the same from a link-local router", Ipv6 { next: 58, source: LINK_LOCAL, ..Ipv6::default() }.frame(&icmp(3, 0, &quoted_v6()[..48])), Punt),
        case("IPv6 word that ends within the quoted sequence number", v6(&icmp(3, 0, &quoted_v6()[..47])), not_tcp),
        case("IPv6 word that a fragment was not joined in time", v6(&icmp(3, 1, &quoted_v6())), not_tcp),
        case("IPv6 word that the packet was too big", v6(&icmp(2, 0, &quoted_v6())), not_tcp),
        case("ICMP's type in ICMPv6", v6(&icmp(11, 0, &quoted_v6())), not_tcp),
        case("IPv6 word that a packet of another expired", v6(&icmp(3, 0, &Ipv6 { source: OTHER_IPV6, ..ours_v6() }.packet(&tcp_from(80, 49152)))), not_tcp),
        case("IPv6 word that a packet without TCP expired", v6(&icmp(3, 0, &Ipv6 { next: 17, ..ours_v6() }.packet(&tcp_from(80, 49152)))), not_tcp),
        case("IPv6 word that another port's packet expired", v6(&icmp(3, 0, &ours_v6().packet(&tcp_from(443, 49152)))), not_tcp),
        case("word of an IPv4 packet in ICMPv6", v6(&icmp(3, 0, &[quoted(), vec![0; 40]].concat())), not_tcp),
        case("IPv6 word behind hop-by-hop options", Ipv6::default().behind(&[0], 58, &icmp(3, 0, &quoted_v6())), Drop(Reason::ExtensionHeader)),
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
        case("IPv6", Ipv6 { destination: OTHER_IPV6, ..Ipv6::default() }.frame(&tcp(80, 0)), Pass),
        case("IPv6 with the address where IPv4 has it", eth(GATEWAY_MAC, GUEST_MAC, &[], 0x86dd, &Ipv4::default().packet(&tcp(80, 0))), Pass),
        case("802.3 with LLC (spanning tree)", eth(MacAddr([0x01, 0x80, 0xc2, 0, 0, 0]), GUEST_MAC, &[], 38, &[0x42; 46]), Pass),
        case("LLDP", eth(MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x0e]), GUEST_MAC, &[], 0x88cc, &[2; 46]), Pass),
        case("RARP, as QEMU announces a migrated guest", eth(BROADCAST, GUEST_MAC, &[], 0x8035, &Arp { operation: 3, sender_ip: [0; 4], target_ip: [0; 4], ..Arp::default() }.message()), Pass),
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
        case("a tag around IPv6", eth(GATEWAY_MAC, GUEST_MAC, &[0x8100], 0x86dd, &Ipv6 { destination: OTHER_IPV6, ..Ipv6::default() }.packet(&tcp(80, 0))), Pass),
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
        case("other EtherType without payload", eth(GATEWAY_MAC, GUEST_MAC, &[], 0x88cc, &[]), Pass),
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
        case("RARP reply that gives the address away", eth(BROADCAST, GUEST_MAC, &[], 0x8035, &Arp { operation: 4, ..default() }.message()), claimed),
        case("RARP request from the address", eth(BROADCAST, GUEST_MAC, &[], 0x8035, &Arp { operation: 3, sender_ip: IMDS_IPV4, target_ip: [0; 4], ..default() }.message()), claimed),
        case("an ARP request in RARP's EtherType", eth(BROADCAST, GUEST_MAC, &[], 0x8035, &default().message()), claimed),
        early("RARP that ends within its target", eth(BROADCAST, GUEST_MAC, &[], 0x8035, &default().message()[..27]), Drop(Reason::Truncated)),
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

/// The other address, in all that is sent to it.
#[rustfmt::skip]
fn ipv6_packets() -> Vec<Case> {
    let default = Ipv6::default;
    let to_port = |port| default().frame(&tcp(port, 0));
    let truncated = Drop(Reason::Truncated);
    let ether = |source, tags: &[u16], packet: &[u8]| eth(GATEWAY_MAC, source, tags, 0x86dd, packet);
    let request = default().packet(&tcp(80, 0));
    let to = |destination| Ipv6 { destination, ..default() }.frame(&tcp(80, 0));
    vec![
        case("IPv6 SYN to port 80", to_port(80), Punt),
        case("IPv6 request of 200 bytes", default().frame(&tcp(80, 200)), Punt),
        case("IPv6 from a link-local address", Ipv6 { source: LINK_LOCAL, ..default() }.frame(&tcp(80, 0)), Punt),
        case("IPv6 with hop limit 1", Ipv6 { hop_limit: 1, ..default() }.frame(&tcp(80, 0)), Punt),
        case("IPv6 with traffic class and flow label", Ipv6 { first: [0x6b, 0x81, 0x23, 0x45], ..default() }.frame(&tcp(80, 0)), Punt),
        case("IPv6, longer than the offered window", default().frame(&tcp(80, LARGE_FRAME_MAX - 73)), Drop(Reason::FrameTooLong)),
        case("IPv6 to port 443", to_port(443), Drop(Reason::NotHttpPort)),
        case("IPv6 UDP", Ipv6 { next: 17, ..default() }.frame(&[0, 80, 0, 80, 0, 8, 0, 0]), Drop(Reason::NotTcp)),
        case("IPv6 echo", Ipv6 { next: 58, ..default() }.frame(&[128, 0, 0, 0, 0, 1, 0, 1]), Drop(Reason::NotTcp)),
        case("IPv6 packet-too-big", Ipv6 { next: 58, ..default() }.frame(&[2, 0, 0, 0, 0, 0, 5, 0]), Drop(Reason::NotTcp)),
        case("IPv6 with no next header", Ipv6 { next: 59, ..default() }.frame(&[]), Drop(Reason::NotTcp)),
        case("IPv6 with an authentication header", Ipv6 { next: 51, ..default() }.frame(&[&[6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &tcp(80, 0)].concat()), Drop(Reason::NotTcp)),
        case("IPv6 from another MAC", ether(OTHER_MAC, &[], &request), Drop(Reason::SourceMacForged)),
        case("IPv6 in a tag", ether(GUEST_MAC, &[0x8100], &request), Drop(Reason::VlanTagged)),
        case("IPv6 from the address", Ipv6 { source: IMDS_IPV6, destination: OTHER_IPV6, ..default() }.frame(&tcp(80, 0)), Drop(Reason::AddressClaimed)),
        case("IPv6 UDP from the address to all nodes", Ipv6 { source: IMDS_IPV6, destination: ALL_NODES, next: 17, ..default() }.frame(&[0; 8]), Drop(Reason::AddressClaimed)),
        case("IPv6 from and to the address", Ipv6 { source: IMDS_IPV6, ..default() }.frame(&tcp(80, 0)), Drop(Reason::AddressClaimed)),
        case("IP version 4 in an IPv6 frame", Ipv6 { first: [0x45, 0, 0, 0], ..default() }.frame(&tcp(80, 0)), Drop(Reason::MalformedIpHeader)),
        case("IPv6 that ends before the port's last byte", default().frame(&tcp(80, 0)[..3]), truncated),
        case("IPv6 that ends behind the port", default().frame(&tcp(80, 0)[..4]), Punt),
        early("IPv6 that ends within its destination", ether(GUEST_MAC, &[], &request[..39]), truncated),
        early("IPv6 without a packet", ether(GUEST_MAC, &[], &[]), truncated),
        case("IPv6 to the address plus one", to([0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x55]), Pass),
        case("IPv6 to the last four bytes elsewhere", to(SAME_GROUP), Pass),
        case("IPv6 with the IPv4 address mapped into it", to([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 169, 254, 169, 254]), Pass),
        case("IPv6 from a nested guest", ether(OTHER_MAC, &[], &Ipv6 { destination: OTHER_IPV6, ..default() }.packet(&tcp(80, 0))), Pass),
        case("IPv6 with the address in the payload", Ipv6 { destination: OTHER_IPV6, next: 17, ..default() }.frame(&IMDS_IPV6.repeat(3)), Pass),
    ]
}

/// Extension headers, around metadata traffic and around what might claim the address.
#[rustfmt::skip]
fn extension_headers() -> Vec<Case> {
    let default = Ipv6::default;
    let behind = |headers: &[u8], next, payload: &[u8]| default().behind(headers, next, payload);
    let elsewhere = |headers: &[u8], next, payload: &[u8]| Ipv6 { destination: ALL_NODES, hop_limit: 255, ..default() }.behind(headers, next, payload);
    let claim = ndp(136, 0, &IMDS_IPV6);
    let extension = Drop(Reason::ExtensionHeader);
    let claimed = Drop(Reason::AddressClaimed);
    // Two units of eight bytes, the first of which says so.
    let long = [&[58, 1][..], &[0; 14]].concat();
    vec![
        case("TCP behind hop-by-hop options", behind(&[0], 6, &tcp(80, 0)), extension),
        case("TCP behind destination options", behind(&[60], 6, &tcp(80, 0)), extension),
        case("TCP behind a routing header", behind(&[43], 6, &tcp(80, 0)), extension),
        case("IPv6 UDP behind hop-by-hop options", behind(&[0], 17, &[0; 8]), extension),
        case("IPv6 fragment", behind(&[44], 6, &tcp(80, 0)), Drop(Reason::Fragment)),
        case("IPv6 later fragment", default().fragment(0x0008, 6, &tcp(80, 0)), Drop(Reason::Fragment)),
        case("IPv6 fragment from the address", Ipv6 { source: IMDS_IPV6, destination: OTHER_IPV6, ..default() }.behind(&[44], 6, &tcp(80, 0)), claimed),
        case("solicitation behind hop-by-hop options", behind(&[0], 58, &ndp(135, 0, &IMDS_IPV6)), extension),
        case("advertisement behind hop-by-hop options", elsewhere(&[0], 58, &claim), claimed),
        case("advertisement behind destination options", elsewhere(&[60], 58, &claim), claimed),
        case("advertisement behind a routing header", elsewhere(&[43], 58, &claim), claimed),
        case("advertisement behind four headers", elsewhere(&[0, 60, 43, 60], 58, &claim), claimed),
        case("advertisement behind eight headers", elsewhere(&[60; 8], 58, &claim), claimed),
        case("advertisement behind a header of sixteen bytes", Ipv6 { destination: ALL_NODES, next: 60, ..default() }.frame(&[&long[..], &claim].concat()), claimed),
        case("advertisement in a first fragment", elsewhere(&[44], 58, &claim), claimed),
        case("solicitation elsewhere behind hop-by-hop options", elsewhere(&[0], 58, &ndp(135, 0, &IMDS_IPV6)), extension),
        case("later fragment of what may be an advertisement", Ipv6 { destination: ALL_NODES, ..default() }.fragment(0x0008, 58, &claim), Pass),
        early("nine extension headers", elsewhere(&[60; 9], 58, &claim), extension),
        early("a chain of headers that the frame ends in", elsewhere(&[0, 60], 58, &[])[..62].to_vec(), Drop(Reason::Truncated)),
        early("a header that reaches behind the frame", Ipv6 { destination: ALL_NODES, next: 0, ..default() }.frame(&[58, 200, 0, 0, 0, 0, 0, 0]), Drop(Reason::Truncated)),
        early("first fragment of an advertisement that ends before its target", elsewhere(&[44], 58, &claim[..16]), Drop(Reason::Truncated)),
        case("multicast listener report", Ipv6 { destination: ALL_NODES, hop_limit: 1, ..default() }.behind(&[0], 58, &[&[143, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0][..], &SOLICITED_NODE].concat()), Pass),
        case("IPv6 TCP elsewhere behind hop-by-hop options", Ipv6 { destination: OTHER_IPV6, ..default() }.behind(&[0], 6, &tcp(80, 0)), Pass),
        case("IPv6 fragment elsewhere", Ipv6 { destination: OTHER_IPV6, ..default() }.behind(&[44], 17, &[0; 64]), Pass),
        case("encrypted IPv6 elsewhere", Ipv6 { destination: OTHER_IPV6, next: 50, ..default() }.frame(&[0x11; 32]), Pass),
    ]
}

/// Solicitations of the address, claims of it, and odd messages about it.
#[rustfmt::skip]
fn discovery() -> Vec<Case> {
    let icmp = |destination, message: &[u8]| Ipv6 { destination, next: 58, hop_limit: 255, ..Ipv6::default() }.frame(message);
    let solicited = |message: &[u8]| icmp(SOLICITED_NODE, message);
    let default = || Ipv6 { destination: SOLICITED_NODE, next: 58, hop_limit: 255, ..Ipv6::default() };
    let ask = || ndp(135, 0, &IMDS_IPV6);
    let with_source = || [ask(), vec![1, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56]].concat();
    let odd = Drop(Reason::NdpNotSolicitation);
    let claimed = Drop(Reason::AddressClaimed);
    let redirect = |target: [u8; 16], about: [u8; 16]| [ndp(137, 0, &target), about.to_vec()].concat();
    vec![
        case("solicitation", solicited(&with_source()), HairpinNdp),
        case("solicitation without an option", solicited(&ask()), HairpinNdp),
        case("solicitation with a nonce behind its option", solicited(&[with_source(), vec![14, 1, 1, 2, 3, 4, 5, 6]].concat()), HairpinNdp),
        case("solicitation to the address itself", icmp(IMDS_IPV6, &ask()), HairpinNdp),
        case("solicitation from a link-local address", Ipv6 { source: LINK_LOCAL, ..default() }.frame(&with_source()), HairpinNdp),
        case("probe (RFC 4862)", Ipv6 { source: UNSPECIFIED, ..default() }.frame(&ask()), HairpinNdp),
        case("probe with a nonce (RFC 7527)", Ipv6 { source: UNSPECIFIED, ..default() }.frame(&[ask(), vec![14, 1, 1, 2, 3, 4, 5, 6]].concat()), HairpinNdp),
        case("probe to the address itself", Ipv6 { source: UNSPECIFIED, destination: IMDS_IPV6, ..default() }.frame(&ask()), odd),
        case("solicitation to all nodes", icmp(ALL_NODES, &ask()), odd),
        case("solicitation that crossed a router", Ipv6 { hop_limit: 254, ..default() }.frame(&ask()), odd),
        case("solicitation with a code", solicited(&ndp(135, 1, &IMDS_IPV6)), odd),
        case("solicitation whose length is too short", Ipv6 { length: Some(20), ..default() }.frame(&ask()), odd),
        case("solicitation of another, sent to the address", icmp(IMDS_IPV6, &ndp(135, 0, &GUEST_IPV6)), odd),
        case("advertisement of the guest's address to the service", icmp(IMDS_IPV6, &ndp(136, 0, &GUEST_IPV6)), odd),
        case("router solicitation to the address", icmp(IMDS_IPV6, &[133, 0, 0, 0, 0, 0, 0, 0]), odd),
        case("router advertisement to the address", icmp(IMDS_IPV6, &[134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), odd),
        case("solicitation to the address that ends before its target", icmp(IMDS_IPV6, &ask()[..20]), Drop(Reason::Truncated)),
        case("ICMPv6 to the address without a type", icmp(IMDS_IPV6, &[]), Drop(Reason::Truncated)),
        early("solicitation that ends before its target", solicited(&ask()[..20]), Drop(Reason::Truncated)),
        early("ICMPv6 elsewhere without a type", icmp(ALL_NODES, &[]), Drop(Reason::Truncated)),
        case("solicitation from another MAC", eth(GATEWAY_MAC, OTHER_MAC, &[], 0x86dd, &default().packet(&ask())), Drop(Reason::SourceMacForged)),
        case("solicitation in a tag", eth(GATEWAY_MAC, GUEST_MAC, &[0x8100], 0x86dd, &default().packet(&ask())), Drop(Reason::VlanTagged)),
        case("solicitation from the address", Ipv6 { source: IMDS_IPV6, ..default() }.frame(&ask()), claimed),
        case("advertisement of the address to all nodes", icmp(ALL_NODES, &ndp(136, 0, &IMDS_IPV6)), claimed),
        case("advertisement of the address to a neighbour", icmp(OTHER_IPV6, &ndp(136, 0, &IMDS_IPV6)), claimed),
        case("advertisement of the address from the address", Ipv6 { source: IMDS_IPV6, destination: ALL_NODES, ..default() }.frame(&ndp(136, 0, &IMDS_IPV6)), claimed),
        case("redirect of the address", icmp(OTHER_IPV6, &redirect(GUEST_IPV6, IMDS_IPV6)), claimed),
        case("redirect to the address", icmp(OTHER_IPV6, &redirect(IMDS_IPV6, OTHER_IPV6)), claimed),
        case("redirect of others", icmp(OTHER_IPV6, &redirect(GUEST_IPV6, OTHER_IPV6)), Pass),
        case("router solicitation", icmp(ALL_NODES, &[133, 0, 0, 0, 0, 0, 0, 0]), Pass),
        case("router advertisement", icmp(ALL_NODES, &[134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Pass),
        case("solicitation of the gateway", icmp(ALL_NODES, &ndp(135, 0, &OTHER_IPV6)), Pass),
        case("solicitation of another in the same group", solicited(&ndp(135, 0, &SAME_GROUP)), Pass),
        case("advertisement of the guest's own address", icmp(ALL_NODES, &ndp(136, 0, &GUEST_IPV6)), Pass),
        case("echo elsewhere", icmp(OTHER_IPV6, &[128, 0, 0, 0, 0, 1, 0, 1]), Pass),
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

/// What guests are sent from the network, and whether it may go in. The sender says it is the service, MAC and all.
#[rustfmt::skip]
pub fn inbound() -> Vec<(&'static str, Vec<u8>, bool)> {
    let ether = |ethertype, packet: &[u8]| eth(GUEST_MAC, IMDS_MAC, &[], ethertype, packet);
    let tagged = |ethertype, packet: &[u8]| eth(GUEST_MAC, IMDS_MAC, &[0x8100], ethertype, packet);
    let ipv4 = |source| Ipv4 { source, destination: GUEST_IP, ..Ipv4::default() };
    let ipv6 = |source| Ipv6 { source, destination: GUEST_IPV6, ..Ipv6::default() };
    let discovery = |message: &[u8]| Ipv6 { next: 58, hop_limit: 255, ..ipv6(OTHER_IPV6) }.packet(message);
    let answer = tcp_from(80, 49152);
    let arp = |operation, sender_ip, target_ip| Arp { operation, sender_mac: IMDS_MAC, sender_ip, target_mac: GUEST_MAC, target_ip, ..Arp::default() }.message();
    let redirect = |target, about: [u8; 16]| discovery(&[ndp(137, 0, target), about.to_vec()].concat());
    vec![
        ("answer from the address", ether(0x0800, &ipv4(IMDS_IPV4).packet(&answer)), false),
        ("UDP from the address", ether(0x0800, &Ipv4 { protocol: 17, ..ipv4(IMDS_IPV4) }.packet(&[0; 8])), false),
        ("fragment from the address", ether(0x0800, &Ipv4 { fragment: 0x2000, ..ipv4(IMDS_IPV4) }.packet(&answer)), false),
        ("answer with options from the address", ether(0x0800, &Ipv4 { options: vec![1; 8], ..ipv4(IMDS_IPV4) }.packet(&answer)), false),
        ("tagged answer from the address", tagged(0x0800, &ipv4(IMDS_IPV4).packet(&answer)), false),
        ("IPv6 answer from the address", ether(0x86dd, &ipv6(IMDS_IPV6).packet(&answer)), false),
        ("IPv6 answer from the address behind options", ether(0x86dd, &ipv6(IMDS_IPV6).behind(&[60], 6, &answer)[14..]), false),
        ("tagged IPv6 answer from the address", tagged(0x86dd, &ipv6(IMDS_IPV6).packet(&answer)), false),
        ("ARP reply with the address", ether(0x0806, &arp(2, IMDS_IPV4, GUEST_IP)), false),
        ("ARP request from the address", ether(0x0806, &arp(1, IMDS_IPV4, GUEST_IP)), false),
        ("ARP announcement of the address", eth(BROADCAST, IMDS_MAC, &[], 0x0806, &arp(1, IMDS_IPV4, IMDS_IPV4)), false),
        ("advertisement of the address", ether(0x86dd, &discovery(&ndp(136, 0, &IMDS_IPV6))), false),
        ("advertisement of the address behind options", ether(0x86dd, &ipv6(OTHER_IPV6).behind(&[0, 60], 58, &ndp(136, 0, &IMDS_IPV6))[14..]), false),
        ("redirect of the address", ether(0x86dd, &redirect(&OTHER_IPV6, IMDS_IPV6)), false),
        ("redirect to the address", ether(0x86dd, &redirect(&IMDS_IPV6, OTHER_IPV6)), false),
        ("more extension headers than anyone looks behind", ether(0x86dd, &ipv6(OTHER_IPV6).behind(&[60; 9], 58, &ndp(136, 0, &IMDS_IPV6))[14..]), false),
        ("answer from the address in SNAP", ether(200, &snap(0x0800, &ipv4(IMDS_IPV4).packet(&answer))), false),
        ("ARP reply with the address in SNAP", ether(36, &snap(0x0806, &arp(2, IMDS_IPV4, GUEST_IP))), false),
        ("RARP reply that gives the address away", ether(0x8035, &arp(4, [10, 0, 0, 1], IMDS_IPV4)), false),
        ("answer from elsewhere", ether(0x0800, &ipv4([10, 0, 0, 1]).packet(&answer)), true),
        ("DNS answer from 169.254.169.253", ether(0x0800, &Ipv4 { protocol: 17, ..ipv4([169, 254, 169, 253]) }.packet(&[0, 53, 0, 53, 0, 8, 0, 0])), true),
        ("request to the address, which no guest has", ether(0x0800, &Ipv4 { source: [10, 0, 0, 1], ..Ipv4::default() }.packet(&tcp(80, 0))), true),
        ("IPv6 answer from elsewhere", ether(0x86dd, &ipv6(OTHER_IPV6).packet(&answer)), true),
        ("IPv6 answer from one in the same group", ether(0x86dd, &ipv6(SAME_GROUP).packet(&answer)), true),
        ("ARP request of a neighbour for the address", ether(0x0806, &arp(1, [10, 0, 0, 1], IMDS_IPV4)), true),
        ("ARP reply of a neighbour", ether(0x0806, &arp(2, [10, 0, 0, 1], GUEST_IP)), true),
        ("solicitation of the guest", ether(0x86dd, &discovery(&ndp(135, 0, &GUEST_IPV6))), true),
        ("advertisement of a neighbour", ether(0x86dd, &discovery(&ndp(136, 0, &OTHER_IPV6))), true),
        ("redirect of others", ether(0x86dd, &redirect(&OTHER_IPV6, SAME_GROUP)), true),
        ("router advertisement", ether(0x86dd, &discovery(&[134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])), true),
    ]
}
