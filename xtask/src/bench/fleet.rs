//! P7, P8, P10 and P11: a host with many instances, most of them quiet.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use imds_ebpf::abi::{IMDS_IPV4, MacAddr};
use imds_tests::{
    agent::{Agent, HostFiles},
    load::{self, Load},
    netns::Namespace,
    records,
    tap::Tap,
};

use nix::unistd::Pid;

use super::{
    cpu,
    servers::{WITHOUT_LIMITS, load_of, session_token},
    table::{Goal, Row, Spread},
};

/// How many of everything.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Records, each with an interface.
    pub instances: u32,
    /// Of which so many have a tap.
    pub taps: u32,
}

/// Idle for so long while wake-ups are counted: several rounds of whatever is done every second.
const IDLE: Duration = Duration::from_secs(5);

/// How often a change is made and looked for, and a tap made and asked on.
const TRIES: usize = 20;

/// Measures one agent with `size` of everything, restarted where its start is measured.
pub fn run(size: Size, program: &Path) -> Result<Vec<Row>> {
    let Size { instances, taps } = size;
    let namespace = Namespace::new()?;
    let files = HostFiles::new(WITHOUT_LIMITS)?;
    for number in 0..instances {
        files.put("instances", &id(number), &record(number, "m5.large"))?;
    }
    let devices = namespace.enter(|| {
        (0..taps)
            .map(|number| Tap::new(&tap_name(number)))
            .collect::<Result<Vec<_>>>()
    })?;
    let mut rows = Vec::new();
    let mut row = |id, figure: String, value: f64, goal| {
        rows.push(Row {
            id,
            figure,
            ours: Spread::of([value]),
            peer: None,
            goal,
        });
    };

    // Once to make keys and pins, which a host does once in its life.
    drop(Agent::start(program, &namespace, &files)?);
    detach(program, &namespace, &files)?;
    let start = Instant::now();
    let mut agent = Agent::start(program, &namespace, &files)?;
    let started = start.elapsed();
    let ready = agent
        .log
        .iter()
        .find(|line| line.contains("ready"))
        .cloned()
        .unwrap_or_default();
    ensure!(
        ready.contains(&format!("{taps} taps")),
        "not all taps are attached: {ready}"
    );
    row(
        "P8",
        format!("s from start to {instances} records loaded and {taps} taps attached and bound"),
        started.as_secs_f64(),
        Goal::AtMost(1.0),
    );
    settle(agent.pid()?)?;
    let resident = cpu::resident_bytes(agent.pid()?)?;
    let allowed = 20.0 + f64::from(instances) * 4.0 / 1024.0;
    row(
        "P7",
        format!("MiB resident with {instances} instances and interfaces"),
        resident as f64 / f64::from(1 << 20),
        Goal::AtMost(allowed),
    );
    let before = cpu::wake_ups(agent.pid()?)?;
    std::thread::sleep(IDLE);
    let woken = cpu::wake_ups(agent.pid()?)? - before;
    row(
        "P11",
        format!("wake-ups a second, {taps} quiet taps"),
        woken as f64 / IDLE.as_secs_f64(),
        Goal::AtMost(1.0),
    );
    drop(devices);

    let tap = namespace.enter(|| Tap::new(&tap_name(taps)))?;
    let line = format!("tap {}: bound", tap_name(taps));
    agent.wait_for_log(&line)?;
    let changes = (0..TRIES).map(|round| change_seen(&files, &tap, taps, round));
    let changes: Vec<_> = changes.collect::<Result<_>>()?;
    rows.push(Row {
        id: "P10",
        figure: format!("ms from a record's change to the guest seeing it, {instances} records"),
        ours: Spread::of(changes.iter().map(|took| took.as_secs_f64() * 1e3)),
        peer: None,
        goal: Goal::AtMost(10.0),
    });
    drop(tap);
    let appearances = (0..TRIES).map(|_| appearance(&namespace, taps));
    let appearances: Vec<_> = appearances.collect::<Result<_>>()?;
    rows.push(Row {
        id: "P8",
        figure: "ms from making a tap to its guest's ARP request being answered".to_owned(),
        ours: Spread::of(appearances.iter().map(|took| took.as_secs_f64() * 1e3)),
        peer: None,
        goal: Goal::AtMost(5.0),
    });
    Ok(rows)
}

/// P10's first half: what it takes to read all records, process start included.
pub fn load_records(instances: u32, program: &Path) -> Result<Row> {
    let files = HostFiles::new("")?;
    for number in 0..instances {
        files.put("instances", &id(number), &record(number, "m5.large"))?;
    }
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let output = std::process::Command::new(program)
            .args(["check", "--config"])
            .arg(files.config())
            .output()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            text.contains(&format!("{instances} instances")),
            "not all records are read: {text}"
        );
    }
    Ok(Row {
        id: "P10",
        figure: format!("ms to read {instances} records (`imds-agent check`, whole)"),
        ours: Spread::of(times),
        peer: None,
        goal: Goal::AtMost(200.0),
    })
}

fn detach(program: &Path, namespace: &Namespace, files: &HostFiles) -> Result<()> {
    let status = namespace
        .command(program)
        .args(["detach", "--all", "--config"])
        .arg(files.config())
        .status()?;
    ensure!(status.success(), "the classifier does not come off: {status}");
    Ok(())
}

/// Waits until an agent that has just started has done what it does ahead of requests: it signs the identity document of
/// every instance.
fn settle(agent: Pid) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        let before = cpu::of_process(agent)?;
        std::thread::sleep(Duration::from_secs(1));
        if cpu::of_process(agent)? - before < Duration::from_millis(20) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the agent never comes to rest");
    }
}

/// Writes another instance type into a record, and asks until the guest reads it.
fn change_seen(files: &HostFiles, tap: &Tap, number: u32, round: usize) -> Result<Duration> {
    let guest = Load {
        mac: mac(number),
        ..load_of(Vec::new())
    };
    let token = session_token(tap, &guest)?;
    let get = format!(
        "GET /latest/meta-data/instance-type HTTP/1.1\r\nConnection: close\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
    );
    let guest = Load {
        requests: vec![get.into_bytes()],
        ..guest
    };
    let wanted = format!("m5.{round}xlarge");
    let record = record(number, &wanted);
    let start = Instant::now();
    files.put("instances", &id(number), &record)?;
    loop {
        let response = load::run(tap, &guest)?.response;
        if response.ends_with(wanted.as_bytes()) {
            return Ok(start.elapsed());
        }
        ensure!(start.elapsed() < Duration::from_secs(5), "the change is not seen");
    }
}

/// Makes a tap and asks for the metadata service's MAC until it is told.
fn appearance(namespace: &Namespace, number: u32) -> Result<Duration> {
    let start = Instant::now();
    let tap = namespace.enter(|| Tap::new(&tap_name(number)))?;
    let guest = mac(number).0;
    let mut request = [0_u8; 42];
    request[..6].fill(0xff);
    request[6..12].copy_from_slice(&guest);
    request[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    request[22..28].copy_from_slice(&guest);
    request[38..42].copy_from_slice(&IMDS_IPV4);
    let mut reply = [0; 2048];
    loop {
        tap.send(&request)?;
        while let Ok(count) = tap.read(&mut reply) {
            if count >= 42 && reply[12..14] == [0x08, 0x06] && reply[21] == 2 {
                return Ok(start.elapsed());
            }
        }
        ensure!(
            start.elapsed() < Duration::from_secs(5),
            "nobody answers on {}",
            tap_name(number)
        );
    }
}

fn id(number: u32) -> String {
    format!("i-{number:017x}")
}

fn tap_name(number: u32) -> String {
    format!("tap{number}")
}

fn mac(number: u32) -> MacAddr {
    let [_, b, c, d] = number.to_be_bytes();
    MacAddr([0x06, 0, 1, b, c, d])
}

fn record(number: u32, instance_type: &str) -> serde_json::Value {
    let [_, b, c, d] = number.to_be_bytes();
    let mut record = records::instance(
        &id(number),
        mac(number),
        &tap_name(number),
        &format!("10.{b}.{c}.{d}"),
    );
    record["InstanceType"] = instance_type.into();
    record
}
