//! A guest without a virtual machine: a network namespace whose only interface is wired to a tap of the host.
//!
//! The kernel's own TCP is the guest's TCP, so any program can be the client: curl, Python, the AWS SDKs.

use std::{
    fs, io,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::Result;
use imds_ebpf::abi::MacAddr;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{client::wait_for, netns::Namespace, tap::Tap};

/// The guest. Its wire is cut when it is dropped.
#[derive(Debug)]
pub struct KernelGuest {
    /// The namespace that the guest's programs run in.
    pub namespace: Namespace,
    stop: Arc<AtomicBool>,
    pump: Option<thread::JoinHandle<()>>,
}

impl KernelGuest {
    /// Wires a new guest with `mac` and `address` (CIDR notation) to the host's tap. The metadata address is on-link.
    pub fn new(host: Arc<Tap>, mac: MacAddr, address: &str) -> Result<Self> {
        let namespace = Namespace::new()?;
        let guest = namespace.enter(|| Tap::new("eth0"))?;
        namespace.ip(&format!("link set eth0 address {mac}"))?;
        namespace.ip(&format!("address add {address} dev eth0"))?;
        namespace.ip("route add 169.254.169.254 dev eth0")?;
        let stop = Arc::new(AtomicBool::new(false));
        let pump = thread::spawn({
            let stop = Arc::clone(&stop);
            move || pump(&host, &guest, &stop)
        });
        Ok(Self {
            namespace,
            stop,
            pump: Some(pump),
        })
    }

    /// Gives it an IPv6 address of its own and a way to the service's.
    pub fn add_ipv6(&self) -> Result<()> {
        self.namespace.ip("-6 address add fd00:1::2/64 dev eth0 nodad")?;
        self.namespace.ip("-6 route add fd00:ec2::254 dev eth0")?;
        Ok(())
    }

    /// Takes its way to the service's IPv4 address.
    pub fn lose_ipv4(&self) -> Result<()> {
        self.namespace.ip("route del 169.254.169.254 dev eth0")?;
        Ok(())
    }

    /// A container of the guest: a network of its own, which the guest's kernel routes for.
    pub fn container(&self) -> Result<Namespace> {
        let (guest, container) = (&self.namespace, Namespace::new()?);
        guest.ip("link add docker0 type veth peer name inside")?;
        guest.ip(&format!("link set inside netns {}", container.path()))?;
        guest.ip("address add 172.17.0.1/16 dev docker0")?;
        guest.ip("link set docker0 up")?;
        container.ip("address add 172.17.0.2/16 dev inside")?;
        container.ip("link set inside up")?;
        container.ip("route add default via 172.17.0.1")?;
        guest.enter(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?;
        Ok(container)
    }

    /// Hides containers behind the guest's own address, as Docker does.
    pub fn masquerade(&self) -> Result<()> {
        self.nft("add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }")?;
        self.nft("add rule ip nat post ip saddr 172.17.0.0/16 oifname eth0 masquerade")
    }

    /// Has its router say nothing of packets that expire there, as firewalls do.
    pub fn silence_icmp(&self) -> Result<()> {
        self.nft("add table ip mute; add chain ip mute output { type filter hook output priority 0; }")?;
        self.nft("add rule ip mute output icmp type time-exceeded drop")
    }

    fn nft(&self, commands: &str) -> Result<()> {
        let status = self.command("nft").arg(commands).status()?;
        anyhow::ensure!(status.success(), "nft failed: {status}");
        Ok(())
    }

    /// Lets the guest, which has IPv6 already, route that for the container, too.
    pub fn add_container_ipv6(&self, container: &Namespace) -> Result<()> {
        self.namespace
            .ip("-6 address add fd00:2::1/64 dev docker0 nodad")?;
        container.ip("-6 address add fd00:2::2/64 dev inside nodad")?;
        container.ip("-6 route add default via fd00:2::1")?;
        self.namespace
            .enter(|| fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1"))?;
        // A router solicits from its link-local addresses, which are its own only after a second or two.
        let tentative = || self.namespace.ip("-6 address show tentative");
        wait_for("the guest's link-local addresses", tentative, String::is_empty)?;
        Ok(())
    }

    /// A command that will run in the guest.
    pub fn command(&self, program: &str) -> Command {
        self.namespace.command(program)
    }
}

impl Drop for KernelGuest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(pump) = self.pump.take() {
            let _ = pump.join();
        }
    }
}

/// Carries frames both ways until told to stop. A frame that a tap refuses is lost, as on a wire.
fn pump(host: &Tap, guest: &Tap, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536 + 64];
    while !stop.load(Ordering::Relaxed) {
        let queues = host.queues().chain(guest.queues());
        let mut descriptors: Vec<_> = queues.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // Wakes up now and then to see whether it is to stop.
        if poll(&mut descriptors, PollTimeout::from(100_u16)).is_err() {
            continue;
        }
        for (from, to) in [(host, guest), (guest, host)] {
            if carry(from, to, &mut buffer).is_err() {
                return;
            }
        }
    }
}

fn carry(from: &Tap, to: &Tap, buffer: &mut [u8]) -> io::Result<()> {
    loop {
        match from.read(buffer) {
            Ok(count) => {
                let _ = to.send(buffer.get(..count).unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
