//! The answer to an ARP request for the metadata address, made from the request.
//!
//! RFC 826, "Packet Reception": swap the two ends, put one's own addresses in, send it back to where it came from. The
//! kernel part writes these bytes over the request and redirects it out of the tap that it came in by.

use crate::{
    abi::{IMDS_IPV4, IMDS_MAC, MacAddr},
    classify::Frame,
    headers::{ARP_FRAME_BYTES, ARP_SENDER_IP, ETHERNET_BYTES, ETHERNET_SOURCE},
};

/// The reply to `request`, which [`classify`](crate::classify::classify) found to be a well-formed one. It goes to the
/// Ethernet source, which is the tap's bound MAC, and to the sender's IP, which is 0.0.0.0 for a probe.
#[inline(always)]
pub fn arp_reply<F: Frame + ?Sized>(request: &F) -> Option<[u8; ARP_FRAME_BYTES]> {
    let guest = MacAddr(request.load(ETHERNET_SOURCE)?);
    let guest_ip: [u8; 4] = request.load(ETHERNET_BYTES + ARP_SENDER_IP)?;
    Some(arp_reply_to(guest, guest_ip))
}

/// "The metadata address is at the service's MAC", told to one guest.
#[inline(always)]
#[rustfmt::skip]
fn arp_reply_to(MacAddr([g0, g1, g2, g3, g4, g5]): MacAddr, [p0, p1, p2, p3]: [u8; 4]) -> [u8; ARP_FRAME_BYTES] {
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
}
