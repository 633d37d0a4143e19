//! The verdict table through a tap and over a bridge, with a capture on the far side: what passes arrives there unchanged
//! and in order and nothing else does, whatever state the agent is in; and what a forger sends the other way never arrives.

use std::{collections::BTreeMap, io};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::{
    abi::{Reason, TapIndex},
    classify::Verdict,
};

use crate::{
    frames::{GUEST_MAC, OTHER_MAC},
    tap::{Tap, bridge},
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

/// A guest on a bridge with a neighbour, who is the far side.
#[derive(Debug)]
pub struct Leaks {
    guest: Tap,
    neighbour: Tap,
}

impl Leaks {
    /// In the network namespace of the calling thread, the guest on a tap called `guest`.
    pub fn new() -> Result<Self> {
        let (guest, neighbour) = (Tap::new("guest")?, Tap::new("neighbour")?);
        bridge("bridge", &[guest.index(), neighbour.index()])?;
        Ok(Self { guest, neighbour })
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

    /// Sends a frame for the address, which falls through where no classifier is: shows that the far side is looked at.
    pub fn falls_through(&self) -> Result<bool> {
        let cases = table();
        let wanted =
            |verdict| move |case: &&Case| case.verdict == verdict && !is_link_local_group(&case.frame);
        let mut frames = [Verdict::Punt, Verdict::Pass].map(|verdict| cases.iter().find(wanted(verdict)));
        let [Some(request), Some(last)] = frames.each_mut() else {
            anyhow::bail!("the table has no such frames");
        };
        self.guest.send(&request.frame)?;
        self.guest.send(&last.frame)?;
        let next = self.neighbour.receive(is_guests)?;
        if next == request.frame {
            self.neighbour.receive(|frame| *frame == last.frame)?;
        } else {
            ensure!(next == last.frame, "came out as {next:02x?}");
        }
        Ok(next == request.frame)
    }

    fn send_outbound(&self, sent: &mut Tally) -> Result<()> {
        let mut passed = Vec::new();
        for Case {
            name, frame, verdict, ..
        } in table()
        {
            // This one the kernel itself drops, before any hook.
            if name == "a frame that ends within its tag" {
                continue;
            }
            self.guest.send(&frame)?;
            match verdict {
                // A bridge keeps most of these to itself (IEEE 802.1D).
                Verdict::Pass if is_link_local_group(&frame) => {}
                Verdict::Pass => passed.push((name, frame)),
                Verdict::Punt => sent.punted += 1,
                Verdict::HairpinArp | Verdict::HairpinNdp => sent.hairpinned += 1,
                Verdict::Drop(reason) => *sent.dropped.entry(reason).or_default() += 1,
            }
        }
        // The last one comes behind all others: whatever fell through would have been seen before it.
        for (name, frame) in passed {
            let next = self.neighbour.receive(is_guests).context(name)?;
            ensure!(next == frame, "instead of {name} came {next:02x?}");
        }
        Ok(())
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

/// Whether it is from the guest or a nested one: the host's own IPv6 greets every tap.
fn is_guests(frame: &[u8]) -> bool {
    let source = frame.get(6..12).unwrap_or_default();
    !is_link_local_group(frame) && [GUEST_MAC.0, OTHER_MAC.0].iter().any(|mac| source == mac)
}

fn is_link_local_group(frame: &[u8]) -> bool {
    frame.starts_with(&[0x01, 0x80, 0xc2])
}
