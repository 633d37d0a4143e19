//! `imdsctl`: for operators of the agent and for those who rely on what it says.
//!
//! Results go to standard output, as text for people or with `--json` for programs; errors go to standard error. Every
//! command ends with one of the same [codes](exit_code).

pub mod conformance;
mod guests;
pub mod identity;
pub mod libvirt;
pub mod proxmox;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// How `imdsctl` ends. Code 2, wrong usage, is clap's.
pub mod exit_code {
    /// Done; and what was asked is so.
    pub const YES: u8 = 0;
    /// It could not be found out.
    pub const FAILURE: u8 = 1;
    /// Done; and what was asked is not so: not genuine, not conformant.
    pub const NO: u8 = 3;
}

/// For operators of imds-agent, and for those who rely on what it says.
#[derive(Parser, Debug)]
#[command(
    name = "imdsctl",
    version,
    after_help = "Exit codes: 0 yes, 1 could not find out, 2 wrong usage, 3 no"
)]
pub struct Arguments {
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Grade any EC2-style metadata endpoint by the wire contract, row by row.
    Conformance(conformance::Arguments),
    /// Signed instance identity documents.
    Identity(identity::Arguments),
    /// Instance records of libvirt's domains.
    Libvirt(libvirt::Arguments),
    /// Instance records of a Proxmox VE node's virtual machines.
    Proxmox(proxmox::Arguments),
}

/// What a command found out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is so.
    Yes,
    /// It is not so.
    No,
}

/// The whole program.
pub fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(Verdict::Yes) => exit_code::YES.into(),
        Ok(Verdict::No) => exit_code::NO.into(),
        Err(error) => {
            eprintln!("imdsctl: {error:#}");
            exit_code::FAILURE.into()
        }
    }
}

fn run(arguments: Arguments) -> Result<Verdict> {
    match arguments.command {
        Command::Conformance(conformance) => conformance::run(conformance, arguments.json),
        Command::Identity(identity) => identity::run(identity, arguments.json),
        Command::Libvirt(libvirt) => libvirt::run(libvirt, arguments.json),
        Command::Proxmox(proxmox) => proxmox::run(proxmox, arguments.json),
    }
}
