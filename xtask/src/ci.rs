//! All that CI runs besides the tests.

use anyhow::Result;

use crate::{
    host_command::{cargo, run_shown},
    tidy,
};

/// Fails when anything is not as it should be. What takes longest comes last. The fuzzer is not among it: to build it takes longer
/// than all of this, and what it ever found runs with the tests.
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
    // The documentation is for who works here, so that links to private items are as good as any.
    let flags = "--deny warnings --allow rustdoc::private-intra-doc-links";
    run_shown(cargo().env("RUSTDOCFLAGS", flags).args([
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
        "--locked",
    ]))
}
