//! T1: what the real agent's taps get while it runs, hangs, is stopped, killed, replaced, upgraded and taken off.

mod commands;
mod identity;
mod leaks;
mod restarts;

use std::path::Path;

use anyhow::Result;
use aya::{
    maps::{Map, MapData, PerCpuHashMap},
    util::KernelVersion,
};
use imds_agent::datapath::Counters;
use imds_ebpf::abi::{ABI_VERSION, TapCounters, TapIndex};
use imds_tests::agent::HostFiles;

/// Whether this kernel has TCX, or its classifiers hang on clsact.
fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(6, 6, 0))
}

/// What an agent with these files has counted on `tap`.
fn counters(files: &HostFiles, tap: TapIndex) -> Result<Counters> {
    let map = pinned_counters(&files.pins().join(format!("v{ABI_VERSION}/COUNTERS")))?;
    Ok(Counters::sum(&map.get(&tap.0, 0)?))
}

fn pinned_counters(pin: &Path) -> Result<PerCpuHashMap<MapData, u64, TapCounters>> {
    Ok(Map::PerCpuHashMap(MapData::from_pin(pin)?).try_into()?)
}
