//! The agent: `imds-agent run`, and what an operator needs around it.

use std::{
    io::{self, Write as _},
    panic::{self, PanicHookInfo},
    path::{Path, PathBuf, absolute},
    process::ExitCode,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use clap::{CommandFactory as _, Parser, Subcommand};
use imds_agent::{
    agent, allocator,
    config::{Config, ConfigError, ConfigFile, DEFAULT_PATH, LogLevel},
    datapath::{
        GracePeriods, Namespaces, RcuSwitch, attach, detach, namespace,
        pins::{self, Pins},
        support,
    },
    exit_code,
    imdsctl::generate,
    keys::{IssuerKey, Purpose},
    privilege::{self, PrivilegeError, capabilities},
    registry::{Directory, Problem, problem::Severity, record::Kind},
    reload, service_manager, unix_socket,
};

/// EC2-compatible instance metadata service for KVM hosts.
#[derive(Parser)]
#[command(version, after_help = exit_code::HELP)]
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
    /// Make a key for the embedded issuer, in a file of its own
    ///
    /// It goes to every host of a cloud before it mints on any of them.
    IssuerKey {
        /// The file, which is not there yet
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Write completions and man pages into a directory, for packages
    #[command(hide = true)]
    Generate {
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
    },
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
    match run(arguments.command, ConfigFile::new(arguments.config)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("imds-agent: {error:#}");
            exit_code::of(&error).into()
        }
    }
}

fn run(command: Command, mut file: ConfigFile) -> Result<ExitCode> {
    // What needs no configuration.
    match &command {
        Command::Generate { directory } => {
            generate::write(Arguments::command(), directory)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::IssuerKey { file } => {
            make_issuer_key(file).with_context(|| format!("cannot make {}", file.display()))?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Run | Command::Check | Command::OnTaps(_) => {}
    }
    let given = match (&command, file.read()) {
        // What is to be made safe or taken away is so with a file that says something wrong, too.
        (Command::OnTaps(_), Err(error @ ConfigError::Invalid { .. })) => {
            eprintln!("imds-agent: {error}");
            let (config, lost) = Config::made_out_of(file.path());
            if !lost.is_empty() {
                eprintln!("imds-agent: these are as by default: {}", lost.join(", "));
            }
            Some(config)
        }
        (_, loaded) => loaded?,
    };
    let is_given = given.is_some();
    let config = given.unwrap_or_default();
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
            allocator::share_one_heap();
            let goes_elsewhere = !config.network_namespaces.is_empty();
            ensure_host(|| privilege::ensure(config.user(), goes_elsewhere))?;
            support::ensure_packet_sockets()?;
            // It is root's.
            let switch = RcuSwitch::open();
            if goes_elsewhere {
                namespace::allow_descriptors();
            }
            let reduced = reduce_privileges(&config)?;
            // Keys and credentials go into no core dump, and no other process reads them. Not earlier: to change the user
            // makes this what the host has it for such programs.
            nix::sys::prctl::set_dumpable(false).context("cannot keep secrets out of core dumps")?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("imds-control")
                .on_thread_start(capabilities::give_up)
                .enable_all()
                .build()
                .context("cannot start the control threads")?;
            let grace_periods = GracePeriods::new(switch, &reduced.pins);
            let read_again = move || Ok(file.read()?.unwrap_or_default());
            runtime.block_on(agent::run(
                config,
                &reduced.pins,
                grace_periods,
                Box::new(read_again),
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check => check(&config),
        Command::OnTaps(command) => {
            on_taps(command, &config)?;
            Ok(ExitCode::SUCCESS)
        }
        // Done before the configuration was read.
        Command::Generate { .. } | Command::IssuerKey { .. } => Ok(ExitCode::SUCCESS),
    }
}

fn make_issuer_key(file: &Path) -> Result<()> {
    let file = absolute(file)?;
    ensure!(!file.try_exists()?, "there is something already");
    Ok(IssuerKey::create(&file, Purpose::Issuer)?)
}

/// What is done to taps besides the agent.
fn on_taps(command: OnTaps, config: &Config) -> Result<()> {
    let root = &config.bpf_directory;
    // For each program that comes on a hook or goes from it the kernel waits, one after the other.
    let grace_periods = GracePeriods::new(RcuSwitch::open(), root);
    let _expedited = grace_periods.expedite();
    match command {
        OnTaps::Attach { mut taps } => {
            ensure_host(|| capabilities::ensure(&capabilities::ATTACHING))?;
            taps.retain(|tap| {
                let is_ours = config.taps.select(tap);
                if !is_ours {
                    log::info!("tap {tap}: left alone, as `taps` in the configuration does not select it");
                }
                is_ours
            });
            attach::ensure(root, &taps, &namespaces_of(&taps, config)?)?;
        }
        OnTaps::Detach { all: true, .. } => {
            let namespaces = namespaces(config, |_| true).unwrap_or_else(|error| {
                // What is pinned comes off all the same.
                log::warn!("{error:#}");
                Namespaces::default()
            });
            detach::all(root, &namespaces)?;
        }
        OnTaps::Detach { taps, .. } => detach::these(root, &taps, &namespaces_of(&taps, config)?)?,
    }
    Ok(())
}

/// The other network namespaces that these taps are in.
fn namespaces_of(taps: &[String], config: &Config) -> Result<Namespaces> {
    let named: Vec<_> = taps.iter().filter_map(|tap| tap.split_once('/')).collect();
    namespaces(config, |name| {
        named.iter().any(|(namespace, _)| *namespace == name)
    })
}

/// The other network namespaces that are there, and wanted.
fn namespaces(config: &Config, is_wanted: impl Fn(&str) -> bool) -> Result<Namespaces> {
    let selected = &config.network_namespaces;
    let sightings = namespace::look(selected.directory(), |name| {
        selected.select(name) && is_wanted(name)
    });
    Ok(Namespaces::open(
        sightings.context("cannot look for network namespaces")?,
    )?)
}

/// `RUST_LOG` overrules the configuration, whose level may change later.
fn start_log(level: LogLevel) {
    let filter = env_logger::Env::default().default_filter_or("warn,imds_agent=trace");
    let mut logger = env_logger::Builder::from_env(filter);
    logger.format_target(false);
    if service_manager::has_journal() {
        logger.format(service_manager::write_line);
    }
    logger.init();
    reload::set_log_level(level);
}

/// Refuses a host that cannot do it, while nothing is made, mounted or given away yet.
/// What the process needs for it, `privileges` tells.
fn ensure_host(privileges: impl FnOnce() -> Result<(), PrivilegeError>) -> Result<()> {
    support::ensure_kernel()?;
    privileges()?;
    Ok(support::ensure_bpf()?)
}

/// The process as it is to be while it opens what it serves with; what is root's to do beforehand is done.
fn reduce_privileges(config: &Config) -> Result<privilege::Reduced> {
    pins::ensure_bpffs(&config.bpf_directory)?;
    // What belongs to a running agent is not given to another's user; one that is killed may still be on its way out.
    drop(Pins::open_existing(&config.bpf_directory)?);
    let metrics = config.metrics().and_then(|metrics| metrics.socket);
    let control = config.control().map(|control| control.socket);
    let sockets: Vec<_> = metrics.as_deref().into_iter().chain(control.as_deref()).collect();
    let written: Vec<_> = config.audit_file().into_iter().collect();
    for socket in &sockets {
        unix_socket::remove_stale(socket);
    }
    let reduced = privilege::reduce(&privilege::Settings {
        user: config.user(),
        owned: &[&config.state_directory],
        pins: &config.bpf_directory,
        written: &written,
        sockets: &sockets,
        goes_elsewhere: !config.network_namespaces.is_empty(),
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
    let problems = problems.borrow();
    let (not_yet, standing): (Vec<&Problem>, Vec<_>) = problems
        .iter()
        .partition(|problem| is_not_made_yet(config, problem));
    let mut out = io::BufWriter::new(io::stdout().lock());
    for problem in &standing {
        writeln!(out, "{problem}")?;
    }
    for problem in not_yet {
        writeln!(
            out,
            "{} is not there yet: the first run makes it",
            problem.file.display()
        )?;
    }
    let groups = config
        .control()
        .map_or(Ok(()), |settings| settings.permits().map(drop))
        .map_err(anyhow::Error::from);
    if let Err(error) = &groups {
        writeln!(out, "{error:#}")?;
    }
    let instances = snapshot.borrow().instances.len();
    let errors = standing
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .count()
        + usize::from(groups.is_err());
    writeln!(out, "{instances} instances, {errors} errors")?;
    out.flush()?;
    Ok(if errors == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether the problem is that a directory is missing which the agent makes when it runs.
fn is_not_made_yet(config: &Config, problem: &Problem) -> bool {
    let is_directory = Kind::ALL
        .iter()
        .any(|kind| problem.file == Path::new(kind.directory()));
    is_directory
        && config
            .state_directory
            .join(&problem.file)
            .symlink_metadata()
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}
