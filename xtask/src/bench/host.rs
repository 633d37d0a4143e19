//! A host with many instances, and one agent: made once, then asked one figure after the other.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::{IMDS_IPV4, MacAddr};
use imds_tests::{
    accounting::{WakeUps, resident_bytes, wait_for_rest},
    agent::{Agent, HostFiles},
    load::{self, Load},
    netns::Namespace,
    records,
    tap::{self, Tap},
};

use super::servers::{WITHOUT_LIMITS, load_of, session_token};

/// How many of everything.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Records, each with a network interface.
    pub instances: u32,
    /// How many of those interfaces have their tap on the host.
    pub taps: u32,
}

/// Instances, the taps of some of them, and an agent.
pub struct Host {
    size: Size,
    program: PathBuf,
    /// The agent that runs.
    pub agent: Agent,
    /// Of the first instances.
    pub taps: Taps,
    /// How long the agent took until it said that it serves.
    pub started: Duration,
    files: HostFiles,
}

/// Many taps in a network namespace of their own.
pub struct Taps {
    /// In the order of their numbers.
    pub all: Vec<Tap>,
    namespace: Namespace,
}

impl Taps {
    fn new(count: u32) -> Result<Self> {
        let namespace = Namespace::new()?;
        let tap = |number| Tap::new(&tap_name(number));
        let all = namespace.enter(|| (0..count).map(tap).collect::<Result<Vec<_>>>())?;
        Ok(Self { all, namespace })
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        tap::close_all(std::mem::take(&mut self.all));
    }
}

impl Host {
    /// Makes the instances and the taps, and starts an agent on them.
    pub fn new(size: Size, program: &Path) -> Result<Self> {
        let files = records_of(size.instances)?;
        let taps = Taps::new(size.taps)?;
        // Once to make the keys, which a host does once in its life.
        drop(Agent::start(program, &taps.namespace, &files)?);
        detach(program, &taps.namespace, &files)?;
        let (agent, started) = start(size, program, &taps.namespace, &files)?;
        Ok(Self {
            size,
            program: program.to_owned(),
            agent,
            taps,
            started,
            files,
        })
    }

    /// Takes the classifier off all taps, and starts another agent.
    pub fn restart(self) -> Result<Self> {
        drop(self.agent);
        detach(&self.program, &self.taps.namespace, &self.files)?;
        let (agent, started) = start(self.size, &self.program, &self.taps.namespace, &self.files)?;
        Ok(Self {
            agent,
            started,
            ..self
        })
    }

    /// Resident memory, once nothing is left to do.
    pub fn resident_mebibytes(&self) -> Result<f64> {
        let process = self.agent.pid()?;
        wait_for_rest(process)?;
        Ok(resident_bytes(process)? as f64 / f64::from(1 << 20))
    }

    /// How often a second the agent is woken while nothing happens for `time`.
    pub fn wake_ups_per_second(&self, time: Duration) -> Result<f64> {
        let process = self.agent.pid()?;
        wait_for_rest(process)?;
        let before = WakeUps::of(process)?;
        std::thread::sleep(time);
        Ok(WakeUps::of(process)?.since(&before) as f64 / time.as_secs_f64())
    }

    /// How long a guest whose tap comes after all others waits until it reads what was written into its record. It is the second
    /// instance past those with taps, since the agent has told of the first's tap whenever that appeared.
    pub fn changes(&mut self, times: usize) -> Result<Vec<Duration>> {
        let number = self.size.taps + 1;
        let tap = self.taps.namespace.enter(|| Tap::new(&tap_name(number)))?;
        self.agent
            .wait_for_log(&format!("tap {}: bound", tap_name(number)))?;
        (0..times)
            .map(|time| change_seen(&self.files, &tap, number, time))
            .collect()
    }

    /// How long it takes from making the tap of the first instance past those with taps to an answer to its guest.
    pub fn appearances(&self, times: usize) -> Result<Vec<Duration>> {
        (0..times)
            .map(|_| appearance(&self.taps.namespace, self.size.taps))
            .collect()
    }
}

/// A host's files with so many instances.
fn records_of(instances: u32) -> Result<HostFiles> {
    let files = HostFiles::new(WITHOUT_LIMITS)?;
    for number in 0..instances {
        files.put("instances", &id(number), &record(number, "m5.large"))?;
    }
    Ok(files)
}

/// Starts an agent that has every tap in its hands when it says that it serves.
fn start(size: Size, program: &Path, namespace: &Namespace, files: &HostFiles) -> Result<(Agent, Duration)> {
    let start = Instant::now();
    let agent = Agent::start(program, namespace, files)?;
    let started = start.elapsed();
    let ready = agent
        .log
        .iter()
        .find(|line| line.contains("ready"))
        .context("an agent that serves says so")?;
    ensure!(
        ready.contains(&format!(" {} taps", size.taps)),
        "not all taps are attached: {ready}"
    );
    Ok((agent, started))
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

/// What it takes to read all records of `instances`, process start included, so many times.
pub fn reads(instances: u32, program: &Path, times: usize) -> Result<Vec<Duration>> {
    let files = records_of(instances)?;
    let read = |_| {
        let start = Instant::now();
        let output = std::process::Command::new(program)
            .args(["check", "--config"])
            .arg(files.config())
            .output()?;
        let took = start.elapsed();
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            text.contains(&format!("{instances} instances")),
            "not all records are read: {text}"
        );
        Ok(took)
    };
    (0..times).map(read).collect()
}

/// Writes another instance type into a record, and asks until the guest reads it.
fn change_seen(files: &HostFiles, tap: &Tap, number: u32, time: usize) -> Result<Duration> {
    let guest = guest(number);
    let token = session_token(tap, &guest)?;
    let get = format!(
        "GET /latest/meta-data/instance-type HTTP/1.1\r\nConnection: close\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
    );
    let guest = Load {
        requests: vec![get.into_bytes()],
        ..guest
    };
    let wanted = format!("m5.{time}xlarge");
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

/// How long a guest waits for an answer before it asks again. It sleeps meanwhile: a client that spins in the kernel holds up what every
/// processor has to take part in before a tap has the classifier (RCU), which no guest can.
const ASK_AGAIN: Duration = Duration::from_micros(100);

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
        std::thread::sleep(ASK_AGAIN);
    }
}

/// What the guest with this number does, once it has requests.
pub fn guest(number: u32) -> Load {
    Load {
        mac: mac(number),
        ..load_of(Vec::new())
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
    // Nobody's: a role is more to keep, and one that is not there something to warn of.
    record["IamInstanceProfile"] = serde_json::Value::Null;
    record
}
