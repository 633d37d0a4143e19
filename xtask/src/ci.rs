//! All that CI runs besides the tests.

use anyhow::Result;

use crate::{
    host_command::{cargo, run_shown},
    tidy,
};

/// Fails when anything is not as it should be. The compiler's findings come last: they take longest.
pub fn run() -> Result<()> {
    run_shown(cargo().args(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    run_shown(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "--deny",
        "warnings",
    ]))?;
    run_shown(cargo().env("RUSTDOCFLAGS", "--deny warnings").args([
        "doc",
        "--workspace",
        "--no-deps",
        "--locked",
    ]))
}
