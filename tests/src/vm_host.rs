//! A host whose guest is a QEMU: a namespace with a tap, an instance's records, and the real agent on them.

use std::{path::Path, time::Duration};

use anyhow::Result;
use serde_json::Value;

use crate::{
    agent::{Agent, HostFiles},
    dhcp::DhcpServer,
    netns::Namespace,
    qemu::{Guest, GuestOptions, Interface, Software},
    records,
};

/// The tap that the guest is connected to.
pub const TAP: &str = "tap0";

/// The instance that the guest is.
pub const INSTANCE_ID: &str = "i-0a1b2c3d4e5f60718";

const ADDRESS: &str = "10.0.0.2";

/// The host. Fields are dropped in order: the agent first, its namespace last.
#[derive(Debug)]
pub struct VmHost {
    /// The running agent.
    pub agent: Agent,
    /// Its files.
    pub files: HostFiles,
    /// Where agent, tap and QEMU are.
    pub namespace: Namespace,
}

impl VmHost {
    /// A host with the agent `program`, whose instance's record `change` may change before the agent starts.
    pub fn new(program: &Path, change: impl FnOnce(&mut Value)) -> Result<Self> {
        let namespace = Namespace::new()?;
        // A tap that stays, for the hypervisor to open by its name.
        namespace.ip(&format!("tuntap add dev {TAP} mode tap"))?;
        namespace.ip(&format!("link set {TAP} up"))?;
        let files = HostFiles::new("")?;
        files.put_guest(INSTANCE_ID, TAP, ADDRESS, change)?;
        let agent = Agent::start(program, &namespace, &files)?;
        Ok(Self {
            agent,
            files,
            namespace,
        })
    }

    /// Powers the guest on.
    pub fn boot(&self, name: &str, steps: &[&str], limit: Duration) -> Result<Guest> {
        Guest::boot(&self.namespace, &options(name, steps, limit))
    }

    /// Powers a stock Debian on, in a network with a DHCP server as it finds one everywhere. See [`Software::Debian`].
    pub fn boot_debian(
        &self,
        name: &str,
        software: Software,
        limit: Duration,
    ) -> Result<(Guest, DhcpServer)> {
        let interface = interface();
        let dhcp = DhcpServer::start(&self.namespace, TAP, GATEWAY, interface.mac, ADDRESS)?;
        let options = GuestOptions {
            name: name.to_owned(),
            interface: Some(interface),
            software,
            limit,
        };
        Ok((Guest::boot(&self.namespace, &options)?, dhcp))
    }

    /// Powers the guest on with a shell on this terminal, and waits for its end.
    pub fn boot_shell(&self) -> Result<()> {
        Guest::boot_on_terminal(&self.namespace, &options("vm", &["shell"], Duration::MAX))
    }
}

/// The network's gateway, in front of the guest's tap.
const GATEWAY: &str = "10.0.0.1";

fn options(name: &str, steps: &[&str], limit: Duration) -> GuestOptions {
    GuestOptions {
        name: name.to_owned(),
        interface: Some(interface()),
        software: Software::Init {
            address: format!("{ADDRESS}/24"),
            steps: steps.iter().map(|&step| step.to_owned()).collect(),
        },
        limit,
    }
}

fn interface() -> Interface {
    Interface {
        tap: TAP.to_owned(),
        mac: records::guest_mac(2),
    }
}
