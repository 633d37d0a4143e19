//! libvirt's own client, for the commands that ask a libvirtd.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// What virsh prints.
pub fn virsh(connect: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new("virsh")
        .args(["--connect", connect, "--quiet"])
        .args(arguments)
        .output()
        .context("cannot run virsh")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "virsh: {}", complaint.trim());
    String::from_utf8(output.stdout).context("virsh prints no UTF-8")
}
