//! Offsets and sizes of the headers that the classifier reads.
//!
//! Read first: RFC 894 (Ethernet), IEEE 802.1Q clause 9 (tags), RFC 826 (ARP), RFC 791 (IPv4), RFC 9293 (TCP).
//! Offsets inside a network header count from where that header starts, because tags may stand in front of it.

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
/// EtherTypes of tags: 802.1Q, 802.1ad, and the QinQ type that switches used before 802.1ad.
pub const TYPE_TAGS: [[u8; 2]; 3] = [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]];

/// Version (high four bits) and header length in 32-bit words (low four bits).
pub const IPV4_VERSION_AND_LENGTH: usize = 0;
/// Flags (high three bits) and fragment offset.
pub const IPV4_FRAGMENT: usize = 6;
/// More-fragments flag and fragment offset: zero in a packet that is whole.
pub const IPV4_FRAGMENT_MASK: u16 = 0x3fff;
/// Protocol number.
pub const IPV4_PROTOCOL: usize = 9;
/// Source and destination address, side by side.
pub const IPV4_ADDRESSES: usize = 12;
/// Bytes of an IPv4 header without options.
pub const IPV4_BYTES_MIN: usize = 20;
/// Protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;

/// Destination port, from the start of the TCP header.
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
