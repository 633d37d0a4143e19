//! The agent: `imds-agent run`, and what an operator needs around it.

use std::{
    panic::{self, PanicHookInfo},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use imds_agent::{
    agent,
    config::{Config, ConfigError, DEFAULT_PATH, LogLevel},
    datapath::{attach, detach, pins},
    privilege,
    registry::{Directory, problem::Severity},
};

/// EC2-compatible instance metadata service for KVM hosts.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The configuration file [default: /etc/imds-agent/config.toml, where it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the instances of this host until SIGTERM
    Run,
    /// Say what is wrong with the configuration and the records, and serve nothing
    Check,
    #[command(flatten)]
    OnTaps(OnTaps),
}

#[derive(Subcommand)]
enum OnTaps {
    /// Put the classifier on taps before their guests run, whether the agent runs or not
    ///
    /// Returns once it is there. What the guests ask the metadata address is dropped until the agent serves them.
    Attach {
        /// Names of network devices
        #[arg(value_name = "TAP", required = true)]
        taps: Vec<String>,
    },
    /// Take the classifier off taps while no agent runs
    ///
    /// To their guests the metadata address becomes ordinary traffic.
    Detach {
        /// Names of network devices
        #[arg(value_name = "TAP", required_unless_present = "all", conflicts_with = "all")]
        taps: Vec<String>,
        /// Off every tap, and remove all that is pinned
        #[arg(long)]
        all: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command, arguments.config.as_deref()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("imds-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, file: Option<&Path>) -> Result<ExitCode> {
    let loaded = file.map_or_else(Config::load_default, |file| Config::load(file).map(Some));
    let given = match (&command, loaded) {
        // What is to be made safe or taken away is so with a file that says something wrong, too.
        (Command::OnTaps(_), Err(error @ ConfigError::Invalid { .. })) => {
            eprintln!("imds-agent: {error}");
            Some(Config::with_pins_of(file.unwrap_or(Path::new(DEFAULT_PATH))))
        }
        (_, loaded) => loaded?,
    };
    let is_given = given.is_some();
    let mut config = given.unwrap_or_default();
    // What `check` finds it prints itself, once.
    let is_check = matches!(command, Command::Check);
    start_log(if is_check {
        LogLevel::Error
    } else {
        config.log_level
    });
    if !is_given && is_check {
        println!("there is no {DEFAULT_PATH}: everything is as by default");
    } else if !is_given {
        log::warn!("there is no {DEFAULT_PATH}: everything is as by default");
    }
    match command {
        Command::Run => {
            panic::set_hook(Box::new(tell_panic));
            let reduced = reduce_privileges(&config)?;
            config.bpf_directory.clone_from(&reduced.pins);
            // Keys and credentials go into no core dump, and no other process reads them. Not earlier: to change the user
            // makes this what the host has it for such programs.
            nix::sys::prctl::set_dumpable(false).context("cannot keep secrets out of core dumps")?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("imds-control")
                .on_thread_start(privilege::capabilities::give_up)
                .enable_all()
                .build()
                .context("cannot start the control threads")?;
            runtime.block_on(agent::run(config))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check => check(&config),
        Command::OnTaps(command) => {
            on_taps(command, &config)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What is done to taps besides the agent.
fn on_taps(command: OnTaps, config: &Config) -> Result<()> {
    let root = &config.bpf_directory;
    match command {
        OnTaps::Attach { mut taps } => {
            taps.retain(|tap| {
                let is_ours = config.taps.select(tap);
                if !is_ours {
                    log::info!("tap {tap}: left alone, as `taps` in the configuration does not select it");
                }
                is_ours
            });
            attach::ensure(root, &taps)?;
        }
        OnTaps::Detach { all: true, .. } => detach::all(root)?,
        OnTaps::Detach { taps, .. } => detach::these(root, &taps)?,
    }
    Ok(())
}

/// `RUST_LOG` overrules the configuration.
fn start_log(level: LogLevel) {
    let level = log::LevelFilter::from(level);
    let filter = env_logger::Env::default().default_filter_or(format!("warn,imds_agent={level}"));
    env_logger::Builder::from_env(filter).format_target(false).init();
}

/// The process as it is to be while it opens what it serves with; what is root's to do beforehand is done.
fn reduce_privileges(config: &Config) -> Result<privilege::Reduced> {
    pins::ensure_bpffs(&config.bpf_directory)?;
    let metrics = config.metrics().and_then(|metrics| metrics.socket);
    let written: Vec<_> = config
        .audit_file()
        .into_iter()
        .chain(metrics.as_deref())
        .collect();
    let reduced = privilege::reduce(&privilege::Settings {
        user: config.user(),
        owned: &[&config.state_directory],
        pins: &config.bpf_directory,
        written: &written,
    });
    Ok(reduced?)
}

/// Says where, and never what: the message of a panic may quote a guest's bytes, or a secret.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("a thread");
    match panic.location() {
        Some(location) => log::error!("{name} panicked at {location}"),
        None => log::error!("{name} panicked"),
    }
}

/// Prints what stands in the way, and fails if any of it is an error.
fn check(config: &Config) -> Result<ExitCode> {
    config.user().map(privilege::User::find).transpose()?;
    let directory = Directory::open(&config.state_directory, config.rules())?;
    let (snapshot, problems) = (directory.snapshots(), directory.problems());
    for problem in problems.borrow().iter() {
        println!("{problem}");
    }
    let instances = snapshot.borrow().instances.len();
    let errors = problems
        .borrow()
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .count();
    println!("{instances} instances, {errors} errors");
    Ok(if errors == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
