//! `cargo xtask bench`: the agent's figures beside those of others, in one run on one machine.
//!
//! Read in this order: [`exchanges`] (one guest, beside nginx), [`in_process`], [`fleet`] (a host with many instances),
//! [`crowd`] (many guests at once); [`servers`] and [`cpu`] say what is measured and how, [`table`] what comes of it.

mod cpu;
mod crowd;
mod exchanges;
mod fleet;
mod in_process;
mod servers;
mod table;

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};

use self::table::Row;

/// How long and how often to measure, and what.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// A minute instead of ten, with fewer instances: enough to see a direction, not to quote
    #[arg(long)]
    quick: bool,
    /// Only these parts
    #[arg(value_enum)]
    parts: Vec<Part>,
}

/// What can be measured alone.
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
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
struct Pace {
    rounds: usize,
    duration: Duration,
}

/// Measures and prints the table; the figures also go to `target/bench.json`.
pub fn run(options: &Options, agent: &Path, target: &Path) -> Result<()> {
    let seconds = |rounds, seconds| Pace {
        rounds,
        duration: Duration::from_secs(seconds),
    };
    let (pace, instances, taps, guests) = if options.quick {
        (seconds(3, 1), 1000, 200, 100)
    } else {
        (seconds(7, 5), 10_000, 1000, 500)
    };
    let is_wanted = |part| options.parts.is_empty() || options.parts.contains(&part);
    let mut rows = Vec::new();
    println!("{}", table::HEAD);
    let mut add = |part: Part, measure: &dyn Fn() -> Result<Vec<Row>>| -> Result<()> {
        if is_wanted(part) {
            for row in measure().with_context(|| format!("{part:?}"))? {
                println!("{row}");
                rows.push(row);
            }
        }
        Ok(())
    };
    add(Part::Exchanges, &|| exchanges::run(pace, agent, target))?;
    add(Part::InProcess, &|| Ok(vec![in_process::exchange()?]))?;
    add(Part::InProcess, &in_process::classifier)?;
    add(Part::Fleet, &|| {
        fleet::run(fleet::Size { instances, taps }, agent)
    })?;
    add(Part::Fleet, &|| Ok(vec![fleet::load_records(instances, agent)?]))?;
    add(Part::Flood, &|| Ok(vec![crowd::flood(pace, agent)?]))?;
    add(Part::Storm, &|| crowd::storm(guests, agent))?;
    let json: Vec<_> = rows.iter().map(Row::to_json).collect();
    fs::write(target.join("bench.json"), serde_json::to_vec_pretty(&json)?)?;
    Ok(())
}
