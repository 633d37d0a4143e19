//! Where the processor time of P2 goes: both servers under the load of P1, sampled by Linux's `perf`.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    accounting::cpu_time,
    load::{self, Load},
};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{
    cores::{CLIENT_CORE, pin},
    picture::Of,
    servers::{Pair, Server},
};
use crate::host_command::ask;

/// Sampled for so long, within a load that lasts longer.
const SAMPLED: Duration = Duration::from_secs(3);

/// What has a smaller share of the samples is told with the rest.
const SHARE_MIN: f64 = 0.02;

/// Where one server's time goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Profile {
    of: Of,
    /// For an exchange, in µs.
    cpu_us: f64,
    /// Where, and which share of it; the most first.
    shares: Vec<(String, f64)>,
}

/// Samples both servers; nothing where there is no `perf`.
pub fn run(program: &Path, target: &Path) -> Result<Vec<Profile>> {
    if Command::new("perf")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        println!("profile: left out, there is no `perf` (Debian's package linux-perf)");
        return Ok(Vec::new());
    }
    let Pair {
        ours, nginx, closing, ..
    } = Pair::start(program, target)?;
    pin(Pid::from_raw(0), CLIENT_CORE)?;
    let load = Load {
        in_flight: 16,
        exchanges_max: usize::MAX,
        duration: SAMPLED + Duration::from_secs(2),
        ..closing
    };
    [(Of::Agent, &ours), (Of::Nginx, &nginx)]
        .into_iter()
        .map(|(of, server)| {
            sample(of, server, &load, target).with_context(|| format!("profile of {}", of.name()))
        })
        .collect()
}

fn sample(of: Of, server: &Server, load: &Load, target: &Path) -> Result<Profile> {
    let directory = tempfile::tempdir_in(target)?;
    let samples = directory.path().join("perf.data");
    let mut perf = Command::new("perf")
        .args([
            "record",
            "--quiet",
            "--freq",
            "1999",
            "--call-graph",
            "fp",
            "--pid",
        ])
        .arg(server.process.to_string())
        .arg("--output")
        .arg(&samples)
        .args(["--", "sleep", &SAMPLED.as_secs().to_string()])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start perf")?;
    let before = cpu_time(server.process)?;
    let outcome = load::run(&server.tap, load)?;
    let cpu = cpu_time(server.process)?.saturating_sub(before);
    let status = perf.wait()?;
    ensure!(status.success(), "perf record: {status}");
    let script = ask(Command::new("perf")
        .args(["script", "--no-inline", "--fields", "ip,sym,dso", "--input"])
        .arg(&samples))?;
    Ok(Profile {
        of,
        cpu_us: cpu.as_secs_f64() * 1e6 / outcome.exchanges as f64,
        shares: shares(&script),
    })
}

/// Counts `perf script`'s samples, which are separated by empty lines, each with its innermost function first.
fn shares(script: &str) -> Vec<(String, f64)> {
    let mut counts = BTreeMap::new();
    let samples = script
        .split("\n\n")
        .map(str::trim)
        .filter(|sample| !sample.is_empty());
    for sample in samples {
        *counts.entry(place(sample)).or_insert(0_u32) += 1;
    }
    let all = f64::from(counts.values().sum::<u32>());
    let (mut told, rest): (Vec<_>, Vec<_>) = counts
        .into_iter()
        .map(|(place, count)| (place, f64::from(count) / all))
        .partition(|(_, share)| *share >= SHARE_MIN);
    told.sort_unstable_by(|(_, one), (_, other)| other.total_cmp(one));
    let rest: f64 = rest.into_iter().map(|(_, share)| share).sum();
    if rest > 0.0 {
        told.push(("the rest".to_owned(), rest));
    }
    told
}

/// Where a sample belongs: the system call that it is in, or the part of the program.
fn place(sample: &str) -> String {
    let frames: Vec<_> = sample.lines().filter_map(Frame::parse).collect();
    let is_entry = |frame: &Frame<'_>| matches!(frame.function, "x64_sys_call" | "do_syscall_64");
    if let Some(entry) = frames.iter().position(is_entry) {
        // The call's first function may have gone over into the next one without a frame of its own.
        let call = entry.checked_sub(1).and_then(|inside| frames.get(inside));
        let name = call.map_or("entry", |call| call.function);
        let name = ["__x64_sys_", "__do_sys_", "__sys_", "ksys_", "do_"]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))
            .unwrap_or(name);
        return format!("kernel: {name}");
    }
    match frames.first() {
        Some(frame) if frame.object.contains("[kernel") => "kernel: outside of system calls".to_owned(),
        Some(frame) => frame.part(),
        None => "unknown".to_owned(),
    }
}

/// A line of a sample: an address, a function, and the file that it is in.
struct Frame<'a> {
    function: &'a str,
    object: &'a str,
}

impl<'a> Frame<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (_, rest) = line.trim().split_once(' ')?;
        let (function, object) = rest.rsplit_once(" (")?;
        Some(Self {
            function,
            object: object.trim_end_matches(')'),
        })
    }

    /// The agent's room, or another crate, or the file of what has neither.
    fn part(&self) -> String {
        if let Some((_, path)) = self.function.split_once("imds_agent::") {
            let room = path.split("::").next().unwrap_or(path);
            return format!("agent: {room}");
        }
        let path = self.function.trim_start_matches('<');
        path.split_once("::").map_or_else(
            || self.object.rsplit('/').next().unwrap_or(self.object).to_owned(),
            |(krate, _)| format!("crate {krate}"),
        )
    }
}

impl Profile {
    /// For the file that other programs read.
    pub fn to_json(&self) -> serde_json::Value {
        let shares: serde_json::Map<_, _> = self
            .shares
            .iter()
            .map(|(place, share)| (place.clone(), serde_json::json!(share)))
            .collect();
        serde_json::json!({ "of": self.of.name(), "µs for an exchange": self.cpu_us, "shares": shares })
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| {}: {:.2} µs for an exchange | % | µs |",
            self.of.name(),
            self.cpu_us
        )?;
        write!(f, "|---|---|---|")?;
        for (place, share) in &self.shares {
            write!(
                f,
                "\n| {place} | {:.0} | {:.2} |",
                share * 100.0,
                share * self.cpu_us
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_counted_where_they_belong() {
        let send = "\tffffffff81 tun_net_xmit ([kernel.kallsyms])\n\tffffffff82 __sys_sendmmsg ([kernel.kallsyms])\n\
                    \tffffffff83 do_syscall_64 ([kernel.kallsyms])\n\t7f00 imds_agent::worker::f (/target/imds-agent)";
        let samples = [
            send,
            send,
            "\t55d0 <imds_agent::stack::Stack as core::fmt::Debug>::fmt (/target/imds-agent)\n\t55d1 main (/target/imds-agent)",
            "\t55d3 <smoltcp::socket::tcp::Socket>::process (/target/imds-agent)",
            "\tffffffff84 irq_exit ([kernel.kallsyms])",
            "\t7f01 __memcpy_avx (/usr/lib/libc.so.6)",
        ];
        let shares = shares(&samples.join("\n\n"));
        let told: Vec<_> = shares.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(told[0], "kernel: sendmmsg");
        for place in [
            "agent: stack",
            "crate smoltcp",
            "kernel: outside of system calls",
            "libc.so.6",
        ] {
            assert!(told.contains(&place), "no {place} in {told:?}");
        }
        let sum: f64 = shares.iter().map(|(_, share)| share).sum();
        assert!((sum - 1.0).abs() < 1e-9);
    }
}
