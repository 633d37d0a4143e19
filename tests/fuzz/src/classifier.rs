//! Frames of a guest and of the network, through the classifier's pure part.
//!
//! What a verdict means is told here once more, in the plainest way: by slices of the frame.

use imds_ebpf::{
    abi::{IMDS_IPV4, IMDS_IPV6, INJECT_MARK, LARGE_FRAME_MAX, Reason, TapBinding},
    classify::{Frame, Verdict, classify},
    hairpin::{advertisement, arp_reply},
    inbound::admit,
};
use imds_tests::frames::GUEST_MAC;

/// A frame, and whether the kernel took a tag off it.
struct Aside<'a> {
    bytes: &'a [u8],
    has_tag: bool,
}

impl Frame for Aside<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..)?.first_chunk().copied()
    }

    fn load_far<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.load(offset)
    }

    fn has_vlan_tag_aside(&self) -> bool {
        self.has_tag
    }

    fn length(&self) -> usize {
        self.bytes.len()
    }
}

/// The first byte of `data` says how the tap is bound, and whether a tag stands aside. The rest is the frame.
pub fn run(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else {
        return;
    };
    let frame = Aside {
        bytes,
        has_tag: how & 1 != 0,
    };
    let binding = match how >> 1 & 3 {
        0 => None,
        1 => Some(TapBinding::to(GUEST_MAC)),
        _ => Some(TapBinding::to(GUEST_MAC).with_ipv6()),
    };
    let verdict = classify(&frame, || binding);
    let (ethertype, network) = behind_tags(bytes);
    let network = bytes.get(network..).unwrap_or_default();
    let (from, to): (&[u8], &[u8]) = match ethertype {
        Some(0x0800) => (part(network, 12, 4), part(network, 16, 4)),
        Some(0x0806 | 0x8035) => (part(network, 14, 4), part(network, 24, 4)),
        Some(0x86dd) => (part(network, 8, 16), part(network, 24, 16)),
        _ => (&[], &[]),
    };
    let is_address = |address: &[u8]| address == IMDS_IPV4 || address == IMDS_IPV6;
    match verdict {
        Verdict::Pass => {
            assert!(!is_address(from) && !is_address(to), "it leaks");
            assert!(
                ethertype != Some(0x86dd) || !discovers_the_address(network),
                "word of it leaks"
            );
            assert_eq!(
                admit(&frame, 0),
                Ok(()),
                "what is none of our business may go in as well"
            );
        }
        Verdict::Drop(reason) => assert!(
            !matches!(
                reason,
                Reason::RingFull | Reason::RateLimited | Reason::HairpinFailed | Reason::InboundForged
            ),
            "{reason:?} is another's to say"
        ),
        Verdict::Punt => {
            assert!(is_address(to) && !is_address(from));
            assert!(is_the_guests(&frame, binding) && bytes.len() <= LARGE_FRAME_MAX);
            let (protocol, payload) = if ethertype == Some(0x0800) {
                assert_eq!(network[6] & 0x3f | network[7], 0, "a fragment");
                (network[9], usize::from(network[0] & 15) * 4)
            } else {
                assert!(binding.is_some_and(|binding| binding.serves_ipv6()));
                (network[6], 40)
            };
            if protocol == 6 {
                assert_eq!(part(network, payload + 2, 2), [0, 80], "another port");
            } else {
                is_word_of_ours(protocol, network.get(payload..).unwrap_or_default());
            }
        }
        Verdict::HairpinArp => {
            assert!(is_the_guests(&frame, binding) && to == IMDS_IPV4);
            check_reply(&arp_reply(&frame).expect("an answer to it"));
        }
        Verdict::HairpinNdp => {
            assert!(is_the_guests(&frame, binding));
            let reply = advertisement(&frame).expect("an answer to it");
            check_reply(&reply);
            assert_eq!(sum_of_icmpv6(&reply), 0xffff, "a wrong checksum");
        }
    }
    // And inbound, whatever it is.
    assert_eq!(admit(&frame, INJECT_MARK), Ok(()));
    assert!(
        !is_address(from) || admit(&frame, 0).is_err(),
        "somebody else speaks as the service"
    );
}

/// Whether an IPv6 packet is a message of NDP (RFC 4861) that has the address in it, behind whatever headers a receiver looks
/// through.
fn discovers_the_address(packet: &[u8]) -> bool {
    let (mut next, mut payload) = match packet {
        [_, _, _, _, _, _, next, ..] => (*next, packet.get(40..).unwrap_or_default()),
        _ => return false,
    };
    loop {
        (next, payload) = match (next, payload) {
            // A later fragment (RFC 6980).
            (44, [_, _, high, low, ..]) if *high != 0 || *low & !7 != 0 => return false,
            (44, [inner, _, _, _, _, _, _, _, rest @ ..]) => (*inner, rest),
            (0 | 43 | 60, [inner, units, rest @ ..]) => (
                *inner,
                rest.get(usize::from(*units) * 8 + 6..).unwrap_or_default(),
            ),
            (58, [135 | 136, ..]) => return part(payload, 8, 16) == IMDS_IPV6,
            (58, [137, ..]) => {
                return part(payload, 8, 16) == IMDS_IPV6 || part(payload, 24, 16) == IMDS_IPV6;
            }
            _ => return false,
        };
    }
}

/// A router's word that a packet of ours expired: ICMP's type 11 or ICMPv6's 3, code 0, and what it quotes is TCP from port 80 of
/// the address.
fn is_word_of_ours(protocol: u8, message: &[u8]) {
    let quoted = message.get(8..).unwrap_or_default();
    let (kind, from, quoted_protocol, tcp): (_, &[u8], _, _) = match protocol {
        1 => (
            11,
            &IMDS_IPV4,
            part(quoted, 9, 1),
            usize::from(quoted[0] & 15) * 4,
        ),
        58 => (3, &IMDS_IPV6, part(quoted, 6, 1), 40),
        _ => panic!("protocol {protocol}"),
    };
    assert_eq!(part(message, 0, 2), [kind, 0]);
    let source = if protocol == 1 {
        part(quoted, 12, 4)
    } else {
        part(quoted, 8, 16)
    };
    assert_eq!((source, quoted_protocol), (from, &[6][..]));
    assert_eq!(part(quoted, tcp, 2), [0, 80], "another port");
}

fn is_the_guests(frame: &Aside<'_>, binding: Option<TapBinding>) -> bool {
    let (ethertype, network) = behind_tags(frame.bytes);
    binding.is_some()
        && part(frame.bytes, 6, 6) == GUEST_MAC.0
        && !frame.has_tag
        && network == 14
        && ethertype.is_some()
}

/// The service's own words go in by their mark, and from a forger not at all.
fn check_reply(reply: &[u8]) {
    let frame = Aside {
        bytes: reply,
        has_tag: false,
    };
    assert_eq!(admit(&frame, INJECT_MARK), Ok(()));
    assert_eq!(admit(&frame, 0), Err(Reason::InboundForged));
}

fn behind_tags(frame: &[u8]) -> (Option<u16>, usize) {
    let mut offset = 12;
    loop {
        let ethertype = frame
            .get(offset..)
            .and_then(<[u8]>::first_chunk)
            .copied()
            .map(u16::from_be_bytes);
        match ethertype {
            Some(0x8100 | 0x88a8 | 0x9100) => offset += 4,
            Some(0..0x600) if matches!(part(frame, offset + 2, 6), [0xaa, 0xaa, 3, 0, 0, 0 | 0xf8]) => {
                offset += 8;
            }
            _ => return (ethertype, offset + 2),
        }
    }
}

fn part(bytes: &[u8], offset: usize, length: usize) -> &[u8] {
    bytes
        .get(offset..)
        .and_then(|bytes| bytes.get(..length))
        .unwrap_or_default()
}

/// RFC 1071, over the pseudo-header of RFC 8200 and the message.
fn sum_of_icmpv6(frame: &[u8]) -> u32 {
    let message = &frame[54..];
    let words = frame[22..54].chunks(2).chain(message.chunks(2));
    let sum: u32 = words
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = sum + message.len() as u32 + 58;
    (sum & 0xffff) + (sum >> 16)
}
