//! Who runs where, and how many files this program may hold open.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::{Pid, gettid},
};

use crate::host_command::run;

/// Where servers run.
pub const SERVER_CORE: usize = 0;

/// Where clients run.
pub const CLIENT_CORE: usize = 1;

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

/// From now on the calling thread runs only where nobody else wants to, and makes way within microseconds.
pub fn give_way() -> Result<()> {
    let thread = gettid().to_string();
    run(Command::new("chrt").args(["--idle", "--pid", "0", &thread]))
}

fn threads_of(process: Pid) -> Result<Vec<Pid>> {
    let names = fs::read_dir(format!("/proc/{process}/task"))?.map(|entry| Ok(entry?.file_name()));
    names
        .map(|name: Result<_>| Ok(Pid::from_raw(name?.to_string_lossy().parse()?)))
        .collect()
}

/// Lets this program be the guest of as many taps as the machine allows: each is an open file.
pub fn raise_open_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}
