//! The tests, rung by rung, each in bounded time.
//!
//! Which rung a test belongs to follows from where it is: the tests of `imds-tests` whose file is called `guest*` boot a
//! guest (T3), the other ones of that package need root and namespaces (T1), everything else needs nothing (T0). Those of
//! T1 whose subject is the kernel run on other kernels, too ([`other_kernels`], T2).
//!
//! Read in this order: [`wanted`] (which tests), this file (their rungs), [`other_kernels`], [`outcome`] (what became of them).

mod other_kernels;
mod outcome;
mod wanted;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use self::{
    outcome::Outcome,
    wanted::{Program, Wanted, programs},
};
use crate::{
    dist,
    host_command::{self, cargo, workspace},
    prepare::prepare,
    setup::Extent,
};

/// What one rung's tests may take together, once built. It is a stop for tests that hang, not a goal.
const RUNG_LIMIT: Duration = Duration::from_secs(12 * 60);

/// Which tests to run.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Only this rung; may be given more than once
    #[arg(long, value_enum)]
    rung: Vec<Rung>,
    /// Run nothing, and say what would
    #[arg(long)]
    list: bool,
    /// A file in tests/tests, as `continuity`, or a part of tests' paths
    filter: Option<String>,
}

const EXAMPLES: &str = "Examples:
  cargo xtask test --rung t0            what needs neither root nor QEMU
  cargo xtask test continuity           one file of the integration tests, on this kernel and on others
  cargo xtask test --rung t2 continuity the same on other kernels only
  cargo xtask test --list hop_limit     which tests have this in their path, and their rungs
docs/testing.md tells what each rung needs, and what a failed virtual machine leaves behind.";

/// What the tests need: the cheaper, the lower.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Rung {
    /// Nothing
    T0,
    /// Root: kernel and namespaces, no virtual machine
    T1,
    /// QEMU: programs of T1 on other kernels
    T2,
    /// QEMU: a real guest
    T3,
}

/// The cheapest first.
const RUNGS: [Rung; 4] = [Rung::T0, Rung::T1, Rung::T2, Rung::T3];

/// Runs the wanted rungs, all to their end, and prints what ran.
pub fn run(options: &Options) -> Result<()> {
    let is_asked_for = |rung: Rung| options.rung.is_empty() || options.rung.contains(&rung);
    let wanted = Wanted::new(options.filter.as_deref())?;
    if is_asked_for(Rung::T1) || is_asked_for(Rung::T2) || is_asked_for(Rung::T3) {
        prepare("cargo xtask test", Extent::Tests)?;
    }
    let mut rungs = Vec::new();
    for rung in RUNGS.into_iter().filter(|rung| is_asked_for(*rung)) {
        rungs.push((rung, rung.programs(&wanted)?));
    }
    if options.list {
        list(&rungs);
    }
    let has_tests = rungs.iter().any(|(_, programs)| !programs.is_empty());
    if !has_tests {
        tell_left(&other_kernels::left(&wanted)?, &rungs);
    }
    ensure!(
        has_tests,
        "{}; `cargo xtask test --list` names them all",
        wanted.describe()
    );
    if options.list {
        return Ok(());
    }
    if is_asked_for(Rung::T1) || is_asked_for(Rung::T3) {
        // The programs as they are tested: a release would be built for minutes, and only for this.
        dist::package(&host_command::target().join("debug"))?;
    }
    let mut outcomes = Vec::new();
    for (rung, programs) in rungs {
        println!("\n== {}: {}", rung.name(), rung.what());
        let outcome = rung.run(&programs, &wanted);
        let outcome = outcome.unwrap_or_else(|error| Outcome::of_trouble(&error));
        outcomes.push((rung, outcome));
    }
    summarize(&outcomes)
}

fn list(rungs: &[(Rung, BTreeMap<String, Program>)]) {
    for (rung, programs) in rungs {
        println!("\n== {}: {}", rung.name(), rung.what());
        for (name, program) in programs {
            for test in &program.tests {
                println!("{name}: {test}");
            }
        }
    }
}

/// Why T2 has nothing of a file that was asked for.
fn tell_left(left: &[String], rungs: &[(Rung, BTreeMap<String, Program>)]) {
    if rungs.iter().any(|(rung, _)| *rung == Rung::T2) {
        for reason in left {
            println!("T2 skips {reason}");
        }
    }
}

impl Rung {
    /// Builds what has wanted tests.
    fn programs(self, wanted: &Wanted) -> Result<BTreeMap<String, Program>> {
        match self.selection(wanted)? {
            Some(selection) => programs(&selection, wanted),
            None => Ok(BTreeMap::new()),
        }
    }

    fn run(self, programs: &BTreeMap<String, Program>, wanted: &Wanted) -> Result<Outcome> {
        if self == Self::T2 {
            return other_kernels::run_all(programs, wanted);
        }
        let (Some(selection), false) = (self.selection(wanted)?, programs.is_empty()) else {
            return Ok(Outcome::default());
        };
        let mut command = cargo();
        command
            .args(["test", "--quiet", "--no-fail-fast"])
            .args(&selection)
            .args(["--", "--format=pretty", "--show-output"])
            .args(wanted.path());
        follow(&mut command)
    }

    /// Cargo's words for this rung's tests, or nothing when there are none.
    fn selection(self, wanted: &Wanted) -> Result<Option<Vec<String>>> {
        if self == Self::T0 {
            let all = ["--workspace", "--exclude", "imds-tests"];
            return Ok((!wanted.is_file()).then(|| all.map(str::to_owned).into()));
        }
        let mut words = vec!["--package".to_owned(), "imds-tests".to_owned()];
        if self == Self::T1 && !wanted.is_file() {
            words.push("--lib".to_owned());
        }
        for file in test_files()? {
            let is_here = match self {
                Self::T2 => other_kernels::TAKEN.contains(&&*file),
                _ => file.starts_with("guest") == (self == Self::T3),
            };
            if is_here && wanted.may_be_in(&file) {
                words.extend(["--test".to_owned(), file]);
            }
        }
        Ok(if words.len() > 2 { Some(words) } else { None })
    }

    fn name(self) -> &'static str {
        match self {
            Self::T0 => "T0",
            Self::T1 => "T1",
            Self::T2 => "T2",
            Self::T3 => "T3",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::T0 => "pure, on any machine",
            Self::T1 => "the kernel, in namespaces",
            Self::T2 => "other kernels, in QEMU",
            Self::T3 => "guests in QEMU",
        }
    }
}

/// The integration tests of `imds-tests`, by the names of their files.
fn test_files() -> Result<Vec<String>> {
    let directory = workspace().join("tests/tests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        // A test is a file, or a directory with a `main.rs`, as Cargo has it.
        if path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file() {
            names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

/// Shows what the tests print, and counts their results. A rung that hangs is ended with everything it started.
fn follow(command: &mut Command) -> Result<Outcome> {
    let began = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        BufReader::new(output)
            .lines()
            .map_while(Result::ok)
            .try_for_each(|line| sender.send(line))
    });
    let mut outcome = Outcome::default();
    loop {
        match lines.recv_timeout((began + RUNG_LIMIT).saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if outcome.take(&line) {
                    println!("{line}");
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                end(&mut child)?;
                bail!("the tests did not end within {RUNG_LIMIT:?}");
            }
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    outcome.took = began.elapsed();
    if !status.success() && outcome.failed == 0 {
        outcome.trouble = Some(format!("cargo test ended with {status}"));
    }
    Ok(outcome)
}

/// Kills the tests and what they have started. They share this program's process group, so that Ctrl-C reaches all.
fn end(child: &mut Child) -> Result<()> {
    let mut doomed = vec![i32::try_from(child.id())?];
    let parents = parents()?;
    let mut next = 0;
    while let Some(&parent) = doomed.get(next) {
        doomed.extend(
            parents
                .iter()
                .filter(|(_, its)| **its == parent)
                .map(|(process, _)| *process),
        );
        next += 1;
    }
    for process in doomed {
        // Some have ended meanwhile.
        let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
    }
    child.wait().context("cannot wait for cargo")?;
    Ok(())
}

/// Every process and its parent (proc(5), `/proc/pid/stat`).
fn parents() -> Result<HashMap<i32, i32>> {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let stat = fs::read_to_string(entry?.path().join("stat")).unwrap_or_default();
        // The program's name may hold anything: what follows starts after its closing parenthesis.
        let process = stat.split(' ').next().and_then(|word| word.parse().ok());
        let after_name = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1));
        if let (Some(process), Some(parent)) = (process, after_name.and_then(|word| word.parse().ok())) {
            parents.insert(process, parent);
        }
    }
    Ok(parents)
}

fn summarize(outcomes: &[(Rung, Outcome)]) -> Result<()> {
    println!("\n== summary");
    println!("rung  passed  failed  skipped  seconds");
    for (rung, outcome) in outcomes {
        let Outcome {
            passed,
            failed,
            skipped,
            took,
            ..
        } = outcome;
        println!(
            "{:<4}  {passed:>6}  {failed:>6}  {:>7}  {:>7.1}",
            rung.name(),
            skipped.len(),
            took.as_secs_f32()
        );
    }
    for rung in RUNGS {
        if !outcomes.iter().any(|(ran, _)| *ran == rung) {
            println!("{} was not asked for", rung.name());
        }
    }
    for (rung, outcome) in outcomes {
        for test in &outcome.skipped {
            println!("{} skipped {test}", rung.name());
        }
        for part in &outcome.left_out {
            println!("{} left out, in {part}", rung.name());
        }
        if let Some(trouble) = &outcome.trouble {
            println!("{}: {trouble}", rung.name());
        }
    }
    let bad = outcomes
        .iter()
        .any(|(_, outcome)| outcome.failed > 0 || outcome.trouble.is_some());
    ensure!(!bad, "not all tests passed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn tests_that_hang_are_ended_with_their_children() {
        let mut command = Command::new("sh");
        let mut child = command
            .args(["-c", "sleep 60 & wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let began = Instant::now();
        // The shell's child has begun when the kernel knows it.
        let shell = i32::try_from(child.id()).unwrap();
        while !parents().unwrap().values().any(|parent| *parent == shell) {
            assert!(
                began.elapsed() < Duration::from_secs(30),
                "the shell started nothing"
            );
            thread::yield_now();
        }
        end(&mut child).unwrap();
        // The output ends when nobody holds it any more.
        output.read_to_end(&mut Vec::new()).unwrap();
        assert!(began.elapsed() < Duration::from_secs(60));
    }
}
