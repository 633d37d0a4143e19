//! T1: the classifier on real taps, whose guest is the test: frames out here, the rest in rooms of its own.

mod inbound;
mod ingress;
mod life;
mod limits;
mod links;
mod offloads;
mod rings;
mod room;
mod takeover;

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use aya::util::KernelVersion;
use imds_agent::datapath::{Classifier, Counters, Hook, PuntRing};
use imds_ebpf::{
    abi::{IMDS_IPV4, IMDS_IPV6, IMDS_MAC, Reason, TapBinding, TapIndex},
    classify::{SOLICITED_NODE, UNSPECIFIED, Verdict},
};
use imds_tests::{
    frames::{Arp, BROADCAST, GUEST_IP, GUEST_IPV6, GUEST_MAC, Ipv4, Ipv6, ndp, tcp},
    kernel::in_namespaces,
    leaks::{ENDS_WITHIN_ITS_TAG, Leaks},
    tap::{Tap, VNET_HEADER_BYTES},
    verdicts::{Case, table},
};

/// What is bound to the guest's tap.
const BINDING: TapBinding = TapBinding::to(GUEST_MAC).with_ipv6();

/// The kinds of hook that this kernel has, the best first.
fn hooks() -> &'static [Hook] {
    if KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(6, 6, 0)) {
        return &[Hook::Tcx, Hook::Clsact];
    }
    println!("skipped: TCX, which this kernel does not have");
    &[Hook::Clsact]
}

#[test]
fn classifier_hangs_on_the_best_hook_of_its_kernel() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let guest = Tap::new("guest")?;
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        classifier.attach(guest.index())?;
        ensure!(Some(&classifier.hook()) == hooks().first(), "{classifier:?}");
        println!("it hangs on {:?}", classifier.hook());
        Ok(())
    })?;
    Ok(())
}

/// Every frame of the table through a tap into the host's network, a bridge with another guest on it: what passes arrives
/// there unchanged and in order, and nothing else does. Without a classifier all of it would.
#[test]
fn table_through_a_tap_on_a_bridge() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let leaks = Leaks::new()?;
        leaks.sees_every_shape()?;
        let guest = leaks.guest();
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        let mut ring = only_ring(&mut classifier)?;
        classifier.attach(guest.index())?;
        classifier.bind(guest.index(), BINDING)?;

        let (mut expected, mut passed) = (Counters::default(), Vec::new());
        for Case {
            name, frame, verdict, ..
        } in table()
        {
            if name == ENDS_WITHIN_ITS_TAG {
                println!("skipped: the kernel itself drops {name}");
                continue;
            }
            guest.send(&frame)?;
            match verdict {
                Verdict::Pass => passed.push((name, frame)),
                Verdict::Drop(reason) => *expected.dropped.entry(reason).or_default() += 1,
                Verdict::HairpinArp => {
                    expected.hairpinned += 1;
                    guest.receive(is_arp_reply).context(name)?;
                }
                Verdict::HairpinNdp => {
                    expected.hairpinned += 1;
                    guest.receive(is_advertisement).context(name)?;
                }
                Verdict::Punt => {
                    expected.punted += 1;
                    let punt = ring
                        .next()
                        .with_context(|| format!("{name} is not in the ring"))?;
                    ensure!(
                        punt.frame == frame && punt.tap == guest.index() && punt.mac == GUEST_MAC,
                        "{name}"
                    );
                }
            }
            ensure!(ring.next().is_none(), "{name}: a frame too much in the ring");
            let counted = classifier.counters(guest.index())?;
            ensure!(
                counted == expected,
                "{name}: counted {counted:?} instead of {expected:?}"
            );
        }
        leaks.expect(passed)
    })?;
    Ok(())
}

/// A guest's offloads leave frames of several kilobytes with headers beyond the linear part, and unfinished checksums.
#[test]
fn frames_of_a_guest_with_offloads_are_punted_whole() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let guest = Tap::with_vnet_header("guest")?;
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        let mut ring = only_ring(&mut classifier)?;
        classifier.attach(guest.index())?;
        classifier.bind(guest.index(), BINDING)?;

        let frame = Ipv4::default().frame(&tcp(80, 8000));
        // `struct virtio_net_hdr`: checksum wanted, TCP over IPv4 in pieces of 1448, headers of 54, checksum at 34 + 16.
        let segmented = [1, 1, 54, 0, 168, 5, 34, 0, 16, 0];
        // Says nothing about headers, so that the kernel keeps only the Ethernet header in the linear part.
        for header in [segmented, [0; VNET_HEADER_BYTES]] {
            guest.send_offloaded(header, &frame)?;
            let punt = ring.next().context("nothing in the ring")?;
            ensure!(
                punt.frame == frame,
                "punted {} bytes of {}",
                punt.frame.len(),
                frame.len()
            );
        }
        guest.send(
            &Ipv4 {
                protocol: 17,
                ..Ipv4::default()
            }
            .frame(&[0; 8000]),
        )?;
        let counters = classifier.counters(guest.index())?;
        ensure!(
            counters.punted == 2 && counters.dropped_for(Reason::NotTcp) == 1,
            "{counters:?}"
        );
        Ok(())
    })?;
    Ok(())
}

#[test]
fn arp_request_is_answered_on_its_own_tap() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let guest = Tap::new("guest")?;
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        classifier.attach(guest.index())?;
        classifier.bind(guest.index(), BINDING)?;

        guest.send(&Arp::default().frame(BROADCAST))?;
        let reply = guest.receive(is_arp_reply)?;
        ensure!(
            reply[..6] == GUEST_MAC.0 && reply[6..12] == IMDS_MAC.0,
            "{reply:02x?}"
        );
        let message = Arp {
            operation: 2,
            sender_mac: IMDS_MAC,
            sender_ip: IMDS_IPV4,
            target_mac: GUEST_MAC,
            target_ip: GUEST_IP,
            ..Arp::default()
        };
        ensure!(reply[14..42] == message.message(), "{reply:02x?}");
        Ok(())
    })?;
    Ok(())
}

/// RFC 4861, section 7.2.4.
#[test]
fn solicitation_is_answered_on_its_own_tap() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let guest = Tap::new("guest")?;
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        classifier.attach(guest.index())?;
        classifier.bind(guest.index(), BINDING)?;
        let solicitation = Ipv6 {
            destination: SOLICITED_NODE,
            next: 58,
            hop_limit: 255,
            ..Ipv6::default()
        };
        let option = [1, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56];
        let question = [&ndp(135, 0, &IMDS_IPV6)[..], &option].concat();

        guest.send(&solicitation.frame(&question))?;
        let answer = guest.receive(is_advertisement)?;
        ensure!(answer.len() == 86 && answer[..6] == GUEST_MAC.0, "{answer:02x?}");
        ensure!(
            answer[22..38] == IMDS_IPV6 && answer[38..54] == GUEST_IPV6,
            "{answer:02x?}"
        );
        ensure!(answer[58] == 0x60 && answer[62..78] == IMDS_IPV6, "{answer:02x?}");
        ensure!(
            answer[78..] == [&[2, 1][..], &IMDS_MAC.0].concat(),
            "{answer:02x?}"
        );

        // A probe has no option and no source; its answer is longer than it, and for everyone.
        let probe = Ipv6 {
            source: UNSPECIFIED,
            ..solicitation
        };
        guest.send(&probe.frame(&ndp(135, 0, &IMDS_IPV6)))?;
        let answer = guest.receive(is_advertisement)?;
        ensure!(
            answer.len() == 86 && answer[..6] == [0x33, 0x33, 0, 0, 0, 1] && answer[58] == 0x20,
            "{answer:02x?}"
        );
        Ok(())
    })?;
    Ok(())
}

fn only_ring(classifier: &mut Classifier) -> anyhow::Result<PuntRing> {
    classifier.rings().pop().context("no ring")
}

/// How many frames of each tap are in the ring.
fn punted(ring: &mut PuntRing) -> BTreeMap<TapIndex, u64> {
    let mut frames = BTreeMap::new();
    while let Some(punt) = ring.next() {
        *frames.entry(punt.tap).or_default() += 1;
    }
    frames
}

fn is_arp_reply(frame: &[u8]) -> bool {
    matches!(frame.get(12..22), Some([0x08, 0x06, .., 0, 2]))
}

/// From the service.
fn is_advertisement(frame: &[u8]) -> bool {
    frame.get(6..14) == Some(&[&IMDS_MAC.0[..], &[0x86, 0xdd]].concat()[..]) && frame.get(54) == Some(&136)
}
