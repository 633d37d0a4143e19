//! Takes the classifier off without loading it: nothing of it is left then, whichever version put it there.

use std::{collections::BTreeSet, io, path::Path, sync::Arc};

use imds_ebpf::abi::TapIndex;
use thiserror::Error;

use super::{
    filters,
    hook::{self, HookError},
    namespace::Namespaces,
    pins::{Pins, PinsError},
    program::TapOperationError,
    tap::TapError,
};

/// The classifier cannot be taken off.
#[derive(Debug, Error)]
pub enum DetachError {
    /// There is no such tap.
    #[error(transparent)]
    NoTap(#[from] TapError),
    /// It does not come off this tap.
    #[error("cannot detach the classifier from tap {tap}")]
    Tap {
        /// The tap's name and index.
        tap: String,
        /// Why not.
        source: TapOperationError,
    },
    /// The taps that have a filter cannot be told.
    #[error("cannot list the filters of network devices")]
    Filters(#[source] io::Error),
    /// The pins cannot be used or removed.
    #[error(transparent)]
    Pins(#[from] PinsError),
}

/// Takes the classifier off the taps of these names, those of `namespaces` as `namespace/tap`. What the maps say of them is
/// cleared away by the next agent.
pub fn these(root: &Path, names: &[String], namespaces: &Namespaces) -> Result<(), DetachError> {
    let taps: Vec<_> = names
        .iter()
        .map(|name| namespaces.index_of(name))
        .collect::<Result<_, _>>()?;
    let pins = Pins::open_existing(root)?.map(Arc::new);
    taps.into_iter()
        .try_for_each(|tap| take_off(tap, pins.as_ref(), namespaces))
}

/// Takes the classifier off every tap of the calling thread's network namespace and of `namespaces`, and off every other that it
/// hangs on by what is pinned; and removes every trace of it below `root`, and `root`.
pub fn all(root: &Path, namespaces: &Namespaces) -> Result<(), DetachError> {
    match Pins::open_existing(root)? {
        Some(pins) => all_of(&Arc::new(pins), namespaces),
        None => take_all_off(with_filters(namespaces)?, None, namespaces),
    }
}

pub(super) fn all_of(pins: &Arc<Pins>, namespaces: &Namespaces) -> Result<(), DetachError> {
    let mut taps = pins.links()?;
    taps.append(&mut pins.noted_clsacts()?);
    taps.append(&mut with_filters(namespaces)?);
    take_all_off(taps, Some(pins), namespaces)?;
    Ok(pins.remove_all()?)
}

/// The taps that have a filter of ours, here and there.
fn with_filters(namespaces: &Namespaces) -> Result<BTreeSet<TapIndex>, DetachError> {
    let mut taps = filters::taps().map_err(DetachError::Filters)?;
    for namespace in namespaces.iter() {
        let there = namespace.visit(filters::taps).and_then(|taps| taps);
        let there = there.map_err(DetachError::Filters)?.into_iter();
        taps.extend(there.map(|tap| TapIndex::within(namespace.number(), tap.ifindex())));
    }
    Ok(taps)
}

/// A tap that fails costs none of the others anything.
fn take_all_off(
    taps: BTreeSet<TapIndex>,
    pins: Option<&Arc<Pins>>,
    namespaces: &Namespaces,
) -> Result<(), DetachError> {
    let results: Vec<_> = taps
        .into_iter()
        .map(|tap| take_off(tap, pins, namespaces))
        .collect();
    results.into_iter().collect()
}

fn take_off(tap: TapIndex, pins: Option<&Arc<Pins>>, namespaces: &Namespaces) -> Result<(), DetachError> {
    let held = pins.map(Arc::clone);
    let work = move || match held {
        Some(pins) => hook::take_off(tap, &pins),
        None => hook::take_filters_off(tap),
    };
    let taken = match (namespaces.visit(tap.namespace(), work), pins) {
        (Ok(taken), _) => taken,
        // Where nobody gets to, links come off all the same.
        (Err(_), Some(pins)) => hook::take_links_off(tap, pins),
        (Err(error), None) => Err(HookError::Away(error)),
    };
    taken.map_err(|source| DetachError::Tap {
        tap: namespaces.describe(tap),
        source: source.into(),
    })
}
