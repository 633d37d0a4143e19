//! Agents die and are upgraded, and no caller notices.

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::{ABI_VERSION, IMDS_IPV4};
use imds_tests::{
    agent::{Agent, HostFiles},
    client::{get, text, token, wait_for},
    host::program,
    kernel_guest::KernelGuest,
    netns::Namespace,
    pace::{patience, work},
    records::{self, ROLE, guest_mac},
    sdk::{Call, Calls},
    tap::{Tap, bridge},
};

/// How often the agent dies, and at least.
const KILLS: (usize, usize) = (20, 3);

/// Each of two guests calls a hundred times a second, on a real machine.
const CALL_INTERVAL: Duration = Duration::from_millis(10);

/// Calls of each guest that end between an agent that serves and its death, and at least.
const CALLS_BETWEEN: (usize, usize) = (50, 5);

const CREDENTIALS: &str = "meta-data/iam/security-credentials";

/// Two guests on a bridge with a neighbour, who is the network, and the agent's supervisor. Fields are dropped in order.
struct Host {
    program: PathBuf,
    guests: Vec<Caller>,
    neighbour: Tap,
    files: HostFiles,
    namespace: Namespace,
    /// What arrived at the neighbour that is about the address.
    leaks: Vec<Vec<u8>>,
}

/// A guest, and the session token that it got from the first agent.
struct Caller {
    guest: KernelGuest,
    token: String,
}

impl Host {
    fn new() -> Result<(Self, Agent)> {
        let namespace = Namespace::new()?;
        let files = HostFiles::new("taps = [\"tap*\"]")?;
        files.put("roles", ROLE, &records::role())?;
        let profile = records::instance_profile();
        files.put("instance-profiles", records::INSTANCE_PROFILE, &profile)?;
        let (taps, neighbour) = namespace.enter(|| -> Result<_> {
            let taps = [Tap::new("tap2")?, Tap::new("tap3")?].map(Arc::new);
            let neighbour = Tap::new("neighbour")?;
            let ports = [taps[0].index(), taps[1].index(), neighbour.index()];
            bridge("bridge", &ports)?;
            Ok((taps, neighbour))
        })?;
        for number in [2, 3] {
            let (id, tap) = (format!("i-{number}"), format!("tap{number}"));
            let record = records::instance(&id, guest_mac(number), &tap, &address(number));
            files.put("instances", &id, &record)?;
        }
        let program = program()?;
        let agent = Agent::start(&program, &namespace, &files)?;
        let mut guests = Vec::new();
        for (number, tap) in (2..).zip(taps) {
            let address = format!("{}/24", address(number));
            guests.push(Caller::new(KernelGuest::new(tap, guest_mac(number), &address)?)?);
        }
        let host = Self {
            program,
            guests,
            neighbour,
            files,
            namespace,
            leaks: Vec::new(),
        };
        Ok((host, agent))
    }

    fn begin_calls(&self) -> Result<Vec<Calls>> {
        self.guests.iter().map(Caller::begin).collect()
    }

    /// Waits until some calls have ended since now.
    fn wait_for_calls(&mut self, calls: &[Calls]) -> Result<()> {
        for calls in calls {
            let enough = calls.ended() + work(CALLS_BETWEEN.0, CALLS_BETWEEN.1);
            wait_for("calls", || Ok(calls.ended()), |ended| *ended >= enough)?;
        }
        self.collect_leaks()
    }

    /// Ends the calls, of which none may have failed, and none may have been seen by the neighbour.
    fn end_calls(&mut self, calls: Vec<Calls>) -> Result<()> {
        for calls in calls {
            let outcome = calls.end()?;
            println!(
                "calls by attempts: {:?}, the longest took {:?}; retried: {:#?}",
                outcome.by_attempts, outcome.longest, outcome.retried
            );
            ensure!(outcome.failed.is_empty(), "calls failed: {:#?}", outcome.failed);
        }
        for Caller { guest, token } in &self.guests {
            let id = guest.namespace.enter(|| text(token, "meta-data/instance-id"));
            id.context("with the first agent's token")?;
        }
        self.collect_leaks()?;
        ensure!(self.leaks.is_empty(), "on the far side: {:02x?}", self.leaks);
        Ok(())
    }

    fn collect_leaks(&mut self) -> Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.neighbour.read(&mut buffer) {
                Ok(length) => {
                    let frame = buffer.get(..length).unwrap_or_default();
                    if frame.windows(4).any(|bytes| bytes == IMDS_IPV4) {
                        self.leaks.push(frame.to_vec());
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Caller {
    fn new(guest: KernelGuest) -> Result<Self> {
        let token = guest.namespace.enter(token)?;
        let credentials = || get(&token, &format!("{CREDENTIALS}/{ROLE}"));
        let first_set = || wait_for("the first set", credentials, |response| response.status == 200);
        guest.namespace.enter(first_set)?;
        Ok(Self { guest, token })
    }

    fn begin(&self) -> Result<Calls> {
        let new_token = Call {
            request: "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n"
                .to_owned(),
            is_answer: |token| token.len() == 56,
        };
        let credentials = Call {
            request: format!(
                "GET /latest/{CREDENTIALS}/{ROLE} HTTP/1.1\r\nX-aws-ec2-metadata-token: {}\r\n\r\n",
                self.token
            ),
            is_answer: |set| set.windows(5).any(|bytes| bytes == b"\"ASIA"),
        };
        Calls::begin(
            &self.guest.namespace,
            vec![new_token, credentials],
            patience(CALL_INTERVAL),
        )
    }
}

fn address(number: u8) -> String {
    format!("10.0.0.{number}")
}

#[test]
fn nobody_notices_that_the_agent_is_killed_twenty_times() -> Result<()> {
    let (mut host, mut agent) = Host::new()?;
    let begin = Instant::now();
    let calls = host.begin_calls()?;
    let mut restarts = Vec::new();
    for _ in 0..work(KILLS.0, KILLS.1) {
        let killed = Instant::now();
        agent.kill()?;
        agent = Agent::start(&host.program, &host.namespace, &host.files)?;
        restarts.push(killed.elapsed());
        host.wait_for_calls(&calls)?;
    }
    host.end_calls(calls)?;
    restarts.sort_unstable();
    println!("in {:?}; from death to service: {restarts:?}", begin.elapsed());
    Ok(())
}

#[test]
fn nobody_notices_another_number_of_workers() -> Result<()> {
    let (mut host, mut agent) = Host::new()?;
    let calls = host.begin_calls()?;
    for workers in [2, 3, 1] {
        host.wait_for_calls(&calls)?;
        agent.kill()?;
        host.files.set_workers(workers)?;
        agent = Agent::start(&host.program, &host.namespace, &host.files)?;
    }
    host.wait_for_calls(&calls)?;
    host.end_calls(calls)
}

#[test]
fn nobody_notices_an_upgrade_from_an_older_version() -> Result<()> {
    let (mut host, agent) = Host::new()?;
    let calls = host.begin_calls()?;
    host.wait_for_calls(&calls)?;
    agent.stop()?;
    let (newer, older) = (
        host.files.pins().join(format!("v{ABI_VERSION}")),
        host.files.pins().join("v1"),
    );
    fs::rename(&newer, &older)?;
    let _agent = Agent::start(&host.program, &host.namespace, &host.files)?;
    ensure!(newer.exists() && !older.exists(), "nothing was upgraded");
    host.wait_for_calls(&calls)?;
    host.end_calls(calls)
}
