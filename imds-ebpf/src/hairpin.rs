//! The answers to an ARP request and to a neighbour solicitation for the metadata address, made from the question.
//!
//! RFC 826, "Packet Reception": swap the two ends, put one's own addresses in, send it back to where it came from. RFC 4861,
//! section 7.2.4, says the same of NDP, and where the answer to one without an address goes. The kernel part writes these
//! bytes over the question and redirects it out of the tap that it came in by.

use crate::{
    abi::{IMDS_IPV4, IMDS_IPV6, IMDS_MAC, MacAddr},
    classify::{Frame, UNSPECIFIED},
    headers::{
        ARP_FRAME_BYTES, ARP_SENDER_IP, ETHERNET_BYTES, ETHERNET_DESTINATION, ETHERNET_SOURCE, ETHERNET_TYPE,
        IPV6_BYTES, IPV6_DESTINATION, IPV6_HOP_LIMIT, IPV6_NEXT_HEADER, IPV6_PAYLOAD_LENGTH, IPV6_SOURCE,
        IPV6_VERSION, NDP_ADVERTISEMENT, NDP_HOP_LIMIT, NDP_TARGET, PROTOCOL_ICMPV6, TYPE_IPV6,
    },
};

/// The reply to `request`, which [`classify`](crate::classify::classify) found to be a well-formed one. It goes to the
/// Ethernet source, which is the tap's bound MAC, and to the sender's IP, which is 0.0.0.0 for a probe.
#[inline(always)]
pub fn arp_reply<F: Frame + ?Sized>(request: &F) -> Option<[u8; ARP_FRAME_BYTES]> {
    let guest = request.load(ETHERNET_SOURCE)?;
    let guest_ip: [u8; 4] = request.load(ETHERNET_BYTES + ARP_SENDER_IP)?;
    Some(arp_reply_to(guest, guest_ip))
}

/// Bytes of an Ethernet header and a neighbour advertisement with one option.
pub const ADVERTISEMENT_FRAME_BYTES: usize = ETHERNET_BYTES + IPV6_BYTES + ADVERTISEMENT_BYTES;

/// The advertisement that answers `solicitation`, which [`classify`](crate::classify::classify) found to be a valid one. It
/// goes to the Ethernet source and the IPv6 source; the probe of one without an address is answered to all nodes, which
/// on this tap is the guest alone.
#[inline(always)]
pub fn advertisement<F: Frame + ?Sized>(solicitation: &F) -> Option<[u8; ADVERTISEMENT_FRAME_BYTES]> {
    let guest: [u8; 6] = solicitation.load(ETHERNET_SOURCE)?;
    let guest_ip: [u8; 16] = solicitation.load(ETHERNET_BYTES + IPV6_SOURCE)?;
    Some(if guest_ip == UNSPECIFIED {
        advertisement_to(ALL_NODES_MAC, ALL_NODES, OVERRIDE)
    } else {
        advertisement_to(guest, guest_ip, SOLICITED | OVERRIDE)
    })
}

/// "The metadata address is at the service's MAC", told to one guest.
#[inline(always)]
#[rustfmt::skip]
fn arp_reply_to([g0, g1, g2, g3, g4, g5]: [u8; 6], [p0, p1, p2, p3]: [u8; 4]) -> [u8; ARP_FRAME_BYTES] {
    let MacAddr([s0, s1, s2, s3, s4, s5]) = IMDS_MAC;
    let [i0, i1, i2, i3] = IMDS_IPV4;
    [
        g0, g1, g2, g3, g4, g5,     // Ethernet destination
        s0, s1, s2, s3, s4, s5,     // Ethernet source
        0x08, 0x06,                 // ARP
        0x00, 0x01, 0x08, 0x00,     // IPv4 over Ethernet
        6, 4,                       // lengths of their addresses
        0x00, 0x02,                 // reply
        s0, s1, s2, s3, s4, s5,     // sender
        i0, i1, i2, i3,
        g0, g1, g2, g3, g4, g5,     // target
        p0, p1, p2, p3,
    ]
}

/// All nodes on the link (RFC 4291, section 2.7.1), and the Ethernet group that they listen on (RFC 2464, section 7).
const ALL_NODES: [u8; 16] = [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Flags of an advertisement: it answers a solicitation; it overrides what the guest had cached.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// Type, code, checksum, flags, target, and the option with the target's link-layer address.
const ADVERTISEMENT_BYTES: usize = 32;

const ICMPV6: usize = ETHERNET_BYTES + IPV6_BYTES;
const ICMPV6_CHECKSUM: usize = ICMPV6 + 2;
const ADVERTISEMENT_FLAGS: usize = ICMPV6 + 4;

/// What every advertisement has in common: all but whom it goes to, its flags and its checksum.
const ADVERTISEMENT: [u8; ADVERTISEMENT_FRAME_BYTES] = {
    const OPTION: usize = ICMPV6 + NDP_TARGET + IMDS_IPV6.len();
    let mut frame = [0; ADVERTISEMENT_FRAME_BYTES];
    put(&mut frame, ETHERNET_SOURCE, IMDS_MAC.0);
    put(&mut frame, ETHERNET_TYPE, TYPE_IPV6);
    put(&mut frame, ETHERNET_BYTES + IPV6_VERSION, [0x60]);
    put(
        &mut frame,
        ETHERNET_BYTES + IPV6_PAYLOAD_LENGTH,
        [0, ADVERTISEMENT_BYTES as u8],
    );
    put(&mut frame, ETHERNET_BYTES + IPV6_NEXT_HEADER, [PROTOCOL_ICMPV6]);
    put(&mut frame, ETHERNET_BYTES + IPV6_HOP_LIMIT, [NDP_HOP_LIMIT]);
    put(&mut frame, ETHERNET_BYTES + IPV6_SOURCE, IMDS_IPV6);
    put(&mut frame, ICMPV6, [NDP_ADVERTISEMENT]);
    put(&mut frame, ICMPV6 + NDP_TARGET, IMDS_IPV6);
    // Target link-layer address, in one unit of eight bytes.
    put(&mut frame, OPTION, [2, 1]);
    put(&mut frame, OPTION + 2, IMDS_MAC.0);
    frame
};

/// What these contribute to the checksum: their pseudo-header (RFC 8200, section 8.1) and the message. The destination and
/// the flags are still zero.
#[expect(
    clippy::indexing_slicing,
    reason = "the compiler makes this sum, and refuses an index past the end"
)]
const ADVERTISEMENT_SUM: u32 = {
    let mut sum = ADVERTISEMENT_BYTES as u32 + PROTOCOL_ICMPV6 as u32;
    let mut at = ETHERNET_BYTES + IPV6_SOURCE;
    while at < ADVERTISEMENT_FRAME_BYTES {
        sum += u16::from_be_bytes([ADVERTISEMENT[at], ADVERTISEMENT[at + 1]]) as u32;
        at += 2;
    }
    sum
};

#[inline(always)]
fn advertisement_to(mac: [u8; 6], ip: [u8; 16], flags: u8) -> [u8; ADVERTISEMENT_FRAME_BYTES] {
    let mut frame = ADVERTISEMENT;
    put(&mut frame, ETHERNET_DESTINATION, mac);
    put(&mut frame, ETHERNET_BYTES + IPV6_DESTINATION, ip);
    put(&mut frame, ADVERTISEMENT_FLAGS, [flags]);
    put(&mut frame, ICMPV6_CHECKSUM, checksum(ip, flags));
    frame
}

#[inline(always)]
const fn put<const N: usize>(frame: &mut [u8; ADVERTISEMENT_FRAME_BYTES], offset: usize, bytes: [u8; N]) {
    if let Some((_, rest)) = frame.split_at_mut_checked(offset)
        && let Some(room) = rest.first_chunk_mut()
    {
        *room = bytes;
    }
}

/// RFC 1071, of an advertisement to `ip`.
#[inline(always)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "44 words of 16 bits are far below 32 bits"
)]
fn checksum(ip: [u8; 16], flags: u8) -> [u8; 2] {
    let (words, _) = ip.as_chunks();
    let ip_sum: u32 = words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)))
        .sum();
    // At most 44 words of 16 bits: what they carry over is folded in twice.
    let sum = ADVERTISEMENT_SUM + ip_sum + (u32::from(flags) << 8);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_answered_to_its_sender() {
        let mut request = [0; 60];
        request[..6].copy_from_slice(&[0xff; 6]);
        request[6..12].copy_from_slice(&[0x52, 0x54, 0, 1, 2, 3]);
        request[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
        request[22..28].copy_from_slice(&[0x52, 0x54, 0, 1, 2, 3]);
        request[28..32].copy_from_slice(&[10, 0, 0, 7]);
        request[38..42].copy_from_slice(&IMDS_IPV4);

        let reply = arp_reply(&request[..]).unwrap();
        assert_eq!(reply[..6], [0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(reply[6..12], IMDS_MAC.0);
        assert_eq!(reply[12..22], [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2]);
        assert_eq!(reply[22..28], IMDS_MAC.0);
        assert_eq!(reply[28..32], IMDS_IPV4);
        assert_eq!(reply[32..38], [0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(reply[38..42], [10, 0, 0, 7]);
    }

    #[test]
    fn request_that_ends_early_has_no_answer() {
        assert_eq!(arp_reply(&[0; 31][..]), None);
    }

    fn solicitation(source: [u8; 16]) -> [u8; 78] {
        let mut frame = [0; 78];
        frame[6..12].copy_from_slice(&[0x52, 0x54, 0, 1, 2, 3]);
        frame[22..38].copy_from_slice(&source);
        frame
    }

    /// Over pseudo-header and message, checksum included: all ones when it is right.
    fn sum(frame: &[u8]) -> u16 {
        let (words, _) = frame[22..].as_chunks();
        let mut sum: u32 = words
            .iter()
            .map(|word| u32::from(u16::from_be_bytes(*word)))
            .sum();
        sum += 32 + 58;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn solicitation_is_answered_to_its_sender() {
        let mut guest_ip = [0xfd; 16];
        guest_ip[15] = 7;
        let answer = advertisement(&solicitation(guest_ip)[..]).unwrap();
        assert_eq!(answer[..6], [0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(answer[6..12], IMDS_MAC.0);
        assert_eq!(answer[12..22], [0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
        assert_eq!(answer[22..38], IMDS_IPV6);
        assert_eq!(answer[38..54], guest_ip);
        assert_eq!(answer[54..56], [136, 0]);
        assert_eq!(answer[58..62], [0x60, 0, 0, 0]);
        assert_eq!(answer[62..78], IMDS_IPV6);
        assert_eq!(answer[78..80], [2, 1]);
        assert_eq!(answer[80..86], IMDS_MAC.0);
        assert_eq!(sum(&answer), 0xffff);
    }

    #[test]
    fn probe_is_answered_to_all_nodes_and_unsolicited() {
        let answer = advertisement(&solicitation(UNSPECIFIED)[..]).unwrap();
        assert_eq!(answer[..6], ALL_NODES_MAC);
        assert_eq!(answer[38..54], ALL_NODES);
        assert_eq!(answer[58], 0x20);
        assert_eq!(sum(&answer), 0xffff);
    }

    #[test]
    fn checksum_is_right_whatever_the_sender() {
        for ip in [[0xff; 16], [0x80; 16], IMDS_IPV6, [1; 16]] {
            assert_eq!(
                sum(&advertisement(&solicitation(ip)[..]).unwrap()),
                0xffff,
                "{ip:?}"
            );
        }
    }
}
