//! A ring for each worker, and what becomes of it when their number changes.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapInfo;
use imds_agent::datapath::{Classifier, Namespaces, PuntRing, attach};
use imds_ebpf::abi::{ABI_VERSION, RING_BYTES, Reason, WORKERS_MAX, WorkerNumber};
use imds_tests::{
    frames::{Ipv4, tcp},
    kernel::in_namespaces,
    tap::{PATIENCE, Tap},
};

use crate::{BINDING, hooks, punted};

/// The smallest page that a kernel has, and so the smallest ring.
const PAGE_BYTES_MIN: u32 = 4096;

fn request() -> Vec<u8> {
    Ipv4::default().frame(&tcp(80, 0))
}

/// How many frames wait in a ring that an agent takes over. It passes over those of more than a second ago, which a slow
/// processor may need to get there.
fn waiting(ring: &mut PuntRing) -> u64 {
    punted(ring).into_values().sum::<u64>() + ring.stale()
}

/// The sizes of the pinned rings.
fn ring_bytes(root: &Path) -> Result<Vec<u32>> {
    let ring = |worker| {
        let pin = root.join(format!("v{ABI_VERSION}/RING_{worker}"));
        Ok(MapInfo::from_pin(pin)?.max_entries())
    };
    (0..WORKERS_MAX).map(ring).collect()
}

/// The rings' sizes are those of an agent with so many workers.
fn ensure_read_by(root: &Path, workers: usize) -> Result<()> {
    let sizes = ring_bytes(root)?;
    let (read, unread) = sizes.split_at(workers);
    let is_least = |bytes: &u32| *bytes >= PAGE_BYTES_MIN && *bytes < RING_BYTES / 16;
    ensure!(
        read.iter().all(|bytes| *bytes == RING_BYTES) && unread.iter().all(is_least),
        "{workers} workers: {sizes:?}"
    );
    Ok(())
}

#[test]
fn frames_are_punted_to_the_worker_of_their_tap() -> Result<()> {
    in_namespaces(|bpffs| {
        let root = bpffs.join("imds");
        let all = usize::from(WORKERS_MAX);
        let mut classifier = Classifier::load_for(&root, all)?;
        let mut rings = classifier.rings();
        ensure!(rings.len() == all);
        ensure_read_by(&root, all)?;
        let taps = (0..WORKERS_MAX).map(|worker| Tap::new(&format!("guest{worker}")));
        let taps = taps.collect::<Result<Vec<_>>>()?;
        for (worker, tap) in (0..).map(WorkerNumber).zip(&taps) {
            classifier.attach(tap.index())?;
            classifier.bind(tap.index(), BINDING.with_worker(worker))?;
            ensure!(classifier.binding(tap.index())? == Some(BINDING.with_worker(worker)));
        }
        for round in 1..=3 {
            for tap in &taps {
                (0..round).try_for_each(|_| tap.send(&request()))?;
            }
            for (ring, tap) in rings.iter_mut().zip(&taps) {
                ensure!(punted(ring).into_iter().eq([(tap.index(), round)]));
            }
        }

        // Another worker from the next frame on; one that there is not is the first.
        let first = taps[0].index();
        for (worker, ring) in [(3, 3), (WORKERS_MAX, 0), (u8::MAX, 0), (7, 7), (0, 0)] {
            classifier.bind(first, BINDING.with_worker(WorkerNumber(worker)))?;
            taps[0].send(&request())?;
            for (number, reader) in rings.iter_mut().enumerate() {
                let expected = (number == ring).then_some((first, 1));
                ensure!(
                    punted(reader).into_iter().eq(expected),
                    "worker {worker}, ring {number}"
                );
            }
        }
        Ok(())
    })?;
    Ok(())
}

#[test]
fn another_number_of_workers_makes_rings_anew_and_no_frame_falls_through() -> Result<()> {
    in_namespaces(|bpffs| {
        let root = bpffs.join("imds");
        let tap = Tap::new("guest")?;
        let (of_first, of_second) = (BINDING, BINDING.with_worker(WorkerNumber(1)));
        let mut classifier = Classifier::load_for(&root, 2)?;
        ensure_read_by(&root, 2)?;
        classifier.attach(tap.index())?;
        classifier.bind(tap.index(), of_second.with_packets_per_second(0))?;
        tap.send(&request())?;
        drop(classifier);

        // The same number: what waits is read by the next agent, who is told whose it was.
        let mut classifier = Classifier::load_for(&root, 2)?;
        let binding = classifier.binding(tap.index())?.context("it is bound")?;
        ensure!(binding.worker == WorkerNumber(1));
        let [first, second] = &mut classifier.rings()[..] else {
            anyhow::bail!("two workers have two rings");
        };
        ensure!((waiting(first), waiting(second)) == (0, 1));
        drop(classifier);

        // Fewer: until the tap is bound anew its frames go where nobody looks, as long as there is room.
        let mut classifier = Classifier::load_for(&root, 1)?;
        ensure_read_by(&root, 1)?;
        let before = classifier.counters(tap.index())?;
        let sent = 1000;
        (0..sent).try_for_each(|_| tap.send(&request()))?;
        let counted = classifier.counters(tap.index())?;
        let full = counted.dropped_for(Reason::RingFull);
        ensure!(
            full > sent / 2 && counted.punted - before.punted + full == sent,
            "{counted}"
        );
        classifier.bind(tap.index(), of_first)?;
        let [ring] = &mut classifier.rings()[..] else {
            anyhow::bail!("one worker has one ring");
        };
        ensure!(waiting(ring) == 0);
        tap.send(&request())?;
        ensure!(punted(ring).into_iter().eq([(tap.index(), 1)]));
        drop(classifier);

        // More: nothing of it is left where somebody looks now.
        let mut classifier = Classifier::load_for(&root, 3)?;
        ensure_read_by(&root, 3)?;
        for ring in &mut classifier.rings()[1..] {
            ensure!(waiting(ring) == 0);
        }
        Ok(classifier.detach_all()?)
    })?;
    Ok(())
}

#[test]
fn a_tap_that_is_attached_without_an_agent_leaves_rings_as_they_are() -> Result<()> {
    in_namespaces(|bpffs| {
        let root = bpffs.join("imds");
        let attach = |name: &str| {
            attach::ensure_on(
                &root,
                &[name.to_owned()],
                &Namespaces::default(),
                hooks()[0],
                PATIENCE,
            )
        };
        let (tap, _other, _third) = (Tap::new("guest")?, Tap::new("other")?, Tap::new("third")?);
        attach("other")?;
        ensure_read_by(&root, 0)?;

        let mut classifier = Classifier::load_for(&root, 2)?;
        classifier.attach(tap.index())?;
        classifier.bind(tap.index(), BINDING.with_worker(WorkerNumber(1)))?;
        tap.send(&request())?;
        drop(classifier);
        attach("third")?;
        ensure_read_by(&root, 2)?;
        let mut rings = Classifier::load_for(&root, 2)?.rings();
        ensure!(waiting(&mut rings[1]) == 1);
        Ok(())
    })?;
    Ok(())
}
