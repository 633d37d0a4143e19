//! Many guests at once, all of one server: the agent, or nginx behind the same taps.

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result};
use imds_ebpf::abi::MacAddr;
use imds_tests::{
    accounting,
    agent::{Agent, HostFiles},
    load::Load,
    netns::Namespace,
    records,
    tap::Tap,
};
use nix::unistd::Pid;

use super::{
    cores::{CLIENT_CORE, SERVER_CORE, pin},
    servers::{Nginx, load_of, session_token},
};

/// Guests with a tap each, and who serves them.
pub struct Crowd {
    /// One a guest.
    pub taps: Vec<Tap>,
    _served_by: ServedBy,
    _namespace: Namespace,
}

/// What ends with the crowd.
#[expect(dead_code, reason = "dropped with the crowd, which ends what it is")]
enum ServedBy {
    Agent(Agent, HostFiles),
    Nginx(Nginx),
}

impl Crowd {
    /// Of instances of an agent with the limits that an operator has who sets none, which has come to rest.
    pub fn of_agent(program: &Path, guests: usize) -> Result<Self> {
        let namespace = Namespace::new()?;
        let files = HostFiles::new("")?;
        for number in 0..guests {
            let id = format!("i-{number:017x}");
            let record = records::instance(&id, mac(number)?, &tap_name(number), "10.0.0.2");
            files.put("instances", &id, &record)?;
        }
        let taps = make_taps(&namespace, guests)?;
        let agent = Agent::start(program, &namespace, &files)?;
        let process = agent.pid()?;
        accounting::wait_for_rest(process)?;
        pin(process, SERVER_CORE)?;
        Self::of(taps, ServedBy::Agent(agent, files), namespace)
    }

    /// Of guests of nginx, which answers all with `reply`.
    pub fn of_nginx(target: &Path, guests: usize, reply: &[u8]) -> Result<Self> {
        let namespace = Namespace::new()?;
        let taps = make_taps(&namespace, guests)?;
        let guests: Vec<_> = (0..guests)
            .map(|number| Ok((mac(number)?, Ipv4Addr::from(address(number)?))))
            .collect::<Result<_>>()?;
        let nginx = Nginx::start(target, &namespace, &guests, reply)?;
        Self::of(taps, ServedBy::Nginx(nginx), namespace)
    }

    fn of(taps: Vec<Tap>, served_by: ServedBy, namespace: Namespace) -> Result<Self> {
        pin(Pid::from_raw(0), CLIENT_CORE)?;
        Ok(Self {
            taps,
            _served_by: served_by,
            _namespace: namespace,
        })
    }

    /// A session token of one guest's.
    pub fn token(&self, number: usize) -> Result<String> {
        session_token(self.tap(number)?, &guest(number)?)
    }

    /// One guest's tap.
    pub fn tap(&self, number: usize) -> Result<&Tap> {
        self.taps.get(number).context("no such guest")
    }
}

/// What a guest does, once it has requests. The addresses of guests differ: nginx has only them to tell guests by.
pub fn guest(number: usize) -> Result<Load> {
    Ok(Load {
        mac: mac(number)?,
        address: address(number)?,
        ..load_of(Vec::new())
    })
}

/// A guest's MAC.
pub fn mac(number: usize) -> Result<MacAddr> {
    let [high, low] = u16::try_from(number)?.to_be_bytes();
    Ok(MacAddr([0x06, 0, 2, 0, high, low]))
}

/// A GET of `path` that closes the connection.
pub fn request(path: &str, token: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
    )
    .into_bytes()
}

fn address(number: usize) -> Result<[u8; 4]> {
    let [high, low] = u16::try_from(number)?.to_be_bytes();
    Ok([10, 1, high, low])
}

fn tap_name(number: usize) -> String {
    format!("tap{number}")
}

fn make_taps(namespace: &Namespace, guests: usize) -> Result<Vec<Tap>> {
    namespace.enter(|| (0..guests).map(|number| Tap::new(&tap_name(number))).collect())
}
