//! When which role session's credentials are fetched, and what is served meanwhile. Performs no IO and reads no clock.
//!
//! A session is one instance in one role. Its life:
//! 1. The snapshot attaches a role: the first fetch is due at once, ahead of every refresh.
//! 2. A set arrives: it is served, and the next fetch is due after a third of its life, some of it left to chance so that
//!    what began together drifts apart, and always before less than [`LEFT_MIN`] is left.
//! 3. The source fails: the set goes on being served until its honest end, and the fetch is repeated after
//!    [`BACKOFF_FIRST`], then twice as long each time up to [`BACKOFF_MAX`].
//! 4. The source refuses: as 3, but repeated only after [`REFUSED_RETRY`]. The guest gets the refusal once it has no set
//!    left, or at once if the role was changed since the set was made.
//! 5. The role is detached or replaced, be it by another of the same name: the session is gone, and what is still under way
//!    for it is thrown away.

mod queue;

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rand::{Rng, RngExt as _};

use super::{
    FetchError, Refusal, RoleCredentials, RoleSession, RoleSessionRequest, RoleSlot, RoleState,
    health::{Event, Health, Trouble},
    identity_role::{account, identity_role, role_of_account},
    totals::Troubles,
    whole_seconds,
};
use crate::{
    now::Now,
    registry::{HttpTokens, InstanceId, Role, Snapshot, snapshot::Member},
};
pub use queue::{FETCHES_MAX, FETCHES_OF_SOURCE_MAX};
use queue::{Lane, Queue, Waiting};

/// SDKs begin to complain when less than ten minutes are left (wire contract, fact 12).
pub const LEFT_MIN: Duration = Duration::from_secs(15 * 60);

/// The least wait between two fetches that succeed, for sets that live hardly longer than [`LEFT_MIN`].
const REFRESH_MIN: Duration = Duration::from_secs(60);

/// The wait after a first failure.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);

/// The longest wait between failures: a source that is back has supplied everybody this long after.
pub const BACKOFF_MAX: Duration = Duration::from_secs(120);

/// The wait after a refusal. A change of the role's own record does not wait for it.
pub const REFUSED_RETRY: Duration = Duration::from_secs(300);

/// A step of the wall clock that is not just the two clocks being read one after the other.
const CLOCK_STEP: Duration = Duration::from_secs(5);

/// All role sessions, and what is due when.
#[derive(Debug)]
pub struct Schedule<R> {
    kind: Kind,
    random: R,
    /// A role's own maximum caps it.
    duration_seconds: u32,
    sessions: HashMap<InstanceId, Box<Session>>,
    queue: Queue,
    generations: u64,
    health: Health,
    /// The role that stands for the identity roles of an account's instances: thousands of instances share one.
    of_accounts: HashMap<Box<str>, Arc<Role>>,
    /// The wall clock ahead of the monotonic one, at the last look.
    clock_offset: Option<Duration>,
}

/// Which of an instance's two roles sessions are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The role in its instance profile, if it has one.
    InstanceProfile,
    /// The role that every instance has because it is one.
    InstanceIdentity,
}

/// Ties a fetch to the session as it was when the fetch began.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Ticket {
    instance: InstanceId,
    lane: Lane,
    generation: u64,
}

#[derive(Debug)]
struct Session {
    member: Arc<Member>,
    role: Arc<Role>,
    lane: Lane,
    slot: RoleSlot,
    generation: u64,
    /// Since when and how it waits for its next fetch; nothing while one is under way.
    waiting: Option<Waiting>,
    /// When the set in the slot ends, and since when (wall clock) it should be refreshed.
    set: Option<SetTimes>,
    failures: u32,
    trouble: Option<Trouble>,
    /// The set in the slot was made for another version of the role.
    outdated: bool,
}

#[derive(Clone, Copy, Debug)]
struct SetTimes {
    refresh_unix: Duration,
    expires_unix: Duration,
}

impl<R: Rng> Schedule<R> {
    /// No sessions yet. Sets are asked to live `duration_seconds`.
    pub fn new(kind: Kind, duration_seconds: u32, random: R) -> Self {
        Self {
            kind,
            random,
            duration_seconds,
            sessions: HashMap::new(),
            queue: Queue::default(),
            generations: 0,
            health: Health::default(),
            of_accounts: HashMap::new(),
            clock_offset: None,
        }
    }

    /// Attaches, replaces and detaches roles; whether [`Self::sessions`] changed.
    pub fn handle_snapshot(&mut self, now: Now, snapshot: &Snapshot) -> bool {
        // The registry keeps what has not changed, so most of a snapshot costs a comparison of addresses.
        let is_as_it_was = |instance: &InstanceId, session: &Session| {
            let member = snapshot.instances.get(instance);
            member.is_some_and(|member| Arc::ptr_eq(member, &session.member))
        };
        let sessions = self.sessions.iter();
        let others = sessions.filter(|(instance, session)| !is_as_it_was(instance, session));
        let others: Vec<InstanceId> = others.map(|(instance, _)| instance.clone()).collect();
        let mut is_other_set = false;
        for instance in others {
            let member = snapshot.instances.get(&instance);
            let role = member.and_then(|member| self.role(member));
            let (Some(session), Some(member), Some(role)) = (self.sessions.get_mut(&instance), member, role)
            else {
                self.end(&instance);
                is_other_set = true;
                continue;
            };
            if !role.is_version_of(&session.role) {
                self.end(&instance);
                is_other_set = true;
                continue;
            }
            let [before, after] = [&session.member, member].map(|member| member.options.http_tokens);
            // What else there is to say of the instance goes into its next set.
            session.member = Arc::clone(member);
            // A set that was made for guests with session tokens alone is of no use to those without.
            if *role != *session.role || (before, after) == (HttpTokens::Required, HttpTokens::Optional) {
                self.renew(now, &instance, role);
            }
        }
        for (instance, member) in &snapshot.instances {
            if !self.sessions.contains_key(instance)
                && let Some(role) = self.role(member)
            {
                self.begin(now, Arc::clone(member), role);
                is_other_set = true;
            }
        }
        self.of_accounts.retain(|_, role| Arc::strong_count(role) > 1);
        is_other_set
    }

    /// The role of a session, if there is to be one. That of an instance's identity is its account's until it is asked for.
    fn role(&mut self, member: &Member) -> Option<Arc<Role>> {
        if self.kind == Kind::InstanceProfile {
            return member.role.clone();
        }
        let account = account(&member.instance);
        let known = self.of_accounts.get(account).map(Arc::clone);
        Some(known.unwrap_or_else(|| {
            let role = Arc::new(role_of_account(account));
            self.of_accounts.insert(account.into(), Arc::clone(&role));
            role
        }))
    }

    /// Whether the session that a fetch is for has a set.
    pub fn has_set(&self, now: Now, ticket: &Ticket) -> bool {
        let session = self.sessions.get(&ticket.instance);
        let session = session.filter(|session| session.lane == ticket.lane);
        let set = session.and_then(|session| session.set);
        set.is_some_and(|set| set.expires_unix > now.unix)
    }

    /// The slots of all sessions, for publishing.
    pub fn sessions(&self) -> HashMap<InstanceId, RoleSession> {
        let sessions = self.sessions.iter().map(|(instance, session)| {
            let session = RoleSession {
                role: Arc::clone(&session.role),
                state: Arc::clone(&session.slot),
            };
            (instance.clone(), session)
        });
        sessions.collect()
    }

    /// A fetch to begin now, if one is due and there is room for it. Call until there is none.
    pub fn poll_fetch(&mut self, now: Now) -> Option<(Ticket, RoleSessionRequest)> {
        self.handle_clock_step(now);
        let instance = self.queue.begin(now.monotonic)?;
        let session = self.sessions.get_mut(&instance)?;
        session.waiting = None;
        let duration_seconds = session
            .role
            .max_session_duration
            .map_or(self.duration_seconds, |max| max.min(self.duration_seconds));
        let role = match self.kind {
            Kind::InstanceProfile => Arc::clone(&session.role),
            Kind::InstanceIdentity => Arc::new(identity_role(&session.member.instance)),
        };
        let request = RoleSessionRequest::new(role, &session.member, timestamp(now), duration_seconds);
        Some((
            Ticket {
                instance,
                lane: session.lane.clone(),
                generation: session.generation,
            },
            request,
        ))
    }

    /// Takes in the outcome of a fetch. Every ticket comes back exactly once.
    pub fn handle_fetched(
        &mut self,
        now: Now,
        ticket: &Ticket,
        outcome: Result<RoleCredentials, FetchError>,
    ) -> Option<Event> {
        self.queue.end(&ticket.lane);
        let session = self.sessions.get_mut(&ticket.instance)?;
        if session.generation != ticket.generation {
            return None;
        }
        if session.set.is_some_and(|set| set.expires_unix <= now.unix) {
            session.set = None;
            session.slot.store(None);
        }
        let outcome = match outcome {
            Ok(set) if unix(set.expiration) <= now.unix => Err(FetchError::Unavailable(format!(
                "it gave a set that expired at {}",
                set.expiration
            ))),
            outcome => outcome,
        };
        let (wait, trouble, why) = match outcome {
            Ok(set) => {
                let expires_unix = unix(set.expiration);
                let wait = refresh_after(expires_unix.saturating_sub(now.unix), chance(&mut self.random));
                session.set = Some(SetTimes {
                    refresh_unix: now.unix + wait,
                    expires_unix,
                });
                session.slot.store(Some(Arc::new(RoleState::Ready(set))));
                session.failures = 0;
                session.outdated = false;
                (wait, None, String::new())
            }
            Err(FetchError::Unavailable(why)) => {
                session.failures = session.failures.saturating_add(1);
                (
                    backoff(session.failures, chance(&mut self.random)),
                    Some(Trouble::Failing),
                    why,
                )
            }
            Err(FetchError::Refused { code, message, why }) => {
                session.failures = 0;
                if session.set.is_none() || session.outdated {
                    let last_updated = whole_seconds(timestamp(now));
                    let refusal = Refusal {
                        code,
                        message,
                        last_updated,
                    };
                    session.set = None;
                    session.slot.store(Some(Arc::new(RoleState::Refused(refusal))));
                }
                (
                    REFUSED_RETRY.mul_f64(chance(&mut self.random)),
                    Some(Trouble::Refused),
                    why,
                )
            }
        };
        // A set that ends before the next try goes away on time.
        let wait = match session.set {
            Some(set) if trouble.is_some() => {
                wait.min(set.expires_unix.saturating_sub(now.unix).max(BACKOFF_FIRST))
            }
            _ => wait,
        };
        self.set_due(&ticket.instance, Some(now.monotonic + wait));
        self.set_trouble(&ticket.instance, trouble, why)
    }

    /// When (monotonic) [`Self::poll_fetch`] has something to give, unless a snapshot or an outcome comes first.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.queue.first_due()
    }

    /// The sessions in trouble.
    pub fn troubles(&self) -> Troubles {
        self.health.troubles()
    }

    fn begin(&mut self, now: Now, member: Arc<Member>, role: Arc<Role>) {
        let instance = member.instance.instance_id.clone();
        self.generations += 1;
        let session = Session {
            member,
            lane: self.lane(&role),
            role,
            slot: RoleSlot::default(),
            generation: self.generations,
            waiting: None,
            set: None,
            failures: 0,
            trouble: None,
            outdated: false,
        };
        self.sessions.insert(instance.clone(), Box::new(session));
        self.set_due(&instance, Some(now.monotonic));
    }

    /// The same role in a new version, or for guests that ask otherwise: its set goes on being served until there is word from
    /// the source.
    fn renew(&mut self, now: Now, instance: &InstanceId, role: Arc<Role>) {
        self.generations += 1;
        self.set_due(instance, None);
        let lane = self.lane(&role);
        if let Some(session) = self.sessions.get_mut(instance) {
            session.outdated |= *session.role != *role;
            session.role = role;
            session.lane = lane;
            session.generation = self.generations;
            session.failures = 0;
        }
        self.set_due(instance, Some(now.monotonic));
    }

    fn end(&mut self, instance: &InstanceId) {
        self.set_due(instance, None);
        self.set_trouble(instance, None, String::new());
        if let Some(session) = self.sessions.remove(instance) {
            // A worker may hold the old map for a moment longer.
            session.slot.store(None);
        }
    }

    /// Moves a session within the queues.
    fn set_due(&mut self, instance: &InstanceId, due: Option<Duration>) {
        let Some(session) = self.sessions.get_mut(instance) else {
            return;
        };
        if let Some(before) = session.waiting.take() {
            self.queue.remove(&session.lane, &before);
        }
        if let Some(due) = due {
            let waiting = Waiting {
                has_set: session.set.is_some(),
                due,
                instance: instance.clone(),
            };
            self.queue.insert(&session.lane, &waiting);
            session.waiting = Some(waiting);
        }
    }

    /// The identity roles of all accounts share a lane.
    fn lane(&self, role: &Role) -> Lane {
        let name = match self.kind {
            Kind::InstanceProfile => &role.arn,
            Kind::InstanceIdentity => role.role_name.as_str(),
        };
        self.queue.lane(role.credentials.as_ref(), name)
    }

    fn set_trouble(&mut self, instance: &InstanceId, trouble: Option<Trouble>, why: String) -> Option<Event> {
        let session = self.sessions.get_mut(instance)?;
        let before = std::mem::replace(&mut session.trouble, trouble);
        self.health.handle_change(&session.role.arn, before, trouble, why)
    }

    /// Sets end by the wall clock and timers run by the monotonic one: when the former is put forward, the latter follow. Nothing is
    /// put off when it is put back: a set that was made by a clock that was ahead would be left alone for as long as that was wrong.
    fn handle_clock_step(&mut self, now: Now) {
        let offset = now.unix.saturating_sub(now.monotonic);
        let before = *self.clock_offset.get_or_insert(offset);
        if offset.abs_diff(before) < CLOCK_STEP {
            return;
        }
        self.clock_offset = Some(offset);
        if offset < before {
            return;
        }
        let waiting: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.waiting.is_some() && session.trouble.is_none())
            .filter_map(|(instance, session)| Some((instance.clone(), session.set?.refresh_unix)))
            .collect();
        for (instance, refresh_unix) in waiting {
            self.set_due(
                &instance,
                Some(now.monotonic + refresh_unix.saturating_sub(now.unix)),
            );
        }
    }
}

/// How long a set with this much life is left alone; `chance` is three quarters to one.
fn refresh_after(life: Duration, chance: f64) -> Duration {
    let third = life.mul_f64(chance / 3.0);
    match life.checked_sub(LEFT_MIN) {
        Some(spare) => third.min(spare.max(REFRESH_MIN)),
        None => third.max(Duration::from_secs(1)),
    }
}

fn backoff(failures: u32, chance: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (BACKOFF_FIRST * 2_u32.pow(doublings))
        .min(BACKOFF_MAX)
        .mul_f64(chance)
}

fn chance(random: &mut impl Rng) -> f64 {
    random.random_range(0.75..=1.0)
}

fn timestamp(now: Now) -> Timestamp {
    SignedDuration::try_from(now.unix)
        .ok()
        .and_then(|unix| Timestamp::from_duration(unix).ok())
        .unwrap_or(Timestamp::MAX)
}

fn unix(time: Timestamp) -> Duration {
    time.as_duration().try_into().unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod upkeep_tests;
