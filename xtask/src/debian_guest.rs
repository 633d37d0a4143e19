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

/// The release.
const RELEASE: &str = "bookworm";

/// The packages of Debian's own cloud images that meet the metadata service or the network.
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

/// What no test reads.
const LEFT_OUT: &[&str] = &["doc", "locale", "man"];

/// Last touches: what would be the host's is left to the guest, and its language is that of Debian's cloud images, which
/// needs nothing generated.
const TOUCHES: &[&str] = &[
    "rm -f \"$1/etc/resolv.conf\" \"$1/etc/hostname\"",
    "echo LANG=C.UTF-8 > \"$1/etc/default/locale\"",
];

/// Room for the packages and for what a first boot writes.
const DISK_SIZE: &str = "1G";

/// What is in it, as the stamp says.
pub fn contents() -> String {
    format!("{} {DISK_SIZE}", options().join(" "))
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
            .args(options())
            .arg(RELEASE)
            .arg(&root)
            .arg("http://deb.debian.org/debian"),
    )?;
    make_disk(&root, &directory.join("disk.img"))
}

fn options() -> Vec<String> {
    let mut options = vec!["--quiet".to_owned(), "--variant=minbase".to_owned()];
    options.push(format!("--include={}", PACKAGES.join(",")));
    options.extend(
        LEFT_OUT
            .iter()
            .map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")),
    );
    options.extend(TOUCHES.iter().map(|touch| format!("--customize-hook={touch}")));
    options
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
