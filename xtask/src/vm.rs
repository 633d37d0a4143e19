//! The demo's guest with a shell on its console.

use std::io::{self, IsTerminal as _};

use anyhow::{Result, ensure};
use imds_tests::vm_host::{TAP, VmHost};

use crate::{prepare::prepare, setup::Extent};

/// Boots it, and waits until its user is done.
pub fn run() -> Result<()> {
    ensure!(io::stdin().is_terminal(), "the guest's shell needs a terminal");
    let agent = prepare("cargo xtask vm", Extent::Product)?;
    let host = VmHost::new(&agent, |record| {
        record["MetadataOptions"]["HttpTokens"] = "optional".into();
    })?;
    println!("In the guest, `imds /latest/meta-data/` asks the service. `exit` or Ctrl-A X ends the guest.");
    println!("To watch its tap from another terminal:");
    println!(
        "  nsenter --target {} --net tcpdump -n -i {TAP}",
        host.agent.pid()?
    );
    println!("To change the instance while it runs, edit the files in:");
    println!("  {}", host.files.state().display());
    host.boot_shell()
}
