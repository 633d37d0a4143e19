//! Programs of a stock Debian, run in a guest without a machine: its root directory in the guest's network.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, ensure};

use crate::{netns::Namespace, qemu};

/// Mounts what programs want to see, for this one process, and becomes the program. `/sys` shows the guest's network,
/// and `/tmp` is empty.
const ENTER: &str = r#"
set -e
mount -t proc proc "$0/proc"
mount -t sysfs sysfs "$0/sys"
mount -t tmpfs tmp "$0/tmp"
exec chroot "$0" "$@"
"#;

/// `program` of the stock Debian, in the guest's network and with none of the host's environment.
pub fn command(guest: &Namespace, program: &str) -> Result<Command> {
    let root = directory().join("root");
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
        .args(["--mount", "sh", "-c", ENTER])
        .arg(root)
        .arg(program);
    Ok(command)
}

/// Where `cargo xtask setup` puts it: the directory, and the disk of the same.
pub(crate) fn directory() -> PathBuf {
    qemu::target().join("debian")
}
