//! A whole host: a namespace with taps, records, and the real agent on them.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use imds_ebpf::abi::MacAddr;

use crate::{
    agent::{Agent, HostFiles},
    client::wait_for,
    kernel_guest::KernelGuest,
    netns::Namespace,
    records,
    scrape::Scrape,
    tap::Tap,
};

/// The instance that [`Host::with_guest`] describes.
pub const INSTANCE_ID: &str = "i-0123456789abcdef0";

/// Its address.
pub const ADDRESS: &str = "10.0.0.2";

/// A host. Fields are dropped in order: the agent first, its namespace last.
#[derive(Debug)]
pub struct Host {
    /// The running agent.
    pub agent: Agent,
    /// Its files.
    pub files: HostFiles,
    /// The tap of the first guest.
    pub tap: Arc<Tap>,
    /// Where the agent and the taps are.
    pub namespace: Namespace,
}

impl Host {
    /// A host with one tap `tap0`, whose instance's record `change` may change before the agent starts.
    pub fn new(extra_config: &str, change: impl FnOnce(&mut serde_json::Value)) -> Result<Self> {
        Self::in_namespace(Namespace::new()?, extra_config, |_, record| {
            change(record);
            Ok(())
        })
    }

    /// The same in a namespace where somebody else is already, with records that `change` may change and add to.
    pub fn in_namespace(
        namespace: Namespace,
        extra_config: &str,
        change: impl FnOnce(&HostFiles, &mut serde_json::Value) -> Result<()>,
    ) -> Result<Self> {
        let tap = Arc::new(namespace.enter(|| Tap::new("tap0"))?);
        let files = HostFiles::new(extra_config)?;
        files.put_guest_with(INSTANCE_ID, "tap0", ADDRESS, change)?;
        let agent = Agent::start(&program()?, &namespace, &files)?;
        Ok(Self {
            agent,
            files,
            tap,
            namespace,
        })
    }

    /// The same, with a guest on the tap whose TCP is the kernel's.
    pub fn with_guest(change: impl FnOnce(&mut serde_json::Value)) -> Result<(Self, KernelGuest)> {
        let host = Self::new("", change)?;
        let guest = host.guest()?;
        Ok((host, guest))
    }

    /// A guest on the first tap whose TCP is the kernel's.
    pub fn guest(&self) -> Result<KernelGuest> {
        KernelGuest::new(
            Arc::clone(&self.tap),
            records::guest_mac(2),
            &format!("{ADDRESS}/24"),
        )
    }

    /// Waits until the agent's metrics say `value` of a series, and returns all of them.
    pub fn wait_for_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) -> Result<Scrape> {
        let read = || Scrape::of(&self.files.metrics());
        let is_so = |scrape: &Scrape| scrape.value(name, labels) == Some(value);
        Ok(wait_for(name, read, is_so)?.0)
    }

    /// Another tap with a guest behind it.
    pub fn add_guest(&self, tap: &str, mac: MacAddr, address: &str) -> Result<KernelGuest> {
        KernelGuest::new(Arc::new(self.namespace.enter(|| Tap::new(tap))?), mac, address)
    }
}

/// The agent's binary, beside the test's own.
pub fn program() -> Result<PathBuf> {
    program_called("imds-agent")
}

/// A binary of ours, beside the test's own.
pub fn program_called(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let program = own
        .ancestors()
        .map(|directory| directory.join(name))
        .find(|program| program.is_file());
    program.with_context(|| {
        format!("{name} is not built: `cargo xtask test` does it, or `cargo build -p imds-agent`")
    })
}
