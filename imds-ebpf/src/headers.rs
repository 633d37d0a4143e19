//! Offsets and sizes of the headers that the classifier reads.
//!
//! Read first: RFC 894 (Ethernet), IEEE 802.1Q clause 9 (tags), RFC 826 (ARP), RFC 791 (IPv4), RFC 8200 (IPv6), RFC 4861
//! (NDP), RFC 792 and RFC 4443 (ICMP), RFC 9293 (TCP).
//! Offsets inside a network header count from where that header starts, because tags may stand in front of it. From the start
//! of the frame nothing stands behind more than tags, a SNAP header, an IP header and [`EXTENSIONS_MAX`] extension headers of 2 KiB,
//! so that no sum of offsets overflows.

/// Ethernet destination: six bytes.
pub const ETHERNET_DESTINATION: usize = 0;
/// Ethernet source: six bytes.
pub const ETHERNET_SOURCE: usize = 6;
/// EtherType, or the length of an 802.3 frame.
pub const ETHERNET_TYPE: usize = 12;
/// Bytes of an Ethernet header.
pub const ETHERNET_BYTES: usize = 14;

/// Bytes that an 802.1Q or 802.1ad tag puts in front of the next EtherType.
pub const TAG_BYTES: usize = 4;
/// Tags that may stand in a row: as many as Linux itself looks through (`VLAN_MAX_DEPTH`).
pub const TAGS_MAX: usize = 8;

/// EtherType of IPv4.
pub const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// EtherType of ARP.
pub const TYPE_ARP: [u8; 2] = [0x08, 0x06];
/// EtherType of RARP (RFC 903), whose messages are laid out as ARP's.
pub const TYPE_RARP: [u8; 2] = [0x80, 0x35];
/// EtherType of IPv6.
pub const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// EtherTypes of tags: 802.1Q, 802.1ad, and the QinQ type that switches used before 802.1ad.
pub const TYPE_TAGS: [[u8; 2]; 3] = [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]];

/// High byte of the lowest EtherType: what is lower is the length of an 802.3 frame (IEEE 802.3, clause 3.2.6).
pub const TYPE_MIN: u8 = 0x06;
/// LLC and the organization of a SNAP header around EtherTypes: of RFC 1042, and of bridges to other media (IEEE 802.1H).
pub const SNAP_HEADERS: [[u8; 6]; 2] = [[0xaa, 0xaa, 3, 0, 0, 0], [0xaa, 0xaa, 3, 0, 0, 0xf8]];
/// Bytes of a SNAP header, the EtherType at its end included.
pub const SNAP_BYTES: usize = 8;

/// Version (high four bits) and header length in 32-bit words (low four bits).
pub const IPV4_VERSION_AND_LENGTH: usize = 0;
/// Flags (high three bits) and fragment offset.
pub const IPV4_FRAGMENT: usize = 6;
/// More-fragments flag and fragment offset: zero in a packet that is whole.
pub const IPV4_FRAGMENT_MASK: u16 = 0x3fff;
/// Protocol number.
pub const IPV4_PROTOCOL: usize = 9;
/// Source address.
pub const IPV4_SOURCE: usize = 12;
/// Destination address.
pub const IPV4_DESTINATION: usize = 16;
/// Bytes of an IPv4 header without options.
pub const IPV4_BYTES_MIN: usize = 20;
/// Protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// Protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;

/// Version: the high four bits.
pub const IPV6_VERSION: usize = 0;
/// Bytes behind the header.
pub const IPV6_PAYLOAD_LENGTH: usize = 4;
/// Protocol number, or that of an extension header.
pub const IPV6_NEXT_HEADER: usize = 6;
/// Hop limit.
pub const IPV6_HOP_LIMIT: usize = 7;
/// Source address.
pub const IPV6_SOURCE: usize = 8;
/// Destination address.
pub const IPV6_DESTINATION: usize = 24;
/// Bytes of an IPv6 header.
pub const IPV6_BYTES: usize = 40;
/// Protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// Number of the hop-by-hop options header.
pub const EXTENSION_HOP_BY_HOP: u8 = 0;
/// Number of the routing header.
pub const EXTENSION_ROUTING: u8 = 43;
/// Number of the fragment header: its length is fixed, and its third and fourth byte hold the offset.
pub const EXTENSION_FRAGMENT: u8 = 44;
/// Number of the destination options header.
pub const EXTENSION_DESTINATION: u8 = 60;
/// The unit that the offset of a fragment and the length of any other extension header (its second byte, and one more)
/// are counted in. A fragment header is one such unit long.
pub const EXTENSION_UNIT: usize = 8;
/// The offset of a fragment, without its flags.
pub const EXTENSION_FRAGMENT_MASK: u16 = 0xfff8;
/// Extension headers that may stand in a row: each kind twice, which is more than RFC 8200 (section 4.1) knows a use for.
pub const EXTENSIONS_MAX: usize = 8;

/// The lowest ICMPv6 type of NDP, a router solicitation.
pub const NDP_TYPE_MIN: u8 = 133;
/// ICMPv6 type of a neighbour solicitation.
pub const NDP_SOLICITATION: u8 = 135;
/// ICMPv6 type of a neighbour advertisement.
pub const NDP_ADVERTISEMENT: u8 = 136;
/// ICMPv6 type of a redirect, the highest of NDP.
pub const NDP_REDIRECT: u8 = 137;
/// Target address of a solicitation, an advertisement or a redirect, from the start of the ICMPv6 message.
pub const NDP_TARGET: usize = 8;
/// The address that a redirect is about.
pub const NDP_REDIRECT_DESTINATION: usize = 24;
/// Bytes of a solicitation without options.
pub const NDP_SOLICITATION_BYTES: u16 = 24;
/// The hop limit of every NDP message: it crossed no router.
pub const NDP_HOP_LIMIT: u8 = 255;

/// Type and code of ICMP's message that a packet's time to live was exceeded in transit (code 1 is about fragments).
pub const ICMP_TIME_EXCEEDED: [u8; 2] = [11, 0];
/// Type and code of the same message of ICMPv6.
pub const ICMPV6_TIME_EXCEEDED: [u8; 2] = [3, 0];
/// The packet that an error message of either is about, from the start of the message.
pub const ICMP_QUOTE: usize = 8;

/// Source port, from the start of the TCP header.
pub const TCP_SOURCE_PORT: usize = 0;
/// Destination port.
pub const TCP_DESTINATION_PORT: usize = 2;

/// Hardware type, protocol type, the two address lengths and the operation.
pub const ARP_FIXED: usize = 0;
/// Sender's hardware address.
pub const ARP_SENDER_MAC: usize = 8;
/// Sender's protocol address.
pub const ARP_SENDER_IP: usize = 14;
/// Target's protocol address.
pub const ARP_TARGET_IP: usize = 24;
/// Bytes of an Ethernet header and an ARP message for IPv4 over Ethernet.
pub const ARP_FRAME_BYTES: usize = ETHERNET_BYTES + 28;
/// The fixed part of a request for IPv4 over Ethernet: hardware type 1, IPv4, lengths 6 and 4, operation 1.
pub const ARP_REQUEST: [u8; 8] = [0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01];
