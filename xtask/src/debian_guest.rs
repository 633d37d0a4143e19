//! A stock Debian with cloud-init, for the tests: as a directory to run programs of, and as a disk to boot from.
//!
//! Nothing in it is ours. What a test adds to a guest, the guest's initramfs brings along.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::host_command::{run_shown, target};

/// The release, with the packages of Debian's own cloud images that meet the metadata service or the network.
const RELEASE: &str = "bookworm";

const PACKAGES: &[&str] = &[
    "amazon-ec2-utils",
    "cloud-guest-utils",
    "cloud-init",
    "curl",
    "dbus",
    "iproute2",
    "isc-dhcp-client",
    "netplan.io",
    "openssh-server",
    "sudo",
    "systemd-sysv",
    "udev",
];

/// Room for the packages and for what a first boot writes.
const DISK_SIZE: &str = "1G";

/// What is in it, as the stamp says.
pub fn contents() -> String {
    format!("{RELEASE} {DISK_SIZE} {}", PACKAGES.join(" "))
}

/// Where it is.
pub fn directory() -> PathBuf {
    target().join("debian")
}

/// Fetches and installs it.
pub fn install() -> Result<()> {
    let directory = directory();
    let root = directory.join("root");
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot clear {}", directory.display()));
        }
        _ => fs::create_dir_all(&directory)?,
    }
    run_shown(
        Command::new("mmdebstrap")
            .args(["--quiet", "--variant=minbase"])
            .arg(format!("--include={}", PACKAGES.join(",")))
            .args(["doc", "locale", "man"].map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")))
            // They are the host's, and a guest gets its own.
            .args(["resolv.conf", "hostname"].map(|file| format!("--customize-hook=rm -f \"$1/etc/{file}\"")))
            .arg(RELEASE)
            .arg(&root)
            .arg("http://deb.debian.org/debian"),
    )?;
    make_disk(&root, &directory.join("disk.img"))
}

fn make_disk(root: &Path, disk: &Path) -> Result<()> {
    run_shown(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-d"])
            .arg(root)
            .arg(disk)
            .arg(DISK_SIZE),
    )
}
