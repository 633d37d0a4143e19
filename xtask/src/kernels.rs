//! The kernels that the tests of the datapath run on besides the host's own.

use std::{fs, path::PathBuf};

use anyhow::Result;

use crate::{apt, host_command::target, setup::stamp};

/// A release of Debian's whose kernel is booted.
#[derive(Debug)]
pub struct Kernel {
    /// Its version, as far as it matters.
    pub version: &'static str,
    /// What runs on it.
    pub part: Part,
    /// What it is told beside what every guest's kernel is.
    pub parameters: &'static [&'static str],
    release: &'static str,
}

/// What a kernel is there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The agent runs on it.
    Supported,
    /// The agent refuses it.
    Refused,
}

/// One on each side of 6.6, where TCX came, the second as locked down as Secure Boot with the strictest policy makes it; and
/// the last one that is too old.
pub const KERNELS: &[Kernel] = &[
    Kernel {
        version: "6.1",
        part: Part::Supported,
        parameters: &[],
        release: "bookworm",
    },
    Kernel {
        version: "6.12",
        part: Part::Supported,
        parameters: &["lockdown=confidentiality"],
        release: "trixie",
    },
    Kernel {
        version: "5.10",
        part: Part::Refused,
        parameters: &[],
        release: "bullseye",
    },
];

impl Kernel {
    /// Where its package is unpacked.
    pub fn directory(&self) -> PathBuf {
        target().join("guest").join(format!("kernel-{}", self.release))
    }

    /// What it is for.
    pub fn purpose(&self) -> String {
        format!("the kernel {} of Debian {}", self.version, self.release)
    }

    /// Whether it could be fetched.
    pub fn is_there(&self) -> bool {
        self.directory().join("boot").is_dir()
    }

    /// Fetches it. Mirrors drop old releases: one that only shows what is refused may be missing.
    pub fn install(&self) -> Result<()> {
        let directory = self.directory();
        match apt::unpack_from(self.release, "linux-image-cloud-amd64", &directory) {
            Err(error) if self.part == Part::Refused => {
                println!("setup: goes on without {}: {error:#}", self.purpose());
                fs::create_dir_all(&directory)?;
                Ok(fs::write(stamp(&directory), "not to be had")?)
            }
            fetched => fetched,
        }
    }
}
