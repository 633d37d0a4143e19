//! What an init does for its machine: file systems, modules, the command line, and the end.

use std::{fs, net::Ipv4Addr, path::PathBuf};

use anyhow::{Context as _, Result};
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};

use crate::step::Step;

/// An IPv4 address and its prefix length.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub ip: Ipv4Addr,
    pub prefix_length: u8,
}

/// What the host wants, from the kernel's command line.
#[derive(Debug)]
pub struct CommandLine(String);

impl CommandLine {
    pub fn read() -> Result<Self> {
        fs::read_to_string("/proc/cmdline")
            .map(Self)
            .context("cannot read /proc/cmdline")
    }

    /// The interface's address; without one there is no network.
    pub fn address(&self) -> Result<Option<Address>> {
        let Some(text) = self.value("imds.address=") else {
            return Ok(None);
        };
        let parse = || {
            let (ip, prefix_length) = text.split_once('/')?;
            Some(Address {
                ip: ip.parse().ok()?,
                prefix_length: prefix_length.parse().ok()?,
            })
        };
        parse()
            .map(Some)
            .with_context(|| format!("imds.address is {text:?}, not <address>/<prefix>"))
    }

    /// What to do, in this order.
    pub fn steps(&self) -> Result<Vec<Step>> {
        self.value("imds.steps=")
            .unwrap_or_default()
            .split(',')
            .filter(|text| !text.is_empty())
            .map(str::parse)
            .collect()
    }

    /// How many times slower the machine is than a real one.
    pub fn slowness(&self) -> &str {
        self.value("imds.slowness=").unwrap_or("1")
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.0
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix(name))
    }
}

/// Mounts what programs expect of a Linux.
pub fn mount_file_systems() -> Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(at)?;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {at}"))?;
    }
    Ok(())
}

/// Loads the modules that the image carries. Their names sort in the order of their dependencies.
pub fn load_modules() -> Result<()> {
    let mut modules: Vec<PathBuf> = fs::read_dir("/modules")?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    modules.sort();
    for module in modules {
        let file = fs::File::open(&module)?;
        finit_module(&file, c"", ModuleInitFlags::empty())
            .with_context(|| format!("cannot load {}", module.display()))?;
    }
    Ok(())
}

/// Ends the machine.
pub fn power_off() -> ! {
    nix::unistd::sync();
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    // The kernel panics when its init ends, and the host sees that in the console.
    panic!("cannot power off: {error}");
}
