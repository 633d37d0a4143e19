//! The DHCP server that a guest finds in its network: busybox's, the one of the test guest.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::MacAddr;

use crate::{netns::Namespace, qemu};

/// A running server. Killed when dropped.
#[derive(Debug)]
pub struct DhcpServer {
    server: Child,
    _files: tempfile::TempDir,
}

impl DhcpServer {
    /// Gives `interface` the network's first address, which is the gateway's too, and leases `address` (on a /24) to the
    /// guest with `mac`.
    pub fn start(
        namespace: &Namespace,
        interface: &str,
        gateway: &str,
        mac: MacAddr,
        address: &str,
    ) -> Result<Self> {
        namespace.ip(&format!("address add {gateway}/24 dev {interface}"))?;
        let files = tempfile::Builder::new().prefix("imds-dhcp-").tempdir()?;
        let (config, leases, pid) = (
            files.path().join("config"),
            files.path().join("leases"),
            files.path().join("pid"),
        );
        fs::write(&leases, "")?;
        fs::write(
            &config,
            format!(
                "interface {interface}\nstart {address}\nend {address}\nlease_file {}\npidfile {}\n\
                 option subnet 255.255.255.0\noption router {gateway}\noption lease 3600\nstatic_lease {mac} {address}\n",
                leases.display(),
                pid.display(),
            ),
        )?;
        let mut server = namespace
            .command(qemu::image().join("busybox/bin/busybox"))
            .args(["udhcpd", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start the DHCP server")?;
        // It says that it has started, and then what it leases.
        let mut log = BufReader::new(server.stderr.take().context("the DHCP server's log is piped")?);
        let mut first = String::new();
        log.read_line(&mut first)?;
        ensure!(
            first.contains("started"),
            "the DHCP server says: {}",
            first.trim()
        );
        std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(drop));
        Ok(Self {
            server,
            _files: files,
        })
    }
}

impl Drop for DhcpServer {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
