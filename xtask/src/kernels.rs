//! The kernels that the tests of the datapath run on besides the host's own.

use std::path::PathBuf;

use anyhow::Result;

use crate::{apt, host_command::target};

/// A release of Debian's whose kernel is booted.
#[derive(Debug)]
pub struct Kernel {
    /// Its version, as far as it matters.
    pub version: &'static str,
    release: &'static str,
}

/// One on each side of 6.6, where TCX came.
pub const KERNELS: &[Kernel] = &[
    Kernel {
        version: "6.1",
        release: "bookworm",
    },
    Kernel {
        version: "6.12",
        release: "trixie",
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

    /// Fetches it.
    pub fn install(&self) -> Result<()> {
        apt::unpack_from(self.release, "linux-image-cloud-amd64", &self.directory())
    }
}
