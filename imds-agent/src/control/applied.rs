//! Whether what was written is in force: EC2's `pending` and `applied`.
//!
//! A change is applied when the snapshot that holds it is published, which is what guests are answered from, when the taps are
//! bound by that snapshot or a later one, and when the kernel refused none of that.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::{Command, Control, Refusal, asked, refusal::finding};
use crate::registry::{
    InstanceId, NetworkInterface, Snapshot,
    record::Record,
    store::{Put, Revision},
};

/// Between two looks at what tells nobody of its end: what the kernel refuses, and signatures that are being made.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How far a change has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// It is on disk.
    Pending,
    /// Guests see it.
    Applied,
}

impl State {
    /// EC2's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Applied => "applied",
        }
    }
}

impl Control {
    /// Waits until `holds` is true of the snapshot in force and the instance's taps are bound by it, but no longer than `wait`.
    pub(super) async fn settle(
        &self,
        wait: Duration,
        interfaces: &[NetworkInterface],
        holds: impl Fn(&Snapshot) -> bool,
    ) -> Result<State, Refusal> {
        let deadline = Instant::now() + wait;
        let (mut snapshots, mut applied) = (self.snapshots.clone(), self.applied.clone());
        loop {
            // What comes after this look wakes us below.
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            let is_bound = applied
                .borrow_and_update()
                .is_some_and(|revision| revision >= snapshot.revision);
            let is_held = holds(&snapshot);
            if is_held && is_bound && !self.is_refused(interfaces).await? {
                return Ok(State::Applied);
            }
            let change = async {
                tokio::select! {
                    Ok(()) = snapshots.changed() => {}
                    Ok(()) = applied.changed() => {}
                    () = tokio::time::sleep(LOOK_AGAIN), if is_held => {}
                    else => std::future::pending().await,
                }
            };
            if timeout_at(deadline, change).await.is_err() {
                return Ok(State::Pending);
            }
        }
    }

    /// Waits until an instance's record is in force as it is written, or gone where nothing is.
    pub(super) async fn settle_instance(
        &self,
        wait: Duration,
        id: &InstanceId,
        written: Option<&Record>,
    ) -> Result<State, Refusal> {
        let written = match written {
            Some(Record::Instance(instance)) => Some(&**instance),
            _ => None,
        };
        let interfaces = written.map_or(&[][..], |instance| &instance.network_interfaces);
        let holds =
            |snapshot: &Snapshot| snapshot.instances.get(id).map(|member| &member.instance) == written;
        self.settle(wait, interfaces, holds).await
    }

    /// The answer to a write of an instance's record.
    pub(super) async fn written(&self, wait: Duration, id: &InstanceId, put: &Put) -> Result<Value, Refusal> {
        let state = self.settle_instance(wait, id, Some(&put.record)).await?;
        Ok(written(state, put))
    }

    async fn is_refused(&self, interfaces: &[NetworkInterface]) -> Result<bool, Refusal> {
        if interfaces.is_empty() {
            return Ok(false);
        }
        let refused = self.ask(Command::DescribeRefused).await?;
        Ok(refused
            .iter()
            .any(|tap| interfaces.iter().any(|interface| tap.is_of(interface))))
    }
}

/// What came of a write.
pub(super) fn written(state: State, put: &Put) -> Value {
    let warnings: Vec<Value> = put.warnings.iter().map(finding).collect();
    json!({ "state": state.as_str(), "revision": put.revision.as_str(), "warnings": warnings })
}

/// What came of a deletion.
pub(super) fn deleted(state: State) -> Value {
    json!({ "state": state.as_str() })
}

/// The answer to a write, which says whether there was nothing before.
pub(super) fn answer(value: &Value, is_new: bool, revision: &Revision) -> axum::response::Response {
    let mut response = asked::versioned(value, revision);
    if is_new {
        *response.status_mut() = axum::http::StatusCode::CREATED;
    }
    response
}
