//! When which stack wants to be told of the time.
//!
//! Nearly every frame moves its stack's deadline, and nearly always to a later time, as a deadline is there for what does
//! not happen. So an entry stays where it is filed until it comes up, and is filed anew then if the deadline is a later one by now.
//! A deadline that moves to an earlier time gets another entry, and the first is passed over.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use imds_ebpf::abi::TapIndex;
use rustc_hash::FxHashMap;

/// Entries that are kept without looking for those that will be passed over.
const UNSWEPT_MAX: usize = 64;

/// The deadlines of one worker's stacks.
#[derive(Default, Debug)]
pub struct Deadlines {
    by_tap: FxHashMap<TapIndex, Deadline>,
    entries: BinaryHeap<Reverse<(Duration, TapIndex)>>,
    /// With this many entries those that will be passed over are forgotten.
    sweep_at: usize,
}

#[derive(Clone, Copy, Debug)]
struct Deadline {
    due: Duration,
    /// Where its entry is; never later than `due`.
    filed: Duration,
}

impl Deadlines {
    /// The stack of `tap` wants to be told of the time at `due`, or never.
    pub fn set(&mut self, tap: TapIndex, due: Option<Duration>) {
        let Some(due) = due else {
            self.by_tap.remove(&tap);
            return;
        };
        let unfiled = Deadline {
            due,
            filed: Duration::MAX,
        };
        let deadline = self.by_tap.entry(tap).or_insert(unfiled);
        deadline.due = due;
        if due < deadline.filed {
            deadline.filed = due;
            self.entries.push(Reverse((due, tap)));
            self.sweep();
        }
    }

    /// Until when nothing is due. There may be nothing due then either.
    pub fn quiet_until(&self) -> Option<Duration> {
        self.entries.peek().map(|Reverse((filed, _))| *filed)
    }

    /// The earliest deadline, if it is not after `until`, and whose it is.
    pub fn first(&mut self, until: Duration) -> Option<(Duration, TapIndex)> {
        while let Some(&Reverse((filed, tap))) = self.entries.peek()
            && filed <= until
        {
            let deadline = self.by_tap.get_mut(&tap);
            match deadline.filter(|deadline| deadline.filed == filed) {
                Some(deadline) if deadline.due == filed => return Some((filed, tap)),
                Some(deadline) => {
                    self.entries.pop();
                    deadline.filed = deadline.due;
                    self.entries.push(Reverse((deadline.due, tap)));
                }
                None => drop(self.entries.pop()),
            }
        }
        None
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.by_tap.clear();
        self.entries.clear();
    }

    /// Forgets entries that will be passed over when there may be more of them than others: a guest that moves its
    /// deadline to and fro makes one each time.
    fn sweep(&mut self) {
        if self.entries.len() < self.sweep_at.max(UNSWEPT_MAX) {
            return;
        }
        let mut entries = std::mem::take(&mut self.entries).into_vec();
        entries.sort_unstable();
        entries.dedup();
        entries.retain(|Reverse((filed, tap))| {
            let deadline = self.by_tap.get(tap);
            deadline.is_some_and(|deadline| deadline.filed == *filed)
        });
        self.sweep_at = entries.len().saturating_mul(2);
        self.entries = entries.into();
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    const TAP: TapIndex = TapIndex(7);

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn deadline_that_moves_later_comes_up_once_and_at_its_time() {
        let mut deadlines = Deadlines::default();
        for due in 10..1000 {
            deadlines.set(TAP, Some(at(due)));
        }
        assert_eq!(deadlines.entries.len(), 1);
        assert_eq!(deadlines.quiet_until(), Some(at(10)));
        assert_eq!(deadlines.first(at(998)), None);
        assert_eq!(deadlines.quiet_until(), Some(at(999)));
        assert_eq!(deadlines.first(at(999)), Some((at(999), TAP)));
        deadlines.set(TAP, None);
        assert_eq!(deadlines.first(Duration::MAX), None);
        assert_eq!(deadlines.quiet_until(), None);
    }

    #[test]
    fn deadline_that_moves_earlier_comes_up_at_once() {
        let mut deadlines = Deadlines::default();
        deadlines.set(TAP, Some(at(1000)));
        deadlines.set(TAP, Some(at(10)));
        assert_eq!(deadlines.first(Duration::MAX), Some((at(10), TAP)));
        deadlines.set(TAP, Some(at(2000)));
        assert_eq!(deadlines.first(Duration::MAX), Some((at(2000), TAP)));
    }

    #[test]
    fn deadlines_come_up_as_in_a_walk_of_all() {
        let mut random = StdRng::seed_from_u64(1);
        let (mut deadlines, mut all) = (Deadlines::default(), FxHashMap::default());
        let mut now = 0;
        for _ in 0..100_000 {
            let tap = TapIndex(random.random_range(0..20));
            let due = random
                .random_bool(0.9)
                .then(|| at(now + 1 + random.random_range(0..2000)));
            deadlines.set(tap, due);
            match due {
                Some(due) => drop(all.insert(tap, due)),
                None => drop(all.remove(&tap)),
            }
            now += random.random_range(0..3);
            let walk = |until| all.values().copied().filter(|due| *due <= until).min();
            assert_eq!(deadlines.first(at(now)).map(|(due, _)| due), walk(at(now)));
            while let Some((due, tap)) = deadlines.first(at(now)) {
                assert_eq!(all.remove(&tap), Some(due));
                deadlines.set(tap, None);
            }
            assert!(all.values().all(|due| *due > at(now)));
            assert!(deadlines.quiet_until() <= all.values().copied().min() || all.is_empty());
        }
    }

    #[test]
    fn guest_that_moves_its_deadline_to_and_fro_fills_nothing() {
        let mut deadlines = Deadlines::default();
        for now in 0..100_000 {
            deadlines.set(TAP, Some(at(1_000_000 + now % 2)));
            deadlines.set(TAP, Some(at(now + 1)));
            assert_eq!(deadlines.first(at(now + 1)), Some((at(now + 1), TAP)));
        }
        assert!(
            deadlines.entries.len() <= UNSWEPT_MAX,
            "{}",
            deadlines.entries.len()
        );
    }
}
