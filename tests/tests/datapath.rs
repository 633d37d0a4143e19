//! T1: the classifier on real taps, whose guest is the test: its life across agents, frames out and frames in.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use imds_agent::datapath::{
    Classifier, Counters, Hook, Injector, LinkEvent, LinkWatch, LoadError, PuntRing, pins::PinsError,
};
use imds_ebpf::{
    abi::{ABI_VERSION, IMDS_IPV4, IMDS_IPV6, IMDS_MAC, Reason, SMALL_FRAME_MAX, TapBinding, TapIndex},
    classify::{SOLICITED_NODE, UNSPECIFIED, Verdict},
};
use imds_tests::{
    frames::{Arp, BROADCAST, GUEST_IP, GUEST_IPV6, GUEST_MAC, Ipv4, Ipv6, OTHER_MAC, ndp, tcp},
    kernel::in_namespaces,
    tap::{PATIENCE, Tap, VNET_HEADER_BYTES, bridge, wait_readable},
    verdicts::{Case, inbound, table},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket},
        statfs::{BPF_FS_MAGIC, statfs},
    },
};

const BINDING: TapBinding = TapBinding::to(GUEST_MAC).with_ipv6();

/// Every frame of the table through a tap into the host's network, a bridge with another guest on it: what passes arrives
/// there unchanged and in order, and nothing else does.
#[test]
fn table_through_a_tap_on_a_bridge() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let (guest, neighbour) = (Tap::new("guest")?, Tap::new("neighbour")?);
        bridge("bridge", &[guest.index(), neighbour.index()])?;
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        let mut ring = only_ring(&mut classifier)?;
        classifier.attach(guest.index())?;
        classifier.bind(guest.index(), BINDING)?;

        let (mut expected, mut passed) = (Counters::default(), Vec::new());
        for Case {
            name, frame, verdict, ..
        } in table()
        {
            if name == "a frame that ends within its tag" {
                println!("skipped: the kernel itself drops {name}");
                continue;
            }
            guest.send(&frame)?;
            match verdict {
                Verdict::Pass if is_link_local_group(&frame) => {}
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
        for (name, frame) in passed {
            let next = neighbour.receive(|frame| {
                !is_link_local_group(frame)
                    && [GUEST_MAC.0, OTHER_MAC.0]
                        .iter()
                        .any(|mac| frame[6..12] == mac[..])
            });
            let next = next.context(name)?;
            ensure!(next == frame, "{name}: came out as {next:02x?}");
        }
        Ok(())
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

/// With a neighbour on the same bridge who plays the service, and the real one beside it.
#[test]
fn only_the_service_speaks_as_the_address() -> anyhow::Result<()> {
    for hook in [Hook::Tcx, Hook::Clsact] {
        in_namespaces(|bpffs| forgers(&bpffs.join("imds"), hook).with_context(|| format!("{hook:?}")))?;
    }
    Ok(())
}

fn forgers(root: &Path, hook: Hook) -> anyhow::Result<()> {
    let (guest, neighbour) = (Tap::new("guest")?, Tap::new("neighbour")?);
    bridge("bridge", &[guest.index(), neighbour.index()])?;
    let mut classifier = Classifier::load_on(root, hook)?;
    classifier.attach(guest.index())?;
    classifier.bind(guest.index(), BINDING)?;
    let send_all = || -> anyhow::Result<()> {
        for (name, frame, is_admitted) in inbound() {
            neighbour.send(&frame)?;
            if is_admitted {
                let next = guest.receive(|frame| frame[6..12] == IMDS_MAC.0)?;
                ensure!(next == frame, "{name}: {next:02x?} arrived");
            }
        }
        Ok(())
    };
    send_all()?;
    let forged = inbound()
        .iter()
        .filter(|(_, _, is_admitted)| !is_admitted)
        .count() as u64;
    let counted = classifier.counters(guest.index())?;
    ensure!(counted.dropped_for(Reason::InboundForged) == forged, "{counted}");

    let mut injector = Injector::new()?;
    let answer = Ipv4 {
        source: IMDS_IPV4,
        destination: GUEST_IP,
        ..Ipv4::default()
    };
    let answer = answer.packet(&tcp(80, 0));
    injector.push(guest.index(), GUEST_MAC, answer.len(), |packet| {
        packet.copy_from_slice(&answer);
    });
    injector.flush()?;
    let arrived = guest.receive(|frame| frame[6..12] == IMDS_MAC.0)?;
    ensure!(arrived[14..] == answer, "{arrived:02x?}");
    guest.send(&Arp::default().frame(BROADCAST))?;
    guest.receive(is_arp_reply)?;

    // Neither without an agent nor with the next one does a forger get in.
    drop(classifier);
    send_all()?;
    let mut classifier = Classifier::load_on(root, hook)?;
    send_all()?;
    classifier.attach(guest.index())?;
    send_all()?;
    let counted = classifier.counters(guest.index())?;
    ensure!(
        counted.dropped_for(Reason::InboundForged) == 4 * forged,
        "{counted}"
    );

    classifier.detach_all()?;
    let (_, frame, _) = &inbound()[0];
    neighbour.send(frame)?;
    let arrived = guest.receive(|frame| frame[6..12] == IMDS_MAC.0)?;
    ensure!(arrived == *frame, "still filtered: {arrived:02x?}");
    Ok(())
}

#[test]
fn injected_frames_arrive_and_a_gone_tap_costs_only_its_own() -> anyhow::Result<()> {
    in_namespaces(|_| {
        let (first, second) = (Tap::new("first")?, Tap::new("second")?);
        let gone = TapIndex(9999);
        let sniffer = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            Some(SockProtocol::EthAll),
        )?;
        let mut injector = Injector::new()?;
        // More than fit in one system call, and a refused one amid them.
        for number in 0..100_u8 {
            for tap in [first.index(), gone, second.index()] {
                injector.push(tap, GUEST_MAC, 40, |packet| {
                    packet.copy_from_slice(&[&[0x45, number][..], &[0; 38]].concat());
                });
            }
        }
        injector.flush()?;
        ensure!((injector.sent(), injector.lost()) == (200, 100), "{injector:?}");
        for tap in [&first, &second] {
            for number in 0..100 {
                let frame = tap.receive(|frame| frame[6..12] == IMDS_MAC.0)?;
                ensure!(
                    frame[..6] == GUEST_MAC.0 && frame[12..16] == [0x08, 0x00, 0x45, number],
                    "{frame:02x?}"
                );
                ensure!(frame.len() == 54);
            }
        }
        ensure!(
            sniffs(sniffer.as_fd(), |frame| frame[6..12] == IMDS_MAC.0)?,
            "tcpdump does not see replies"
        );

        injector.push(first.index(), OTHER_MAC, 60, |packet| packet[0] = 0x60);
        injector.flush()?;
        let frame = first.receive(|frame| frame[6..12] == IMDS_MAC.0)?;
        ensure!(
            frame[12..14] == [0x86, 0xdd] && frame[..6] == OTHER_MAC.0,
            "{frame:02x?}"
        );
        Ok(())
    })?;
    Ok(())
}

#[test]
fn next_agent_goes_on_where_the_last_one_died() -> anyhow::Result<()> {
    for hook in [Hook::Tcx, Hook::Clsact] {
        in_namespaces(|bpffs| restart(&bpffs.join("imds"), hook).with_context(|| format!("{hook:?}")))?;
    }
    Ok(())
}

fn restart(root: &Path, hook: Hook) -> anyhow::Result<()> {
    let (guest, other, neighbour) = (Tap::new("guest")?, Tap::new("other")?, Tap::new("neighbour")?);
    bridge("bridge", &[guest.index(), other.index(), neighbour.index()])?;
    let request = Ipv4::default().frame(&tcp(80, 0));

    let mut classifier = Classifier::load_on(root, hook)?;
    classifier.attach(guest.index())?;
    classifier.attach(guest.index()).context("again")?;
    classifier.bind(guest.index(), BINDING)?;
    classifier.attach(other.index())?;
    guest.send(&request)?;
    other.send(&request)?;
    ensure!(matches!(
        Classifier::load_on(root, hook),
        Err(LoadError::Pins(PinsError::InUse { .. }))
    ));
    drop(classifier);

    // No agent is there; nothing falls through to the network.
    guest.send(&request)?;

    let other_index = other.index();
    drop(other);
    let mut classifier = Classifier::load_on(root, hook)?;
    ensure!(classifier.attached().eq([guest.index()]), "{classifier:?}");
    ensure!(classifier.binding(guest.index())? == Some(BINDING));
    ensure!(
        classifier.counters(other_index).is_err(),
        "the gone tap still counts"
    );
    let mut ring = only_ring(&mut classifier)?;
    guest.send(&request)?;
    ensure!(classifier.counters(guest.index())?.punted == 3);
    // On a busy machine the first two may have become too old to be answered.
    let fresh = punted(&mut ring)[&guest.index()];
    ensure!(
        fresh >= 1 && fresh + ring.stale() == 3,
        "{fresh} fresh, {} stale",
        ring.stale()
    );

    classifier.unbind(guest.index())?;
    guest.send(&request)?;
    ensure!(
        classifier
            .counters(guest.index())?
            .dropped_for(Reason::TapUnbound)
            == 1
    );

    classifier.detach_all()?;
    ensure!(!root.exists(), "pins are left");
    // Now, and only now, the guest's frames for the address go where its others go.
    let last = Ipv4::default().frame(&tcp(80, 1));
    guest.send(&last)?;
    let seen = neighbour.receive(|frame| frame[6..12] == GUEST_MAC.0)?;
    ensure!(seen == last, "a frame fell through: {seen:02x?}");
    Ok(())
}

#[test]
fn index_that_another_tap_took_over_starts_anew() -> anyhow::Result<()> {
    for hook in [Hook::Tcx, Hook::Clsact] {
        in_namespaces(|bpffs| reuse(&bpffs.join("imds"), hook).with_context(|| format!("{hook:?}")))?;
    }
    Ok(())
}

fn reuse(root: &Path, hook: Hook) -> anyhow::Result<()> {
    const INDEX: TapIndex = TapIndex(77);
    let request = Ipv4::default().frame(&tcp(80, 0));
    let mut classifier = Classifier::load_on(root, hook)?;
    let take = |classifier: &mut Classifier, name| -> anyhow::Result<()> {
        let tap = Tap::with_index(name, INDEX)?;
        classifier.attach(INDEX)?;
        ensure!(
            classifier.binding(INDEX)?.is_none(),
            "the last tap's MAC is bound"
        );
        ensure!(
            classifier.counters(INDEX)? == Counters::default(),
            "the last tap's counters"
        );
        tap.send(&request)?;
        ensure!(
            classifier.counters(INDEX)?.dropped_for(Reason::TapUnbound) == 1,
            "the classifier is not on it"
        );
        classifier.bind(INDEX, BINDING)?;
        Ok(())
    };
    take(&mut classifier, "first")?;
    take(&mut classifier, "second")?;
    drop(classifier);

    let tap = Tap::with_index("third", INDEX)?;
    let mut classifier = Classifier::load_on(root, hook)?;
    ensure!(
        classifier.attached().count() == 0,
        "adopted a link of another device"
    );
    drop(tap);
    take(&mut classifier, "fourth")?;
    classifier.detach(INDEX).context("of a tap that is gone")?;
    classifier.detach(INDEX).context("twice")?;
    ensure!(matches!(classifier.attach(TapIndex(4242)), Err(error) if error.to_string().contains("4242")));
    Ok(classifier.detach_all()?)
}

#[test]
fn full_ring_drops_and_counts_and_recovers() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let guest = Tap::new("guest")?;
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        let mut ring = only_ring(&mut classifier)?;
        classifier.attach(guest.index())?;
        classifier.bind(guest.index(), BINDING)?;
        let (small, large) = (tcp(80, 0), tcp(80, SMALL_FRAME_MAX));
        for number in 0..2200 {
            guest.send(&Ipv4::default().frame(if number % 2 == 0 { &small } else { &large }))?;
        }
        let counters = classifier.counters(guest.index())?;
        let full = counters.dropped_for(Reason::RingFull);
        ensure!(full > 0 && counters.punted + full == 2200, "{counters:?}");
        wait_readable(ring.as_fd(), Instant::now() + PATIENCE)?;
        ensure!(punted(&mut ring) == BTreeMap::from([(guest.index(), counters.punted)]));

        guest.send(&Ipv4::default().frame(&small))?;
        wait_readable(ring.as_fd(), Instant::now() + PATIENCE)?;
        ensure!(ring.next().is_some_and(|punt| punt.arrived > Duration::ZERO));
        ensure!((ring.malformed(), ring.stale()) == (0, 0));
        Ok(())
    })?;
    Ok(())
}

#[test]
fn tap_operations_without_a_binding_or_an_object_of_their_own_are_told() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let root = bpffs.join("imds");
        let mut classifier = Classifier::load(&root)?;
        classifier.unbind(TapIndex(5))?;
        ensure!(classifier.binding(TapIndex(5))?.is_none());
        let error = classifier.counters(TapIndex(5)).unwrap_err();
        ensure!(error.to_string().contains("index 5"), "{error}");
        ensure!(classifier.rings().len() == 1 && classifier.rings().is_empty());
        drop(classifier);

        // Another layout under the same name, and another version's maps, are replaced and removed.
        let (maps, alien) = (root.join(format!("v{ABI_VERSION}")), root.join("v0"));
        fs::create_dir(&alien)?;
        fs::rename(maps.join("TAPS"), alien.join("TAPS"))?;
        fs::rename(maps.join("COUNTERS"), maps.join("TAPS"))?;
        let mut classifier = Classifier::load(&root)?;
        classifier.bind(TapIndex(5), BINDING)?;
        ensure!(!alien.exists(), "another version's maps are left");
        Ok(classifier.detach_all()?)
    })?;
    Ok(())
}

/// In a mount namespace of its own, so that the machine's `/sys/fs/bpf` stays as it is.
#[test]
fn bpf_file_system_is_mounted_at_the_usual_place_only() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let usual = Path::new("/sys/fs/bpf");
        while statfs(usual)?.filesystem_type() == BPF_FS_MAGIC {
            umount2(usual, MntFlags::MNT_DETACH)?;
        }
        let root = usual.join("imds-agent");
        let classifier = Classifier::load(&root)?;
        ensure!(
            statfs(usual)?.filesystem_type() == BPF_FS_MAGIC
                && root.join(format!("v{ABI_VERSION}/TAPS")).exists()
        );
        classifier.detach_all()?;
        ensure!(!root.exists());

        umount2(bpffs, MntFlags::MNT_DETACH)?;
        let error = Classifier::load(&bpffs.join("imds")).unwrap_err();
        ensure!(error.to_string().contains("mount -t bpf"), "{error}");
        mount(Some("bpf"), bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)?;
        Ok(())
    })?;
    Ok(())
}

#[test]
fn links_are_told_as_they_come_and_go() -> anyhow::Result<()> {
    in_namespaces(|_| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let before = Tap::new("before")?;
            let mut watch = LinkWatch::new()?;
            let appeared = |index, name: &str, is_tap| LinkEvent::Appeared {
                index,
                name: name.to_owned(),
                is_tap,
            };
            // The subscription is there before the first listing.
            let after = Tap::new("after")?;
            let mut first: BTreeMap<TapIndex, LinkEvent> = BTreeMap::new();
            while first.len() < 3 {
                let event = told(&mut watch).await?;
                let LinkEvent::Appeared { index, .. } = event else {
                    bail!("{event:?}")
                };
                ensure!(first.insert(index, event).is_none(), "told twice");
            }
            ensure!(first.remove(&TapIndex(1)) == Some(appeared(TapIndex(1), "lo", false)));
            ensure!(first.remove(&before.index()) == Some(appeared(before.index(), "before", true)));
            ensure!(first.remove(&after.index()) == Some(appeared(after.index(), "after", true)));
            ensure!(told(&mut watch).await? == LinkEvent::Listed);

            bridge("bridge", &[before.index()])?;
            let LinkEvent::Appeared {
                name, is_tap: false, ..
            } = told(&mut watch).await?
            else {
                bail!("the bridge is not told");
            };
            ensure!(name == "bridge");
            let index = after.index();
            drop(after);
            ensure!(told(&mut watch).await? == LinkEvent::Gone { index });
            let again = Tap::with_index("again", index)?;
            ensure!(told(&mut watch).await? == appeared(again.index(), "again", true));
            Ok(())
        })
    })?;
    Ok(())
}

async fn told(watch: &mut LinkWatch) -> anyhow::Result<LinkEvent> {
    Ok(tokio::time::timeout(PATIENCE, watch.next())
        .await
        .context("nothing was told in time")??)
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

/// A bridge keeps most of these groups (IEEE 802.1D) to itself.
fn is_link_local_group(frame: &[u8]) -> bool {
    frame.starts_with(&[0x01, 0x80, 0xc2])
}

fn is_arp_reply(frame: &[u8]) -> bool {
    matches!(frame.get(12..22), Some([0x08, 0x06, .., 0, 2]))
}

/// From the service.
fn is_advertisement(frame: &[u8]) -> bool {
    frame.get(6..14) == Some(&[&IMDS_MAC.0[..], &[0x86, 0xdd]].concat()[..]) && frame.get(54) == Some(&136)
}

/// Whether a packet socket, which is what `tcpdump` listens on, has seen such a frame.
fn sniffs(socket: std::os::fd::BorrowedFd<'_>, wanted: impl Fn(&[u8]) -> bool) -> anyhow::Result<bool> {
    use std::os::fd::AsRawFd;
    let mut buffer = [0; 2048];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) if wanted(&buffer[..length]) => return Ok(true),
            Ok(_) => {}
            Err(nix::errno::Errno::EAGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}
