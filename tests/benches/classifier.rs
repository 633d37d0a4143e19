//! What every packet of every guest pays, beside the shortest classifier there is: `BPF_PROG_TEST_RUN`, a million times.

use std::os::fd::AsFd as _;

use anyhow::Context as _;
use imds_agent::datapath::{Classifier, Direction};
use imds_ebpf::{
    abi::{TapBinding, TapIndex},
    classify::Verdict,
};
use imds_tests::{
    frames::GUEST_MAC,
    kernel::{empty_classifier, in_namespaces, test_run},
    verdicts::table,
};

const REPEAT: u32 = 1_000_000;
const ROUNDS: usize = 5;

/// Frames that the ring holds while nobody reads.
const PUNTED: u32 = 1000;

/// `BPF_PROG_TEST_RUN` has its frames come in here.
const LOOPBACK: TapIndex = TapIndex(1);

fn main() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        classifier.attach(LOOPBACK)?;
        classifier.bind(LOOPBACK, TapBinding::to(GUEST_MAC).with_packets_per_second(0))?;
        let empty = empty_classifier()?;
        for (name, fate, direction) in [
            ("HTTP to the world", "passed", Direction::Outbound),
            ("IPv6", "passed", Direction::Outbound),
            ("echo elsewhere", "passed", Direction::Outbound),
            ("HTTP to the world", "passed inbound", Direction::Inbound),
        ] {
            let case = table().into_iter().find(|case| case.name == name).context(name)?;
            let mut figures = Vec::new();
            for _ in 0..ROUNDS {
                let ours = test_run(classifier.program_fd(direction)?, &case.frame, REPEAT)?.duration;
                let nothing = test_run(empty.as_fd(), &case.frame, REPEAT)?.duration;
                figures.push((ours.as_nanos(), nothing.as_nanos()));
            }
            figures.sort_unstable_by_key(|(ours, nothing)| ours.saturating_sub(*nothing));
            let (ours, nothing) = figures.get(ROUNDS / 2).context("no rounds")?;
            println!("classifier: {name}, {fate}: {ours} {nothing}");
        }
        let mut ring = classifier.rings().into_iter().next().context("no ring")?;
        let case = table()
            .into_iter()
            .find(|case| case.verdict == Verdict::Punt)
            .context("nothing is punted")?;
        let mut figures = Vec::new();
        for _ in 0..ROUNDS * 100 {
            let ours = test_run(classifier.program_fd(Direction::Outbound)?, &case.frame, PUNTED)?.duration;
            let nothing = test_run(empty.as_fd(), &case.frame, PUNTED)?.duration;
            figures.push((ours.as_nanos(), nothing.as_nanos()));
            while ring.next().is_some() {}
        }
        figures.sort_unstable_by_key(|(ours, nothing)| ours.saturating_sub(*nothing));
        let (ours, nothing) = figures.get(figures.len() / 2).context("no rounds")?;
        println!("classifier: {}, punted: {ours} {nothing}", case.name);
        Ok(())
    })?;
    Ok(())
}
