//! Programs of stock Debians, run in a guest without a machine: a root directory in the guest's network.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, ensure};

use crate::{netns::Namespace, qemu};

/// Mounts what programs want to see, for this one process, and becomes the program. `/sys` shows the guest's network,
/// and `/tmp` is empty.
pub(crate) const ENTER: &str = r#"
set -e
mount -t proc proc "$0/proc"
mount -t sysfs sysfs "$0/sys"
mount -t tmpfs tmp "$0/tmp"
exec chroot "$0" "$@"
"#;

/// One of the releases that `cargo xtask setup` provides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Release {
    /// Debian 12, which is also the guest's.
    Bookworm,
    /// Debian 13, with more clients.
    Trixie,
}

/// `program` of a stock Debian, in the guest's network and with none of the host's environment.
pub fn command(release: Release, guest: &Namespace, program: &str) -> Result<Command> {
    let root = directory(release).join("root");
    ensure!(
        root.join("usr/bin/cloud-init").exists(),
        "{} is missing: `cargo xtask setup` makes it",
        root.display()
    );
    let mut command = guest.command("unshare");
    command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/tmp")
        .args(["--mount", "sh", "-c", ENTER])
        .arg(root)
        .arg(program);
    Ok(command)
}

/// Where the guest's disk is.
pub(crate) fn disk() -> PathBuf {
    directory(Release::Bookworm).join("disk.img")
}

fn directory(release: Release) -> PathBuf {
    qemu::target().join(match release {
        Release::Bookworm => "debian",
        Release::Trixie => "debian-clients",
    })
}
