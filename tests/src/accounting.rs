//! What the kernel's accounting has of a process and of the machine: processor time, wake-ups, memory.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;

/// A process that used less than [`REST_CPU`] in this time is at rest.
const REST: Duration = Duration::from_millis(500);

/// The timers of a process that has nothing to do take some microseconds.
const REST_CPU: Duration = Duration::from_millis(2);

/// How long a process may take to come to rest: ten thousand records are read, and what belongs to them is made.
const PATIENCE: Duration = Duration::from_secs(180);

/// User and system time of all threads of a process, exact to the nanosecond. Soft interrupts that the kernel serves in a
/// thread's time are in it, unless the kernel is built with `IRQ_TIME_ACCOUNTING`.
pub fn cpu_time(process: Pid) -> Result<Duration> {
    let of_threads = by_thread(process, "schedstat", |schedstat| {
        schedstat.split_whitespace().next()
    })?;
    Ok(Duration::from_nanos(of_threads.values().sum()))
}

/// How often each thread of a process has gone to sleep of its own will, which is how often it was woken.
#[derive(Clone, Debug)]
pub struct WakeUps(BTreeMap<OsString, u64>);

impl WakeUps {
    /// Since each thread began.
    pub fn of(process: Pid) -> Result<Self> {
        let of_threads = by_thread(process, "status", |status| {
            field(status, "voluntary_ctxt_switches:")
        })?;
        Ok(Self(of_threads))
    }

    /// Of all threads that there are now, since `before`. What a thread did that has ended is not known.
    pub fn since(&self, before: &Self) -> u64 {
        let of_thread =
            |(thread, count): (_, &u64)| count.saturating_sub(*before.0.get(thread).unwrap_or(&0));
        self.0.iter().map(of_thread).sum()
    }
}

/// Resident memory of a process in bytes.
pub fn resident_bytes(process: Pid) -> Result<u64> {
    memory_bytes(process, "VmRSS:")
}

/// Resident memory of a process that no file is behind, in bytes.
pub fn anonymous_bytes(process: Pid) -> Result<u64> {
    memory_bytes(process, "RssAnon:")
}

/// Waits until a process has done what it does of its own accord, as ahead of requests.
pub fn wait_for_rest(process: Pid) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = cpu_time(process)?;
        thread::sleep(REST);
        if cpu_time(process)?.saturating_sub(before) < REST_CPU {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "process {process} is still busy");
    }
}

/// What all cores did, in ticks of 10 ms.
#[derive(Clone, Copy, Debug)]
pub struct MachineTime {
    /// Everything but idle, soft interrupts included.
    pub busy: Duration,
    /// Soft interrupts alone, in whosever time they were served.
    pub soft_interrupts: Duration,
}

impl MachineTime {
    /// Since the machine started.
    pub fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("an empty /proc/stat")?;
        let ticks: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let of = |fields: &[usize]| {
            let sum: u64 = fields.iter().filter_map(|field| ticks.get(*field)).sum();
            Duration::from_millis(sum * 10)
        };
        // user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user time already.
        Ok(Self {
            busy: of(&[0, 1, 2, 5, 6]),
            soft_interrupts: of(&[6]),
        })
    }
}

/// A number of each thread. One that ends while it is looked at has none.
fn by_thread(
    process: Pid,
    file: &str,
    value: impl Fn(&str) -> Option<&str>,
) -> Result<BTreeMap<OsString, u64>> {
    let mut of_threads = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let thread = thread?;
        let path = thread.path().join(file);
        let text = match fs::read_to_string(&path) {
            // ESRCH is what a file says that was opened before the end.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(nix::libc::ESRCH) =>
            {
                continue;
            }
            text => text?,
        };
        let value = value(&text).with_context(|| format!("nothing to count in {}", path.display()))?;
        of_threads.insert(thread.file_name(), value.parse()?);
    }
    Ok(of_threads)
}

fn memory_bytes(process: Pid, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let kibibytes = field(&status, name)
        .and_then(|value| value.strip_suffix(" kB"))
        .with_context(|| format!("a status without {name}"))?;
    Ok(kibibytes.trim().parse::<u64>()? * 1024)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| Some(line.strip_prefix(name)?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_does_is_counted() -> Result<()> {
        let this = Pid::this();
        let (cpu, before) = (cpu_time(this)?, WakeUps::of(this)?);
        let memory = vec![1_u8; 1 << 24];
        let anonymous = anonymous_bytes(this)?;
        assert!(anonymous > 1 << 24, "{anonymous} bytes beside {}", memory.len());
        assert!(resident_bytes(this)? >= anonymous);
        thread::sleep(Duration::from_millis(1));
        assert!(cpu_time(this)? > cpu);
        assert!(WakeUps::of(this)?.since(&before) > 0);
        Ok(())
    }

    #[test]
    fn the_machine_is_busier_than_its_soft_interrupts() -> Result<()> {
        let time = MachineTime::now()?;
        assert!(time.busy > time.soft_interrupts);
        Ok(())
    }
}
