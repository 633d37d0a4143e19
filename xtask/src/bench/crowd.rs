//! P9 and P12: many guests at once, calm beside one that floods, and all of them booting.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::{IMDS_IPV4, IMDS_MAC, MacAddr};
use imds_tests::{
    agent::{Agent, HostFiles},
    load::{self, Load, Outcome},
    netns::Namespace,
    records,
    tap::Tap,
};
use nix::unistd::Pid;

use super::{
    Pace, cpu,
    servers::{load_of, session_token},
    table::{Goal, Row, Spread},
};

/// Guests beside the one that floods.
const CALM: usize = 16;

/// Where the same flood goes that is none of the agent's business.
const ELSEWHERE: [u8; 4] = [10, 0, 0, 1];

/// Instances with a tap each, on one agent.
struct Crowd {
    taps: Vec<Tap>,
    _agent: Agent,
    _files: HostFiles,
    _namespace: Namespace,
}

impl Crowd {
    /// With the limits that an operator has who sets none.
    fn start(program: &Path, guests: usize, configuration: &str) -> Result<Self> {
        let namespace = Namespace::new()?;
        let files = HostFiles::new(configuration)?;
        for number in 0..guests {
            let id = format!("i-{number:017x}");
            let record = records::instance(&id, mac(number)?, &format!("tap{number}"), "10.0.0.2");
            files.put("instances", &id, &record)?;
        }
        let taps: Result<_> = namespace.enter(|| {
            (0..guests)
                .map(|number| Tap::new(&format!("tap{number}")))
                .collect()
        });
        let agent = Agent::start(program, &namespace, &files)?;
        cpu::pin(agent.pid()?, cpu::SERVER_CORE)?;
        cpu::pin(Pid::from_raw(0), cpu::CLIENT_CORE)?;
        Ok(Self {
            taps: taps?,
            _agent: agent,
            _files: files,
            _namespace: namespace,
        })
    }

    /// One guest's load, with a session token of its own for every request.
    fn load(&self, number: usize, paths: &[String]) -> Result<Load> {
        let load = Load {
            mac: mac(number)?,
            ..load_of(Vec::new())
        };
        let tap = self.taps.get(number).context("no such guest")?;
        let token = session_token(tap, &load)?;
        let requests = paths.iter().map(|path| request(path, &token)).collect();
        Ok(Load { requests, ..load })
    }

    fn run(&self, loads: &[Load]) -> Result<Outcome> {
        let guests: Vec<_> = self.taps.iter().zip(loads.iter().cloned()).collect();
        Ok(Outcome::of_all(load::run_all(&guests)?))
    }
}

fn mac(number: usize) -> Result<MacAddr> {
    let [high, low] = u16::try_from(number)?.to_be_bytes();
    Ok(MacAddr([0x06, 0, 2, 0, high, low]))
}

fn request(path: &str, token: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
    )
    .into_bytes()
}

/// P9: what calm guests feel of a flood for the metadata address, beside the same flood for another one.
pub fn flood(pace: Pace, program: &Path) -> Result<Row> {
    let crowd = Crowd::start(program, CALM + 1, "")?;
    let path = ["/latest/meta-data/instance-id".to_owned()];
    let calm = (1..=CALM).map(|number| {
        let load = crowd.load(number, &path)?;
        anyhow::Ok(Load {
            exchanges_max: usize::MAX,
            duration: pace.duration,
            pause: Duration::from_millis(10),
            ..load
        })
    });
    let calm: Vec<_> = calm.collect::<Result<_>>()?;
    let (flooder, guests) = crowd.taps.split_first().context("no taps")?;
    let guests: Vec<_> = guests.iter().zip(calm).collect();
    let p99 = |destination: [u8; 4]| -> Result<f64> {
        let frame = syn(mac(0)?, destination);
        let outcome = beside_flood(flooder, &frame, || load::run_all(&guests))?;
        Ok(Outcome::of_all(outcome).quantile(0.99).as_secs_f64() * 1e6)
    };
    let mut sides = [Vec::new(), Vec::new()];
    for round in 0..=pace.rounds {
        let figures = [p99(IMDS_IPV4)?, p99(ELSEWHERE)?];
        if round > 0 {
            sides
                .iter_mut()
                .zip(figures)
                .for_each(|(side, figure)| side.push(figure));
        }
    }
    let [flooded, elsewhere] = sides;
    Ok(Row {
        id: "P9",
        figure: format!(
            "p99, µs, of {CALM} calm guests beside a flood for the address (peer: beside one for another)"
        ),
        ours: Spread::of(flooded),
        peer: Some(Spread::of(elsewhere)),
        goal: Goal::RatioAtMost(1.1),
    })
}

/// Floods from `tap` while `work` lasts.
fn beside_flood<T>(tap: &Tap, frame: &[u8], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                // What the tap does not take is lost like anything of a flood.
                let _ = tap.send(frame);
            }
        });
        let result = work();
        is_over.store(true, Ordering::Relaxed);
        result
    })
}

/// Always the same SYN, without checksums, which the datapath leaves to whoever crosses a wire.
fn syn(source: MacAddr, destination: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(64);
    frame.extend_from_slice(&IMDS_MAC.0);
    frame.extend_from_slice(&source.0);
    frame.extend_from_slice(&[
        0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2,
    ]);
    frame.extend_from_slice(&destination);
    frame.extend_from_slice(&[
        0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    frame
}

/// P12: `guests` guests crawl the whole tree as cloud-init does, all at once.
pub fn storm(guests: usize, program: &Path) -> Result<Vec<Row>> {
    let crowd = Crowd::start(program, guests, super::servers::WITHOUT_LIMITS)?;
    let paths = crawl(&crowd)?;
    let loads = (0..guests).map(|number| {
        let load = crowd.load(number, &paths)?;
        anyhow::Ok(Load {
            exchanges_max: paths.len(),
            duration: Duration::from_secs(60),
            ..load
        })
    });
    let loads: Vec<_> = loads.collect::<Result<_>>()?;
    let outcome = crowd.run(&loads)?;
    ensure!(
        outcome.exchanges == guests * paths.len() && outcome.lost == 0,
        "{} of {} exchanges ended well, {} were lost",
        outcome.exchanges,
        guests * paths.len(),
        outcome.lost
    );
    let row = |figure: String, value: f64| Row {
        id: "P12",
        figure,
        ours: Spread::of([value]),
        peer: None,
        goal: Goal::Reported,
    };
    Ok(vec![
        row(
            format!(
                "s until {guests} guests have crawled {} paths each at once, none lost",
                paths.len()
            ),
            outcome.elapsed.as_secs_f64(),
        ),
        row(
            "ms, p99 of an exchange in that storm".to_owned(),
            outcome.quantile(0.99).as_secs_f64() * 1e3,
        ),
    ])
}

/// Every path that cloud-init asks for, found like it does: listing by listing.
fn crawl(crowd: &Crowd) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    let mut listings = vec!["/2021-03-23/meta-data/".to_owned()];
    while let Some(listing) = listings.pop() {
        let text = get(crowd, &listing)?;
        for line in text.lines() {
            match line.split_once('=') {
                Some((index, _)) => listings.push(format!("{listing}{index}/")),
                None if line.contains("security-credentials") => {}
                None if line.ends_with('/') => listings.push(format!("{listing}{line}")),
                None => paths.push(format!("{listing}{line}")),
            }
        }
        paths.push(listing);
    }
    paths.extend(
        [
            "/2021-03-23/user-data",
            "/2021-03-23/dynamic/instance-identity/document",
        ]
        .map(str::to_owned),
    );
    Ok(paths)
}

fn get(crowd: &Crowd, path: &str) -> Result<String> {
    let load = crowd.load(0, &[path.to_owned()])?;
    let tap = crowd.taps.first().context("no taps")?;
    let response = String::from_utf8(load::run(tap, &load)?.response)?;
    let (head, body) = response.split_once("\r\n\r\n").context("half a response")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
    Ok(body.to_owned())
}
