//! What `demo`, `vm` and `test` need built: the classifier, the agent around it, the guest.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    build_ebpf, guest_image,
    host_command::{cargo, run, target, workspace},
    setup,
};

/// Provides everything for `what`, and returns the agent.
pub fn prepare(what: &str) -> Result<PathBuf> {
    provide(what)?;
    guest_image::build()?;
    run(cargo().args(["build", "--package", "imds-agent"]))?;
    Ok(target().join("debug/imds-agent"))
}

/// Provides everything but the guest for `what`, and returns the agent as it is released.
pub fn release(what: &str) -> Result<PathBuf> {
    provide(what)?;
    run(cargo().args(["build", "--release", "--package", "imds-agent"]))?;
    Ok(target().join("release/imds-agent"))
}

fn provide(what: &str) -> Result<()> {
    setup::need_root(what)?;
    setup::run(false)?;
    build_ebpf::run(&workspace())?;
    Ok(())
}
