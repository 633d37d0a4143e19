//! What a guest's offloads do to frames: pages instead of one piece, and work left over that makes no sense.

use anyhow::{Context as _, ensure};
use imds_agent::datapath::{Classifier, Counters};
use imds_ebpf::{
    abi::{IMDS_IPV6, LARGE_FRAME_MAX},
    classify::{SOLICITED_NODE, Verdict, classify},
};
use imds_tests::{
    frames::{Arp, BROADCAST, GUEST_MAC, Ipv4, Ipv6, ndp, padded, tcp},
    kernel::in_namespaces,
    leaks::Leaks,
    tap::{Tap, bridge},
    verdicts::table,
};

use crate::{BINDING, is_arp_reply, only_ring};

/// More than a page, behind whose Ethernet header the kernel keeps a frame in pages of its own.
const IN_PAGES: usize = 5000;

#[test]
fn table_in_frames_that_the_kernel_keeps_in_pages() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let leaks = Leaks::with_offloads()?;
        let guest = leaks.guest();
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        let mut ring = only_ring(&mut classifier)?;
        classifier.attach(guest.index())?;
        classifier.bind(guest.index(), BINDING.with_packets_per_second(0))?;
        let (mut expected, mut passed) = (Counters::default(), Vec::new());
        for case in table() {
            // What was too short for a verdict is not any more: the host tells what it is then.
            let frame = padded(case.frame, IN_PAGES);
            if frame.len() > LARGE_FRAME_MAX {
                continue;
            }
            let name = case.name;
            guest.send(&frame).context(name)?;
            match classify(&frame[..], || Some(BINDING)) {
                Verdict::Pass => passed.push((name, frame)),
                Verdict::Drop(reason) => *expected.dropped.entry(reason).or_default() += 1,
                Verdict::HairpinArp | Verdict::HairpinNdp => expected.hairpinned += 1,
                Verdict::Punt => {
                    expected.punted += 1;
                    let punt = ring
                        .next()
                        .with_context(|| format!("{name} is not in the ring"))?;
                    ensure!(punt.frame == frame, "{name}");
                }
            }
            let counted = classifier.counters(guest.index())?;
            ensure!(
                counted == expected,
                "{name}: counted {counted:?} instead of {expected:?}"
            );
        }
        ensure!(passed.len() > 50 && expected.punted > 30 && expected.hairpinned > 10);
        leaks.expect(passed)
    })?;
    Ok(())
}

/// The kernel refuses some of it. With the rest a guest spoils answers to itself at worst.
#[test]
fn senseless_offloads_lead_nothing_past_the_classifier() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let (guest, neighbour) = (Tap::with_vnet_header("guest")?, Tap::new("neighbour")?);
        bridge("bridge", &[guest.index(), neighbour.index()])?;
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        classifier.attach(guest.index())?;
        classifier.bind(guest.index(), BINDING.with_packets_per_second(0))?;
        let solicitation = Ipv6 {
            destination: SOLICITED_NODE,
            next: 58,
            hop_limit: 255,
            ..Ipv6::default()
        };
        let question = Arp::default().frame(BROADCAST);
        let frames = [
            question.clone(),
            padded(question.clone(), 90),
            solicitation.frame(&ndp(135, 0, &IMDS_IPV6)),
            Ipv4::default().frame(&tcp(80, 60)),
            Ipv4::default().frame(&tcp(443, 3000)),
            Ipv6::default().frame(&tcp(443, 3000)),
        ];
        let mut taken = 0;
        // `struct virtio_net_hdr`: flags, kind of segmentation, bytes of headers, bytes of a segment, and where the checksum
        // begins and where it goes.
        for flags in [0, 1, 2, 4, 0xff] {
            for kind in [0, 1, 3, 4, 5, 0x81, 0xff] {
                for (headers, segment, start, offset) in [
                    (0_u8, 0_u8, 0_u8, 0_u8),
                    (54, 1, 34, 16),
                    (14, 1, 14, 16),
                    (42, 200, 0, 28),
                    (255, 255, 255, 255),
                ] {
                    let header = [flags, kind, headers, 0, segment, 0, start, 0, offset, 0];
                    let sent = frames.iter().map(|frame| guest.send_offloaded(header, frame));
                    taken += sent.filter(Result::is_ok).count() as u64;
                }
            }
        }
        let last = Ipv4 {
            destination: [10, 0, 0, 1],
            ..Ipv4::default()
        }
        .frame(&tcp(80, 0));
        guest.send(&last)?;
        let seen = neighbour.receive(|frame| frame[6..12] == GUEST_MAC.0)?;
        ensure!(seen == last, "a frame fell through: {seen:02x?}");
        let counted = classifier.counters(guest.index())?;
        println!("{taken} taken by the kernel; {counted}");
        ensure!(counted.punted + counted.hairpinned + counted.dropped_total() == taken && taken > 200);
        // And whoever asks in earnest is answered.
        let mut buffer = vec![0; 1 << 16];
        while guest.read(&mut buffer).is_ok() {}
        guest.send(&question)?;
        guest.receive(is_arp_reply)?;
        Ok(())
    })?;
    Ok(())
}
