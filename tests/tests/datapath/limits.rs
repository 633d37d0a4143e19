//! What a guest that sends too much gets, and its neighbours do not.

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use imds_agent::datapath::Classifier;
use imds_ebpf::abi::{BURST_TOKENS, MEDIUM_FRAME_MAX, Reason};
use imds_tests::{
    frames::{Arp, BROADCAST, Ipv4, tcp},
    kernel::in_namespaces,
    tap::{PATIENCE, Tap, wait_readable},
};

use crate::{BINDING, only_ring, punted};

/// A guest's flood is its own loss: what is over its rate goes, its neighbour is served, and so is it a moment later.
#[test]
fn tap_has_its_rate_and_no_more() -> anyhow::Result<()> {
    const FLOOD: u64 = 4000;
    const FLOODERS: u64 = 4;
    in_namespaces(|bpffs| {
        let (guest, neighbour) = (Tap::new("guest")?, Tap::new("neighbour")?);
        let root = bpffs.join("imds");
        let mut classifier = Classifier::load(&root)?;
        for tap in [&guest, &neighbour] {
            classifier.attach(tap.index())?;
            classifier.bind(tap.index(), BINDING)?;
        }
        let request = Ipv4::default().frame(&tcp(80, 0));
        ensure!(classifier.packets_left(guest.index())? == Some(BURST_TOKENS));
        let start = Instant::now();
        // From several processors at once, which take out of one bucket.
        thread::scope(|scope| {
            let flood = || (0..FLOOD / FLOODERS).try_for_each(|_| guest.send(&request));
            let flooders: Vec<_> = (0..FLOODERS).map(|_| scope.spawn(flood)).collect();
            let mut ended = flooders.into_iter().map(|flooder| flooder.join());
            ended.try_for_each(|ended| ended.expect("a flooder only sends"))
        })?;
        neighbour.send(&request)?;
        // Answers in the kernel come out of the same bucket, what is dropped anyway does not.
        guest.send(&Arp::default().frame(BROADCAST))?;
        guest.send(&Ipv4::default().frame(&tcp(443, 0)))?;
        let counted = classifier.counters(guest.index())?;
        let served = counted.punted + counted.hairpinned;
        let limited = counted.dropped_for(Reason::RateLimited);
        // Each may find the last token there, and the bucket full in the beginning.
        let earned = start.elapsed().as_millis() as u64 * 1024 / 1000 + 2 * FLOODERS;
        ensure!(
            (BURST_TOKENS..=BURST_TOKENS + earned).contains(&served),
            "{counted}"
        );
        ensure!(served + limited == FLOOD + 1, "{counted}");
        ensure!(counted.dropped_for(Reason::NotHttpPort) == 1, "{counted}");
        ensure!(classifier.counters(neighbour.index())?.punted == 1);
        // Neither what is attached once more nor the next agent fills it.
        classifier.attach(guest.index())?;
        drop(classifier);
        let mut classifier = Classifier::load(&root)?;
        classifier.attach(guest.index())?;
        let left = classifier.packets_left(guest.index())?;
        let earned_since = start.elapsed().as_millis() as u64 * 1024 / 1000 + 2;
        ensure!(left.is_some_and(|left| left <= earned_since), "{left:?}");

        let deadline = Instant::now() + PATIENCE;
        while classifier.counters(guest.index())?.punted == counted.punted {
            ensure!(Instant::now() < deadline, "the bucket does not fill again");
            guest.send(&request)?;
        }

        // Options that change leave the bucket as it is; a rate of its own holds at once.
        classifier.bind(guest.index(), BINDING.with_packets_per_second(1))?;
        let before = classifier.counters(guest.index())?;
        for _ in 0..BURST_TOKENS * 2 {
            guest.send(&request)?;
        }
        let after = classifier.counters(guest.index())?;
        ensure!(
            after.dropped_for(Reason::RateLimited) >= before.dropped_for(Reason::RateLimited) + BURST_TOKENS,
            "{after}"
        );
        // What a slow rate takes minutes for, a fast one has within a second.
        classifier.bind(guest.index(), BINDING.with_packets_per_second(1_000_000))?;
        let served = || anyhow::Ok(classifier.counters(guest.index())?.punted);
        let before = served()?;
        guest.send(&request)?;
        ensure!(served()? == before + 1, "a higher rate holds at once");
        classifier.bind(guest.index(), BINDING.with_packets_per_second(0))?;
        ensure!(classifier.packets_left(guest.index())?.is_none());
        for _ in 0..FLOOD {
            guest.send(&request)?;
        }
        let unlimited = classifier.counters(guest.index())?;
        ensure!(
            unlimited.dropped_for(Reason::RateLimited) == after.dropped_for(Reason::RateLimited),
            "{unlimited}"
        );
        Ok(())
    })?;
    Ok(())
}

#[test]
fn full_ring_drops_and_counts_and_recovers() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let guest = Tap::new("guest")?;
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        let mut ring = only_ring(&mut classifier)?;
        classifier.attach(guest.index())?;
        classifier.bind(guest.index(), BINDING.with_packets_per_second(0))?;
        let (small, large) = (tcp(80, 0), tcp(80, MEDIUM_FRAME_MAX));
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
