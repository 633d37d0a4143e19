//! The agent: `imds-agent run`, and what an operator needs around it.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use imds_agent::{agent, config::Config};

/// EC2-compatible instance metadata service for KVM hosts.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the instances of this host until SIGTERM.
    Run(ConfigArgument),
    /// Say what is wrong with the configuration and the records, and serve nothing.
    Check(ConfigArgument),
    /// Take the classifier off every tap and remove its pins. The metadata address is ordinary traffic again.
    Detach(ConfigArgument),
}

#[derive(clap::Args)]
struct ConfigArgument {
    /// The configuration file [default: /etc/imds-agent/config.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("imds-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
