//! The product at work: a guest gets its role credentials through its tap, and its container does not.
//!
//! All of it happens in a network namespace of its own.

use std::time::Duration;

use anyhow::Result;
use imds_tests::{
    records,
    vm_host::{INSTANCE_ID, TAP, VmHost},
};

use crate::{prepare::prepare, setup::Extent};

/// A guest under emulation takes a few seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Shows on the terminal, as it happens, what a guest asks for and gets.
pub fn run() -> Result<()> {
    let agent = prepare("cargo xtask demo", Extent::Product)?;
    println!("\nThe host: a network namespace with a tap {TAP}, and imds-agent with one instance record:");
    println!(
        "  instance {INSTANCE_ID} on {TAP}, with the role {}",
        records::ROLE
    );
    let host = VmHost::new(&agent, |_| ())?;
    println!("\nThe guest: Debian's kernel in QEMU, powered on now.");
    let guest = host.boot("demo", &["demo"], LIMIT)?;
    guest.wait_showing(|line| {
        // The rest is the guest's contract with this program, and the kernel's last words.
        if line.starts_with("  ") {
            println!("{line}");
        }
    })?;
    println!("\nThe agent, asked to end, tells what it did and counted:");
    let (status, log) = host.agent.stop()?;
    for line in log {
        println!("  {line}");
    }
    anyhow::ensure!(status.success(), "the agent ended with {status}");
    Ok(())
}
