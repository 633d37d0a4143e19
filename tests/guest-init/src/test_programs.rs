//! The host's test programs, run on this guest's kernel one after the other.
//!
//! The image brings them in `/tests`, and in `/tests/plan` a line for each: its name and its arguments. What they print is
//! on the console, as on the host; one that fails does not keep the next from running. How many times slower this machine is
//! than a real one, `imds.slowness=<times>` on the kernel's command line, is handed on to them.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};

use crate::machine::CommandLine;

const PROGRAMS: &str = "/tests";

/// Where the tests keep one host's identity for the next.
const KEYS: &str = "/tmp/keys";

/// Where the image has the programs that the tests start.
const PATH: &str = "/usr/bin:/bin";

pub fn run() -> Result<()> {
    let slowness = CommandLine::read()?.slowness().to_owned();
    for (kind, at) in [("tmpfs", "/tmp"), ("bpf", "/sys/fs/bpf")] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {at}"))?;
    }
    let plan = Path::new(PROGRAMS).join("plan");
    let plan = fs::read_to_string(&plan).with_context(|| format!("cannot read {}", plan.display()))?;
    let mut failed = Vec::new();
    for line in plan.lines() {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        println!("tests of {name}");
        let status = Command::new(Path::new(PROGRAMS).join(name))
            .args(words)
            .env("PATH", PATH)
            .env("IMDS_TEST_SLOWNESS", &slowness)
            .env("IMDS_TEST_KEYS", KEYS)
            .status()
            .with_context(|| format!("cannot start {name}"))?;
        if !status.success() {
            failed.push(format!("{name} ({status})"));
        }
    }
    ensure!(failed.is_empty(), "{} failed", failed.join(", "));
    Ok(())
}
