//! The verdict over one outbound frame, in numbered steps. The first step that decides ends it.
//!
//! Does the frame concern the metadata address at all? Every packet of every guest pays for these four:
//! 1. The frame ends before its EtherType: [`Reason::Truncated`].
//! 2. 802.1Q and 802.1ad tags are looked through. A frame that ends inside them: [`Reason::Truncated`]; more than
//!    [`TAGS_MAX`] of them, which nobody sends and which may hide anything: [`Reason::VlanTagged`].
//! 3. Neither IPv4 nor ARP: pass.
//! 4. IPv4 or ARP that ends before its addresses: [`Reason::Truncated`], because nobody can tell where it goes. Neither
//!    of its two addresses is the metadata address: pass, whatever its source MAC (nested guests, containers on a bridge).
//!
//! From here on the frame concerns the address, and whatever is decided, it does not pass:
//! 5. No MAC is bound to the tap: [`Reason::TapUnbound`].
//! 6. The Ethernet source is not the bound MAC: [`Reason::SourceMacForged`].
//! 7. The frame is tagged, inline or beside the frame: [`Reason::VlanTagged`]. The service is on the untagged network only.
//!
//! ARP:
//! 8. The sender's address is the metadata address, be it a reply, a request or an announcement:
//!    [`Reason::AddressClaimed`].
//! 9. Not a request for IPv4 over Ethernet, or sent to a multicast group: [`Reason::ArpNotRequest`].
//! 10. The sender's hardware address is not the bound MAC: [`Reason::SourceMacForged`].
//! 11. Hairpin. That includes a probe, whose sender address is 0.0.0.0: an answer is how RFC 5227 (section 2.1.1) has
//!     the owner of an address tell a newcomer to take another one, while silence would tell the guest that the address
//!     is free.
//!
//! IPv4:
//! 8. Version other than 4, or a header shorter than 20 bytes: [`Reason::MalformedIpHeader`].
//! 9. The source is the metadata address: [`Reason::AddressClaimed`].
//! 10. More fragments follow, or this is not the first: [`Reason::Fragment`].
//! 11. Not TCP: [`Reason::NotTcp`].
//! 12. The frame ends before the destination port, which stands behind the options: [`Reason::Truncated`].
//! 13. Another port than 80: [`Reason::NotHttpPort`].
//! 14. Longer than the large ring record: [`Reason::FrameTooLong`].
//! 15. Punt.
//!
//! What is deliberately absent: tunnels (an address inside GRE or VXLAN is another network's), 802.3 with LLC (Linux
//! speaks no IP in it), checksums (a guest's offloads leave them unfinished), lengths inside the packet (the stack checks).

#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable
    )
)]

use crate::{
    abi::{IMDS_IPV4, IMDS_PORT, LARGE_FRAME_MAX, MacAddr, Reason, TapBinding},
    headers::{
        ARP_FIXED, ARP_REQUEST, ARP_SENDER_IP, ARP_SENDER_MAC, ARP_TARGET_IP, ETHERNET_BYTES,
        ETHERNET_DESTINATION, ETHERNET_SOURCE, ETHERNET_TYPE, IPV4_ADDRESSES, IPV4_BYTES_MIN, IPV4_FRAGMENT,
        IPV4_FRAGMENT_MASK, IPV4_PROTOCOL, IPV4_VERSION_AND_LENGTH, PROTOCOL_TCP, TAG_BYTES, TAGS_MAX,
        TCP_DESTINATION_PORT, TYPE_ARP, TYPE_IPV4, TYPE_TAGS,
    },
};

/// Read access to a frame, the only door to its bytes.
pub trait Frame {
    /// Loads `N` bytes at `offset` from the start of the Ethernet header, or nothing when the frame ends before.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Whether the kernel already took a VLAN tag off the frame and keeps it beside it.
    fn has_vlan_tag_aside(&self) -> bool;

    /// Bytes of the whole frame.
    fn length(&self) -> usize;
}

/// What happens to a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// None of our business: on to the guest's ordinary network, untouched.
    Pass,
    /// Consumed and counted.
    Drop(Reason),
    /// An ARP request for the metadata address, to be answered from inside the kernel.
    HairpinArp,
    /// Metadata traffic: copied to the agent, then consumed.
    Punt,
}

/// Decides over one outbound frame. `binding` is asked only for frames that concern the metadata address.
#[inline(always)]
pub fn classify<F: Frame + ?Sized>(frame: &F, binding: impl FnOnce() -> Option<TapBinding>) -> Verdict {
    let concern = match concern(frame) {
        Ok(Some(concern)) => concern,
        Ok(None) => return Verdict::Pass,
        Err(reason) => return Verdict::Drop(reason),
    };
    let decided = match identify(frame, &concern, binding) {
        Ok(mac) => match concern.protocol {
            Protocol::Arp => classify_arp(frame, concern.network, mac),
            Protocol::Ipv4 => classify_ipv4(frame, concern.network),
        },
        Err(reason) => Err(reason),
    };
    match decided {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    }
}

/// A frame that has the metadata address as its source or destination.
struct Concern {
    protocol: Protocol,
    /// Where the network header starts.
    network: usize,
    /// A tag stands inside the frame.
    tagged: bool,
}

#[derive(Clone, Copy)]
enum Protocol {
    Arp,
    Ipv4,
}

/// Steps 1 to 4.
#[inline(always)]
fn concern<F: Frame + ?Sized>(frame: &F) -> Result<Option<Concern>, Reason> {
    let mut ethertype = frame.load(ETHERNET_TYPE).ok_or(Reason::Truncated)?;
    let mut network = ETHERNET_BYTES;
    let tagged = is_tag(ethertype);
    if tagged {
        (ethertype, network) = skip_tags(frame)?;
    }
    let (protocol, first, second) = match ethertype {
        TYPE_IPV4 => (Protocol::Ipv4, IPV4_ADDRESSES, IPV4_ADDRESSES + IMDS_IPV4.len()),
        TYPE_ARP => (Protocol::Arp, ARP_SENDER_IP, ARP_TARGET_IP),
        _ => return Ok(None),
    };
    let second = frame.load(network + second).ok_or(Reason::Truncated)?;
    let first = frame.load(network + first).ok_or(Reason::Truncated)?;
    Ok((second == IMDS_IPV4 || first == IMDS_IPV4).then_some(Concern {
        protocol,
        network,
        tagged,
    }))
}

#[inline(always)]
fn is_tag(ethertype: [u8; 2]) -> bool {
    let [dot1q, dot1ad, qinq] = TYPE_TAGS;
    ethertype == dot1q || ethertype == dot1ad || ethertype == qinq
}

/// The EtherType behind the tags, and where its header starts.
#[inline(always)]
fn skip_tags<F: Frame + ?Sized>(frame: &F) -> Result<([u8; 2], usize), Reason> {
    for tags in 1..=TAGS_MAX {
        let ethertype = frame
            .load(ETHERNET_TYPE + tags * TAG_BYTES)
            .ok_or(Reason::Truncated)?;
        if !is_tag(ethertype) {
            return Ok((ethertype, ETHERNET_BYTES + tags * TAG_BYTES));
        }
    }
    Err(Reason::VlanTagged)
}

/// Steps 5 to 7: the bound MAC, which the frame's source is.
#[inline(always)]
fn identify<F: Frame + ?Sized>(
    frame: &F,
    concern: &Concern,
    binding: impl FnOnce() -> Option<TapBinding>,
) -> Result<MacAddr, Reason> {
    let mac = binding().ok_or(Reason::TapUnbound)?.mac;
    let source = frame.load(ETHERNET_SOURCE).ok_or(Reason::Truncated)?;
    if source != mac.0 {
        return Err(Reason::SourceMacForged);
    }
    if concern.tagged || frame.has_vlan_tag_aside() {
        return Err(Reason::VlanTagged);
    }
    Ok(mac)
}

/// Steps 8 to 11 of ARP.
#[inline(always)]
fn classify_arp<F: Frame + ?Sized>(frame: &F, network: usize, mac: MacAddr) -> Result<Verdict, Reason> {
    let sender_ip = frame.load(network + ARP_SENDER_IP).ok_or(Reason::Truncated)?;
    if sender_ip == IMDS_IPV4 {
        return Err(Reason::AddressClaimed);
    }
    let fixed = frame.load(network + ARP_FIXED).ok_or(Reason::Truncated)?;
    let destination: [u8; 6] = frame.load(ETHERNET_DESTINATION).ok_or(Reason::Truncated)?;
    if fixed != ARP_REQUEST || (is_group(destination) && destination != BROADCAST) {
        return Err(Reason::ArpNotRequest);
    }
    let sender_mac = frame.load(network + ARP_SENDER_MAC).ok_or(Reason::Truncated)?;
    if sender_mac != mac.0 {
        return Err(Reason::SourceMacForged);
    }
    Ok(Verdict::HairpinArp)
}

const BROADCAST: [u8; 6] = [0xff; 6];

#[inline(always)]
fn is_group([first, ..]: [u8; 6]) -> bool {
    first & 1 == 1
}

/// Steps 8 to 15 of IPv4.
#[inline(always)]
fn classify_ipv4<F: Frame + ?Sized>(frame: &F, network: usize) -> Result<Verdict, Reason> {
    let [version_and_length] = frame
        .load(network + IPV4_VERSION_AND_LENGTH)
        .ok_or(Reason::Truncated)?;
    let header_bytes = usize::from(version_and_length & 0x0f) * 4;
    if version_and_length >> 4 != 4 || header_bytes < IPV4_BYTES_MIN {
        return Err(Reason::MalformedIpHeader);
    }
    let source = frame.load(network + IPV4_ADDRESSES).ok_or(Reason::Truncated)?;
    if source == IMDS_IPV4 {
        return Err(Reason::AddressClaimed);
    }
    let fragment = frame.load(network + IPV4_FRAGMENT).ok_or(Reason::Truncated)?;
    if u16::from_be_bytes(fragment) & IPV4_FRAGMENT_MASK != 0 {
        return Err(Reason::Fragment);
    }
    let [protocol] = frame.load(network + IPV4_PROTOCOL).ok_or(Reason::Truncated)?;
    if protocol != PROTOCOL_TCP {
        return Err(Reason::NotTcp);
    }
    let port = frame
        .load(network + header_bytes + TCP_DESTINATION_PORT)
        .ok_or(Reason::Truncated)?;
    if u16::from_be_bytes(port) != IMDS_PORT {
        return Err(Reason::NotHttpPort);
    }
    if frame.length() > LARGE_FRAME_MAX {
        return Err(Reason::FrameTooLong);
    }
    Ok(Verdict::Punt)
}

/// A frame that lies in memory as a whole, its tags inline: on the host, in tests and in tools.
impl Frame for [u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }

    fn has_vlan_tag_aside(&self) -> bool {
        false
    }

    fn length(&self) -> usize {
        self.len()
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    extern crate std;
    use std::vec::Vec;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);

    fn bound() -> Option<TapBinding> {
        Some(TapBinding {
            mac: MAC,
            reserved: [0; 2],
        })
    }

    /// Bytes that are random but for the fields that steer the classifier, each of which is likely to be the right one.
    fn likely_frame(random: &mut SmallRng) -> Vec<u8> {
        let length = random.random_range(0..96);
        let mut frame = std::vec![0; length];
        random.fill(&mut frame[..]);
        let network = ETHERNET_BYTES + TAG_BYTES * random.random_range(0..3);
        let mut place = |offset: usize, bytes: &[u8], likely: f64| {
            if random.random_bool(likely)
                && let Some(room) = frame.get_mut(offset..offset + bytes.len())
            {
                room.copy_from_slice(bytes);
            }
        };
        place(ETHERNET_TYPE, &TYPE_TAGS[0], 1.0);
        place(ETHERNET_TYPE + TAG_BYTES, &TYPE_TAGS[1], 1.0);
        place(network - 2, &TYPE_IPV4, 0.9);
        place(network - 2, &TYPE_ARP, 0.3);
        place(ETHERNET_SOURCE, &MAC.0, 0.9);
        place(network, &[0x45], 0.8);
        place(network + IPV4_FRAGMENT, &[0x40, 0], 0.8);
        place(network + IPV4_PROTOCOL, &[PROTOCOL_TCP], 0.8);
        place(network + IPV4_ADDRESSES + 4, &IMDS_IPV4, 0.8);
        place(network + 22, &IMDS_PORT.to_be_bytes(), 0.8);
        frame
    }

    /// Whether the address stands where a receiver would read it, told without the code under test.
    fn concerns_the_address(frame: &[u8]) -> bool {
        let mut rest = &frame[12.min(frame.len())..];
        while let [0x81 | 0x91, 0x00, _, _, inner @ ..] | [0x88, 0xa8, _, _, inner @ ..] = rest {
            rest = inner;
        }
        match rest {
            [0x08, 0x00, packet @ ..] if packet.len() >= 20 => {
                packet[12..16] == IMDS_IPV4 || packet[16..20] == IMDS_IPV4
            }
            [0x08, 0x06, message @ ..] if message.len() >= 28 => {
                message[14..18] == IMDS_IPV4 || message[24..28] == IMDS_IPV4
            }
            _ => false,
        }
    }

    #[test]
    fn a_frame_that_concerns_the_address_never_passes_and_no_other_is_taken() {
        let mut random = SmallRng::seed_from_u64(0xa9fe_a9fe);
        let (mut passed, mut punted, mut dropped) = (0, 0, 0);
        for _ in 0..200_000 {
            let frame = likely_frame(&mut random);
            let verdict = classify(&frame[..], bound);
            if concerns_the_address(&frame) {
                assert_ne!(verdict, Verdict::Pass, "{frame:02x?}");
                assert_eq!(
                    classify(&frame[..], || None),
                    Verdict::Drop(Reason::TapUnbound),
                    "{frame:02x?}"
                );
            } else {
                assert!(
                    matches!(
                        verdict,
                        Verdict::Pass | Verdict::Drop(Reason::Truncated | Reason::VlanTagged)
                    ),
                    "{verdict:?} {frame:02x?}"
                );
            }
            match verdict {
                Verdict::Pass => passed += 1,
                Verdict::Punt => punted += 1,
                Verdict::Drop(_) | Verdict::HairpinArp => dropped += 1,
            }
        }
        assert!(
            passed > 1000 && punted > 1000 && dropped > 1000,
            "{passed} {punted} {dropped}"
        );
    }

    #[test]
    fn binding_is_not_asked_for_frames_of_others() {
        let mut frame = [0; 60];
        frame[12..14].copy_from_slice(&TYPE_IPV4);
        frame[30..34].copy_from_slice(&[169, 254, 169, 253]);
        assert_eq!(
            classify(&frame[..], || panic!("looked up for nothing")),
            Verdict::Pass
        );
    }
}
