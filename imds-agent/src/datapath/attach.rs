//! Puts the classifier on a tap before anybody uses it, agent or no agent: what a hypervisor calls before it lets a guest run,
//! so that no guest is ever without.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use imds_ebpf::abi::TapIndex;
use thiserror::Error;

use super::{
    Classifier, Hook, LoadError,
    hook::HookError,
    pins::{Pins, PinsError},
    program::AttachError,
    tap::{TapError, describe, index_of},
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
        "the agent runs, and has not put the classifier on tap {tap} within {AGENT_MAX:?}: its log says why"
    )]
    Agent {
        /// The tap's name and index.
        tap: String,
    },
}

/// Returns once the classifier is on the taps of these names. A running agent puts it there; without one it is loaded for
/// them alone, and they are dark until an agent comes, adopts them, and binds them.
pub fn ensure(root: &Path, names: &[String]) -> Result<(), EnsureError> {
    ensure_on(root, names, Hook::of_this_kernel()?)
}

/// The same on a kind of hook that need not be the kernel's best.
pub fn ensure_on(root: &Path, names: &[String], hook: Hook) -> Result<(), EnsureError> {
    let taps: Vec<_> = names
        .iter()
        .map(|name| index_of(name))
        .collect::<Result<_, _>>()?;
    let by = Instant::now() + AGENT_MAX;
    loop {
        let missing = missing(root, &taps, hook)?;
        let Some(first) = missing.first() else {
            return Ok(());
        };
        match Pins::try_open(root) {
            Ok(pins) => {
                let mut classifier = Classifier::load_beside(pins, hook)?;
                return Ok(missing.iter().try_for_each(|tap| classifier.attach(*tap))?);
            }
            Err(PinsError::InUse { .. }) if Instant::now() < by => thread::sleep(AGENT_LOOK),
            Err(PinsError::InUse { .. }) => {
                let tap = describe(*first);
                return Err(EnsureError::Agent { tap });
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn missing(root: &Path, taps: &[TapIndex], hook: Hook) -> Result<Vec<TapIndex>, HookError> {
    let mut missing = Vec::new();
    for tap in taps {
        if !hook.is_on(root, *tap)? {
            missing.push(*tap);
        }
    }
    Ok(missing)
}
