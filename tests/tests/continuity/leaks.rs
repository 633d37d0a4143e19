//! Whatever state the agent is in: nothing about the address leaves, nothing that claims to come from it goes in, the
//! neighbours pass untouched, and the counters add up to the frames sent.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use imds_agent::datapath::Counters;
use imds_ebpf::abi::{ABI_VERSION, Reason};
use imds_tests::{
    agent::{Agent, HostFiles},
    frames::GUEST_MAC,
    host::{ADDRESS, INSTANCE_ID, program},
    leaks::{Leaks, Tally},
    netns::Namespace,
    records,
};
use nix::sys::signal::{Signal, kill};

use crate::{counters, pinned_counters};

/// A host, an agent on it, and what was sent while maps of this version counted.
struct Host {
    leaks: Leaks,
    files: HostFiles,
    namespace: Namespace,
    sent: Tally,
}

impl Host {
    fn new() -> Result<Self> {
        let namespace = Namespace::new()?;
        let leaks = namespace.enter(Leaks::new)?;
        // Of these frames far more are served than one guest may send; and the neighbour is the network, not a guest.
        let files = HostFiles::new("packets_per_second = 0\ntaps = [\"guest\"]")?;
        let mut record = records::instance(INSTANCE_ID, GUEST_MAC, "guest", ADDRESS);
        record["MetadataOptions"]["HttpProtocolIpv6"] = "enabled".into();
        files.put("instances", INSTANCE_ID, &record)?;
        Ok(Self {
            leaks,
            files,
            namespace,
            sent: Tally::default(),
        })
    }

    fn spawn(&self) -> Result<Agent> {
        Agent::spawn(&program()?, &self.namespace, &self.files)
    }

    fn start(&self) -> Result<Agent> {
        Agent::start(&program()?, &self.namespace, &self.files)
    }

    /// Sends the table once.
    fn send(&mut self, state: &str) -> Result<()> {
        self.sent.add(&self.leaks.send().context(state.to_owned())?);
        let counted = self.counted()?;
        ensure!(
            is_as_sent(&counted, &self.sent),
            "{state}: counted {counted:?} instead of {:?}",
            self.sent
        );
        Ok(())
    }

    /// Sends the table over and over until something has come about, and once more.
    fn send_until(&mut self, state: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
        let mut tables = 0;
        loop {
            let is_last = is_so()?;
            self.sent.add(&self.leaks.send().context(state.to_owned())?);
            tables += 1;
            if is_last {
                break;
            }
        }
        println!("{state}: {tables} tables sent");
        Ok(())
    }

    fn counted(&self) -> Result<Counters> {
        counters(&self.files, self.leaks.tap())
    }

    fn maps(&self, version: u32) -> PathBuf {
        self.files.pins().join(format!("v{version}"))
    }
}

/// A frame that finds the ring full, because nobody empties it, would be punted at another time.
fn is_as_sent(counted: &Counters, sent: &Tally) -> bool {
    let mut dropped = counted.dropped.clone();
    let ring_full = dropped.remove(&Reason::RingFull).unwrap_or(0);
    counted.punted + ring_full == sent.punted
        && counted.hairpinned == sent.hairpinned
        && dropped == sent.dropped
}

#[test]
fn nothing_leaks_whatever_becomes_of_the_agent() -> Result<()> {
    let mut host = Host::new()?;
    host.leaks.sees_every_shape()?;
    let agent = host.start()?;
    host.send("running")?;

    agent.pause()?;
    host.send("hung")?;
    agent.resume()?;

    let mut second = host.spawn()?;
    host.send_until("a second agent starts beside it", || {
        Ok(second.try_wait()?.is_some())
    })?;
    second.wait_for_log("in use by another agent")?;
    host.send("the second agent is gone")?;

    let (status, _) = agent.stop()?;
    ensure!(status.success(), "{status}");
    host.send("stopped")?;

    let mut agent = host.spawn()?;
    host.send_until("started again", || Ok(agent.is_ready()))?;

    // The next one starts while the killed one is on its way out.
    kill(agent.pid()?, Signal::SIGKILL)?;
    let mut next = host.spawn()?;
    host.send_until("killed and replaced", || Ok(next.is_ready()))?;
    agent.kill()?;
    next.kill()?;
    host.send("killed")?;
    Ok(())
}

#[test]
fn nothing_leaks_while_an_older_version_is_replaced() -> Result<()> {
    let mut host = Host::new()?;
    host.start()?.stop()?;
    // From here on the links carry programs whose maps are those of an older version.
    let (older, newer) = (host.maps(ABI_VERSION - 1), host.maps(ABI_VERSION));
    fs::create_dir(&older)?;
    let owner = fs::metadata(&newer)?;
    chown(&older, Some(owner.uid()), Some(owner.gid()))?;
    for map in fs::read_dir(&newer)? {
        let name = map?.file_name();
        fs::rename(newer.join(&name), older.join(&name))?;
    }
    let tap = host.leaks.tap();
    let older_counters = pinned_counters(&older.join("COUNTERS"))?;

    let mut agent = host.spawn()?;
    host.send_until("upgraded", || Ok(agent.is_ready()))?;
    let (before, after) = (Counters::sum(&older_counters.get(&tap.0, 0)?), host.counted()?);
    println!("older: {before}\nnewer: {after}");
    ensure!(
        before.punted > 0 && after.punted > 0,
        "nothing was sent on one side"
    );
    // Between the two, when the new maps know the tap and not yet its MAC, what would be served is dropped.
    let total = |counters: &Counters| counters.punted + counters.hairpinned + counters.dropped_total();
    ensure!(
        total(&before) + total(&after) == host.sent.total(),
        "{} were sent",
        host.sent.total()
    );
    ensure!(!older.exists(), "the older version's maps are left");
    Ok(())
}
