//! What `demo`, `vm` and `test` need built: the classifier, the agent around it, the guest.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    build_ebpf, guest_image,
    host_command::{cargo, run, target, workspace},
    setup::{self, Extent},
};

/// Provides everything for `what`, and returns the agent.
pub fn prepare(what: &str, extent: Extent) -> Result<PathBuf> {
    provide(what, extent)?;
    guest_image::build()?;
    run(cargo().args(["build", "--package", "imds-agent"]))?;
    Ok(target().join("debug/imds-agent"))
}

/// Provides everything but the guest for `what`, and returns the agent as it is released; `imdsctl` is beside it.
pub fn release(what: &str) -> Result<PathBuf> {
    provide(what, Extent::Product)?;
    run(cargo().args(["build", "--release", "--package", "imds-agent"]))?;
    Ok(target().join("release/imds-agent"))
}

/// Provides the product for `what`, as it is released or as it is tested, and returns the agent.
pub fn product(what: &str, is_debug: bool) -> Result<PathBuf> {
    if !is_debug {
        return release(what);
    }
    provide(what, Extent::Product)?;
    run(cargo().args(["build", "--package", "imds-agent"]))?;
    Ok(target().join("debug/imds-agent"))
}

fn provide(what: &str, extent: Extent) -> Result<()> {
    setup::need_root(what)?;
    setup::run(extent, false)?;
    build_ebpf::run(&workspace())?;
    Ok(())
}
