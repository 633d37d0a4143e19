//! The agent is killed over and over, and no caller notices.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::IMDS_IPV4;
use imds_tests::{
    agent::{Agent, HostFiles},
    client::{get, text, token, wait_for},
    host::program,
    kernel_guest::KernelGuest,
    netns::Namespace,
    records::{self, ROLE, guest_mac},
    sdk::{Call, Calls},
    tap::{Tap, bridge},
};

/// How often the agent dies.
const KILLS: usize = 20;

/// Each of two guests calls a hundred times a second.
const CALL_INTERVAL: Duration = Duration::from_millis(10);

/// Calls of each guest that end between an agent that serves and its death.
const CALLS_BETWEEN: usize = 50;

const CREDENTIALS: &str = "meta-data/iam/security-credentials";

/// A guest, and the session token that it got before the first death.
struct Caller {
    guest: KernelGuest,
    token: String,
}

#[test]
fn nobody_notices_that_the_agent_is_killed_twenty_times() -> Result<()> {
    let namespace = Namespace::new()?;
    // The neighbour is the network, not a guest.
    let files = HostFiles::new("taps = [\"tap*\"]")?;
    files.put("roles", ROLE, &records::role())?;
    files.put(
        "instance-profiles",
        records::INSTANCE_PROFILE,
        &records::instance_profile(),
    )?;
    let (taps, neighbour) = namespace.enter(|| -> Result<_> {
        let taps = [Tap::new("tap2")?, Tap::new("tap3")?].map(Arc::new);
        let neighbour = Tap::new("neighbour")?;
        bridge("bridge", &[taps[0].index(), taps[1].index(), neighbour.index()])?;
        Ok((taps, neighbour))
    })?;
    let mut callers = Vec::new();
    for (number, tap) in (2..).zip(&taps) {
        let address = format!("10.0.0.{number}");
        let record = records::instance(
            &format!("i-{number}"),
            guest_mac(number),
            &format!("tap{number}"),
            &address,
        );
        files.put("instances", &format!("i-{number}"), &record)?;
        callers.push((Arc::clone(tap), guest_mac(number), format!("{address}/24")));
    }
    let program = program()?;
    let mut agent = Agent::start(&program, &namespace, &files)?;
    let mut guests = Vec::new();
    for (tap, mac, address) in callers {
        let guest = KernelGuest::new(tap, mac, &address)?;
        let token = guest.namespace.enter(token)?;
        let credentials = || get(&token, &format!("{CREDENTIALS}/{ROLE}"));
        let first_set = || wait_for("the first set", credentials, |response| response.status == 200);
        guest.namespace.enter(first_set)?;
        guests.push(Caller { guest, token });
    }

    let begin = Instant::now();
    let calls: Vec<_> = guests.iter().map(Caller::begin).collect::<Result<_>>()?;
    let (mut restarts, mut fell_through) = (Vec::new(), Vec::new());
    for _ in 0..KILLS {
        let killed = Instant::now();
        agent.kill()?;
        agent = Agent::start(&program, &namespace, &files)?;
        restarts.push(killed.elapsed());
        for calls in &calls {
            let enough = calls.ended() + CALLS_BETWEEN;
            wait_for("calls", || Ok(calls.ended()), |ended| *ended >= enough)?;
        }
        collect_leaks(&neighbour, &mut fell_through)?;
    }
    for calls in calls {
        let outcome = calls.end()?;
        println!(
            "calls by attempts: {:?}, the longest took {:?}",
            outcome.by_attempts, outcome.longest
        );
        for retried in &outcome.retried {
            println!("retried: {retried}");
        }
        ensure!(outcome.failed.is_empty(), "calls failed: {:#?}", outcome.failed);
    }
    restarts.sort_unstable();
    println!("in {:?}; from death to service: {restarts:?}", begin.elapsed());
    for Caller { guest, token } in &guests {
        let id = guest.namespace.enter(|| text(token, "meta-data/instance-id"));
        id.context("the token from before the first death")?;
    }
    collect_leaks(&neighbour, &mut fell_through)?;
    ensure!(fell_through.is_empty(), "on the far side: {fell_through:02x?}");
    Ok(())
}

impl Caller {
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
        Calls::begin(&self.guest.namespace, vec![new_token, credentials], CALL_INTERVAL)
    }
}

/// Takes what arrived at the neighbour that is about the address.
fn collect_leaks(neighbour: &Tap, leaks: &mut Vec<Vec<u8>>) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match neighbour.read(&mut buffer) {
            Ok(length) => {
                let frame = buffer.get(..length).unwrap_or_default();
                if frame.windows(4).any(|bytes| bytes == IMDS_IPV4) {
                    leaks.push(frame.to_vec());
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
