//! Which worker serves which tap: pure.
//!
//! A tap stays with its worker as long as it is bound to somebody, because its connections and what it has left of its requests
//! are with that worker and no other. One that is bound anew goes to the worker that has the fewest: hypervisors make several
//! devices for each guest, so that a rule of the taps' indices might give all of them to one worker.
//!
//! An agent that starts goes on with what the last one assigned, because frames wait in those rings. Only what is more than a
//! worker's share is assigned anew, which is nearly nothing unless the number of workers changed.

use std::collections::BTreeMap;

use imds_ebpf::abi::{TapIndex, WorkerNumber};

/// The workers, and who has which taps.
#[derive(Debug)]
pub struct Assignment {
    /// How many taps each worker has.
    loads: Vec<(WorkerNumber, usize)>,
    taps: BTreeMap<TapIndex, WorkerNumber>,
}

impl Assignment {
    /// To so many workers, and where the last agent assigned taps.
    pub fn new(workers: usize, earlier: &[(TapIndex, WorkerNumber)]) -> Self {
        let mut assignment = Self {
            loads: (0..)
                .map(WorkerNumber)
                .take(workers)
                .map(|worker| (worker, 0))
                .collect(),
            taps: BTreeMap::new(),
        };
        let share = earlier.len().div_ceil(workers.max(1));
        for (tap, worker) in earlier {
            if assignment.load(*worker).is_some_and(|load| *load < share) {
                assignment.put(*tap, *worker);
            }
        }
        assignment
    }

    /// Whose the tap is from here on, which it stays until it is released.
    pub fn assign(&mut self, tap: TapIndex) -> WorkerNumber {
        if let Some(worker) = self.worker_of(tap) {
            return worker;
        }
        let least = self.loads.iter().min_by_key(|(_, load)| *load);
        let worker = least.map_or_else(WorkerNumber::default, |(worker, _)| *worker);
        self.put(tap, worker);
        worker
    }

    /// Whose the tap is.
    pub fn worker_of(&self, tap: TapIndex) -> Option<WorkerNumber> {
        self.taps.get(&tap).copied()
    }

    /// The tap is nobody's any more; whose it was.
    pub fn release(&mut self, tap: TapIndex) -> Option<WorkerNumber> {
        let worker = self.taps.remove(&tap)?;
        if let Some(load) = self.load(worker) {
            *load -= 1;
        }
        Some(worker)
    }

    fn put(&mut self, tap: TapIndex, worker: WorkerNumber) {
        self.taps.insert(tap, worker);
        if let Some(load) = self.load(worker) {
            *load += 1;
        }
    }

    fn load(&mut self, worker: WorkerNumber) -> Option<&mut usize> {
        let mut loads = self.loads.iter_mut();
        loads.find_map(|(number, load)| (*number == worker).then_some(load))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assign(assignment: &mut Assignment, taps: impl IntoIterator<Item = u64>) -> Vec<u8> {
        let assigned = taps.into_iter().map(|tap| assignment.assign(TapIndex(tap)).0);
        assigned.collect()
    }

    fn earlier(workers: &[u8]) -> Vec<(TapIndex, WorkerNumber)> {
        let taps = (1..).map(TapIndex);
        taps.zip(workers.iter().copied().map(WorkerNumber)).collect()
    }

    #[test]
    fn each_tap_goes_to_the_worker_with_the_fewest_and_stays_there() {
        let mut assignment = Assignment::new(3, &[]);
        // Indices that have one remainder, whatever they are divided by.
        let taps = (0..6).map(|number| 840 * number);
        assert_eq!(assign(&mut assignment, taps.clone()), [0, 1, 2, 0, 1, 2]);
        assert_eq!(assign(&mut assignment, taps.rev()), [2, 1, 0, 2, 1, 0]);
        assert_eq!(assignment.release(TapIndex(840)), Some(WorkerNumber(1)));
        assert_eq!(assignment.release(TapIndex(840)), None);
        assert_eq!(assignment.worker_of(TapIndex(840)), None);
        assert_eq!(assign(&mut assignment, [7, 8]), [1, 0]);
    }

    #[test]
    fn one_worker_has_all() {
        let mut assignment = Assignment::new(1, &earlier(&[0, 1, 7]));
        assert_eq!(assign(&mut assignment, 1..=4), [0; 4]);
    }

    #[test]
    fn a_restart_moves_nobody() {
        let before = [0, 0, 1, 1, 0, 1, 1];
        let mut assignment = Assignment::new(2, &earlier(&before));
        assert_eq!(assign(&mut assignment, 1..=7), before);
        assert_eq!(assign(&mut assignment, [8]), [0]);
    }

    #[test]
    fn a_restart_with_more_workers_gives_each_its_share_and_moves_no_other() {
        let mut assignment = Assignment::new(2, &earlier(&[0; 6]));
        assert_eq!(assign(&mut assignment, 1..=6), [0, 0, 0, 1, 1, 1]);
    }

    #[test]
    fn a_restart_with_fewer_workers_leaves_nobody_with_one_that_is_not_there() {
        let mut assignment = Assignment::new(2, &earlier(&[0, 1, 2, 3, 2, 1]));
        assert_eq!(assign(&mut assignment, 1..=6), [0, 1, 0, 0, 1, 1]);
    }
}
