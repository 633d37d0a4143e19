//! What the kernel's accounting has of a process and of the machine: processor time, wake-ups, memory.

use std::{
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
    let nanoseconds = sum_over_threads(process, "schedstat", |schedstat| {
        schedstat.split_whitespace().next()
    })?;
    Ok(Duration::from_nanos(nanoseconds))
}

/// How often the threads of a process went to sleep of their own will, which is how often they were woken.
pub fn wake_ups(process: Pid) -> Result<u64> {
    sum_over_threads(process, "status", |status| {
        field(status, "voluntary_ctxt_switches:")
    })
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

/// A thread that ends while it is looked at counts no more.
fn sum_over_threads(process: Pid, file: &str, value: impl Fn(&str) -> Option<&str>) -> Result<u64> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let path = thread?.path().join(file);
        let text = match fs::read_to_string(&path) {
            // ESRCH is what a file that is open already says.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(nix::libc::ESRCH) =>
            {
                continue;
            }
            text => text?,
        };
        let value = value(&text).with_context(|| format!("nothing to count in {}", path.display()))?;
        total += value.parse::<u64>()?;
    }
    Ok(total)
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
        let (cpu, wake_ups) = (cpu_time(this)?, wake_ups(this)?);
        let memory = vec![1_u8; 1 << 24];
        let anonymous = anonymous_bytes(this)?;
        assert!(anonymous > 1 << 24, "{anonymous} bytes beside {}", memory.len());
        assert!(resident_bytes(this)? >= anonymous);
        thread::sleep(Duration::from_millis(1));
        assert!(cpu_time(this)? > cpu);
        assert!(super::wake_ups(this)? > wake_ups);
        Ok(())
    }

    #[test]
    fn the_machine_is_busier_than_its_soft_interrupts() -> Result<()> {
        let time = MachineTime::now()?;
        assert!(time.busy > time.soft_interrupts);
        Ok(())
    }
}
