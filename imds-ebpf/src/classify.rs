//! The verdict over one outbound frame, in numbered steps. The first step that decides ends it.
//!
//! Steps 1 to 5, whether the frame concerns the metadata address at all, are told in [`concern`](mod@crate::concern). A
//! frame that does not passes, whatever its source MAC (nested guests, containers on a bridge).
//!
//! From here on the frame concerns the address, and whatever is decided, it does not pass:
//! 6. No MAC is bound to the tap: [`Reason::TapUnbound`].
//! 7. The Ethernet source is not the bound MAC: [`Reason::SourceMacForged`].
//! 8. The frame is tagged, inline or beside the frame: [`Reason::VlanTagged`]. The service is on the untagged network only.
//!    It is an 802.3 frame with a SNAP header: [`Reason::SnapEncapsulated`]. The service speaks Ethernet II, as all do.
//!
//! ARP:
//! 9. The sender's address is the metadata address, be it a reply, a request or an announcement, or it stands in a RARP
//!    message: [`Reason::AddressClaimed`].
//! 10. Not a request for IPv4 over Ethernet, or sent to a multicast group: [`Reason::ArpNotRequest`].
//! 11. The sender's hardware address is not the bound MAC: [`Reason::SourceMacForged`].
//! 12. Hairpin. That includes a probe, whose sender address is 0.0.0.0: an answer is how RFC 5227 (section 2.1.1) has
//!     the owner of an address tell a newcomer to take another one, while silence would tell the guest that the address
//!     is free.
//!
//! IP:
//! 9. IPv6, and the tap's instance is not served on it: [`Reason::Ipv6Disabled`].
//! 10. A version that is not the EtherType's, or an IPv4 header shorter than 20 bytes: [`Reason::MalformedIpHeader`].
//! 11. The frame claims the address: [`Reason::AddressClaimed`].
//! 12. More fragments follow, or this is not the first: [`Reason::Fragment`]. Other extension headers of IPv6:
//!     [`Reason::ExtensionHeader`].
//! 13. NDP other than a solicitation of the address that RFC 4861 (section 7.1.1) calls valid:
//!     [`Reason::NdpNotSolicitation`]. Such a one: hairpin, be it a neighbour's or the probe of a guest that would take
//!     the address for itself (RFC 4862, section 5.4). Its options are not looked at: the answer goes to the bound MAC.
//! 14. Not TCP: [`Reason::NotTcp`]. One ICMP message is excepted and goes on to step 17: that a packet from the service's
//!     port expired on its way ([`expired`](mod@crate::expired)), by which the agent knows why a session token is not
//!     acknowledged.
//! 15. The frame ends before the destination port, which stands behind IPv4's options: [`Reason::Truncated`].
//! 16. Another port than 80: [`Reason::NotHttpPort`].
//! 17. Longer than the large ring record: [`Reason::FrameTooLong`].
//! 18. Punt.
//!
//! What is deliberately absent: checksums (a guest's offloads leave them unfinished), lengths inside the packet (the stack
//! checks).

use crate::{
    abi::{IMDS_IPV6, IMDS_PORT, LARGE_FRAME_MAX, MacAddr, Reason, TapBinding},
    concern::{Concern, Protocol, Role, concern, is_extension},
    expired::{expired_ipv4, expired_ipv6},
    headers::{
        ARP_FIXED, ARP_REQUEST, ARP_SENDER_MAC, ETHERNET_DESTINATION, ETHERNET_SOURCE, EXTENSION_FRAGMENT,
        IPV4_BYTES_MIN, IPV4_FRAGMENT, IPV4_FRAGMENT_MASK, IPV4_PROTOCOL, IPV4_VERSION_AND_LENGTH,
        IPV6_BYTES, IPV6_DESTINATION, IPV6_HOP_LIMIT, IPV6_NEXT_HEADER, IPV6_PAYLOAD_LENGTH, IPV6_SOURCE,
        IPV6_VERSION, NDP_HOP_LIMIT, NDP_REDIRECT, NDP_SOLICITATION, NDP_SOLICITATION_BYTES, NDP_TARGET,
        NDP_TYPE_MIN, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, TCP_DESTINATION_PORT,
    },
};

/// Read access to a frame, the only door to its bytes.
pub trait Frame {
    /// Loads `N` bytes at `offset` from the start of the Ethernet header, or nothing when the frame ends before.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The same, for an offset that the frame itself tells: it costs more in the kernel, but the verifier need not follow
    /// where the offset may lead.
    fn load_far<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

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
    /// A neighbour solicitation of it, likewise.
    HairpinNdp,
    /// Metadata traffic, or word of its packets that expired: copied to the agent, then consumed.
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
        Ok(binding) => match concern.protocol {
            Protocol::Arp => classify_arp(frame, &concern, binding.mac),
            Protocol::Ipv4 => classify_packet(frame, &concern, read_ipv4),
            Protocol::Ipv6 if !binding.serves_ipv6() => Err(Reason::Ipv6Disabled),
            Protocol::Ipv6 => classify_packet(frame, &concern, read_ipv6),
        },
        Err(reason) => Err(reason),
    };
    match decided {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Steps 6 to 8: the binding, whose MAC the frame's source is.
#[inline(always)]
fn identify<F: Frame + ?Sized>(
    frame: &F,
    concern: &Concern,
    binding: impl FnOnce() -> Option<TapBinding>,
) -> Result<TapBinding, Reason> {
    let binding = binding().ok_or(Reason::TapUnbound)?;
    let source = frame.load(ETHERNET_SOURCE).ok_or(Reason::Truncated)?;
    if source != binding.mac.0 {
        return Err(Reason::SourceMacForged);
    }
    if concern.tagged || frame.has_vlan_tag_aside() {
        return Err(Reason::VlanTagged);
    }
    if concern.is_snap {
        return Err(Reason::SnapEncapsulated);
    }
    Ok(binding)
}

/// Steps 9 to 12 of ARP.
#[inline(always)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "offsets are of a few headers (`headers`)"
)]
fn classify_arp<F: Frame + ?Sized>(frame: &F, concern: &Concern, mac: MacAddr) -> Result<Verdict, Reason> {
    let network = concern.network;
    if concern.role == Role::Claims {
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

/// What the headers of either IP version say.
struct Packet {
    payload: Payload,
    /// Where the payload starts.
    start: usize,
}

enum Payload {
    Tcp,
    Icmp,
    Icmpv6,
    Fragment,
    Extended,
    Other,
}

#[inline(always)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "offsets are of a few headers (`headers`)"
)]
fn read_ipv4<F: Frame + ?Sized>(frame: &F, network: usize) -> Result<Packet, Reason> {
    let [version_and_length] = frame
        .load(network + IPV4_VERSION_AND_LENGTH)
        .ok_or(Reason::Truncated)?;
    let header_bytes = usize::from(version_and_length & 0x0f) * 4;
    if version_and_length >> 4 != 4 || header_bytes < IPV4_BYTES_MIN {
        return Err(Reason::MalformedIpHeader);
    }
    let fragment = frame.load(network + IPV4_FRAGMENT).ok_or(Reason::Truncated)?;
    let [protocol] = frame.load(network + IPV4_PROTOCOL).ok_or(Reason::Truncated)?;
    Ok(Packet {
        payload: match protocol {
            _ if u16::from_be_bytes(fragment) & IPV4_FRAGMENT_MASK != 0 => Payload::Fragment,
            PROTOCOL_TCP => Payload::Tcp,
            PROTOCOL_ICMP => Payload::Icmp,
            _ => Payload::Other,
        },
        start: network + header_bytes,
    })
}

#[inline(always)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "offsets are of a few headers (`headers`)"
)]
fn read_ipv6<F: Frame + ?Sized>(frame: &F, network: usize) -> Result<Packet, Reason> {
    let [version] = frame.load(network + IPV6_VERSION).ok_or(Reason::Truncated)?;
    if version >> 4 != 6 {
        return Err(Reason::MalformedIpHeader);
    }
    let [next] = frame.load(network + IPV6_NEXT_HEADER).ok_or(Reason::Truncated)?;
    Ok(Packet {
        payload: match next {
            PROTOCOL_TCP => Payload::Tcp,
            PROTOCOL_ICMPV6 => Payload::Icmpv6,
            EXTENSION_FRAGMENT => Payload::Fragment,
            _ if is_extension(next) => Payload::Extended,
            _ => Payload::Other,
        },
        start: network + IPV6_BYTES,
    })
}

/// Steps 10 to 18 of IP.
#[inline(always)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "offsets are of a few headers (`headers`)"
)]
fn classify_packet<F: Frame + ?Sized>(
    frame: &F,
    concern: &Concern,
    read: impl FnOnce(&F, usize) -> Result<Packet, Reason>,
) -> Result<Verdict, Reason> {
    let Packet { payload, start } = read(frame, concern.network)?;
    if concern.role == Role::Claims {
        return Err(Reason::AddressClaimed);
    }
    match payload {
        Payload::Fragment => return Err(Reason::Fragment),
        Payload::Extended => return Err(Reason::ExtensionHeader),
        Payload::Icmp if expired_ipv4(frame, start).is_some() => {}
        Payload::Icmpv6 if expired_ipv6(frame, start).is_some() => {}
        Payload::Icmpv6 => return classify_icmpv6(frame, concern.network, start),
        Payload::Icmp | Payload::Other => return Err(Reason::NotTcp),
        Payload::Tcp => {
            let port = frame
                .load(start + TCP_DESTINATION_PORT)
                .ok_or(Reason::Truncated)?;
            if u16::from_be_bytes(port) != IMDS_PORT {
                return Err(Reason::NotHttpPort);
            }
        }
    }
    if frame.length() > LARGE_FRAME_MAX {
        return Err(Reason::FrameTooLong);
    }
    Ok(Verdict::Punt)
}

/// Step 13.
#[inline(always)]
fn classify_icmpv6<F: Frame + ?Sized>(frame: &F, network: usize, message: usize) -> Result<Verdict, Reason> {
    let [kind] = frame.load(message).ok_or(Reason::Truncated)?;
    if !(NDP_TYPE_MIN..=NDP_REDIRECT).contains(&kind) {
        return Err(Reason::NotTcp);
    }
    match is_valid_solicitation(frame, network, message) {
        Some(true) => Ok(Verdict::HairpinNdp),
        Some(false) => Err(Reason::NdpNotSolicitation),
        None => Err(Reason::Truncated),
    }
}

/// Nothing when the frame ends too early to tell.
#[inline(always)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "offsets are of a few headers (`headers`)"
)]
fn is_valid_solicitation<F: Frame + ?Sized>(frame: &F, network: usize, message: usize) -> Option<bool> {
    let kind_and_code: [u8; 2] = frame.load(message)?;
    if kind_and_code != [NDP_SOLICITATION, 0] {
        return Some(false);
    }
    let [hop_limit] = frame.load(network + IPV6_HOP_LIMIT)?;
    let length = u16::from_be_bytes(frame.load(network + IPV6_PAYLOAD_LENGTH)?);
    let target: [u8; 16] = frame.load(message + NDP_TARGET)?;
    if hop_limit != NDP_HOP_LIMIT || length < NDP_SOLICITATION_BYTES || target != IMDS_IPV6 {
        return Some(false);
    }
    let source: [u8; 16] = frame.load(network + IPV6_SOURCE)?;
    let destination: [u8; 16] = frame.load(network + IPV6_DESTINATION)?;
    Some(destination == SOLICITED_NODE || (destination == IMDS_IPV6 && source != UNSPECIFIED))
}

/// The solicited-node multicast address of the metadata address (RFC 4291, section 2.7.1), which others share whose last
/// 24 bits are the same.
pub const SOLICITED_NODE: [u8; 16] = {
    let [.., a, b, c] = IMDS_IPV6;
    [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]
};

/// The source of one who has no address yet.
pub const UNSPECIFIED: [u8; 16] = [0; 16];

/// A frame that lies in memory as a whole, its tags inline: on the host, in tests and in tools.
impl Frame for [u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }

    fn load_far<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.load(offset)
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
    use crate::abi::IMDS_IPV4;
    use crate::headers::{
        ETHERNET_BYTES, ETHERNET_TYPE, IPV4_DESTINATION, SNAP_BYTES, SNAP_HEADERS, TAG_BYTES, TYPE_ARP,
        TYPE_IPV4, TYPE_IPV6, TYPE_RARP, TYPE_TAGS,
    };

    extern crate std;
    use std::vec::Vec;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);

    fn bound() -> Option<TapBinding> {
        Some(TapBinding::to(MAC).with_ipv6())
    }

    /// Bytes that are random but for the fields that steer the classifier, each of which is likely to be the right one.
    fn likely_frame(random: &mut SmallRng) -> Vec<u8> {
        let length = random.random_range(0..128);
        let mut frame = std::vec![0; length];
        random.fill(&mut frame[..]);
        let tagged = ETHERNET_BYTES + TAG_BYTES * random.random_range(0..3);
        let is_snap = random.random_bool(0.2);
        let network = if is_snap { tagged + SNAP_BYTES } else { tagged };
        let is_ipv6 = random.random_bool(0.5);
        let extensions = random.random_range(0..3);
        let is_bridged = random.random_bool(0.5);
        let mut place = |offset: usize, bytes: &[u8], likely: f64| {
            if random.random_bool(likely)
                && let Some(room) = frame.get_mut(offset..offset + bytes.len())
            {
                room.copy_from_slice(bytes);
            }
        };
        place(ETHERNET_TYPE, &TYPE_TAGS[0], 1.0);
        place(ETHERNET_TYPE + TAG_BYTES, &TYPE_TAGS[1], 1.0);
        if is_snap {
            place(tagged - 2, &[0, 60], 0.9);
            place(tagged, &SNAP_HEADERS[usize::from(is_bridged)], 0.9);
        }
        place(ETHERNET_SOURCE, &MAC.0, 0.9);
        if is_ipv6 {
            place(network - 2, &TYPE_IPV6, 0.95);
            place(network, &[0x60], 0.9);
            place(network + IPV6_PAYLOAD_LENGTH, &[0, 24], 0.9);
            place(network + IPV6_HOP_LIMIT, &[255], 0.9);
            place(network + IPV6_DESTINATION, &IMDS_IPV6, 0.4);
            place(network + IPV6_DESTINATION, &SOLICITED_NODE, 0.3);
            place(network + IPV6_SOURCE, &IMDS_IPV6, 0.1);
            let mut next = network + IPV6_NEXT_HEADER;
            let mut start = network + IPV6_BYTES;
            for _ in 0..extensions {
                place(next, &[0], 0.3);
                place(next, &[EXTENSION_FRAGMENT], 0.2);
                place(start, &[60, 0, 0, 0], 0.9);
                next = start;
                start += 8;
            }
            place(next, &[PROTOCOL_TCP], 0.4);
            place(next, &[PROTOCOL_ICMPV6], 0.5);
            place(start, &[NDP_SOLICITATION, 0, 0, 80], 0.6);
            place(start, &[NDP_SOLICITATION + 1], 0.2);
            place(start, &[NDP_SOLICITATION + 2], 0.2);
            place(start + NDP_TARGET, &IMDS_IPV6, 0.5);
            place(start + NDP_TARGET + 16, &IMDS_IPV6, 0.2);
        } else {
            place(network - 2, &TYPE_IPV4, 0.9);
            place(network - 2, &TYPE_ARP, 0.3);
            place(network - 2, &TYPE_RARP, 0.1);
            place(network, &[0x45], 0.8);
            place(network + IPV4_FRAGMENT, &[0x40, 0], 0.8);
            place(network + IPV4_PROTOCOL, &[PROTOCOL_TCP], 0.8);
            place(network + IPV4_DESTINATION, &IMDS_IPV4, 0.8);
            place(network + 22, &IMDS_PORT.to_be_bytes(), 0.8);
        }
        frame
    }

    /// Whether the address stands where a receiver would read it, told without the code under test.
    fn concerns_the_address(frame: &[u8]) -> bool {
        let mut rest = &frame[12.min(frame.len())..];
        while let [0x81 | 0x91, 0x00, _, _, inner @ ..] | [0x88, 0xa8, _, _, inner @ ..] = rest {
            rest = inner;
        }
        if let [0..=5, _, 0xaa, 0xaa, 3, 0, 0, 0 | 0xf8, inner @ ..] = rest {
            rest = inner;
        }
        match rest {
            [0x08, 0x00, packet @ ..] if packet.len() >= 20 => {
                packet[12..16] == IMDS_IPV4 || packet[16..20] == IMDS_IPV4
            }
            [0x08, 0x06, message @ ..] | [0x80, 0x35, message @ ..] if message.len() >= 28 => {
                message[14..18] == IMDS_IPV4 || message[24..28] == IMDS_IPV4
            }
            [0x86, 0xdd, packet @ ..] if packet.len() >= 40 => {
                packet[8..24] == IMDS_IPV6
                    || packet[24..40] == IMDS_IPV6
                    || discovers_the_address(packet[6], &packet[40..])
            }
            _ => false,
        }
    }

    fn discovers_the_address(next: u8, payload: &[u8]) -> bool {
        match (next, payload) {
            (44, [_, _, high, low, ..]) if *high != 0 || *low & !7 != 0 => false,
            (44, [next, _, _, _, _, _, _, _, rest @ ..]) => discovers_the_address(*next, rest),
            (0 | 43 | 60, [next, units, rest @ ..]) => rest
                .get(usize::from(*units) * 8 + 6..)
                .is_some_and(|rest| discovers_the_address(*next, rest)),
            (58, [135 | 136, _, _, _, _, _, _, _, rest @ ..]) => rest.starts_with(&IMDS_IPV6),
            (58, [137, _, _, _, _, _, _, _, rest @ ..]) => {
                rest.starts_with(&IMDS_IPV6) || rest.get(16..32) == Some(&IMDS_IPV6)
            }
            _ => false,
        }
    }

    #[test]
    fn a_frame_that_concerns_the_address_never_passes_and_no_other_is_taken() {
        let mut random = SmallRng::seed_from_u64(0xa9fe_a9fe);
        let (mut passed, mut punted, mut hairpinned, mut dropped) = (0, 0, 0, 0);
        for _ in 0..400_000 {
            let frame = likely_frame(&mut random);
            let verdict = classify(&frame[..], bound);
            if concerns_the_address(&frame) {
                assert_ne!(verdict, Verdict::Pass, "{frame:02x?}");
                assert!(
                    matches!(
                        classify(&frame[..], || None),
                        Verdict::Drop(Reason::TapUnbound | Reason::Truncated)
                    ),
                    "{frame:02x?}"
                );
            } else {
                assert!(
                    matches!(
                        verdict,
                        Verdict::Pass
                            | Verdict::Drop(
                                Reason::Truncated
                                    | Reason::VlanTagged
                                    | Reason::SnapEncapsulated
                                    | Reason::ExtensionHeader
                            )
                    ),
                    "{verdict:?} {frame:02x?}"
                );
            }
            match verdict {
                Verdict::Pass => passed += 1,
                Verdict::Punt => punted += 1,
                Verdict::HairpinArp | Verdict::HairpinNdp => hairpinned += 1,
                Verdict::Drop(_) => dropped += 1,
            }
        }
        assert!(
            passed > 1000 && punted > 1000 && hairpinned > 100 && dropped > 1000,
            "{passed} {punted} {hairpinned} {dropped}"
        );
    }

    #[test]
    fn binding_is_not_asked_for_frames_of_others() {
        let mut frame = [PROTOCOL_TCP; 60];
        for (ethertype, address, at) in [
            (TYPE_IPV4, &[169, 254, 169, 253][..], 30),
            (TYPE_IPV6, &[0x02, 0x53][..], 52),
        ] {
            frame[12..14].copy_from_slice(&ethertype);
            frame[at..at + address.len()].copy_from_slice(address);
            assert_eq!(
                classify(&frame[..], || panic!("looked up for nothing")),
                Verdict::Pass
            );
        }
    }
}
