//! How P1, P7 and P8 grow with the taps of a host, from one on.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_tests::load::{self, Load, Outcome};
use nix::unistd::Pid;

use super::{
    Pace,
    cores::{CLIENT_CORE, SERVER_CORE, pin},
    fleet::memory_goal,
    host::{Host, Size, guest},
    picture::{Axis, Line, Of, Picture, Point, Scale},
    servers::session_token,
    table::Spread,
};

/// Exchanges at once, whatever the number of taps.
const IN_FLIGHT: usize = 16;

/// How often an agent is started, and how often a tap is made, at each size.
const STARTS: usize = 3;
const APPEARANCES: usize = 20;

/// No size is begun after this time: a machine that is slow at making taps has a shorter picture.
const PATIENCE: Duration = Duration::from_secs(8 * 60);

/// One size's figures.
struct Figures {
    taps: f64,
    per_second: f64,
    resident_mebibytes: f64,
    start_seconds: f64,
    appearance_millis: f64,
}

/// Measures a host with each of these numbers of taps.
pub fn run(pace: Pace, sizes: &[u32], program: &Path) -> Result<Vec<Picture>> {
    let begun = Instant::now();
    let mut all = Vec::new();
    for taps in sizes {
        if begun.elapsed() > PATIENCE {
            println!(
                "growth: {taps} taps and more are left out, after {:?}",
                begun.elapsed()
            );
            break;
        }
        all.push(at(*taps, pace, program).with_context(|| format!("{taps} taps"))?);
    }
    let line = |of, value: &dyn Fn(&Figures) -> f64| Line {
        of,
        points: all
            .iter()
            .map(|figures| -> Point { (figures.taps, value(figures)) })
            .collect(),
    };
    let picture = |name, title: &str, y, scale, lines| Picture {
        name,
        title: title.to_owned(),
        x: Axis {
            label: "taps, each of an instance of its own",
            scale: Scale::LogarithmicAtPoints,
        },
        y: Axis { label: y, scale },
        lines,
    };
    Ok(vec![
        picture(
            "growth-exchanges",
            "P1: exchanges a second, 16 in flight among all guests",
            "exchanges a second",
            Scale::Linear,
            vec![line(Of::Agent, &|figures| figures.per_second)],
        ),
        picture(
            "growth-memory",
            "P7: resident memory of the idle agent",
            "MiB",
            Scale::Linear,
            vec![
                line(Of::Agent, &|figures| figures.resident_mebibytes),
                line(Of::Goal, &|figures| memory_goal(figures.taps)),
            ],
        ),
        picture(
            "growth-start",
            "P8: from start to all taps attached and bound",
            "seconds",
            Scale::Linear,
            vec![line(Of::Agent, &|figures| figures.start_seconds)],
        ),
        picture(
            "growth-appearance",
            "P8: from making one more tap to its guest being answered",
            "milliseconds",
            Scale::Linear,
            vec![
                line(Of::Agent, &|figures| figures.appearance_millis),
                line(Of::Goal, &|_| 5.0),
            ],
        ),
    ])
}

fn at(taps: u32, pace: Pace, program: &Path) -> Result<Figures> {
    // One more instance than taps: the one whose tap appears.
    let size = Size {
        instances: taps + 1,
        taps,
    };
    let mut host = Host::new(size, program)?;
    let mut starts = vec![host.started.as_secs_f64()];
    while starts.len() < STARTS {
        host = host.restart()?;
        starts.push(host.started.as_secs_f64());
    }
    let resident_mebibytes = host.resident_mebibytes()?;
    let appearances = host.appearances(APPEARANCES)?;
    Ok(Figures {
        taps: f64::from(taps),
        per_second: exchanges_per_second(&host, pace)?,
        resident_mebibytes,
        start_seconds: Spread::of(starts).median,
        appearance_millis: Spread::of(appearances.iter().map(|time| time.as_secs_f64() * 1e3)).median,
    })
}

/// The load of P1, each exchange on another tap than the one before it.
fn exchanges_per_second(host: &Host, pace: Pace) -> Result<f64> {
    pin(host.agent.pid()?, SERVER_CORE)?;
    pin(Pid::from_raw(0), CLIENT_CORE)?;
    let mut guests = Vec::new();
    for (number, tap) in (0..).zip(&host.taps.all) {
        let token = session_token(tap, &guest(number))?;
        let get = format!(
            "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\
             X-aws-ec2-metadata-token: {token}\r\n\r\n"
        );
        let load = Load {
            requests: vec![get.into_bytes()],
            exchanges_max: usize::MAX,
            duration: pace.duration,
            ..guest(number)
        };
        guests.push((tap, load));
    }
    let mut figures = Vec::new();
    for round in 0..=pace.rounds {
        let outcome = Outcome::of_all(load::run_in_turn(&guests, IN_FLIGHT)?);
        ensure!(
            outcome.lost * 1000 <= outcome.exchanges,
            "{} of {} exchanges were lost",
            outcome.lost,
            outcome.exchanges
        );
        if round > 0 {
            figures.push(outcome.per_second());
        }
    }
    Ok(Spread::of(figures).median)
}
