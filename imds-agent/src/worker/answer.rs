//! Who answers the requests of one interface, and from which facts.

use std::sync::Arc;

use arc_swap::Guard;
use imds_ebpf::abi::MacAddr;

use crate::{
    credentials,
    http::{Request, Response, Service},
    imds::{Caller, Imds, identity},
    now::Now,
    observe::Requests,
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
                self.imds.respond(now, Some(&caller), request, response)
            }
        };
        self.facts.requests.count(&outcome);
    }
}
