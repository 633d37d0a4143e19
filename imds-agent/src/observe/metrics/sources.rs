//! Who counts what, read at the time of a scrape.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use imds_ebpf::abi::{ABI_VERSION, Reason, TAPS_MAX};
use jiff::Timestamp;
use tokio::sync::watch;

use super::{Samples, Source, families as f};
use crate::{
    credentials::{self, RoleState, Totals, schedule::Kind, totals::FetchOutcome},
    datapath::{Counters, Hook},
    observe::{
        Audit, Budget, Guests, Panics, Requests, StsExchanges, Trace, WorkerHealth,
        budget::Scarcest,
        latency::Observed,
        requests::{METHODS, REFUSALS, STATUSES, VERSIONS},
        worker_health::Counted,
    },
    registry::{self, Problem, problem::Severity, role::SourceKind},
    stack::CONNECTIONS_MAX,
};

/// Roles that have series of their own: the first ones by their ARN. The others are told together, as [`OTHER_ROLES`], so that the
/// first set to expire is seen whosever it is.
pub const ROLES_MAX: usize = 100;

/// What stands for the roles past [`ROLES_MAX`].
pub const OTHER_ROLES: &str = "(other)";

/// The workers: each with counts of its own.
#[derive(Debug)]
pub struct Workers(pub Vec<(Arc<Requests>, Arc<WorkerHealth>)>);

impl Workers {
    fn sum(&self, read: impl Fn(&Requests) -> u64) -> u64 {
        self.0.iter().map(|(requests, _)| read(requests)).sum()
    }
}

impl Source for Workers {
    fn put(&self, samples: &mut Samples<'_>) -> fmt::Result {
        let cells = (0..VERSIONS.len()).flat_map(|version| {
            (0..METHODS.len())
                .flat_map(move |method| (0..STATUSES.len()).map(move |status| (version, method, status)))
        });
        let digits = STATUSES.map(|status| (status as u16).to_string());
        samples.many(
            f::REQUESTS,
            cells.map(|(version, method, status)| {
                #[expect(clippy::indexing_slicing, reason = "the cells are those of these tables")]
                let labels = [VERSIONS[version], METHODS[method], digits[status].as_str()];
                (
                    labels,
                    self.sum(|requests| requests.answered(version, method, status)),
                )
            }),
        )?;
        let refused = REFUSALS.into_iter().enumerate();
        samples.many(
            f::REQUESTS_REFUSED,
            refused.map(|(at, reason)| ([reason], self.sum(|requests| requests.refused(at)))),
        )?;
        let malformed = digits.iter().enumerate();
        samples.many(
            f::REQUESTS_MALFORMED,
            malformed.map(|(at, status)| ([status], self.sum(|requests| requests.malformed(at)))),
        )?;
        let forwarded = VERSIONS.into_iter().enumerate();
        samples.many(
            f::REQUESTS_FORWARDED,
            forwarded.map(|(at, version)| ([version], self.sum(|requests| requests.forwarded(at)))),
        )?;
        let mut observed = Observed::default();
        for (requests, _) in &self.0 {
            requests.latency.add_to(&mut observed);
        }
        samples.histogram(f::REQUEST_DURATION, &observed)?;
        samples.one(f::SESSION_TOKENS, self.sum(Requests::session_tokens))?;
        let kinds = [Kind::InstanceProfile, Kind::InstanceIdentity].map(word_for_kind);
        samples.many(
            f::CREDENTIALS_DELIVERED,
            kinds.into_iter().enumerate().map(|(at, kind)| {
                (
                    [kind],
                    self.sum(|requests| requests.credentials().get(at).copied().unwrap_or(0)),
                )
            }),
        )?;
        let health = |read: fn(&Counted) -> u64| -> u64 {
            let counted = self.0.iter().map(|(_, health)| health.counted());
            counted.map(|counted| read(&counted)).sum()
        };
        samples.one(f::WORKERS, self.0.len())?;
        let connections = self.0.iter().map(|(_, health)| health.connections());
        samples.one(f::CONNECTIONS, connections.sum::<u64>())?;
        let turned_away = [
            (["reset"], health(|counted| counted.connections_reset)),
            (["dropped"], health(|counted| counted.syns_dropped)),
        ];
        samples.many(f::CONNECTIONS_TURNED_AWAY, turned_away)?;
        samples.one(f::RING_MALFORMED, health(|counted| counted.malformed))?;
        samples.one(f::RING_STALE, health(|counted| counted.stale))?;
        let discarded = [
            (["malformed"], health(|counted| counted.frames_malformed)),
            (["not-served"], health(|counted| counted.frames_not_served)),
            (["paused"], health(|counted| counted.frames_paused)),
        ];
        samples.many(f::FRAMES_DISCARDED, discarded)?;
        samples.one(f::FRAMES_INJECTED, health(|counted| counted.injected))?;
        samples.one(f::FRAMES_LOST, health(|counted| counted.lost))
    }
}

/// What only the agent's own loop knows: taps, and the classifier's counters.
#[derive(Clone, Debug)]
pub struct Told {
    /// The hook of the classifier.
    pub hook: Hook,
    /// Taps that have the classifier.
    pub attached: usize,
    /// Taps that are somebody's.
    pub bound: usize,
    /// Taps on which the kernel refused something.
    pub refused: usize,
    /// Of the other network namespaces, those that are served and those that cannot be.
    pub namespaces: [usize; 2],
    /// The frames of all taps since the agent started.
    pub frames: Counters,
    /// What is left of their limits to taps that are somebody's.
    pub scarcest: Scarcest,
    /// Each tap by its name, where that is wanted.
    pub taps: BTreeMap<String, ToldOfTap>,
    /// What is in force of the configuration, which may change.
    pub limits: Limits,
    /// When the records in force were taken over.
    pub loaded: Timestamp,
}

/// What the configuration and the code limit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Packets of one tap in a second; zero sets no limit.
    pub packets_per_second: u32,
    /// Requests of one interface in a second; zero sets no limit.
    pub requests_per_second: u32,
    /// The longest user data.
    pub user_data_bytes: u64,
}

impl Limits {
    fn put(self, samples: &mut Samples<'_>) -> fmt::Result {
        samples.one(f::LIMIT_PACKETS, u64::from(self.packets_per_second))?;
        samples.one(f::LIMIT_REQUESTS, u64::from(self.requests_per_second))?;
        samples.one(f::LIMIT_CONNECTIONS, CONNECTIONS_MAX)?;
        samples.one(f::LIMIT_USER_DATA, self.user_data_bytes)?;
        samples.one(f::LIMIT_TAPS, u64::from(TAPS_MAX))
    }
}

/// What there is to tell of one tap.
#[derive(Clone, Debug)]
pub struct ToldOfTap {
    /// Its frames since it has the classifier.
    pub frames: Counters,
    /// What it has left of its limits, if it is somebody's.
    pub budget: Option<Budget>,
}

/// What the agent's own loop told last: each scrape asks it first.
#[derive(Clone, Default, Debug)]
pub struct Host(Arc<Mutex<Option<Told>>>);

impl Host {
    /// Takes in what the agent's loop answers.
    pub fn handle_told(&self, told: Told) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
    }
}

impl Source for Host {
    fn put(&self, samples: &mut Samples<'_>) -> fmt::Result {
        let Some(told) = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone() else {
            return Ok(());
        };
        let Told { frames, taps, .. } = &told;
        samples.one(f::FRAMES_PUNTED, frames.punted)?;
        samples.one(f::FRAMES_HAIRPINNED, frames.hairpinned)?;
        samples.many(
            f::FRAMES_DROPPED,
            Reason::ALL.map(|reason| (numbered(reason), frames.dropped_for(reason))),
        )?;
        if !taps.is_empty() {
            let punted = taps.iter().map(|(tap, told)| ([tap], told.frames.punted));
            samples.many(f::TAP_FRAMES_PUNTED, punted)?;
            let hairpinned = taps.iter().map(|(tap, told)| ([tap], told.frames.hairpinned));
            samples.many(f::TAP_FRAMES_HAIRPINNED, hairpinned)?;
            let dropped = taps.iter().flat_map(|(tap, told)| {
                told.frames.dropped.iter().map(|(reason, count)| {
                    let [number, name] = numbered(*reason);
                    ([tap.clone(), number, name], *count)
                })
            });
            samples.many(f::TAP_FRAMES_DROPPED, dropped)?;
            let left = taps.iter().flat_map(|(tap, told)| {
                let limits = told.budget.iter().flat_map(Budget::limits);
                limits.map(move |(limit, left)| ([tap.as_str(), limit], left.left))
            });
            samples.many(f::TAP_BUDGET_LEFT, left)?;
        }
        let scarcest = || told.scarcest.limits();
        samples.many(
            f::BUDGET_LEFT_MIN,
            scarcest().map(|(limit, scarce)| ([limit], scarce.least)),
        )?;
        samples.many(
            f::TAPS_AT_LIMIT,
            scarcest().map(|(limit, scarce)| ([limit], scarce.at_limit)),
        )?;
        let hook = match told.hook {
            Hook::Tcx => "tcx",
            Hook::Clsact => "clsact",
        };
        samples.many(f::CLASSIFIER, [([hook], 1_u64)])?;
        samples.one(f::TAPS_ATTACHED, told.attached)?;
        samples.one(f::TAPS_BOUND, told.bound)?;
        samples.one(f::TAPS_REFUSED, told.refused)?;
        let [served, refused] = told.namespaces;
        samples.many(f::NAMESPACES, [(["served"], served), (["refused"], refused)])?;
        told.limits.put(samples)?;
        samples.one(f::LAST_LOAD, told.loaded.as_duration().as_secs_f64())
    }
}

fn numbered(reason: Reason) -> [String; 2] {
    [(reason as u32).to_string(), reason.name().to_owned()]
}

/// The records.
#[derive(Debug)]
pub struct Records {
    /// Those in force.
    pub registry: Arc<registry::Published>,
    /// What is wrong with them.
    pub problems: watch::Receiver<Arc<[Problem]>>,
}

impl Source for Records {
    fn put(&self, samples: &mut Samples<'_>) -> fmt::Result {
        let snapshot = self.registry.load();
        samples.one(f::INSTANCES, snapshot.instances.len())?;
        samples.one(f::ROLES, snapshot.roles.len())?;
        samples.one(f::INSTANCE_PROFILES, snapshot.instance_profiles.len())?;
        samples.one(f::REVISION, snapshot.revision)?;
        let problems = Arc::clone(&self.problems.borrow());
        let severities = [("error", Severity::Error), ("warning", Severity::Warning)];
        samples.many(
            f::PROBLEMS,
            severities.map(|(word, severity)| {
                let count = problems
                    .iter()
                    .filter(|problem| problem.severity == severity)
                    .count();
                ([word], count)
            }),
        )
    }
}

/// The role sessions, and the sources of their credentials.
#[derive(Debug)]
pub struct Credentials {
    /// The sessions of roles in instance profiles.
    pub profiles: Arc<credentials::Published>,
    /// The sessions of the instance identity role.
    pub identities: Arc<credentials::Published>,
    /// What sources answered.
    pub fetches: [Arc<Totals>; 2],
}

/// The sessions of one role.
#[derive(Default, Debug)]
struct Sessions {
    ready: u64,
    refused: u64,
    empty: u64,
    oldest: Option<Timestamp>,
    first_to_expire: Option<Timestamp>,
}

impl Sessions {
    fn add(&mut self, state: Option<&RoleState>, now: Timestamp) {
        match state {
            Some(RoleState::Ready(set)) if set.expiration > now => {
                self.ready = self.ready.saturating_add(1);
                let min = |a: Option<Timestamp>, b| Some(a.map_or(b, |a| a.min(b)));
                self.oldest = min(self.oldest, set.last_updated);
                self.first_to_expire = min(self.first_to_expire, set.expiration);
            }
            Some(RoleState::Refused(_)) => self.refused = self.refused.saturating_add(1),
            Some(RoleState::Ready(_)) | None => self.empty = self.empty.saturating_add(1),
        }
    }

    fn any(&self) -> bool {
        [self.ready, self.refused, self.empty] != [0; 3]
    }

    fn merge(&mut self, other: &Self) {
        let min = |a: Option<Timestamp>, b: Option<Timestamp>| a.into_iter().chain(b).min();
        self.ready = self.ready.saturating_add(other.ready);
        self.refused = self.refused.saturating_add(other.refused);
        self.empty = self.empty.saturating_add(other.empty);
        self.oldest = min(self.oldest, other.oldest);
        self.first_to_expire = min(self.first_to_expire, other.first_to_expire);
    }
}

impl Credentials {
    /// All sessions by kind and role, with as many roles as there may be.
    fn sessions(&self, now: Timestamp) -> Vec<([String; 2], Sessions)> {
        let mut by_role = BTreeMap::<String, Sessions>::new();
        for session in self.profiles.sessions().values() {
            by_role
                .entry(session.role.arn.clone())
                .or_default()
                .add(session.state.load().as_deref(), now);
        }
        let mut others = Sessions::default();
        let profile = word_for_kind(Kind::InstanceProfile).to_owned();
        let mut sessions = Vec::new();
        for (at, (role, of_role)) in by_role.into_iter().enumerate() {
            if at < ROLES_MAX {
                sessions.push(([profile.clone(), role], of_role));
            } else {
                others.merge(&of_role);
            }
        }
        if others.any() {
            sessions.push(([profile, OTHER_ROLES.to_owned()], others));
        }
        let mut identity = Sessions::default();
        let mut name = None;
        for session in self.identities.sessions().values() {
            name.get_or_insert_with(|| session.role.role_name.to_string());
            identity.add(session.state.load().as_deref(), now);
        }
        sessions
            .extend(name.map(|name| ([word_for_kind(Kind::InstanceIdentity).to_owned(), name], identity)));
        sessions
    }
}

impl Source for Credentials {
    fn put(&self, samples: &mut Samples<'_>) -> fmt::Result {
        let now = Timestamp::now();
        let sessions = self.sessions(now);
        let states = sessions.iter().flat_map(|([kind, role], sessions)| {
            [
                ("ready", sessions.ready),
                ("refused", sessions.refused),
                ("empty", sessions.empty),
            ]
            .map(|(state, count)| ([kind.as_str(), role, state], count))
        });
        samples.many(f::SESSIONS, states)?;
        let ages = sessions.iter().filter_map(|(labels, sessions)| {
            let oldest = sessions.oldest?;
            Some((labels.each_ref(), now.duration_since(oldest).as_secs_f64()))
        });
        samples.many(f::CREDENTIALS_AGE, ages)?;
        let remaining = sessions.iter().filter_map(|(labels, sessions)| {
            let first = sessions.first_to_expire?;
            Some((labels.each_ref(), first.duration_since(now).as_secs_f64()))
        });
        samples.many(f::CREDENTIALS_REMAINING, remaining)?;
        let cells = SourceKind::ALL
            .into_iter()
            .flat_map(|source| FetchOutcome::ALL.map(|outcome| (source, outcome)));
        samples.many(
            f::FETCHES,
            cells.map(|(source, outcome)| {
                let answers = self.fetches.iter().map(|totals| totals.answers(source, outcome));
                ([source.as_str(), outcome.as_str()], answers.sum::<u64>())
            }),
        )
    }
}

fn word_for_kind(kind: Kind) -> &'static str {
    match kind {
        Kind::InstanceProfile => "instance-profile",
        Kind::InstanceIdentity => "instance-identity",
    }
}

/// The security token service.
#[derive(Debug)]
pub struct Exchanges(pub Arc<StsExchanges>);

impl Source for Exchanges {
    fn put(&self, samples: &mut Samples<'_>) -> fmt::Result {
        samples.many(f::STS_EXCHANGES, self.0.counted())?;
        samples.one(f::STS_THROTTLED, self.0.throttled())
    }
}

/// What is written down and shown of requests.
#[derive(Debug)]
pub struct Trail {
    /// The audit trail.
    pub audit: Audit,
    /// The live requests.
    pub trace: Trace,
}

impl Source for Trail {
    fn put(&self, samples: &mut Samples<'_>) -> fmt::Result {
        samples.one(f::AUDIT_WRITTEN, self.audit.written())?;
        samples.one(f::AUDIT_LOST, self.audit.lost())?;
        samples.one(f::TRACE_LISTENERS, self.trace.listeners())?;
        samples.one(f::TRACE_LOST, self.trace.lost())
    }
}

impl Source for Guests {
    fn put(&self, samples: &mut Samples<'_>) -> fmt::Result {
        let totals = self.totals();
        samples.one(f::METADATA_NO_TOKEN, totals.metadata_no_token)?;
        samples.one(f::METADATA_NO_TOKEN_REJECTED, totals.metadata_no_token_rejected)?;
        let signs = [
            (["time-exceeded"], totals.time_exceeded),
            (["unacknowledged"], totals.unacknowledged),
        ];
        samples.many(f::TOKENS_UNDELIVERED, signs)?;
        samples.one(f::SIGHTINGS_LOST, totals.lost)
    }
}

impl Source for Arc<Panics> {
    fn put(&self, samples: &mut Samples<'_>) -> fmt::Result {
        let of = [
            (["interface"], self.of_interfaces()),
            (["worker"], self.of_workers()),
        ];
        samples.many(f::PANICS, of)
    }
}

/// The process itself.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    started: Duration,
}

impl Process {
    /// A process that starts now.
    pub fn starting() -> Self {
        Self {
            started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }
}

impl Source for Process {
    fn put(&self, samples: &mut Samples<'_>) -> fmt::Result {
        let labels = [env!("CARGO_PKG_VERSION").to_owned(), ABI_VERSION.to_string()];
        samples.many(f::BUILD, [(labels, 1_u64)])?;
        samples.one(f::START_TIME, self.started.as_secs_f64())
    }
}
