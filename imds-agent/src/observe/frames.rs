//! What happened to the metadata frames of all taps together.
//!
//! The classifier counts for each tap since it was attached, in maps that outlive the agent and lose a tap's counts when the
//! tap goes. A sum that only ever grows is made of them here: it begins at nothing with the agent, as counters of a process
//! do, and keeps what taps had counted that are gone. So a rate over it has no spike where a tap goes or an agent starts.

use std::collections::HashMap;

use imds_ebpf::abi::TapIndex;

use crate::datapath::Counters;

/// The sum, and what of each tap is in it already.
#[derive(Default, Debug)]
pub struct Frames {
    sum: Counters,
    taps: HashMap<TapIndex, Counters>,
}

impl Frames {
    /// A tap is counted from here on: what an earlier agent saw of it is not part of the sum.
    pub fn adopt(&mut self, tap: TapIndex, counters: Counters) {
        self.taps.insert(tap, counters);
    }

    /// Takes in what a tap has counted since it was attached.
    pub fn handle_counters(&mut self, tap: TapIndex, counters: Counters) {
        let before = self.taps.remove(&tap).unwrap_or_default();
        // Less than before: the index is another device's by now, which counted from nothing.
        let since = |is: u64, was: u64| is.checked_sub(was).unwrap_or(is);
        let add = |sum: &mut u64, is, was| *sum = sum.saturating_add(since(is, was));
        add(&mut self.sum.punted, counters.punted, before.punted);
        add(&mut self.sum.hairpinned, counters.hairpinned, before.hairpinned);
        for (reason, count) in &counters.dropped {
            let sum = self.sum.dropped.entry(*reason).or_default();
            add(sum, *count, before.dropped_for(*reason));
        }
        self.taps.insert(tap, counters);
    }

    /// A tap goes, after its last counters were taken in.
    pub fn forget(&mut self, tap: TapIndex) {
        self.taps.remove(&tap);
    }

    /// All taps together, since the agent began.
    pub fn sum(&self) -> &Counters {
        &self.sum
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use imds_ebpf::abi::Reason;

    use super::*;

    const ONE: TapIndex = TapIndex(11);
    const TWO: TapIndex = TapIndex(12);

    fn counters(punted: u64, not_tcp: u64) -> Counters {
        Counters {
            punted,
            hairpinned: 0,
            dropped: BTreeMap::from([(Reason::NotTcp, not_tcp)]),
        }
    }

    #[test]
    fn sum_begins_with_the_agent_and_never_shrinks() {
        let mut frames = Frames::default();
        frames.adopt(ONE, counters(100, 50));
        frames.handle_counters(ONE, counters(103, 51));
        frames.handle_counters(TWO, counters(10, 0));
        assert_eq!(frames.sum(), &counters(13, 1));
        frames.forget(TWO);
        assert_eq!(frames.sum(), &counters(13, 1));
        // The index comes again with another device.
        frames.handle_counters(TWO, counters(2, 2));
        assert_eq!(frames.sum(), &counters(15, 3));
        // And with another one, before anybody said that the last one was gone.
        frames.handle_counters(TWO, counters(1, 2));
        assert_eq!(frames.sum(), &counters(16, 3));
    }
}
