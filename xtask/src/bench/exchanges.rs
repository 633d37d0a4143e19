//! P1 to P4 and P13: exchanges of one guest, beside nginx.
//!
//! Both sides get the same frames from the same client code ([`imds_tests::load`]), the same request, and a reply of the same
//! size. The server has the first core, the client the second. Rounds alternate.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use imds_tests::load::{self, Load};
use nix::unistd::Pid;

use super::{
    Pace, cpu,
    servers::{Server, load_of},
    table::{Goal, Row, Spread},
};

/// One side's figures of one round.
#[derive(Clone, Copy, Debug)]
struct Figures {
    per_second: f64,
    server_cpu_us: f64,
    machine_cpu_us: f64,
    p50_us: f64,
    p99_us: f64,
}

type Figure = (&'static str, &'static str, fn(&Figures) -> f64, Goal);

const CROWD: [Figure; 5] = [
    (
        "P1",
        "exchanges/s, 16 in flight",
        |f| f.per_second,
        Goal::RatioAtLeast(1.7),
    ),
    (
        "P2",
        "CPU of the server, µs per exchange",
        |f| f.server_cpu_us,
        Goal::RatioAtMost(0.4),
    ),
    (
        "P2",
        "CPU of the machine, µs per exchange",
        |f| f.machine_cpu_us,
        Goal::RatioAtMost(0.52),
    ),
    ("–", "p50, µs, 16 in flight", |f| f.p50_us, Goal::Reported),
    (
        "P3",
        "p99, µs, 16 in flight",
        |f| f.p99_us,
        Goal::RatioAtMost(0.4),
    ),
];

const SINGLE: [Figure; 3] = [
    (
        "P4",
        "p50, µs, 1 in flight, client spinning",
        |f| f.p50_us,
        Goal::RatioAtMost(0.3),
    ),
    (
        "–",
        "p99, µs, 1 in flight, client spinning",
        |f| f.p99_us,
        Goal::Reported,
    ),
    (
        "–",
        "CPU of the server, µs per exchange, 1 in flight",
        |f| f.server_cpu_us,
        Goal::Reported,
    ),
];

const SLEEPER: [Figure; 1] = [(
    "–",
    "p50, µs, 1 in flight, client sleeping",
    |f| f.p50_us,
    Goal::Reported,
)];

const KEPT_ALIVE: [Figure; 3] = [
    (
        "P13",
        "requests/s, 16 connections kept alive",
        |f| f.per_second,
        Goal::RatioAtLeast(1.2),
    ),
    (
        "–",
        "CPU of the server, µs per request, kept alive",
        |f| f.server_cpu_us,
        Goal::Reported,
    ),
    (
        "–",
        "CPU of the machine, µs per request, kept alive",
        |f| f.machine_cpu_us,
        Goal::Reported,
    ),
];

/// Measures both servers.
pub fn run(pace: Pace, agent: &Path, target: &Path) -> Result<Vec<Row>> {
    let ours = Server::agent(agent)?;
    let token = ours.token()?;
    let request = |connection: &str| {
        format!(
            "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: {connection}\r\n\
             X-aws-ec2-metadata-token: {token}\r\n\r\n"
        )
        .into_bytes()
    };
    let closing = load_of(request("close"));
    let reply = load::run(&ours.tap, &closing)?.response;
    let nginx = Server::nginx(target, &reply)?;
    cpu::pin(Pid::from_raw(0), cpu::CLIENT_CORE)?;

    let many = |load: Load| Load {
        exchanges_max: usize::MAX,
        duration: pace.duration,
        ..load
    };
    let kept = load_of(request("keep-alive"));
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
    let mut measure = |figures: &[Figure], loads: [Load; 2]| -> Result<()> {
        rows.extend(compare(pace, figures, [&ours, &nginx], &loads)?);
        Ok(())
    };
    measure(&CROWD, [crowd.clone(), crowd])?;
    measure(&SINGLE, [single.clone(), single])?;
    measure(&SLEEPER, [many(closing.clone()), many(closing)])?;
    measure(&KEPT_ALIVE, [ours_kept?, nginx_kept?])?;
    Ok(rows)
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

fn compare(pace: Pace, figures: &[Figure], servers: [&Server; 2], loads: &[Load; 2]) -> Result<Vec<Row>> {
    let mut sides = [Vec::new(), Vec::new()];
    // The first round warms up and is thrown away.
    for round in 0..=pace.rounds {
        for ((server, load), side) in servers.iter().zip(loads).zip(&mut sides) {
            let name = if std::ptr::eq(*server, servers[0]) {
                "the agent"
            } else {
                "nginx"
            };
            let figures = one_round(server, load).with_context(|| format!("{} of {name}", figures[0].1))?;
            if round > 0 {
                side.push(figures);
            }
        }
    }
    let [ours, nginx] = &sides;
    let row = |(id, figure, value, goal): &Figure| Row {
        id,
        figure: (*figure).to_owned(),
        ours: Spread::of(ours.iter().map(value)),
        peer: Some(Spread::of(nginx.iter().map(value))),
        goal: *goal,
    };
    Ok(figures.iter().map(row).collect())
}

fn one_round(server: &Server, load: &Load) -> Result<Figures> {
    let before = (cpu::of_process(server.process)?, cpu::of_machine()?);
    let outcome = load::run(&server.tap, load)?;
    let after = (cpu::of_process(server.process)?, cpu::of_machine()?);
    ensure!(
        outcome.lost * 1000 <= outcome.exchanges,
        "{} of {} exchanges were lost",
        outcome.lost,
        outcome.exchanges
    );
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    let each =
        |before: Duration, after: Duration| micros(after.saturating_sub(before)) / outcome.exchanges as f64;
    Ok(Figures {
        per_second: outcome.per_second(),
        server_cpu_us: each(before.0, after.0),
        machine_cpu_us: each(before.1, after.1),
        p50_us: micros(outcome.quantile(0.5)),
        p99_us: micros(outcome.quantile(0.99)),
    })
}
