//! P1 to P4 and P13: exchanges of one guest, beside nginx.
//!
//! Both sides get the same frames from the same client code ([`imds_tests::load`]), the same request, and a reply of the same
//! size. The server has the first core, the client the second. Rounds alternate.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    accounting::{MachineTime, cpu_time},
    load::{self, Load},
};
use nix::unistd::Pid;

use super::{
    Pace,
    cores::{CLIENT_CORE, pin},
    picture::{Picture, Point, distribution, latencies},
    servers::{Pair, Server},
    table::{Goal, Row, Spread},
};

/// One side's figures of one round.
#[derive(Clone, Debug)]
struct Figures {
    per_second: f64,
    server_cpu_us: f64,
    client_cpu_us: f64,
    machine_cpu_us: f64,
    soft_interrupts_us: f64,
    p50_us: f64,
    p99_us: f64,
    distribution: Vec<Point>,
}

impl Figures {
    /// How much of its core the server was busy: whoever is far below 100 % waited for the client.
    fn server_busy_percent(&self) -> f64 {
        self.server_cpu_us * self.per_second / 1e4
    }
}

/// The goal that it is told for, what, the unit, which of the figures, what it should be.
type Figure = (
    &'static str,
    &'static str,
    &'static str,
    fn(&Figures) -> f64,
    Goal,
);

#[rustfmt::skip]
const CROWD: [Figure; 8] = [
    ("P1", "exchanges, 16 in flight", "1/s", |f| f.per_second, Goal::RatioAtLeast(1.7)),
    ("P1", "of its core that the server used", "%", Figures::server_busy_percent, Goal::Reported),
    ("P2", "CPU of the server for an exchange", "µs", |f| f.server_cpu_us, Goal::RatioAtMost(0.4)),
    ("P2", "CPU of the machine for an exchange", "µs", |f| f.machine_cpu_us, Goal::RatioAtMost(0.52)),
    ("P2", "of which in soft interrupts, in whosever time", "µs", |f| f.soft_interrupts_us, Goal::Reported),
    ("P2", "CPU of the client for an exchange", "µs", |f| f.client_cpu_us, Goal::Reported),
    ("P3", "p50, 16 in flight", "µs", |f| f.p50_us, Goal::Reported),
    ("P3", "p99, 16 in flight", "µs", |f| f.p99_us, Goal::RatioAtMost(0.4)),
];

#[rustfmt::skip]
const SINGLE: [Figure; 3] = [
    ("P4", "p50, 1 in flight, the client spins", "µs", |f| f.p50_us, Goal::RatioAtMost(0.3)),
    ("P4", "p99, 1 in flight, the client spins", "µs", |f| f.p99_us, Goal::Reported),
    ("P4", "CPU of the server for an exchange, 1 in flight", "µs", |f| f.server_cpu_us, Goal::Reported),
];

#[rustfmt::skip]
const SLEEPER: [Figure; 1] = [
    ("P4", "p50, 1 in flight, the client sleeps", "µs", |f| f.p50_us, Goal::Reported),
];

#[rustfmt::skip]
const KEPT_ALIVE: [Figure; 3] = [
    ("P13", "requests, 16 connections kept alive", "1/s", |f| f.per_second, Goal::RatioAtLeast(1.2)),
    ("P13", "CPU of the server for a request, kept alive", "µs", |f| f.server_cpu_us, Goal::Reported),
    ("P13", "CPU of the machine for a request, kept alive", "µs", |f| f.machine_cpu_us, Goal::Reported),
];

/// Measures both servers.
pub fn run(pace: Pace, agent: &Path, target: &Path) -> Result<(Vec<Row>, Vec<Picture>)> {
    let Pair {
        ours,
        nginx,
        closing,
        kept,
    } = Pair::start(agent, target)?;
    pin(Pid::from_raw(0), CLIENT_CORE)?;

    let many = |load: Load| Load {
        exchanges_max: usize::MAX,
        duration: pace.duration,
        ..load
    };
    // The two do not answer with quite the same length where the connection is kept.
    let lengths = [&ours, &nginx].map(|server| response_bytes(server, &kept));
    let kept = lengths.map(|length| {
        let load = Load {
            in_flight: 16,
            kept_alive: Some(length?),
            ..many(kept.clone())
        };
        anyhow::Ok(load)
    });
    let [ours_kept, nginx_kept] = kept;
    let crowd = Load {
        in_flight: 16,
        ..many(closing.clone())
    };
    let single = Load {
        spins: true,
        ..many(closing.clone())
    };
    let mut rows = Vec::new();
    let mut measure = |figures: &[Figure], loads: [Load; 2]| -> Result<_> {
        let sides = compare(pace, [&ours, &nginx], &loads).with_context(|| figures[0].1)?;
        rows.extend(figures.iter().map(|figure| row(figure, &sides)));
        Ok(sides.map(|side| {
            side.into_iter()
                .map(|figures| figures.distribution)
                .collect::<Vec<_>>()
        }))
    };
    let crowd = measure(&CROWD, [crowd.clone(), crowd])?;
    let single = measure(&SINGLE, [single.clone(), single])?;
    measure(&SLEEPER, [many(closing.clone()), many(closing)])?;
    measure(&KEPT_ALIVE, [ours_kept?, nginx_kept?])?;
    let picture = |name, title: &str, [ours, nginx]: &[Vec<Vec<Point>>; 2]| {
        latencies(name, title.to_owned(), [ours, nginx])
    };
    let pictures = vec![
        picture(
            "latency-16-in-flight",
            "P3: latency with 16 exchanges in flight",
            &crowd,
        ),
        picture(
            "latency-1-in-flight",
            "P4: latency with one exchange in flight, the client spins",
            &single,
        ),
    ];
    Ok((rows, pictures))
}

/// How long a server's response to the load's request is, on a connection that stays open.
fn response_bytes(server: &Server, load: &Load) -> Result<usize> {
    let load = Load {
        kept_alive: Some(1),
        ..load.clone()
    };
    let response = load::run(&server.tap, &load)?.response;
    ensure!(
        response.starts_with(b"HTTP/1.1 200"),
        "no success to keep a connection for"
    );
    Ok(response.len())
}

fn compare(pace: Pace, servers: [&Server; 2], loads: &[Load; 2]) -> Result<[Vec<Figures>; 2]> {
    let mut sides = [Vec::new(), Vec::new()];
    // The first round warms up and is thrown away.
    for round in 0..=pace.rounds {
        for (((server, load), side), name) in servers
            .iter()
            .zip(loads)
            .zip(&mut sides)
            .zip(["the agent", "nginx"])
        {
            let figures = one_round(server, load).context(name)?;
            if round > 0 {
                side.push(figures);
            }
        }
    }
    Ok(sides)
}

fn row((id, figure, unit, value, goal): &Figure, sides: &[Vec<Figures>; 2]) -> Row {
    let [ours, nginx] = sides.each_ref().map(|side| Spread::of(side.iter().map(value)));
    Row {
        id,
        figure: (*figure).to_owned(),
        unit,
        ours,
        peer: Some(nginx),
        goal: *goal,
    }
}

fn one_round(server: &Server, load: &Load) -> Result<Figures> {
    let now = || {
        anyhow::Ok((
            cpu_time(server.process)?,
            cpu_time(Pid::this())?,
            MachineTime::now()?,
        ))
    };
    let before = now()?;
    let outcome = load::run(&server.tap, load)?;
    let after = now()?;
    ensure!(
        outcome.lost * 1000 <= outcome.exchanges,
        "{} of {} exchanges were lost",
        outcome.lost,
        outcome.exchanges
    );
    let outcome = outcome.sorted();
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    let each =
        |before: Duration, after: Duration| micros(after.saturating_sub(before)) / outcome.exchanges as f64;
    Ok(Figures {
        per_second: outcome.per_second(),
        server_cpu_us: each(before.0, after.0),
        client_cpu_us: each(before.1, after.1),
        machine_cpu_us: each(before.2.busy, after.2.busy),
        soft_interrupts_us: each(before.2.soft_interrupts, after.2.soft_interrupts),
        p50_us: micros(outcome.quantile(0.5)),
        p99_us: micros(outcome.quantile(0.99)),
        distribution: distribution(&outcome),
    })
}
