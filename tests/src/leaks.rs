//! The verdict table through a tap and over a bridge, with a capture on the far side: what passes arrives there unchanged
//! and in order and nothing else does, whatever state the agent is in; and what a forger sends the other way never arrives.

use std::{collections::BTreeMap, io};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::{
    abi::{IMDS_MAC, Reason, TapIndex},
    classify::Verdict,
};

use crate::{
    frames::{BROADCAST, GUEST_MAC, OTHER_MAC, eth},
    hub::hub,
    tap::Tap,
    verdicts::{Case, inbound, table},
};

/// What the frames sent so far are to be counted as.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// For the agent.
    pub punted: u64,
    /// Answered in the kernel.
    pub hairpinned: u64,
    /// Dropped, by reason.
    pub dropped: BTreeMap<Reason, u64>,
}

impl Tally {
    /// Frames of all kinds.
    pub fn total(&self) -> u64 {
        self.punted + self.hairpinned + self.dropped.values().sum::<u64>()
    }

    /// Adds what was sent at another time.
    pub fn add(&mut self, other: &Self) {
        self.punted += other.punted;
        self.hairpinned += other.hairpinned;
        for (reason, count) in &other.dropped {
            *self.dropped.entry(*reason).or_default() += count;
        }
    }
}

/// The kernel itself drops this one, before any hook.
pub const ENDS_WITHIN_ITS_TAG: &str = "a frame that ends within its tag";

/// Longer than any device takes: should it leak, then the neighbour's drops it. It is counted all the same.
const LONGER_THAN_DEVICES_TAKE: &str = "as long as IP can be";

/// A guest on a bridge with a neighbour, who is the far side and hears whatever enters the bridge.
#[derive(Debug)]
pub struct Leaks {
    guest: Tap,
    neighbour: Tap,
}

impl Leaks {
    /// In the network namespace of the calling thread, the guest on a tap called `guest`.
    pub fn new() -> Result<Self> {
        Self::of(Tap::new("guest")?)
    }

    /// The same of a guest with offloads.
    pub fn with_offloads() -> Result<Self> {
        Self::of(Tap::with_vnet_header("guest")?)
    }

    fn of(guest: Tap) -> Result<Self> {
        let neighbour = Tap::new("neighbour")?;
        hub(
            "bridge",
            &[("guest", guest.index()), ("neighbour", neighbour.index())],
        )?;
        Ok(Self { guest, neighbour })
    }

    /// The guest.
    pub fn guest(&self) -> &Tap {
        &self.guest
    }

    /// The guest's tap.
    pub fn tap(&self) -> TapIndex {
        self.guest.index()
    }

    /// Sends every frame of both directions, and says how they are to be counted.
    pub fn send(&self) -> Result<Tally> {
        let mut sent = self.send_as_guest()?;
        self.send_inbound(&mut sent)?;
        Ok(sent)
    }

    /// The same for what the guest sends alone.
    pub fn send_as_guest(&self) -> Result<Tally> {
        let mut sent = Tally::default();
        self.send_outbound(&mut sent)?;
        Ok(sent)
    }

    /// Sends a frame for the address, which falls through where no classifier is.
    pub fn falls_through(&self) -> Result<bool> {
        let cases = table();
        let request = cases.iter().find(|case| case.verdict == Verdict::Punt);
        let request = request.context("the table has no request")?;
        self.guest.send(&request.frame)?;
        self.guest.send(&last())?;
        let next = self.neighbour.receive(is_guests)?;
        let has_fallen = next == request.frame;
        if has_fallen {
            self.neighbour.receive(|frame| *frame == last())?;
        } else {
            ensure!(next == last(), "{} came out", described(&next));
        }
        Ok(has_fallen)
    }

    /// Sends the table where no classifier is: each of its frames arrives, so that the far side would see it leak.
    pub fn sees_every_shape(&self) -> Result<()> {
        let sent: Vec<_> = frames().collect();
        for Case { frame, .. } in &sent {
            self.guest.send(frame)?;
        }
        let shown = sent
            .into_iter()
            .filter(|case| case.name != LONGER_THAN_DEVICES_TAKE);
        self.expect(shown.map(|case| (case.name, case.frame)))
    }

    /// Looks at the far side: exactly `passed` has arrived there since it was looked at last, in this order.
    pub fn expect(&self, passed: impl IntoIterator<Item = (&'static str, Vec<u8>)>) -> Result<()> {
        // Whatever fell through comes before it.
        self.guest.send(&last())?;
        for (name, frame) in passed {
            let next = self.neighbour.receive(is_guests).context(name)?;
            ensure!(next == frame, "instead of {name} came {}", described(&next));
        }
        let next = self.neighbour.receive(is_guests)?;
        ensure!(next == last(), "{} came out", described(&next));
        Ok(())
    }

    fn send_outbound(&self, sent: &mut Tally) -> Result<()> {
        let mut passed = Vec::new();
        for Case {
            name, frame, verdict, ..
        } in frames()
        {
            self.guest.send(&frame)?;
            match verdict {
                Verdict::Pass => passed.push((name, frame)),
                Verdict::Punt => sent.punted += 1,
                Verdict::HairpinArp | Verdict::HairpinNdp => sent.hairpinned += 1,
                Verdict::Drop(reason) => *sent.dropped.entry(reason).or_default() += 1,
            }
        }
        self.expect(passed)
    }

    fn send_inbound(&self, sent: &mut Tally) -> Result<()> {
        // Some of the kernel's own answers are what a forger would say, byte by byte.
        self.forget_answers()?;
        let frames = inbound();
        for (_, frame, is_admitted) in &frames {
            self.neighbour.send(frame)?;
            if !is_admitted {
                *sent.dropped.entry(Reason::InboundForged).or_default() += 1;
            }
        }
        let (forged, mut admitted): (Vec<_>, Vec<_>) =
            frames.into_iter().partition(|(_, _, is_admitted)| !is_admitted);
        let last = admitted.pop().context("nothing is admitted")?.1;
        loop {
            let arrived = self.guest.receive(|_| true)?;
            let is_forged = forged.iter().find(|(_, frame, _)| *frame == arrived);
            ensure!(is_forged.is_none(), "{is_forged:02x?} went in");
            admitted.retain(|(_, frame, _)| *frame != arrived);
            if arrived == last {
                break;
            }
        }
        ensure!(admitted.is_empty(), "did not go in: {admitted:02x?}");
        Ok(())
    }

    /// Empties the guest's queue of what the service and the host said.
    fn forget_answers(&self) -> Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.guest.read(&mut buffer) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The frames of the table that reach a hook.
fn frames() -> impl Iterator<Item = Case> {
    table()
        .into_iter()
        .filter(|case| case.name != ENDS_WITHIN_ITS_TAG)
}

/// A frame that is none of the classifier's business, of an EtherType that IEEE 802 leaves to everyone for experiments.
fn last() -> Vec<u8> {
    eth(BROADCAST, GUEST_MAC, &[], 0x88b5, &[0x1a; 46])
}

/// What the table calls a frame.
fn described(frame: &[u8]) -> String {
    let name = table()
        .into_iter()
        .find(|case| case.frame == frame)
        .map(|case| case.name);
    name.map_or_else(|| format!("{frame:02x?}"), |name| format!("{name:?}"))
}

/// Whether it is from the guest, a nested one, or one that says that it is the service: the host's own IPv6 greets every tap.
fn is_guests(frame: &[u8]) -> bool {
    let source = frame.get(6..12).unwrap_or_default();
    [GUEST_MAC.0, OTHER_MAC.0, IMDS_MAC.0]
        .iter()
        .any(|mac| source == mac)
}
