//! A guest that does its worst on a real tap, against the real agent: half-open, slow, deaf and mad connections. It harms itself;
//! its neighbour does not notice, the agent neither grows nor talks, and once the guest behaves it is served again.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_agent::stack::CONNECTIONS_MAX;
use imds_ebpf::abi::BURST_TOKENS;
use imds_tests::{
    client::{PATIENCE, get, text, token, wait_for},
    frames::{GATEWAY_MAC, eth},
    host::{ADDRESS, Host, INSTANCE_ID},
    kernel_guest::KernelGuest,
    records,
    scrape::Scrape,
    segment::{ACK, FIN, PSH, RST, SYN, Segment},
    tap::Tap,
};

/// What the agent may grow by over one hostile interface: what that may hold, as `docs/security.md` says, and a ring that was touched for
/// the first time.
const GROWTH_MAX: u64 = (13 + 4) << 20;

/// Requests of the neighbour that have to be answered while an attack goes on, for which it begins anew if need be.
const NEIGHBOURS: usize = 20;

/// In which time nineteen of twenty have to be answered: SDKs give up then, and ask again.
const NEIGHBOUR_WAITS: Duration = Duration::from_secs(1);

const NEIGHBOUR_ID: &str = "i-0fedcba9876543210";

/// Patience for answers of the agent to the raw guest. It asks again, as TCP does, since an attack may have used its rate up.
const ANSWER: Duration = Duration::from_millis(250);

/// The raw guest: segments by hand on `tap0`.
struct Attacker {
    tap: Arc<Tap>,
    next_port: u16,
}

/// What it does, with a session token of its own.
type Attack = fn(&mut Attacker, &str) -> Result<()>;

/// An open connection of it.
#[derive(Clone, Copy)]
struct Flow {
    port: u16,
    next: u32,
    expects: u32,
}

impl Attacker {
    fn send(&self, segment: &Segment<'_>) -> Result<()> {
        let frame = eth(GATEWAY_MAC, records::guest_mac(2), &[], 0x0800, &segment.ipv4());
        Ok(self.tap.send(&frame)?)
    }

    fn take_port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(1024);
        self.next_port
    }

    /// Opens a connection with this window.
    fn open(&mut self, window: u16) -> Result<Flow> {
        let port = self.take_port();
        let deadline = Instant::now() + PATIENCE;
        let syn = Segment {
            port,
            window,
            ..Segment::default()
        };
        while Instant::now() < deadline {
            self.send(&syn)?;
            let asked = Instant::now();
            while asked.elapsed() < ANSWER {
                if let Some(sequence) = self.heard(port, SYN | ACK) {
                    let flow = Flow {
                        port,
                        next: 1,
                        expects: sequence.wrapping_add(1),
                    };
                    self.say(&flow, ACK, window, b"")?;
                    return Ok(flow);
                }
            }
        }
        anyhow::bail!("port {port} is not answered")
    }

    fn say(&self, flow: &Flow, flags: u8, window: u16, payload: &[u8]) -> Result<()> {
        self.send(&Segment {
            port: flow.port,
            sequence: flow.next,
            acknowledges: flow.expects,
            flags,
            window,
            payload,
            ..Segment::default()
        })
    }

    /// The sequence number of a segment to `port` with these flags, if the next one is such.
    fn heard(&self, port: u16, flags: u8) -> Option<u32> {
        let mut buffer = vec![0; 1 << 16];
        let count = self.tap.read(&mut buffer).ok()?;
        let tcp = buffer.get(34..count)?;
        let is_for_port = tcp.get(2..4)? == port.to_be_bytes() && *tcp.get(13)? == flags;
        is_for_port.then(|| tcp.get(4..)?.first_chunk().copied().map(u32::from_be_bytes))?
    }
}

/// A request for the longest thing that there is, on a connection that is to stay.
fn long_request(token: &str) -> Vec<u8> {
    format!(
        "GET /latest/user-data HTTP/1.1\r\nConnection: keep-alive\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
    )
    .into_bytes()
}

fn half_open(attacker: &mut Attacker, _: &str) -> Result<()> {
    for number in 0..BURST_TOKENS as u32 * 2 {
        let port = attacker.take_port();
        attacker.send(&Segment {
            port,
            sequence: number,
            ..Segment::default()
        })?;
    }
    Ok(())
}

/// A connection from each port that there is, more than anybody keeps in mind.
fn every_port(attacker: &mut Attacker, _: &str) -> Result<()> {
    for port in 1..=u16::MAX {
        attacker.send(&Segment {
            port,
            ..Segment::default()
        })?;
    }
    Ok(())
}

fn slow_heads(attacker: &mut Attacker, _: &str) -> Result<()> {
    for _ in 0..CONNECTIONS_MAX {
        let flow = attacker.open(64_000)?;
        attacker.say(
            &flow,
            ACK | PSH,
            64_000,
            b"GET /latest/meta-data/ HTTP/1.1\r\nX: ",
        )?;
    }
    Ok(())
}

fn shut_windows(attacker: &mut Attacker, token: &str) -> Result<()> {
    for _ in 0..CONNECTIONS_MAX {
        let flow = attacker.open(0)?;
        attacker.say(&flow, ACK | PSH, 0, &long_request(token))?;
    }
    Ok(())
}

/// Ten thousand requests on connections whose responses are never acknowledged.
fn deaf_pipelines(attacker: &mut Attacker, token: &str) -> Result<()> {
    let requests = long_request(token).repeat(7);
    let mut sent = 0;
    while sent < 10_000 {
        let mut flow = attacker.open(64_000)?;
        for _ in 0..8 {
            attacker.say(&flow, ACK | PSH, 64_000, &requests)?;
            flow.next = flow.next.wrapping_add(requests.len() as u32);
            sent += 7;
        }
    }
    Ok(())
}

/// Segments over each other, beside the window, with every combination of flags, and resets that are nearly right.
fn mad_segments(attacker: &mut Attacker, token: &str) -> Result<()> {
    let request = long_request(token);
    for round in 0..16_u32 {
        let flow = attacker.open(64_000)?;
        for step in 0..64_u32 {
            let offset = step.wrapping_mul(2_654_435_761).rotate_left(round) % 20_000;
            attacker.send(&Segment {
                port: flow.port,
                sequence: flow.next.wrapping_add(offset).wrapping_sub(5_000),
                acknowledges: flow.expects.wrapping_add(offset % 7),
                flags: [ACK, ACK | PSH, RST, FIN | ACK, SYN, SYN | ACK, 0, 0xff][(step % 8) as usize],
                window: (offset % 3) as u16,
                payload: &request[..(offset as usize % request.len())],
                ..Segment::default()
            })?;
        }
    }
    Ok(())
}

/// Opens and resets, as fast as it may: nothing of a connection is to stay.
fn reset_storm(attacker: &mut Attacker, token: &str) -> Result<()> {
    for _ in 0..100 {
        let flow = attacker.open(64_000)?;
        attacker.say(&flow, ACK | PSH, 64_000, &long_request(token))?;
        attacker.say(&flow, RST, 0, b"")?;
    }
    Ok(())
}

fn resident_bytes(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.context("no VmRSS")?.trim().trim_end_matches(" kB");
    Ok(kilobytes.parse::<u64>()? << 10)
}

/// The neighbour asks over and over until told to stop; how many answers there are, all of them right, and for how many it waited too
/// long.
fn ask_on(
    guest: &KernelGuest,
    token: &str,
    stop: &Arc<AtomicBool>,
    answered: &Arc<AtomicUsize>,
) -> Result<thread::JoinHandle<Result<usize>>> {
    let (token, stop, answered) = (token.to_owned(), Arc::clone(stop), Arc::clone(answered));
    guest.namespace.spawn(move || -> Result<usize> {
        let mut late = 0;
        while !stop.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let id = text(&token, "meta-data/instance-id")?;
            late += usize::from(asked.elapsed() >= NEIGHBOUR_WAITS);
            ensure!(id == NEIGHBOUR_ID, "answered as {id}");
            answered.fetch_add(1, Ordering::Relaxed);
            // A client's pace, far below its own rate.
            thread::sleep(Duration::from_millis(5));
        }
        Ok(late)
    })
}

#[test]
fn the_worst_guest_harms_itself_alone() -> Result<()> {
    let host = Host::new("", |record| {
        record["UserData"] = "QUFB".repeat(5000).into();
    })?;
    let record = records::instance(NEIGHBOUR_ID, records::guest_mac(3), "tap1", "10.0.0.3");
    host.files.put("instances", "neighbour", &record)?;
    let neighbour = host.add_guest("tap1", records::guest_mac(3), "10.0.0.3/24")?;
    let is_served = || wait_for("the neighbour", || Ok(token()), Result::is_ok);
    let neighbours_token = neighbour.namespace.enter(is_served)?.0?;
    // A token of the attacker's own, got like anybody gets it.
    let attackers_token = {
        let behaved = host.guest()?;
        behaved.namespace.enter(token)?
    };
    let pid = host.agent.pid()?.as_raw();
    let before = resident_bytes(pid)?;
    let mut attacker = Attacker {
        tap: Arc::clone(&host.tap),
        next_port: 10_000,
    };

    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let asking = ask_on(&neighbour, &neighbours_token, &stop, &answered)?;
    let attacks: [(&str, Attack); 7] = [
        ("half-open connections", half_open),
        ("a SYN from every port", every_port),
        ("slow heads", slow_heads),
        ("shut windows", shut_windows),
        ("deaf pipelines", deaf_pipelines),
        ("mad segments", mad_segments),
        ("a storm of resets", reset_storm),
    ];
    for (name, attack) in attacks {
        let enough = answered.load(Ordering::Relaxed) + NEIGHBOURS;
        let begin = Instant::now();
        let mut times = 0;
        while times == 0 || answered.load(Ordering::Relaxed) < enough {
            ensure!(!asking.is_finished(), "{name}: the neighbour has given up");
            ensure!(begin.elapsed() < PATIENCE, "{name}: the neighbour stands still");
            attack(&mut attacker, &attackers_token).context(name)?;
            times += 1;
        }
        println!("{name}: {times} times");
        let grown = resident_bytes(pid)?.saturating_sub(before);
        println!("{name}: the agent has {} KiB more than before", grown >> 10);
        ensure!(grown <= GROWTH_MAX, "{name}: the agent grew by {grown} bytes");
    }
    stop.store(true, Ordering::Relaxed);
    let late = asking.join().expect("no panic").context("the neighbour")?;
    let answered = answered.load(Ordering::Relaxed);
    println!("{late} of the neighbour's {answered} answers were late");
    ensure!(late * 20 <= answered, "{late} of {answered} answers were late");

    // Once it behaves it is served: all its connections are taken, and make room.
    let behaved = host.guest()?;
    let is_served = || get(&attackers_token, "meta-data/instance-id");
    let (response, took) = behaved.namespace.enter(|| {
        wait_for("the guest that behaves again", is_served, |response| {
            response.status == 200
        })
    })?;
    ensure!(response.text() == INSTANCE_ID, "{response:?}");
    println!("served again after {took:?}, at {ADDRESS}");

    let scrape = Scrape::of(&host.files.metrics())?;
    let limited = scrape.sum("imds_frames_dropped_total", &[("reason", "rate-limited")]);
    ensure!(limited >= 1000.0, "{limited} frames were over the rate");
    let panics = scrape.sum("imds_panics_total", &[]);
    ensure!(panics == 0.0, "{panics} panics");
    let (status, log) = host.agent.stop()?;
    ensure!(status.success(), "{status}");
    // Of a flood the log says next to nothing.
    let told: Vec<_> = log.iter().filter(|line| !line.contains("counted: ")).collect();
    ensure!(told.len() < 40, "{} lines: {told:#?}", told.len());
    Ok(())
}
