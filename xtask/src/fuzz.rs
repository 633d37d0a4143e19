//! Fuzzing, and the simulation with as many seeds as one has time for.
//!
//! The targets are functions of `tests/fuzz`. They are built by a nightly with libFuzzer and the address sanitizer;
//! what they find goes to `target/fuzz`, and from there into `tests/fuzz/corpus` by hand, where `cargo xtask test` runs it
//! on any Rust.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    host_command::{ask, cargo, run_shown, target, workspace},
    setup,
};

const CARGO_FUZZ: &str = "0.13.1";

/// The simulation, which is no target of libFuzzer's but asked for like one.
const SIMULATION: &str = "simulation";

/// Seeds of the simulation where a night is there for it.
const SEEDS: u64 = 100_000;

/// How long a target runs.
const LONG: Duration = Duration::from_secs(600);
const SMOKE: Duration = Duration::from_secs(60);

/// No input of a few kilobytes may take this long, which is a thousand times what the slowest takes.
const INPUT_SECONDS_MAX: u32 = 20;

/// What to run, and for how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Only this target; `simulation` is one, too
    target: Option<String>,
    /// How long each target runs: ten minutes, with --smoke one
    #[arg(long)]
    seconds: Option<u64>,
    /// Only see that nothing breaks soon: no simulation, and without a nightly nothing at all
    #[arg(long)]
    smoke: bool,
    /// Run one input of one target
    #[arg(long, requires = "target")]
    input: Option<PathBuf>,
    /// How many seeds the simulation has
    #[arg(long, default_value_t = SEEDS)]
    seeds: u64,
    /// Play one seed of the simulation, packet by packet
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs what is asked for, and fails with the first thing that is found.
pub fn run(options: &Options) -> Result<()> {
    let asked = options.target.as_deref();
    ensure!(
        options.seed.is_none() || asked == Some(SIMULATION),
        "only the {SIMULATION} has seeds: `cargo xtask fuzz {SIMULATION} --seed <seed>`"
    );
    if asked == Some(SIMULATION) || (asked.is_none() && !options.smoke) {
        simulate(options)?;
    }
    if asked == Some(SIMULATION) {
        return Ok(());
    }
    let targets = targets()?;
    let wanted: Vec<_> = targets
        .iter()
        .filter(|target| asked.is_none_or(|asked| asked == *target))
        .collect();
    ensure!(
        !wanted.is_empty(),
        "no such target; there are {}, {SIMULATION}",
        targets.join(", ")
    );
    let Some(host) = nightly() else {
        let missing = "there is no nightly to build with: `rustup toolchain install nightly`";
        if options.smoke {
            println!("fuzz: skipped, {missing}");
            return Ok(());
        }
        bail!("{missing}");
    };
    let programs = build(&host)?;
    let usual = if options.smoke { SMOKE } else { LONG };
    let time = options.seconds.map_or(usual, Duration::from_secs);
    for target in wanted {
        match &options.input {
            Some(input) => run_shown(Command::new(programs.join(target)).arg(input))?,
            None => fuzz(&programs, target, time)?,
        }
    }
    Ok(())
}

/// The simulation's two tests, with other seeds than `cargo xtask test` gives them.
fn simulate(options: &Options) -> Result<()> {
    let seeds = match options.seed {
        Some(seed) => seed..seed + 1,
        None => 0..options.seeds,
    };
    println!("== simulation, seeds {seeds:?}");
    run_shown(
        cargo()
            .args(["test", "--quiet", "--package", "imds-agent", "--lib", "--"])
            .args(["--nocapture", "simulation::every_exchange", "hostile::a_guest"])
            .env(
                "IMDS_AGENT_SIMULATION_SEEDS",
                format!("{}..{}", seeds.start, seeds.end),
            ),
    )
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory().join("targets")).context("cannot read tests/fuzz/targets")? {
        let path = entry?.path();
        names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// The machine that rustup's nightly builds for, if there is one.
fn nightly() -> Option<String> {
    let version =
        ask(Command::new("rustup").args(["run", "nightly", "rustc", "--version", "--verbose"])).ok()?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
}

/// Builds all targets and returns where they are.
fn build(host: &str) -> Result<PathBuf> {
    setup::install_tool("cargo-fuzz", CARGO_FUZZ)?;
    let out = target().join("fuzz");
    let mut command = Command::new("rustup");
    command
        .current_dir(workspace())
        // Of the cargo that runs this program.
        .env_remove("CARGO")
        .env_remove("RUSTC")
        // What takes longest to build and changes nothing that is looked for.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .args(["run", "nightly"])
        .arg(target().join("tools/bin/cargo-fuzz"))
        .args([
            "fuzz",
            "build",
            "--codegen-units",
            "16",
            "--features",
            "libfuzzer",
            "--fuzz-dir",
        ])
        .arg(directory())
        .args(["--target", host, "--target-dir"])
        .arg(&out);
    run_shown(&mut command)?;
    Ok(out.join(host).join("release"))
}

/// Lets libFuzzer look for something for `time`, beginning with what is known.
fn fuzz(programs: &Path, name: &str, time: Duration) -> Result<()> {
    println!("== {name}, {time:?}");
    let found = target().join("fuzz/corpus").join(name);
    let broken = target().join("fuzz/artifacts").join(name);
    for directory in [&found, &broken] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut command = Command::new(programs.join(name));
    command
        .arg(format!("-max_total_time={}", time.as_secs()))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-artifact_prefix={}/", broken.display()))
        .args(["-print_final_stats=1", "-verbosity=0"]);
    let dictionary = directory().join("dictionaries").join(format!("{name}.dict"));
    if dictionary.exists() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    // The first corpus is where new inputs go.
    command.arg(found).arg(directory().join("corpus").join(name));
    run_shown(&mut command).with_context(|| {
        format!(
            "{name} is broken by an input in {}: `cargo xtask fuzz {name} --input <file>` shows it, and a copy in \
             tests/fuzz/corpus/{name} keeps it from coming back",
            broken.display()
        )
    })
}

fn directory() -> PathBuf {
    workspace().join("tests/fuzz")
}
