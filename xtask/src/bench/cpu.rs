//! Cores and what they did, by the kernel's accounting.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// Where servers run.
pub const SERVER_CORE: usize = 0;

/// Where clients run.
pub const CLIENT_CORE: usize = 1;

/// User and system time of all threads of a process, exact to the nanosecond.
pub fn of_process(process: Pid) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let schedstat = fs::read_to_string(thread?.path().join("schedstat"))?;
        let nanoseconds = schedstat
            .split_whitespace()
            .next()
            .context("an empty schedstat")?;
        total += Duration::from_nanos(nanoseconds.parse()?);
    }
    Ok(total)
}

/// Everything that the machine's cores did but idle, soft interrupts included; in ticks of 10 ms.
pub fn of_machine() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("an empty /proc/stat")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    // user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user time already.
    let busy: u64 = [0, 1, 2, 5, 6]
        .into_iter()
        .filter_map(|field: usize| ticks.get(field))
        .sum();
    Ok(Duration::from_millis(busy * 10))
}

/// How often the threads of a process were woken from a sleep of their own will.
pub fn wake_ups(process: Pid) -> Result<u64> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let switches = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .context("a status without voluntary_ctxt_switches")?;
        total += switches.trim().parse::<u64>()?;
    }
    Ok(total)
}

/// Resident memory of a process in bytes.
pub fn resident_bytes(process: Pid) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .context("a status without VmRSS")?;
    Ok(kibibytes.trim().parse::<u64>()? * 1024)
}

/// Keeps all threads of a process on one core; process 0 is the calling thread.
pub fn pin(process: Pid, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    let tasks = if process.as_raw() == 0 {
        vec![process]
    } else {
        threads_of(process)?
    };
    for task in tasks {
        sched_setaffinity(task, &cores).with_context(|| format!("cannot pin {task} to core {core}"))?;
    }
    Ok(())
}

fn threads_of(process: Pid) -> Result<Vec<Pid>> {
    let names = fs::read_dir(format!("/proc/{process}/task"))?.map(|entry| Ok(entry?.file_name()));
    names
        .map(|name: Result<_>| Ok(Pid::from_raw(name?.to_string_lossy().parse()?)))
        .collect()
}
