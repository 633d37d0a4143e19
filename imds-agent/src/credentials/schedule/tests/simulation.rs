//! A schedule under a simulated clock, with a source that takes its time.

use rand::{SeedableRng as _, rngs::StdRng};

use super::super::*;
use crate::{
    credentials::Deliveries,
    registry::{
        Rules, record,
        records::{FileKey, Records},
    },
};

/// After this a source that does not answer is given up.
const HANGS_FOR: Duration = Duration::from_secs(30);

/// What the simulated source does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    Gives(Duration),
    Fails,
    Refuses,
}

/// A schedule under a simulated clock, with a source that takes its time.
pub(super) struct Simulation {
    pub(super) schedule: Schedule<StdRng>,
    pub(super) records: Records,
    pub(super) now: Now,
    pub(super) source: Source,
    pub(super) latency: Duration,
    /// Fetches under way, and when (monotonic) they end.
    pub(super) under_way: Vec<(Duration, Ticket, RoleSessionRequest)>,
    pub(super) under_way_max: usize,
    pub(super) fetches: Vec<(Duration, InstanceId)>,
    pub(super) events: Vec<Event>,
    pub(super) made: u64,
}

impl Simulation {
    pub(super) fn new(source: Source) -> Self {
        Self {
            schedule: Schedule::new(Kind::InstanceProfile, 6 * 3600, StdRng::seed_from_u64(7)),
            records: Records::new(Rules::default()),
            now: Now {
                monotonic: Duration::ZERO,
                unix: Duration::from_secs(1_800_000_000),
            },
            source,
            latency: Duration::from_millis(200),
            under_way: Vec::new(),
            under_way_max: 0,
            fetches: Vec::new(),
            events: Vec::new(),
            made: 0,
        }
    }

    pub(super) fn put(&mut self, kind: record::Kind, name: &str, text: &str) {
        let key = FileKey {
            kind,
            name: format!("{name}.json").into(),
        };
        self.records
            .handle_file(key, text.as_bytes(), Timestamp::UNIX_EPOCH);
    }

    /// An instance with an instance profile and a role of its own choice.
    pub(super) fn attach(&mut self, number: usize, role: &str) {
        let [.., a, b] = number.to_be_bytes();
        self.put(
            record::Kind::Instance,
            &number.to_string(),
            &format!(
                r#"{{"InstanceId":"i-{number}","IamInstanceProfile":{{"Arn":"arn:aws:iam::1:instance-profile/{role}"}},
                    "NetworkInterfaces":[{{"MacAddress":"02:00:00:00:{a:02x}:{b:02x}"}}]}}"#
            ),
        );
    }

    pub(super) fn role(&mut self, name: &str, id: &str, max_session_seconds: u32) {
        self.role_with(
            name,
            &format!(r#""RoleId":"{id}","MaxSessionDuration":{max_session_seconds}"#),
        );
    }

    /// A role with an instance profile of its name, and `more` members in its record.
    pub(super) fn role_with(&mut self, name: &str, more: &str) {
        let role = format!(r#"{{"RoleName":"{name}","Arn":"arn:aws:iam::1:role/{name}",{more}}}"#);
        self.put(record::Kind::Role, name, &role);
        let profile = format!(
            r#"{{"InstanceProfileName":"{name}","Arn":"arn:aws:iam::1:instance-profile/{name}","Roles":[{{"RoleName":"{name}"}}]}}"#
        );
        self.put(record::Kind::InstanceProfile, name, &profile);
    }

    /// Hands the records to the schedule; whether the set of sessions changed.
    pub(super) fn commit(&mut self) -> bool {
        let Some(snapshot) = self.records.commit() else {
            return false;
        };
        let changed = self.schedule.handle_snapshot(self.now, &snapshot);
        self.begin();
        changed
    }

    pub(super) fn begin(&mut self) {
        while let Some((ticket, request)) = self.schedule.poll_fetch(self.now) {
            self.fetches.push((self.now.monotonic, request.instance.clone()));
            let latency = if hangs(&request) { HANGS_FOR } else { self.latency };
            self.under_way
                .push((self.now.monotonic + latency, ticket, request));
            self.under_way_max = self.under_way_max.max(self.under_way.len());
        }
    }

    /// Runs for `time`, calling `watch` after every step.
    pub(super) fn run(&mut self, time: Duration, mut watch: impl FnMut(&Self)) {
        let end = self.now.monotonic + time;
        loop {
            let ends = self.under_way.iter().map(|(ends, ..)| *ends).min();
            let next = ends
                .into_iter()
                .chain(self.schedule.poll_timeout())
                .min()
                .filter(|next| *next <= end);
            let step = next.unwrap_or(end).saturating_sub(self.now.monotonic);
            self.now = Now {
                monotonic: self.now.monotonic + step,
                unix: self.now.unix + step,
            };
            self.finish();
            self.begin();
            watch(self);
            if next.is_none() {
                return;
            }
        }
    }

    pub(super) fn finish(&mut self) {
        let now = self.now.monotonic;
        let (ended, under_way) = std::mem::take(&mut self.under_way)
            .into_iter()
            .partition(|(ends, ..)| *ends <= now);
        self.under_way = under_way;
        let ended: Vec<(Duration, Ticket, RoleSessionRequest)> = ended;
        for (_, ticket, request) in ended {
            let source = if hangs(&request) {
                Source::Fails
            } else {
                self.source
            };
            let outcome = match source {
                Source::Fails => Err(FetchError::Unavailable("away".to_owned())),
                Source::Refuses => Err(FetchError::Refused {
                    code: "No",
                    message: "no".to_owned(),
                    why: "no".to_owned(),
                }),
                Source::Gives(life) => Ok(self.set(life)),
            };
            self.events
                .extend(self.schedule.handle_fetched(self.now, &ticket, outcome));
        }
    }

    pub(super) fn set(&mut self, life: Duration) -> RoleCredentials {
        self.made += 1;
        RoleCredentials {
            access_key_id: self.made.to_string(),
            secret_access_key: "s".into(),
            session_token: "t".into(),
            without_token: None,
            deliveries: Deliveries::default(),
            last_updated: timestamp(self.now),
            expiration: timestamp(Now {
                unix: self.now.unix + life,
                ..self.now
            }),
        }
    }

    /// What a guest gets now, through the same door as in the agent.
    pub(super) fn served(&self, number: usize) -> Option<Arc<RoleState>> {
        let published = crate::credentials::Published::default();
        let sessions = self.schedule.sessions();
        let instance: InstanceId = format!("i-{number}").parse().unwrap();
        let role = sessions.get(&instance)?.role.clone();
        published.publish(sessions);
        published.state(&instance, &role, timestamp(self.now))
    }

    /// How long the served set still lives; nothing if none is served.
    pub(super) fn left(&self, number: usize) -> Option<Duration> {
        match &*self.served(number)? {
            RoleState::Ready(set) => Some(unix(set.expiration).checked_sub(self.now.unix).unwrap()),
            RoleState::Refused(_) => None,
        }
    }

    pub(super) fn is_refused(&self, number: usize) -> bool {
        self.served(number)
            .is_some_and(|state| matches!(&*state, RoleState::Refused(_)))
    }

    pub(super) fn fetches_of(&self, number: usize) -> Vec<Duration> {
        let instance: InstanceId = format!("i-{number}").parse().unwrap();
        self.fetches
            .iter()
            .filter(|(_, fetched)| *fetched == instance)
            .map(|(when, _)| *when)
            .collect()
    }
}

/// Whether nobody answers for this role.
fn hangs(request: &RoleSessionRequest) -> bool {
    request.role.role_name.as_str() == "hangs"
}
