//! Stock Debians for the tests: one to boot as a guest, one for the clients that come with a newer release, and one for a
//! private cloud's security token service.
//!
//! All are directories whose programs run in a guest's or a host's network without a machine; the first is a disk too.
//! Nothing in them is ours: what a test adds to a guest, the guest's initramfs brings along.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::host_command::{run_shown, target};

/// A Debian in a directory.
#[derive(Debug)]
pub struct Root {
    /// Its directory below `target/`.
    name: &'static str,
    release: &'static str,
    packages: &'static [&'static str],
    /// The size of its disk, where it has one.
    disk_size: Option<&'static str>,
}

/// All of them.
pub const ROOTS: &[Root] = &[
    // The packages of Debian's own cloud images that meet the metadata service or the network, and room for what a first
    // boot writes.
    Root {
        name: "debian",
        release: "bookworm",
        packages: &[
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
        ],
        disk_size: Some("1G"),
    },
    Root {
        name: "debian-clients",
        release: "trixie",
        packages: &[
            "awscli",
            "cloud-init",
            "facter",
            "iproute2",
            "netplan.io",
            "php-async-aws-core",
            "rclone",
            "restic",
            "ruby-aws-sdk-core",
            "s3cmd",
        ],
        disk_size: None,
    },
    // Ceph's gateway, and the least of a cluster that it starts on.
    Root {
        name: "ceph",
        release: "bookworm",
        packages: &["ceph-mon", "ceph-osd", "radosgw"],
        disk_size: None,
    },
];

/// What no test reads.
const LEFT_OUT: &[&str] = &["doc", "locale", "man"];

/// Last touches: what would be the host's is left to the guest, and its language is that of Debian's cloud images, which
/// needs nothing generated.
const TOUCHES: &[&str] = &[
    "rm -f \"$1/etc/resolv.conf\" \"$1/etc/hostname\"",
    "echo LANG=C.UTF-8 > \"$1/etc/default/locale\"",
];

impl Root {
    /// What is in it, as the stamp says.
    pub fn contents(&self) -> String {
        format!(
            "{} {} {:?}",
            self.release,
            self.options().join(" "),
            self.disk_size
        )
    }

    /// Where it is.
    pub fn directory(&self) -> PathBuf {
        target().join(self.name)
    }

    /// What it is for.
    pub fn purpose(&self) -> String {
        format!("Debian {} with {}", self.release, self.packages.join(", "))
    }

    /// Fetches and installs it.
    pub fn install(&self) -> Result<()> {
        let directory = self.directory();
        let root = directory.join("root");
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot clear {}", directory.display()));
            }
            _ => fs::create_dir_all(&directory)?,
        }
        run_shown(
            Command::new("mmdebstrap")
                .args(self.options())
                .arg(self.release)
                .arg(&root)
                .args(mirror()?),
        )?;
        match self.disk_size {
            Some(size) => make_disk(&root, &directory.join("disk.img"), size),
            None => Ok(()),
        }
    }

    fn options(&self) -> Vec<String> {
        let mut options = vec!["--quiet".to_owned(), "--variant=minbase".to_owned()];
        options.push(format!("--include={}", self.packages.join(",")));
        options.extend(
            LEFT_OUT
                .iter()
                .map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")),
        );
        options.extend(TOUCHES.iter().map(|touch| format!("--customize-hook={touch}")));
        options
    }
}

/// The mirror that the host's own apt has Debian from; where it has none, mmdebstrap knows one.
pub fn mirror() -> Result<Option<String>> {
    let mut apt = Command::new("apt-get");
    apt.args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Label: Debian",
    ]);
    let output = apt.output().context("cannot ask apt for its mirror")?;
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .next()
        .map(str::to_owned))
}

fn make_disk(root: &Path, disk: &Path, size: &str) -> Result<()> {
    run_shown(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-d"])
            .arg(root)
            .arg(disk)
            .arg(size),
    )
}
