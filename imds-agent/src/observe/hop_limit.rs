//! Whose session tokens do not arrive because the hop limit is too low.
//!
//! Software in a container, or in a guest of the guest, is one router further than the instance. With the default hop limit
//! its token dies at that router, and all it sees is a request that hangs. The stack tells what it notices of that; here it
//! is kept per instance, with the remedy.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use jiff::Timestamp;
use serde::Serialize;

use super::warnings::Warnings;
use crate::{
    now::Now,
    registry::InstanceId,
    stack::{Sign, Undelivered},
};

/// Without a router's word the log tells only of so many responses that nobody acknowledged: one alone may be of a guest
/// that was stopped just then.
const UNACKNOWLEDGED_MIN: u64 = 2;

/// EC2 takes no higher `HttpPutResponseHopLimit`.
const HOP_LIMIT_MAX: u8 = 64;

/// A token response of an instance that did not arrive.
#[derive(Debug)]
pub(super) struct Sighting {
    pub(super) instance: InstanceId,
    pub(super) undelivered: Undelivered,
}

/// What is known of one instance. Counts are since the agent started.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    /// Token responses that a router behind the guest dropped, because their hop limit was used up.
    pub time_exceeded: u64,
    /// Those that nobody acknowledged for as long as their connections lasted: most likely likewise.
    pub unacknowledged: u64,
    /// The last of them, unless there was none.
    pub last: Option<Last>,
}

/// The last token response that did not arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Last {
    /// When that was noticed.
    pub at: Timestamp,
    /// The `HttpPutResponseHopLimit` that it had. The remedy is a higher one.
    pub hop_limit: u8,
    /// Who asked for the token, by the address that the service sees.
    pub remote: IpAddr,
    /// The router that dropped it, if one said so.
    pub router: Option<IpAddr>,
}

impl Report {
    /// Whether it tells more than that a guest was stopped at the wrong moment.
    pub fn is_sure(&self) -> bool {
        self.time_exceeded > 0 || self.unacknowledged >= UNACKNOWLEDGED_MIN
    }
}

/// What is kept of all instances that there are.
#[derive(Default, Debug)]
pub(super) struct HopLimit {
    instances: HashMap<InstanceId, Found>,
}

#[derive(Default, Debug)]
struct Found {
    report: Report,
    told_at: Option<Duration>,
}

impl HopLimit {
    /// Keeps `sighting`, and returns what the log is to say of it.
    pub(super) fn record(
        &mut self,
        now: Now,
        sighting: &Sighting,
        warnings: &mut Warnings,
    ) -> Option<String> {
        let Sighting {
            instance,
            undelivered,
        } = sighting;
        let Found { report, told_at } = self.instances.entry(instance.clone()).or_default();
        let router = match undelivered.sign {
            Sign::TimeExceeded { router } => {
                report.time_exceeded = report.time_exceeded.saturating_add(1);
                Some(router)
            }
            Sign::Unacknowledged => {
                report.unacknowledged = report.unacknowledged.saturating_add(1);
                None
            }
        };
        report.last = Some(Last {
            at: now.timestamp(),
            hop_limit: undelivered.hop_limit,
            remote: undelivered.remote.ip(),
            router,
        });
        if !report.is_sure() || !warnings.may_tell(now.monotonic, *told_at) {
            return None;
        }
        *told_at = Some(now.monotonic);
        Some(told(instance, undelivered))
    }

    /// What is known of `instance`.
    pub(super) fn report(&self, instance: &InstanceId) -> Report {
        let found = self.instances.get(instance);
        found.map(|found| found.report.clone()).unwrap_or_default()
    }

    /// Forgets the instances that are not there any more.
    pub(super) fn retain(&mut self, is_there: impl Fn(&InstanceId) -> bool) {
        self.instances.retain(|instance, _| is_there(instance));
    }

    /// Everything that is sure.
    pub(super) fn undelivered(&self) -> Vec<(InstanceId, Report)> {
        let sure = self.instances.iter().filter(|(_, found)| found.report.is_sure());
        sure.map(|(instance, found)| (instance.clone(), found.report.clone()))
            .collect()
    }
}

fn told(instance: &InstanceId, undelivered: &Undelivered) -> String {
    let Undelivered {
        remote,
        hop_limit,
        sign,
    } = undelivered;
    let asker = remote.ip();
    let what = match sign {
        Sign::TimeExceeded { router } => {
            format!("a session token for {asker} expired at the guest's own router {router}")
        }
        Sign::Unacknowledged => {
            format!(
                "session tokens for {asker} are not acknowledged, most likely because they expire at a router"
            )
        }
    };
    let higher = hop_limit.saturating_add(1).min(HOP_LIMIT_MAX);
    format!(
        "instance {instance}: {what}: its hop limit is {hop_limit}, and what is behind a router or a container bridge of the \
         guest needs one more for each. If that software is to have tokens, set MetadataOptions.HttpPutResponseHopLimit \
         to {higher} or more"
    )
}

#[cfg(test)]
mod tests;
