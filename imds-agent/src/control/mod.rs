//! The operators' socket: HTTP and JSON over a Unix socket, for `imdsctl` and whatever else runs on the host.
//!
//! Everything that can be changed on a running instance is changed here, lands in the state directory through
//! [`Store`], and comes back through the directory's watch like a change by any other hand: there is one way in. What is
//! answered is what is in force, or says that it is not yet ([`applied`]).
//!
//! Read in this order: [`routes`] (all of it, as one table), [`access`] (who may), [`peer`] (who it is), [`socket`], then the handlers. A new
//! kind of answer is a row in [`routes::ROUTES`], a handler in a file of its own, and an operation in `docs/openapi.json`.

pub mod access;
mod applied;
mod asked;
mod iam;
mod instances;
mod metadata;
mod observed;
mod options;
mod parts;
mod peer;
mod refusal;
pub mod routes;
pub mod socket;
mod status;
mod user_data;
mod watched;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use imds_ebpf::abi::{MacAddr, NamespaceNumber, TapIndex};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

pub use self::{
    refusal::Refusal,
    socket::{ControlError, Settings, Socket},
};
use crate::{
    imds::ExtendedCredentials,
    observe::Budget,
    registry::{InstanceId, NetworkInterface, Problem, Snapshot, Store, store::StoreError},
    worker::Facts,
};

/// Where the socket is unless the operator says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/imds-agent/control.sock";

/// How long the agent may take to answer what only it knows.
const AGENT_PATIENCE: Duration = Duration::from_secs(10);

/// What only the agent's own loop can say or do.
#[derive(Debug)]
pub enum Command {
    /// Say how the taps are.
    Describe(oneshot::Sender<Vec<TapState>>),
    /// The same of those on which the kernel refused something.
    DescribeRefused(oneshot::Sender<Vec<TapState>>),
    /// Say how the other network namespaces are.
    DescribeNamespaces(oneshot::Sender<Vec<NamespaceState>>),
    /// Say what became of the frames of these taps, or of all, and what they have left of their limits. Those that are not
    /// there are left out.
    Measure(Option<Vec<TapIndex>>, oneshot::Sender<Vec<TapMeasures>>),
    /// Read the configuration again, and say what came of it or what is wrong.
    Reload(oneshot::Sender<Result<Reloaded, String>>),
}

/// One tap, as the agent has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TapState {
    /// The device's index.
    pub index: TapIndex,
    /// The device's name.
    pub name: String,
    /// The MAC that is served on it.
    pub mac: Option<MacAddr>,
    /// Whose that is.
    pub instance: Option<InstanceId>,
    /// Why none is.
    pub nobody: Option<String>,
    /// What the kernel refused last, and has to be tried again.
    pub refused: Option<String>,
}

impl TapState {
    /// Whether it is the tap of this interface, by its record's word or else by the MAC that is served on it here.
    fn is_of(&self, interface: &NetworkInterface) -> bool {
        match interface.tap.as_deref() {
            Some(named) => named == self.name,
            None => self.index.namespace() == NamespaceNumber::OWN && self.mac == Some(interface.mac_address),
        }
    }
}

/// One network namespace besides the agent's own, as the agent has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceState {
    /// The name of its file.
    pub name: String,
    /// Why its taps are not served, or not all of them.
    pub refused: Option<String>,
}

/// Frames of one tap since the classifier was attached to it, and what it has left of its limits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TapMeasures {
    /// The device's index.
    pub index: TapIndex,
    /// The device's name.
    pub name: String,
    /// Handed to the agent.
    pub punted: u64,
    /// Answered in the kernel.
    pub hairpinned: u64,
    /// Dropped, by the names of the reasons.
    pub dropped: BTreeMap<&'static str, u64>,
    /// What is left at this moment; nothing if the tap is nobody's.
    pub budget: Option<Budget>,
}

/// What became of a configuration that was read again.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Reloaded {
    /// Fields that changed and are in force.
    pub changed: Vec<&'static str>,
    /// Fields that changed and have to wait for a restart.
    pub needs_restart: Vec<&'static str>,
}

/// Everything that requests are answered from.
#[derive(Debug)]
pub struct Control {
    /// Writes the records.
    pub store: Store,
    /// What guests are answered from.
    pub facts: Facts,
    /// Each snapshot of the registry.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What is wrong with the records.
    pub problems: watch::Receiver<Arc<[Problem]>>,
    /// The registry's revision that the taps are bound by; nothing before the first.
    pub applied: watch::Receiver<Option<u64>>,
    /// To the agent's loop.
    pub commands: mpsc::Sender<Command>,
    /// As guests are served.
    pub extended_credentials: ExtendedCredentials,
    /// When the agent started.
    pub started: Instant,
}

impl Control {
    /// How the taps are.
    async fn taps(&self) -> Result<Vec<TapState>, Refusal> {
        self.ask(Command::Describe).await
    }

    /// Asks the agent's loop.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Refusal> {
        let (sender, answer) = oneshot::channel();
        let asked = async {
            self.commands.send(command(sender)).await.ok()?;
            answer.await.ok()
        };
        let answer = timeout(AGENT_PATIENCE, asked).await;
        answer.ok().flatten().ok_or_else(Refusal::busy)
    }

    /// Has the store do something, where blocking hurts nobody.
    async fn store<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let control = Arc::clone(self);
        let worked = tokio::task::spawn_blocking(move || work(&control.store)).await;
        Ok(worked.map_err(|_| Refusal::busy())??)
    }
}

#[cfg(test)]
mod tests;
