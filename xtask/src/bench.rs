//! `cargo xtask bench`: the agent's figures beside those of others, in one run on one machine.
//!
//! Read in this order: [`exchanges`] (one guest, beside nginx), [`floor`] and [`profile`] (what bounds them), [`in_process`],
//! [`host`] and [`fleet`] (a host with many instances), [`crowd`], [`flood`] and [`storm`] (many guests at once), [`growth`] (from one
//! tap to thousands); [`servers`] and [`cores`] say what is measured and where, [`table`], [`picture`], [`plot`] and [`report`] what
//! comes of it. `docs/performance.md` says why it is measured so.

mod cores;
mod crowd;
mod exchanges;
mod fleet;
mod flood;
mod floor;
mod growth;
mod host;
mod in_process;
mod picture;
mod plot;
mod profile;
mod report;
mod servers;
mod storm;
mod table;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;

use self::report::{Circumstances, Parts, Run};
use crate::host_command::workspace;

/// How long and how often to measure, and what.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Some minutes instead of half an hour, with fewer instances: enough to see a direction, not to quote
    #[arg(long)]
    quick: bool,
    /// Replace the tables of README.md and docs/performance.md, and the files in docs/performance
    #[arg(long, conflicts_with = "parts")]
    write: bool,
    /// Go on where a run of this very commit and pace was interrupted: parts that it measured are not measured again
    #[arg(long)]
    resume: bool,
    /// Only these parts
    #[arg(value_enum)]
    parts: Vec<Part>,
}

/// What can be measured alone, in the order of the whole run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Part {
    /// P1 to P4, P13: one guest, beside nginx
    Exchanges,
    /// P5, P6: the stack and the classifier, without kernel and taps
    InProcess,
    /// P7, P8, P10, P11: a host with many instances
    Fleet,
    /// P9: calm guests beside one that floods
    Flood,
    /// P12: hundreds of guests boot at once
    Storm,
    /// How P1, P7 and P8 grow with the taps of a host
    Growth,
    /// Where the processor time of P2 goes
    Profile,
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
struct Pace {
    rounds: usize,
    duration: Duration,
}

impl Pace {
    const fn of(rounds: usize, seconds: u64) -> Self {
        Self {
            rounds,
            duration: Duration::from_secs(seconds),
        }
    }
}

/// How much of everything.
struct Extent {
    name: &'static str,
    pace: Pace,
    /// For what is measured at many sizes.
    pace_of_growth: Pace,
    fleet: host::Size,
    guests_of_storm: usize,
    taps_of_growth: &'static [u32],
}

/// What is quoted: the numbers of the goals.
const WHOLE: Extent = Extent {
    name: "the whole run",
    pace: Pace::of(7, 5),
    pace_of_growth: Pace::of(3, 2),
    fleet: host::Size {
        instances: 10_000,
        taps: 1000,
    },
    guests_of_storm: 500,
    taps_of_growth: &[1, 4, 16, 64, 256, 1024, 4096],
};

/// What shows a direction.
const QUICK: Extent = Extent {
    name: "a quick run, with fewer instances and taps than the goals speak of",
    pace: Pace::of(3, 1),
    pace_of_growth: Pace::of(1, 1),
    fleet: host::Size {
        instances: 1000,
        taps: 200,
    },
    guests_of_storm: 100,
    taps_of_growth: &[1, 16, 256],
};

/// Measures, prints the table, and writes what is left of it into `target/bench`, or into the documents.
pub fn run(options: &Options, agent: &Path, target: &Path) -> Result<()> {
    cores::raise_open_files()?;
    let extent = if options.quick { QUICK } else { WHOLE };
    let Pace { rounds, duration } = extent.pace;
    let pace = format!(
        "Medians of {} ({rounds} rounds of {} s after one to warm up, both sides in turn), with the least and the most",
        extent.name,
        duration.as_secs()
    );
    let circumstances = Circumstances::now(pace, target)?;
    let run = measure(options, &extent, &circumstances, agent, target)?;
    if options.write {
        report::files(&run, &circumstances, &workspace().join("docs/performance"))?;
        report::documents(&run, &circumstances)?;
    } else {
        report::files(&run, &circumstances, &target.join("bench"))?;
    }
    Ok(())
}

fn measure(
    options: &Options,
    extent: &Extent,
    circumstances: &Circumstances,
    agent: &Path,
    target: &Path,
) -> Result<Run> {
    let parts = Parts::of(&target.join("bench/parts"));
    let mut whole = Run::default();
    println!("{}", table::HEAD);
    for part in Part::value_variants() {
        if !options.parts.is_empty() && !options.parts.contains(part) {
            continue;
        }
        let name = format!("{part:?}");
        let known = options.resume.then(|| parts.find(&name, circumstances)).flatten();
        let run = match known {
            Some(run) => run,
            None => parts.keep(
                &name,
                circumstances,
                measure_part(*part, extent, agent, target).context(name.clone())?,
            )?,
        };
        run.rows.iter().for_each(|row| println!("{row}"));
        run.profiles.iter().for_each(|profile| println!("\n{profile}"));
        whole.add(run);
    }
    Ok(whole)
}

fn measure_part(part: Part, extent: &Extent, agent: &Path, target: &Path) -> Result<Run> {
    let mut run = Run::default();
    match part {
        Part::Exchanges => {
            (run.rows, run.pictures) = exchanges::run(extent.pace, agent, target)?;
            run.rows.push(floor::run(extent.pace)?);
        }
        Part::InProcess => {
            run.rows.push(in_process::exchange()?);
            run.rows.extend(in_process::classifier()?);
        }
        Part::Fleet => run.rows = fleet::run(extent.fleet, agent)?,
        Part::Flood => run.rows.push(flood::run(extent.pace, agent)?),
        Part::Storm => {
            let (rows, picture) = storm::run(extent.guests_of_storm, agent, target)?;
            run.rows = rows;
            run.pictures.push(picture);
        }
        Part::Growth => run.pictures = growth::run(extent.pace_of_growth, extent.taps_of_growth, agent)?,
        Part::Profile => run.profiles = profile::run(agent, target)?,
    }
    Ok(run)
}
