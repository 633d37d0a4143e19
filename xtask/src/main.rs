//! Everything a developer runs.

mod build_ebpf;

use std::path::Path;

use anyhow::Context;
use clap::Parser;

/// Everything a developer runs.
#[derive(Parser)]
enum Task {
    /// Builds the classifier for the kernel.
    BuildEbpf,
}

fn main() -> anyhow::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in no workspace")?;
    match Task::parse() {
        Task::BuildEbpf => println!("{}", build_ebpf::run(workspace)?.display()),
    }
    Ok(())
}
