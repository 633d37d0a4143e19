//! Frames of all shapes, put together by hand: nothing checks here that they make sense.

use imds_ebpf::abi::{IMDS_IPV4, IMDS_IPV6, MacAddr};

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

/// The guest's IPv6 address.
pub const GUEST_IPV6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

/// A neighbour on the guest's network.
pub const OTHER_IPV6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// The guest's link-local address.
pub const LINK_LOCAL: [u8; 16] = [
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0, 0xff, 0xfe, 0x12, 0x34, 0x56,
];
/// Every node on the link.
pub const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Another's address that shares the metadata address's solicited-node group.
pub const SAME_GROUP: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54];

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

/// A packet behind the SNAP header of RFC 1042, which stands in an 802.3 frame.
pub fn snap(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    [&[0xaa, 0xaa, 3, 0, 0, 0][..], &ethertype.to_be_bytes(), packet].concat()
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

/// The fields of an IPv6 header; by default those of a request's packet.
#[derive(Clone, Debug)]
pub struct Ipv6 {
    /// Version, traffic class and flow label.
    pub first: [u8; 4],
    /// Bytes behind the header, where it is not what there is.
    pub length: Option<u16>,
    /// Number of the next header.
    pub next: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

impl Default for Ipv6 {
    fn default() -> Self {
        Self {
            first: [0x60, 0, 0, 0],
            length: None,
            next: 6,
            hop_limit: 64,
            source: GUEST_IPV6,
            destination: IMDS_IPV6,
        }
    }
}

impl Ipv6 {
    /// The packet with this header.
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut packet = self.first.to_vec();
        packet.extend(self.length.unwrap_or(payload.len() as u16).to_be_bytes());
        packet.extend([self.next, self.hop_limit]);
        packet.extend(self.source);
        packet.extend(self.destination);
        packet.extend(payload);
        packet
    }

    /// The frame with this packet, from the guest by its gateway.
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        eth(GATEWAY_MAC, GUEST_MAC, &[], 0x86dd, &self.packet(payload))
    }

    /// The frame in which `payload`, whose number is `last`, stands behind extension headers of eight bytes each.
    pub fn behind(&self, extensions: &[u8], last: u8, payload: &[u8]) -> Vec<u8> {
        let mut chain = Vec::new();
        for next in extensions.iter().skip(1).chain([&last]) {
            // Options are padding; what they say is nobody's business. For a fragment header: the first of several.
            chain.extend([*next, 0, 0, 1, 0, 0, 0, 0]);
        }
        chain.extend(payload);
        let next = extensions.first().copied().unwrap_or(last);
        Self { next, ..self.clone() }.frame(&chain)
    }

    /// The frame with a fragment whose offset field is `offset`.
    pub fn fragment(&self, offset: u16, last: u8, payload: &[u8]) -> Vec<u8> {
        let [high, low] = offset.to_be_bytes();
        let header = [last, 0, high, low, 0, 0, 0, 1];
        Self {
            next: 44,
            ..self.clone()
        }
        .frame(&[&header, payload].concat())
    }
}

/// An NDP message about `target`, its checksum left out and without options.
pub fn ndp(kind: u8, code: u8, target: &[u8; 16]) -> Vec<u8> {
    [&[kind, code, 0, 0, 0, 0, 0, 0][..], target].concat()
}

/// A TCP segment to `port` with `length` bytes of payload, its checksum left to an offload. Without payload it is a SYN.
pub fn tcp(port: u16, length: usize) -> Vec<u8> {
    let mut segment = tcp_from(49152, port);
    segment[13] = if length == 0 { 0x02 } else { 0x18 };
    segment.resize(20 + length, b'x');
    segment
}

/// A SYN between two ports.
pub fn tcp_from(source: u16, destination: u16) -> Vec<u8> {
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
pub(crate) fn internet_checksum(bytes: &[u8]) -> u16 {
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
