//! Puts the classifier on a tap before anybody uses it, agent or no agent: what a hypervisor calls before it lets a guest run,
//! so that no guest is ever without.

use std::{
    collections::BTreeSet,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use imds_ebpf::abi::TapIndex;
use thiserror::Error;

use super::{
    Classifier, Hook, LoadError,
    hook::HookError,
    link_watch::{self, LinkWatchError},
    namespace::Namespaces,
    pins::{Pins, PinsError},
    program::AttachError,
    tap::TapError,
};

/// How long the agent may take to notice a tap: it takes milliseconds, but may just be starting.
const AGENT_MAX: Duration = Duration::from_secs(5);

/// How often it is looked whether it has.
const AGENT_LOOK: Duration = Duration::from_millis(5);

/// A tap is without the classifier.
#[derive(Debug, Error)]
pub enum EnsureError {
    /// There is no such tap.
    #[error(transparent)]
    NoTap(#[from] TapError),
    /// It cannot be told what kind of device it is.
    #[error("cannot ask the kernel about network device {name:?}")]
    Kind {
        /// Its name.
        name: String,
        /// Why not.
        source: LinkWatchError,
    },
    /// It is of another kind, behind which is no guest.
    #[error("network device {name:?} is no tap")]
    OtherKind {
        /// Its name.
        name: String,
    },
    /// It cannot be told what hangs on a tap.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The pins cannot be used.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The classifier cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It cannot be put on a tap.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The running agent does not.
    #[error(
        "the agent runs, and has not put the classifier on tap {tap} within {agent_max:?}: its log says why"
    )]
    Agent {
        /// The tap's name and index.
        tap: String,
        /// How long it was waited for.
        agent_max: Duration,
    },
}

/// Returns once the classifier is on the taps of these names, those of `namespaces` as `namespace/tap`. A running agent puts it
/// there; without one it is loaded for them alone, and they are dark until an agent comes, adopts them, and binds them.
pub fn ensure(root: &Path, names: &[String], namespaces: &Namespaces) -> Result<(), EnsureError> {
    ensure_on(root, names, namespaces, Hook::of_this_kernel()?, AGENT_MAX)
}

/// The same on a kind of hook that need not be the kernel's best, with so much time for the agent.
pub fn ensure_on(
    root: &Path,
    names: &[String],
    namespaces: &Namespaces,
    hook: Hook,
    agent_max: Duration,
) -> Result<(), EnsureError> {
    let taps: Vec<_> = names
        .iter()
        .map(|name| tap_called(name, namespaces))
        .collect::<Result<_, _>>()?;
    let by = Instant::now() + agent_max;
    loop {
        let missing = missing(root, &taps, namespaces, hook)?;
        let Some(first) = missing.first() else {
            return Ok(());
        };
        match Pins::try_open(root) {
            Ok(pins) => {
                let mut classifier = Classifier::load_beside(pins, hook)?;
                let attached = attach_to(&mut classifier, &missing, namespaces);
                classifier.give_to_owner()?;
                return attached;
            }
            Err(PinsError::InUse { .. }) if Instant::now() < by => thread::sleep(AGENT_LOOK),
            Err(PinsError::InUse { .. }) => {
                return Err(EnsureError::Agent {
                    tap: namespaces.describe(*first),
                    agent_max,
                });
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn attach_to(
    classifier: &mut Classifier,
    taps: &[TapIndex],
    namespaces: &Namespaces,
) -> Result<(), EnsureError> {
    let needed: BTreeSet<_> = taps.iter().map(|tap| tap.namespace()).collect();
    for namespace in needed.iter().filter_map(|number| namespaces.get(*number)) {
        classifier.add_post(namespace)?;
    }
    // An error of one tap leaves no other without the classifier.
    let attached: Vec<_> = taps.iter().map(|tap| classifier.attach(*tap)).collect();
    Ok(attached.into_iter().collect::<Result<(), _>>()?)
}

fn tap_called(name: &str, namespaces: &Namespaces) -> Result<TapIndex, EnsureError> {
    let tap = namespaces.index_of(name)?;
    let name = || name.to_owned();
    let is_tap = namespaces.visit(tap.namespace(), move || link_watch::is_now_tap(tap));
    match is_tap.map_err(LinkWatchError::Socket).and_then(|is_tap| is_tap) {
        Ok(true) => Ok(tap),
        Ok(false) => Err(EnsureError::OtherKind { name: name() }),
        Err(source) => Err(EnsureError::Kind { name: name(), source }),
    }
}

fn missing(
    root: &Path,
    taps: &[TapIndex],
    namespaces: &Namespaces,
    hook: Hook,
) -> Result<Vec<TapIndex>, HookError> {
    let mut missing = Vec::new();
    for &tap in taps {
        let root = root.to_owned();
        let is_on = namespaces.visit(tap.namespace(), move || hook.is_on(&root, tap));
        if !is_on.map_err(HookError::Away)?? {
            missing.push(tap);
        }
    }
    Ok(missing)
}
