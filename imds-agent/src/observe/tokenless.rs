//! Who asks without a session token: what would break if tokens were required now, or is broken already.
//!
//! Of every instance the callers are kept by path and user agent, cut and cleaned, so that nothing a guest writes becomes
//! more than a short line of plain text. A query is no part of it.

use std::{collections::HashMap, time::Duration};

use imds_ebpf::abi::MacAddr;
use jiff::Timestamp;
use serde::Serialize;

use super::{recent::Recent, warnings::Warnings};
use crate::{
    http::Request,
    imds::{ImdsVersion, Outcome, Refusal},
    now::Now,
    registry::InstanceId,
};

/// Callers of one instance that are kept: all that cloud-init asks for in a boot, and a few more. Past it the one that
/// was heard of longest ago goes.
pub const CALLERS_MAX: usize = 64;

/// Instances of which callers are kept; of every other one how many requests there were. With two texts of 128 bytes and what counts them a caller takes some 400 bytes,
/// so that 1024 instances whose software makes up a path for every request take 26 MB, and ordinary ones a tenth of it.
pub const INSTANCES_MAX: usize = 1024;

/// Bytes of a path that are kept: more than the longest category has.
const PATH_MAX: usize = 128;

/// Bytes of a user agent that are kept: enough to tell programs and their versions apart.
const USER_AGENT_MAX: usize = 128;

/// An instance that requires tokens is told of when it was asked without one this often: once or twice is somebody
/// who tries, or a client that has no token yet.
const KEEPS_ASKING: u64 = 5;

/// One request without a token.
#[derive(Debug)]
pub(super) struct Sighting {
    instance: InstanceId,
    interface: MacAddr,
    caller: Key,
    source_port: Option<u16>,
    fate: Fate,
}

/// What became of a request without a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It was let in: EC2 counts it as `MetadataNoToken`.
    Admitted,
    /// Tokens are required: `MetadataNoTokenRejected`.
    Rejected,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    path: Box<str>,
    user_agent: Box<str>,
}

/// What is known of one instance. Counts are since the agent started.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    /// Requests without a token that were let in.
    pub metadata_no_token: u64,
    /// Those that were refused because tokens are required.
    pub metadata_no_token_rejected: u64,
    /// Who they were of, the latest first.
    pub callers: Vec<Caller>,
    /// Requests of callers that are not listed, because there were too many of them, or because they came too fast.
    pub unlisted: u64,
}

impl Report {
    /// This and another of the same instance, which lists nobody.
    pub(super) fn with(self, other: &Self) -> Self {
        Self {
            metadata_no_token: self.metadata_no_token.saturating_add(other.metadata_no_token),
            metadata_no_token_rejected: self
                .metadata_no_token_rejected
                .saturating_add(other.metadata_no_token_rejected),
            callers: self.callers,
            unlisted: self.unlisted.saturating_add(other.unlisted),
        }
    }
}

/// A path as one program asks for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Caller {
    /// The path without its query, cut after 128 bytes; what is not printable ASCII is `?`.
    pub path: String,
    /// The user agent likewise; empty if it says none.
    pub user_agent: String,
    /// How often it asked.
    pub count: u64,
    /// How often of these it was refused.
    pub rejected: u64,
    /// When it asked last.
    pub last_seen: Timestamp,
    /// The TCP port that it asked from, by which the guest tells which process it was.
    pub source_port: Option<u16>,
    /// The MAC of the interface that it asked through.
    #[serde(serialize_with = "mac_as_text")]
    pub interface: MacAddr,
}

/// What is kept of all instances.
#[derive(Debug)]
pub(super) struct Tokenless {
    /// Those that there are: an instance that was forgotten would pass for one that asks for tokens.
    instances: HashMap<InstanceId, Asked>,
    callers: Recent<InstanceId, Callers>,
}

/// What is kept of one instance.
#[derive(Default, Debug)]
struct Asked {
    admitted: u64,
    rejected: u64,
    /// Refused since the log told of it, and when that was.
    untold: u64,
    told_at: Option<Duration>,
}

#[derive(Debug)]
struct Callers(Recent<Key, Seen>);

#[derive(Default, Debug)]
struct Seen {
    count: u64,
    rejected: u64,
    last_seen: Timestamp,
    source_port: Option<u16>,
    interface: MacAddr,
}

impl Sighting {
    /// What is worth noting of a request of `instance` that met with `fate`.
    pub(super) fn new(instance: &InstanceId, interface: MacAddr, request: &Request<'_>, fate: Fate) -> Self {
        let path = request.target.split('?').next().unwrap_or_default();
        let user_agent = request.headers("user-agent").next().unwrap_or_default();
        Self {
            instance: instance.clone(),
            interface,
            caller: Key {
                path: plain(path.as_bytes(), PATH_MAX),
                user_agent: plain(user_agent, USER_AGENT_MAX),
            },
            source_port: request.peer.map(|peer| peer.port()),
            fate,
        }
    }
}

impl Fate {
    /// Nothing of a request that had a token, or that would be refused with one as well.
    pub(super) fn of(outcome: &Outcome) -> Option<Self> {
        match (outcome.version, outcome.refusal) {
            (ImdsVersion::V1, None | Some(Refusal::NotFound | Refusal::Pending)) => Some(Self::Admitted),
            (ImdsVersion::V1, Some(Refusal::TokenMissing)) => Some(Self::Rejected),
            _ => None,
        }
    }
}

/// Printable ASCII, so that a terminal does nothing but show it.
fn plain(bytes: &[u8], length_max: usize) -> Box<str> {
    let printable = bytes.iter().take(length_max).map(|byte| match byte {
        b' '..=b'~' => char::from(*byte),
        _ => '?',
    });
    printable.collect()
}

impl Default for Tokenless {
    fn default() -> Self {
        Self {
            instances: HashMap::new(),
            callers: Recent::new(INSTANCES_MAX),
        }
    }
}

impl Default for Callers {
    fn default() -> Self {
        Self(Recent::new(CALLERS_MAX))
    }
}

impl Tokenless {
    /// Keeps `sighting`, and returns what the log is to say of it.
    #[expect(clippy::arithmetic_side_effects, reason = "requests are counted with 64 bits")]
    pub(super) fn record(
        &mut self,
        now: Now,
        sighting: &Sighting,
        warnings: &mut Warnings,
    ) -> Option<String> {
        let monotonic = now.monotonic;
        let asked = self.instances.entry(sighting.instance.clone()).or_default();
        let (callers, _) = self.callers.touch(monotonic, sighting.instance.clone());
        let (seen, _) = callers.0.touch(monotonic, sighting.caller.clone());
        seen.count += 1;
        seen.last_seen = now.timestamp();
        seen.source_port = sighting.source_port;
        seen.interface = sighting.interface;
        if sighting.fate == Fate::Admitted {
            asked.admitted += 1;
            return None;
        }
        seen.rejected += 1;
        asked.rejected += 1;
        asked.untold += 1;
        if asked.untold < KEEPS_ASKING || !warnings.may_tell(monotonic, asked.told_at) {
            return None;
        }
        asked.told_at = Some(monotonic);
        let times = std::mem::take(&mut asked.untold);
        Some(told(sighting, times))
    }

    /// Counts a request of which no more is kept.
    pub(super) fn count(&mut self, instance: &InstanceId, fate: Fate) {
        let asked = self.instances.entry(instance.clone()).or_default();
        match fate {
            Fate::Admitted => asked.admitted = asked.admitted.saturating_add(1),
            Fate::Rejected => asked.rejected = asked.rejected.saturating_add(1),
        }
    }

    /// What is known of `instance`.
    pub(super) fn report(&self, instance: &InstanceId) -> Report {
        let Some(asked) = self.instances.get(instance) else {
            return Report::default();
        };
        let callers = self.callers.get(instance).into_iter();
        let callers = callers.flat_map(|Callers(callers)| callers.iter());
        let callers = callers.map(|(key, seen)| Caller {
            path: key.path.to_string(),
            user_agent: key.user_agent.to_string(),
            count: seen.count,
            rejected: seen.rejected,
            last_seen: seen.last_seen,
            source_port: seen.source_port,
            interface: seen.interface,
        });
        let callers: Vec<_> = callers.collect();
        let listed = callers.iter().map(|caller| caller.count).sum();
        Report {
            metadata_no_token: asked.admitted,
            metadata_no_token_rejected: asked.rejected,
            callers,
            unlisted: asked
                .admitted
                .saturating_add(asked.rejected)
                .saturating_sub(listed),
        }
    }

    /// Forgets the instances that are not there any more.
    pub(super) fn retain(&mut self, is_there: impl Fn(&InstanceId) -> bool) {
        self.instances.retain(|instance, _| is_there(instance));
        self.callers.retain(is_there);
    }
}

fn told(sighting: &Sighting, times: u64) -> String {
    let Key { path, user_agent } = &sighting.caller;
    let user_agent = match &**user_agent {
        "" => "no user agent".to_owned(),
        user_agent => format!("user agent {user_agent:?}"),
    };
    let port = match sighting.source_port {
        Some(port) => format!(", port {port}"),
        None => String::new(),
    };
    format!(
        "instance {} requires session tokens and keeps being asked without one: {times} requests were refused, the last \
         for {path:?} ({user_agent}{port}). Its software has to ask for a token (cloud-init does if SMBIOS says EC2), or its \
         MetadataOptions have to say HttpTokens = optional",
        sighting.instance
    )
}

fn mac_as_text<S: serde::Serializer>(mac: &MacAddr, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(mac)
}

#[cfg(test)]
mod tests;
