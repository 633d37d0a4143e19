//! T0 and T1: the verdict table, over the code as the host runs it and over the object as the kernel runs it.

use std::{collections::BTreeMap, fs, io, os::fd::AsRawFd};

use anyhow::{Context, bail, ensure};
use imds_agent::datapath::{Classifier, Direction, PuntRing};
use imds_ebpf::{
    abi::{INJECT_MARK, Reason, TapBinding, TapIndex},
    classify::{Frame, Verdict, classify},
    hairpin::{advertisement, arp_reply},
    inbound::admit,
};
use imds_tests::{
    frames::GUEST_MAC,
    kernel::{in_namespaces, test_run},
    verdicts::{Case, inbound, table},
};

/// `BPF_PROG_TEST_RUN` has the frame come in by the loopback device, which is the first in every network namespace.
const LOOPBACK: TapIndex = TapIndex(1);

/// What is bound to the tap in the table.
const BINDING: TapBinding = TapBinding::to(GUEST_MAC).with_ipv6();

const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;
const TC_ACT_REDIRECT: i32 = 7;

#[test]
fn table_names_every_shape_once_and_every_verdict() {
    let table = table();
    let names: BTreeMap<_, _> = table.iter().map(|case| (case.name, case)).collect();
    assert_eq!(names.len(), table.len());
    assert!(table.len() >= 300, "{}", table.len());
    for reason in Reason::ALL {
        // These depend on the state of tap, ring and device, not on the frame.
        if !matches!(
            reason,
            Reason::TapUnbound
                | Reason::RingFull
                | Reason::HairpinFailed
                | Reason::Ipv6Disabled
                | Reason::InboundForged
                | Reason::RateLimited
        ) {
            assert!(
                table.iter().any(|case| case.verdict == Verdict::Drop(reason)),
                "{reason:?}"
            );
        }
    }
}

#[test]
fn host_decides_as_the_table_says() {
    for Case {
        name,
        frame,
        verdict,
        unbound,
    } in table()
    {
        assert_eq!(classify(&frame[..], || Some(BINDING)), verdict, "{name}");
        assert_eq!(classify(&frame[..], || None), unbound, "{name}, unbound");
    }
}

/// The kernel takes the outer tag off before the ingress hook. A frame that was tagged inline is then one that has its tag
/// aside, and must get the same verdict.
#[test]
fn tag_aside_is_as_good_as_inline() {
    struct Untagged(Vec<u8>);
    impl Frame for Untagged {
        fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            self.0.load(offset)
        }
        fn load_far<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            self.0.load(offset)
        }
        fn has_vlan_tag_aside(&self) -> bool {
            true
        }
        fn length(&self) -> usize {
            self.0.len()
        }
    }
    let mut untagged = 0;
    for Case {
        name,
        mut frame,
        verdict,
        ..
    } in table()
    {
        let is_tagged = matches!(frame.get(12..14), Some([0x81, 0x00] | [0x88, 0xa8]));
        if is_tagged && frame.len() > 18 {
            frame.drain(12..16);
            let verdict_aside = classify(&Untagged(frame), || Some(BINDING));
            assert_eq!(verdict_aside, verdict, "{name}");
            untagged += 1;
        }
    }
    assert!(untagged >= 10, "{untagged}");
}

#[test]
fn kernel_decides_as_the_table_says() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        let mut ring = classifier.rings().pop().context("no ring")?;
        classifier.attach(LOOPBACK)?;
        let mut tested = 0;
        for case in table() {
            classifier.unbind(LOOPBACK)?;
            let ran = expect(&classifier, &mut ring, &case, case.unbound).context(case.name)?;
            classifier.bind(LOOPBACK, BINDING)?;
            expect(&classifier, &mut ring, &case, case.verdict).context(case.name)?;
            tested += usize::from(ran);
        }
        ensure!(tested >= 280, "only {tested} frames were run");
        Ok(())
    })?;
    Ok(())
}

/// An instance whose `HttpProtocolIpv6` is disabled gets IPv4 as before, and of IPv6 nothing, nor does anything pass.
#[test]
fn without_ipv6_all_of_it_is_dropped() -> anyhow::Result<()> {
    let ipv4_only = TapBinding::to(GUEST_MAC);
    let cases: Vec<_> = table()
        .into_iter()
        .map(|case| {
            let is_served_alone = is_ipv6(&case.frame)
                && case.verdict != Verdict::Pass
                && case.verdict != case.unbound
                && !matches!(
                    case.verdict,
                    Verdict::Drop(Reason::SourceMacForged | Reason::VlanTagged)
                );
            let verdict = if is_served_alone {
                Verdict::Drop(Reason::Ipv6Disabled)
            } else {
                case.verdict
            };
            Case { verdict, ..case }
        })
        .collect();
    for case in &cases {
        assert_eq!(
            classify(&case.frame[..], || Some(ipv4_only)),
            case.verdict,
            "{}",
            case.name
        );
    }
    in_namespaces(|bpffs| {
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        let mut ring = classifier.rings().pop().context("no ring")?;
        classifier.attach(LOOPBACK)?;
        classifier.bind(LOOPBACK, ipv4_only)?;
        for case in &cases {
            expect(&classifier, &mut ring, case, case.verdict).context(case.name)?;
        }
        let dropped = classifier.counters(LOOPBACK)?.dropped_for(Reason::Ipv6Disabled);
        ensure!(dropped >= 30, "only {dropped} were dropped for it");
        Ok(())
    })?;
    Ok(())
}

/// What is marked is the service's own, which no test run can have; `datapath.rs` sends such frames through a tap.
#[test]
fn inbound_forgers_are_dropped_by_host_and_kernel() -> anyhow::Result<()> {
    for (name, frame, is_admitted) in inbound() {
        assert_eq!(admit(&frame[..], 0).is_ok(), is_admitted, "{name}");
        assert_eq!(admit(&frame[..], INJECT_MARK), Ok(()), "{name}, marked");
    }
    in_namespaces(|bpffs| {
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        classifier.attach(LOOPBACK)?;
        let mut forged = 0;
        for (name, frame, is_admitted) in inbound() {
            let run = test_run(classifier.program_fd(Direction::Inbound)?, &frame, 1).context(name)?;
            let action = if is_admitted { TC_ACT_UNSPEC } else { TC_ACT_SHOT };
            ensure!(run.action == action && run.frame == frame, "{name}: {run:?}");
            forged += u64::from(!is_admitted);
            let counted = classifier.counters(LOOPBACK)?;
            ensure!(
                counted.dropped_for(Reason::InboundForged) == forged && counted.dropped_total() == forged,
                "{name}: {counted}"
            );
        }
        Ok(())
    })?;
    Ok(())
}

fn is_ipv6(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd])
}

/// Runs the program over one frame: action, counter, ring and frame must agree with the verdict. False when this kernel
/// cannot run it.
fn expect(
    classifier: &Classifier,
    ring: &mut PuntRing,
    case: &Case,
    verdict: Verdict,
) -> anyhow::Result<bool> {
    let mut expected = classifier.counters(LOOPBACK)?;
    let run = match test_run(classifier.program_fd(Direction::Outbound)?, &case.frame, 1) {
        Ok(run) => run,
        // The kernel makes no test frame of more than a page, nor one that ends within its IP header. `datapath.rs` sends
        // those through a tap.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            println!("skipped: {} ({} bytes): {error}", case.name, case.frame.len());
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    let action = match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop(reason) => {
            *expected.dropped.entry(reason).or_default() += 1;
            TC_ACT_SHOT
        }
        Verdict::HairpinArp | Verdict::HairpinNdp => {
            expected.hairpinned += 1;
            TC_ACT_REDIRECT
        }
        Verdict::Punt => {
            expected.punted += 1;
            TC_ACT_SHOT
        }
    };
    ensure!(run.action == action, "action {} instead of {action}", run.action);
    let counted = classifier.counters(LOOPBACK)?;
    ensure!(counted == expected, "counted {counted:?} instead of {expected:?}");

    let frame_after = match verdict {
        Verdict::HairpinArp => arp_reply(&case.frame[..]).context("no reply")?.to_vec(),
        Verdict::HairpinNdp => advertisement(&case.frame[..]).context("no answer")?.to_vec(),
        _ => case.frame.clone(),
    };
    ensure!(run.frame == frame_after, "the frame became {:02x?}", run.frame);

    match (verdict, ring.next()) {
        (Verdict::Punt, Some(punt)) => {
            ensure!(punt.tap == LOOPBACK && punt.mac == GUEST_MAC, "{punt:?}");
            ensure!(punt.frame == case.frame, "punted {:02x?}", punt.frame);
        }
        (Verdict::Punt, None) => bail!("nothing in the ring"),
        (_, Some(punt)) => bail!("{punt:?} in the ring"),
        (_, None) => {}
    }
    ensure!(ring.next().is_none(), "more than one frame in the ring");
    Ok(true)
}

/// The verifier walks every way through a program and gives up after a million instructions; how far it gets differs from
/// kernel to kernel.
#[test]
fn verifier_is_done_long_before_it_gives_up() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let classifier = Classifier::load(&bpffs.join("imds"))?;
        for direction in [Direction::Outbound, Direction::Inbound] {
            let fd = classifier.program_fd(direction)?;
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
            let Some(verified) = info.lines().find_map(|line| line.strip_prefix("verified_insns:")) else {
                println!("skipped: this kernel does not tell");
                continue;
            };
            let verified: u32 = verified.trim().parse()?;
            ensure!(verified < 50_000, "{direction:?}: {verified} instructions");
        }
        Ok(())
    })?;
    Ok(())
}
