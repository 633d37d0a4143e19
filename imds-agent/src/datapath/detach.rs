//! Takes the classifier off without loading it: nothing of it is left then, whichever version put it there.

use std::{collections::BTreeSet, io, path::Path};

use imds_ebpf::abi::TapIndex;
use thiserror::Error;

use super::{
    filters, hook,
    pins::{Pins, PinsError},
    program::TapOperationError,
    tap::{TapError, describe, index_of},
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

/// Takes the classifier off the taps of these names. What the maps say of them is cleared away by the next agent.
pub fn these(root: &Path, names: &[String]) -> Result<(), DetachError> {
    let taps: Vec<_> = names
        .iter()
        .map(|name| index_of(name))
        .collect::<Result<_, _>>()?;
    let pins = Pins::open_existing(root)?;
    taps.into_iter().try_for_each(|tap| take_off(tap, pins.as_ref()))
}

/// Takes the classifier off every tap of the calling thread's network namespace, and removes every trace of it below `root`,
/// and `root`.
pub fn all(root: &Path) -> Result<(), DetachError> {
    match Pins::open_existing(root)? {
        Some(pins) => all_of(pins),
        None => take_all_off(filters::taps().map_err(DetachError::Filters)?, None),
    }
}

pub(super) fn all_of(pins: Pins) -> Result<(), DetachError> {
    let mut taps = pins.links()?;
    taps.append(&mut pins.noted_clsacts()?);
    taps.append(&mut filters::taps().map_err(DetachError::Filters)?);
    take_all_off(taps, Some(&pins))?;
    Ok(pins.remove_all()?)
}

/// A tap that fails costs none of the others anything.
fn take_all_off(taps: BTreeSet<TapIndex>, pins: Option<&Pins>) -> Result<(), DetachError> {
    let results: Vec<_> = taps.into_iter().map(|tap| take_off(tap, pins)).collect();
    results.into_iter().collect()
}

fn take_off(tap: TapIndex, pins: Option<&Pins>) -> Result<(), DetachError> {
    let taken = match pins {
        Some(pins) => hook::take_off(tap, pins),
        None => hook::take_filters_off(tap),
    };
    taken.map_err(|source| DetachError::Tap {
        tap: describe(tap),
        source: source.into(),
    })
}
