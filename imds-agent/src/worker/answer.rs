//! Who answers the requests of one interface, and from which facts.

use std::sync::Arc;

use arc_swap::Guard;
use imds_ebpf::abi::MacAddr;

use crate::{
    credentials::{self, Asked, RoleState},
    http::{Request, Response, Service},
    imds::{Caller, Delivery, Imds, ImdsVersion, Outcome, identity},
    now::Now,
    observe::{Audit, Requests, audit},
    registry::{self, Snapshot},
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
    /// What became of requests.
    pub requests: Arc<Requests>,
    /// Where first deliveries of credentials are written down.
    pub audit: Audit,
}

/// Answers the requests that come from one MAC.
pub struct Answer<'a> {
    facts: &'a Facts,
    snapshot: Guard<Arc<Snapshot>>,
    imds: &'a mut Imds,
    mac: MacAddr,
}

impl<'a> Answer<'a> {
    /// For requests from `mac`, by the facts of this moment.
    pub fn new(facts: &'a Facts, imds: &'a mut Imds, mac: MacAddr) -> Self {
        let snapshot = facts.registry.load();
        Self {
            facts,
            snapshot,
            imds,
            mac,
        }
    }
}

impl Answer<'_> {
    /// Writes down that a set goes to its guest, if it never did before.
    fn hand_over(
        &self,
        now: Now,
        request: &Request<'_>,
        outcome: &Outcome,
        caller: &Caller<'_>,
        (role, state): (&str, Option<&Arc<RoleState>>),
    ) {
        let Some(RoleState::Ready(set)) = state.map(|state| &**state) else {
            return;
        };
        let asked = match outcome.version {
            ImdsVersion::V1 => Asked::WithoutToken,
            ImdsVersion::V2 => Asked::WithToken,
        };
        if !self.facts.audit.is_on() || !set.deliveries.is_first(asked) {
            return;
        }
        let instance = &caller.member.instance;
        self.facts.audit.record(audit::handover(&audit::Handover {
            at: now.timestamp(),
            set: set.for_guest_that(asked),
            role,
            instance: instance.instance_id.as_str(),
            account: instance.owner_id.as_deref(),
            asked,
            path: request.target,
            user_agent: request.headers("user-agent").next(),
            peer: request.peer,
        }));
    }
}

impl Service for Answer<'_> {
    fn respond(&mut self, now: Now, request: &Request<'_>, response: &mut Response) {
        let outcome = match self.snapshot.interface(self.mac) {
            None => self.imds.respond(now, None, request, response),
            Some((member, interface)) => {
                let instance = &member.instance.instance_id;
                let role = member.role.as_ref();
                let sessions = &self.facts.credentials;
                let state = role.and_then(|role| sessions.state(instance, &role.role_name, now.timestamp()));
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
                match (outcome.delivery, role) {
                    (Delivery::RoleCredentials, Some(role)) => {
                        self.hand_over(now, request, &outcome, &caller, (&role.arn, caller.role_state));
                    }
                    (Delivery::IdentityCredentials, _) => {
                        let role = credentials::identity_role::identity_role(&member.instance).arn;
                        self.hand_over(now, request, &outcome, &caller, (&role, caller.identity_state));
                    }
                    _ => {}
                }
                outcome
            }
        };
        self.facts.requests.count(&outcome);
    }
}
