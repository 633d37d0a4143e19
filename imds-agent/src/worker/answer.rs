//! Who answers the requests of one interface, and from which facts.

use std::{sync::Arc, time::Duration};

use imds_ebpf::abi::{MacAddr, TapIndex};

use crate::{
    credentials::{self, Asked, RoleState},
    http::{Request, Response, Service, Status},
    imds::{self, Caller, Delivery, Imds, ImdsVersion, Outcome, identity},
    now::Now,
    observe::{Audit, Guests, Panics, Requests, Trace, Unsent, WorkerHealth, audit, trace},
    registry::{self, InstanceId},
    request_rate::RequestBuckets,
};

/// What workers read and others publish, and where they count. Nothing in here is waited for.
#[derive(Clone, Default, Debug)]
pub struct Facts {
    /// Who is who.
    pub registry: Arc<registry::Published>,
    /// The role sessions.
    pub credentials: Arc<credentials::Published>,
    /// The sessions of the instance identity role.
    pub identity_credentials: Arc<credentials::Published>,
    /// The signed identity documents.
    pub identities: Arc<identity::Published>,
    /// What became of requests: a worker's own.
    pub requests: Arc<Requests>,
    /// What panicked and went on.
    pub panics: Arc<Panics>,
    /// How the worker fares: its own as well.
    pub health: Arc<WorkerHealth>,
    /// Where requests are told to operators who watch.
    pub trace: Trace,
    /// Where first deliveries of credentials are written down.
    pub audit: Audit,
    /// What guests do that their operators should know.
    pub guests: Guests,
    /// How many requests of one interface are answered in a second; zero sets no limit.
    pub requests_per_second: u32,
}

impl Facts {
    /// The same for a worker, which counts for itself.
    pub fn of_worker(&self) -> Self {
        Self {
            requests: Arc::default(),
            health: Arc::default(),
            ..self.clone()
        }
    }
}

/// Where requests come from.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The tap.
    pub tap: TapIndex,
    /// The MAC on it.
    pub mac: MacAddr,
    /// Whose the tap is.
    pub owner: Option<&'a InstanceId>,
}

/// Answers the requests that come from one MAC on one tap.
///
/// The tap's binding and the registry's snapshot come here on two ways, so that for a moment one may be newer than the
/// other. Whom the tap was bound to is believed only where the MAC is that very instance's by the snapshot.
pub struct Answer<'a> {
    facts: &'a Facts,
    imds: &'a mut Imds,
    buckets: &'a mut RequestBuckets<TapIndex>,
    origin: Origin<'a>,
    unsent: Option<(&'a mut Unsent, Option<Duration>)>,
}

impl<'a> Answer<'a> {
    /// For requests from `origin`. The facts are those of each request's moment.
    pub fn new(
        facts: &'a Facts,
        imds: &'a mut Imds,
        buckets: &'a mut RequestBuckets<TapIndex>,
        origin: Origin<'a>,
    ) -> Self {
        Self {
            facts,
            imds,
            buckets,
            origin,
            unsent: None,
        }
    }

    /// The same, with what is answered noted in `unsent`: because of a frame that arrived then, or of a timer.
    pub fn noting(self, unsent: &'a mut Unsent, arrived: Option<Duration>) -> Self {
        Self {
            unsent: Some((unsent, arrived)),
            ..self
        }
    }
}

impl Answer<'_> {
    /// Has a request timed, and told to those who watch.
    fn note(&mut self, now: Now, request: &Request<'_>, outcome: &Outcome) {
        if let Some((unsent, arrived)) = &mut self.unsent {
            let tell = || trace::Request::new(now, self.origin.owner, self.origin.mac, request, outcome);
            unsent.push(*arrived, self.facts.trace.is_on().then(tell));
        }
    }

    /// Writes down that a set of credentials goes to its guest, if this one never did before.
    fn hand_over(&self, now: Now, request: &Request<'_>, outcome: &Outcome, caller: &Caller<'_>) {
        let state = match outcome.delivery {
            Delivery::RoleCredentials => caller.role_state,
            Delivery::IdentityCredentials => caller.identity_state,
            Delivery::Nothing | Delivery::Metadata | Delivery::SessionToken => return,
        };
        let Some(RoleState::Ready(set)) = state.map(|state| &**state) else {
            return;
        };
        let asked = match outcome.version {
            ImdsVersion::V1 => Asked::WithoutToken,
            ImdsVersion::V2 => Asked::WithToken,
        };
        let Some(set_for_guest) = set.for_guest_that(asked) else {
            return;
        };
        if !self.facts.audit.is_on() || !set.deliveries.is_first(asked) {
            return;
        }
        let instance = &caller.member.instance;
        let role = match outcome.delivery {
            Delivery::IdentityCredentials => credentials::identity_role::identity_role(instance).arn,
            _ => caller
                .member
                .role
                .as_ref()
                .map(|role| role.arn.clone())
                .unwrap_or_default(),
        };
        self.facts.audit.record(audit::handover(&audit::Handover {
            at: now.timestamp(),
            set: set_for_guest,
            role: &role,
            instance: instance.instance_id.as_str(),
            account: instance.owner_id.as_deref(),
            region: instance.placement.region(),
            asked,
            path: request.target,
            user_agent: request.headers("user-agent").next(),
            peer: request.peer,
        }));
    }
}

/// In tests a request for this panics where it is answered.
#[cfg(test)]
pub const PANICS: &str = "/panics";

impl Service for Answer<'_> {
    fn respond(&mut self, now: Now, request: &Request<'_>, response: &mut Response) {
        #[cfg(test)]
        if request.target == PANICS {
            std::panic::resume_unwind(Box::new("as planned"));
        }
        let Origin { tap, mac, owner } = self.origin;
        let is_within_rate = self.buckets.take(now.monotonic, tap);
        let snapshot = self.facts.registry.load();
        let member = owner.and_then(|owner| snapshot.interface(owner, mac));
        let outcome = match member {
            _ if !is_within_rate => imds::turn_away(member.map(|(member, _)| &**member), request, response),
            None => self.imds.respond(now, None, request, response),
            Some((member, interface)) => {
                let instance = &member.instance.instance_id;
                let role = member.role.as_ref();
                let sessions = &self.facts.credentials;
                let state = role.and_then(|role| sessions.state(instance, role, now.timestamp()));
                let sessions = &self.facts.identity_credentials;
                let identity_state = sessions.state_of_instance(instance, now.timestamp());
                let identities = &self.facts.identities;
                let caller = Caller {
                    member,
                    interface,
                    role_state: state.as_ref(),
                    identity_state: identity_state.as_ref(),
                    identities,
                };
                let outcome = self.imds.respond(now, Some(&caller), request, response);
                self.hand_over(now, request, &outcome, &caller);
                self.facts
                    .guests
                    .saw_request(now, instance, mac, request, &outcome);
                outcome
            }
        };
        self.facts.requests.count(request, &outcome);
        self.note(now, request, &outcome);
    }

    fn handle_malformed(&mut self, status: Status) {
        self.facts.requests.count_malformed(status);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::{
        http::Connection,
        imds::token::{TokenKey, TokenKeys},
        registry::{HttpTokens, MetadataOptions, Snapshot, snapshot::Member},
    };

    const MAC: MacAddr = MacAddr([6, 0, 0, 0, 0, 1]);

    /// The status line for a guest with `MAC` on a tap that is `owner`'s; the registry says that the MAC is i-new's.
    fn status(owner: Option<&str>) -> String {
        status_within(&mut RequestBuckets::new(0), owner)
    }

    fn status_within(buckets: &mut RequestBuckets<TapIndex>, owner: Option<&str>) -> String {
        let record = serde_json::json!({
            "InstanceId": "i-new",
            "NetworkInterfaces": [{ "MacAddress": MAC.to_string(), "Tap": "tap1" }],
        });
        let member = Arc::new(Member {
            instance: serde_json::from_value(record).unwrap(),
            options: MetadataOptions {
                http_tokens: HttpTokens::Optional,
                ..MetadataOptions::default()
            },
            instance_profile: None,
            role: None,
            last_modified: jiff::Timestamp::UNIX_EPOCH,
        });
        let facts = Facts::default();
        let mut snapshot = Snapshot::default();
        snapshot.add(&member);
        facts.registry.publish(snapshot);
        let keys = TokenKeys::new(TokenKey::new([0; 3], [0; 32]), Vec::new());
        let mut imds = Imds::new(Arc::new(keys), StdRng::seed_from_u64(0));
        let owner: Option<InstanceId> = owner.map(|owner| owner.parse().unwrap());
        let origin = Origin {
            tap: TapIndex(1),
            mac: MAC,
            owner: owner.as_ref(),
        };
        let mut answer = Answer::new(&facts, &mut imds, buckets, origin);
        let now = Now {
            monotonic: Duration::from_secs(1),
            unix: Duration::from_secs(1_795_248_000),
        };
        let mut connection = Connection::new(now);
        connection.handle_bytes(
            now,
            b"GET /latest/meta-data/instance-id HTTP/1.1\r\n\r\n",
            &mut answer,
        );
        let response = String::from_utf8(connection.poll_transmit().unwrap().bytes.to_vec()).unwrap();
        response.lines().next().unwrap().to_owned()
    }

    #[test]
    fn the_tap_of_the_macs_owner_is_served() {
        assert_eq!(status(Some("i-new")), "HTTP/1.1 200 OK");
    }

    #[test]
    fn a_tap_that_was_bound_for_the_macs_last_owner_is_not() {
        assert_eq!(status(Some("i-old")), "HTTP/1.1 503 Service Unavailable");
        assert_eq!(status(None), "HTTP/1.1 503 Service Unavailable");
    }

    #[test]
    fn who_asks_too_often_is_refused_whoever_it_is() {
        for owner in [Some("i-new"), None] {
            let mut buckets = RequestBuckets::new(1);
            let within: Vec<_> = (0..4).map(|_| status_within(&mut buckets, owner)).collect();
            assert_eq!(within, vec![status(owner); 4]);
            assert_eq!(
                status_within(&mut buckets, owner),
                "HTTP/1.1 503 Service Unavailable"
            );
        }
    }
}
