//! Frames to the guest: the service's own arrive, a forger's do not.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use anyhow::{Context, ensure};
use imds_agent::datapath::{Classifier, Hook, Injector};
use imds_ebpf::abi::{IMDS_IPV4, IMDS_MAC, Reason, TapIndex};
use imds_tests::{
    frames::{Arp, BROADCAST, GUEST_IP, GUEST_MAC, Ipv4, OTHER_MAC, tcp},
    kernel::in_namespaces,
    tap::{Tap, bridge},
    verdicts::inbound,
};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket},
};

use crate::{BINDING, hooks, ingress::tc, is_arp_reply};

/// With a neighbour on the same bridge who plays the service, and the real one beside it.
#[test]
fn only_the_service_speaks_as_the_address() -> anyhow::Result<()> {
    for &hook in hooks() {
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

/// What is sent to a guest whose limit holds it back waits for that guest alone: neither what waits nor what finds the queue
/// full is at its neighbour's cost.
#[test]
fn guest_with_a_limit_costs_its_neighbour_nothing() -> anyhow::Result<()> {
    const FRAMES: u64 = 1000;
    const BATCH: u64 = 100;
    in_namespaces(|_| {
        let (limited, neighbour) = (Tap::new("limited")?, Tap::new("neighbour")?);
        tc("qdisc add dev limited root tbf rate 8kbit burst 10k limit 2mb")?;
        let mut injector = Injector::new()?;
        let push = |injector: &mut Injector, tap: &Tap, number: u64| {
            injector.push(tap.index(), GUEST_MAC, 1500, |packet| {
                packet[0] = 0x45;
                packet[1..9].copy_from_slice(&number.to_be_bytes());
            });
        };
        // A second round finds the queue full.
        for (round, has_lost) in [false, true].into_iter().enumerate() {
            for number in 0..FRAMES {
                push(&mut injector, &limited, number);
            }
            injector.flush()?;
            ensure!((injector.lost() > 0) == has_lost, "round {round}: {injector:?}");
            let (sent, lost) = (injector.sent(), injector.lost());
            for number in 0..BATCH {
                push(&mut injector, &neighbour, number);
            }
            injector.flush()?;
            ensure!(
                (injector.sent(), injector.lost()) == (sent + BATCH, lost),
                "round {round}: {injector:?}"
            );
            for number in 0..BATCH {
                let frame = neighbour.receive(|frame| frame[6..12] == IMDS_MAC.0)?;
                ensure!(
                    frame[15..23] == number.to_be_bytes(),
                    "{number}: {:02x?}",
                    &frame[..23]
                );
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Whether a packet socket, which is what `tcpdump` listens on, has seen such a frame.
fn sniffs(socket: BorrowedFd<'_>, wanted: impl Fn(&[u8]) -> bool) -> anyhow::Result<bool> {
    let mut buffer = [0; 2048];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) if wanted(&buffer[..length]) => return Ok(true),
            Ok(_) => {}
            Err(Errno::EAGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}
