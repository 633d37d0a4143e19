//! Whose fetch is next: a source that hangs takes its own places and nobody else's.
//!
//! Fetches wait in lanes, one for each role of each source. Of the lanes where one is due, that goes on whose source has
//! the fewest fetches under way, then that whose role has; then who has no set goes first, then who waits longest. Since one
//! source never has all places, and who is answered has fewer under way than who is not, neither a source that hangs nor
//! thousands of first fetches keep another's refreshes waiting.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use crate::registry::{InstanceId, role::RoleSource};

/// Fetches of one source under way at once: it may start a process for each.
pub const FETCHES_OF_SOURCE_MAX: usize = 16;

/// Fetches under way at once, which leaves others some places when all of one source hang.
pub const FETCHES_MAX: usize = 24;

/// Who is asked for a session, and for which role.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Lane {
    source: Arc<str>,
    role: Arc<str>,
}

/// A session in its lane.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    /// Who has none goes first.
    pub has_set: bool,
    /// Monotonic.
    pub due: Duration,
    pub instance: InstanceId,
}

/// All lanes.
#[derive(Default, Debug)]
pub(super) struct Queue {
    sources: BTreeMap<Arc<str>, Source>,
    under_way: usize,
}

#[derive(Default, Debug)]
struct Source {
    lanes: HashMap<Arc<str>, Places>,
    /// The lanes where somebody waits, by when (monotonic) the first of them is due.
    by_due: BTreeSet<(Duration, Arc<str>)>,
    under_way: usize,
}

#[derive(Default, Debug)]
struct Places {
    without_set: BTreeSet<(Duration, InstanceId)>,
    with_set: BTreeSet<(Duration, InstanceId)>,
    under_way: usize,
}

/// What decides which lane goes on: the least of it.
type Turn = (usize, bool, Duration);

impl Queue {
    /// The lane of `role` as `source` gives it.
    pub fn lane(&self, source: Option<&RoleSource>, role: &str) -> Lane {
        let name = |source: &RoleSource| format!("{} {}", source.kind().as_str(), source.whom());
        let source: Arc<str> = source.map_or_else(String::new, name).into();
        // Thousands of sessions share their lane's name.
        let known = self.sources.get_key_value(&source).map(|(source, lanes)| {
            let role = lanes.lanes.get_key_value(role);
            (source, role.map(|(role, _)| role))
        });
        let (known_source, known_role) = known.unzip();
        Lane {
            source: known_source.cloned().unwrap_or(source),
            role: known_role.flatten().cloned().unwrap_or_else(|| role.into()),
        }
    }

    /// Lets a session wait.
    pub fn insert(&mut self, lane: &Lane, waiting: &Waiting) {
        self.change(lane, |places| {
            places.of(waiting.has_set).insert(waiting.entry());
        });
    }

    /// Takes a session out again.
    pub fn remove(&mut self, lane: &Lane, waiting: &Waiting) {
        self.change(lane, |places| {
            places.of(waiting.has_set).remove(&waiting.entry());
        });
    }

    /// The session whose fetch begins now. Each has to end.
    pub fn begin(&mut self, now: Duration) -> Option<InstanceId> {
        let next = |(name, source): (&Arc<str>, &Source)| {
            let (turn, role) = source.next(now)?;
            let lane = Lane {
                source: Arc::clone(name),
                role,
            };
            Some((source.under_way, turn, lane))
        };
        let (_, (_, has_set, _), lane) = self.open().filter_map(next).min()?;
        self.under_way += 1;
        self.sources.get_mut(&lane.source)?.under_way += 1;
        let first = self.change(&lane, |places| {
            places.under_way += 1;
            places.of(has_set).pop_first()
        });
        first.map(|(_, instance)| instance)
    }

    /// A fetch of `lane` ended.
    pub fn end(&mut self, lane: &Lane) {
        self.under_way = self.under_way.saturating_sub(1);
        if let Some(source) = self.sources.get_mut(&lane.source) {
            source.under_way = source.under_way.saturating_sub(1);
        }
        self.change(lane, |places| {
            places.under_way = places.under_way.saturating_sub(1);
        });
    }

    /// When (monotonic) the next fetch may begin, unless one ends before.
    pub fn first_due(&self) -> Option<Duration> {
        let first = |(_, source): (_, &Source)| source.by_due.first().map(|(due, _)| *due);
        self.open().filter_map(first).min()
    }

    /// The sources that may be asked for one more set.
    fn open(&self) -> impl Iterator<Item = (&Arc<str>, &Source)> {
        let is_open = self.under_way < FETCHES_MAX;
        self.sources
            .iter()
            .filter(move |(_, source)| is_open && source.under_way < FETCHES_OF_SOURCE_MAX)
    }

    /// Changes a lane, which is made if need be and forgotten when nothing is in it.
    fn change<R>(&mut self, lane: &Lane, change: impl FnOnce(&mut Places) -> R) -> R {
        let source = self.sources.entry(Arc::clone(&lane.source)).or_default();
        let places = source.lanes.entry(Arc::clone(&lane.role)).or_default();
        let before = places.first();
        let result = change(places);
        let after = places.first();
        let is_empty = after.is_none() && places.under_way == 0;
        if before != after {
            if let Some(due) = before {
                source.by_due.remove(&(due, Arc::clone(&lane.role)));
            }
            if let Some(due) = after {
                source.by_due.insert((due, Arc::clone(&lane.role)));
            }
        }
        if is_empty {
            source.lanes.remove(&lane.role);
            if source.lanes.is_empty() {
                self.sources.remove(&lane.source);
            }
        }
        result
    }
}

impl Source {
    /// The role that goes on now, if one is due.
    fn next(&self, now: Duration) -> Option<(Turn, Arc<str>)> {
        let due = self.by_due.iter().take_while(|(due, _)| *due <= now);
        let mut next = None;
        for (_, role) in due {
            let turn = self.lanes.get(role).and_then(|places| places.turn(now));
            let Some(turn) = turn else { continue };
            if next.as_ref().is_none_or(|(first, _)| turn < *first) {
                next = Some((turn, Arc::clone(role)));
            }
            if (turn.0, turn.1) == (0, false) {
                // Nobody's turn comes before that.
                break;
            }
        }
        next
    }
}

impl Waiting {
    fn entry(&self) -> (Duration, InstanceId) {
        (self.due, self.instance.clone())
    }
}

impl Places {
    fn of(&mut self, has_set: bool) -> &mut BTreeSet<(Duration, InstanceId)> {
        if has_set {
            &mut self.with_set
        } else {
            &mut self.without_set
        }
    }

    /// Nothing if nobody is due.
    fn turn(&self, now: Duration) -> Option<Turn> {
        let due = |places: &BTreeSet<(Duration, InstanceId)>| {
            let (due, _) = places.first()?;
            (*due <= now).then_some(*due)
        };
        let without_set = due(&self.without_set).map(|due| (self.under_way, false, due));
        without_set.or_else(|| due(&self.with_set).map(|due| (self.under_way, true, due)))
    }

    fn first(&self) -> Option<Duration> {
        let first = |places: &BTreeSet<(Duration, InstanceId)>| places.first().map(|(due, _)| *due);
        [first(&self.without_set), first(&self.with_set)]
            .into_iter()
            .flatten()
            .min()
    }
}
