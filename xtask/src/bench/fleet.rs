//! P7, P8, P10 and P11: a host with many instances, most of them quiet.

use std::{path::Path, time::Duration};

use anyhow::Result;

use super::{
    host::{self, Host, Size},
    table::{Goal, Row, Spread, number},
};

/// Idle for so long while wake-ups are counted: several rounds of whatever is done every second.
const IDLE: Duration = Duration::from_secs(10);

/// How often a change is made and looked for, and a tap made and asked on.
const TRIES: usize = 20;

/// How often an agent is started, and all records are read.
const STARTS: usize = 5;

/// What the resident memory of an agent with so many instances may be, in MiB.
pub fn memory_goal(instances: f64) -> f64 {
    20.0 + instances * 4.0 / 1024.0
}

/// Measures one host of `size`, and the memory of one that has all its interfaces' taps.
pub fn run(size: Size, program: &Path) -> Result<Vec<Row>> {
    let Size { instances, taps } = size;
    let (records, taps_there) = (number(f64::from(instances)), number(f64::from(taps)));
    let row = |id, figure: String, unit, values: Vec<f64>, goal| Row {
        id,
        figure,
        unit,
        ours: Spread::of(values),
        peer: None,
        goal,
    };
    let millis =
        |times: Vec<Duration>| -> Vec<_> { times.iter().map(|time| time.as_secs_f64() * 1e3).collect() };

    let mut host = Host::new(size, program)?;
    let mut starts = vec![host.started.as_secs_f64()];
    while starts.len() < STARTS {
        host = host.restart()?;
        starts.push(host.started.as_secs_f64());
    }
    let mut rows = vec![row(
        "P8",
        format!("from start to {records} records loaded and {taps_there} taps attached and bound"),
        "s",
        starts,
        Goal::AtMost(1.0),
    )];
    rows.push(row(
        "P8",
        format!("from making a tap beside {taps_there} others to its guest's ARP request being answered"),
        "ms",
        millis(host.appearances(TRIES)?),
        Goal::AtMost(5.0),
    ));
    rows.push(row(
        "P10",
        format!("from a record's change to its guest seeing it, {records} records and {taps_there} taps"),
        "ms",
        millis(host.changes(TRIES)?),
        Goal::AtMost(10.0),
    ));
    rows.push(row(
        "P11",
        format!("wake-ups a second, {records} records and {taps_there} quiet taps"),
        "1/s",
        vec![host.wake_ups_per_second(IDLE)?],
        Goal::AtMost(1.0),
    ));
    drop(host);
    rows.push(row(
        "P10",
        format!("{records} records read (`imds-agent check`, whole)"),
        "ms",
        millis(host::reads(instances, program, STARTS)?),
        Goal::AtMost(200.0),
    ));
    let all = Size {
        instances,
        taps: instances,
    };
    rows.push(row(
        "P7",
        format!("resident, {records} instances with a tap each, idle"),
        "MiB",
        vec![Host::new(all, program)?.resident_mebibytes()?],
        Goal::AtMost(memory_goal(f64::from(instances))),
    ));
    Ok(rows)
}
