//! What happened to a tap's metadata frames.

use std::{collections::BTreeMap, fmt};

use imds_ebpf::abi::{HAIRPINNED_SLOT, PUNTED_SLOT, Reason, TapCounters};

/// Frames of one tap since the classifier was attached to it, over all CPUs. Frames that passed are not counted.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Handed to the agent.
    pub punted: u64,
    /// Answered in the kernel.
    pub hairpinned: u64,
    /// Dropped, by reason; a reason that never occurred is absent.
    pub dropped: BTreeMap<Reason, u64>,
}

impl Counters {
    /// Sums what each CPU counted.
    pub fn sum(cpus: &[TapCounters]) -> Self {
        let slot = |slot: u32| -> u64 {
            let counts = cpus.iter().filter_map(|cpu| cpu.get(usize::try_from(slot).ok()?));
            counts.fold(0, |sum, count| sum.wrapping_add(*count))
        };
        let dropped = Reason::ALL
            .into_iter()
            .map(|reason| (reason, slot(reason as u32)));
        Self {
            punted: slot(PUNTED_SLOT),
            hairpinned: slot(HAIRPINNED_SLOT),
            dropped: dropped.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// Frames dropped for `reason`.
    pub fn dropped_for(&self, reason: Reason) -> u64 {
        self.dropped.get(&reason).copied().unwrap_or(0)
    }

    /// Frames dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} punted, {} hairpinned, {} dropped",
            self.punted,
            self.hairpinned,
            self.dropped_total()
        )?;
        for (index, (reason, count)) in self.dropped.iter().enumerate() {
            let separator = if index == 0 { ": " } else { ", " };
            write!(f, "{separator}{count} {}", reason.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use imds_ebpf::abi::COUNTERS;

    use super::*;

    #[test]
    fn cpus_are_summed_slot_by_slot() {
        let (mut first, mut second) = ([0; COUNTERS], [0; COUNTERS]);
        first[Reason::NotTcp as usize] = 2;
        second[Reason::NotTcp as usize] = 3;
        second[Reason::Fragment as usize] = 1;
        first[PUNTED_SLOT as usize] = 10;
        second[HAIRPINNED_SLOT as usize] = 4;

        let counters = Counters::sum(&[first, second]);
        assert_eq!((counters.punted, counters.hairpinned), (10, 4));
        assert_eq!(
            counters.dropped,
            BTreeMap::from([(Reason::Fragment, 1), (Reason::NotTcp, 5)])
        );
        assert_eq!(counters.dropped_for(Reason::NotTcp), 5);
        assert_eq!(counters.dropped_for(Reason::Truncated), 0);
        assert_eq!(counters.dropped_total(), 6);
    }
}
