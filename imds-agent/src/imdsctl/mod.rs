//! `imdsctl`: for operators of the agent and for those who rely on what it says.
//!
//! Results go to standard output, as text for people or with `--json` for programs; errors go to standard error. Every
//! command ends with one of the same [codes](exit_code).

// `println!` panics where the reader has gone: `print::line` does not.
#![warn(clippy::print_stdout)]

pub mod client;
pub mod conformance;
pub mod doctor;
pub mod event;
pub mod generate;
mod guests;
pub mod iam;
pub mod identity;
pub mod instance;
pub mod libvirt;
pub mod parts;
mod print;
pub mod proxmox;
mod status;
pub mod top;
mod virsh;
pub mod watched;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};

use self::client::Client;
use crate::control::DEFAULT_SOCKET;

/// How `imdsctl` ends. Code 2, wrong usage, is clap's.
pub mod exit_code {
    /// Done; and what was asked is so.
    pub const YES: u8 = 0;
    /// It could not be found out.
    pub const FAILURE: u8 = 1;
    /// Done; and what was asked is not so: not genuine, not conformant, not in force yet.
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
    /// The agent's control socket.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// How the agent is: taps, credentials, problems.
    Status,
    /// Have the agent read its configuration again.
    Reload,
    /// Print requests as guests make them.
    Trace(watched::Trace),
    /// Watch interfaces by what their guests ask.
    Top(top::Arguments),
    /// Instances and their records.
    #[command(subcommand)]
    Instance(instance::Command),
    /// Print what an instance's guest would see at a path.
    Get(instance::Get),
    /// Metadata options, changed on a running instance.
    #[command(subcommand)]
    MetadataOptions(parts::Options),
    /// User data, changed on a running instance.
    #[command(subcommand)]
    UserData(parts::UserData),
    /// Tags, changed on a running instance.
    #[command(subcommand)]
    Tags(parts::Tags),
    /// Notices of what is about to happen to an instance.
    #[command(subcommand)]
    Event(event::Command),
    /// Roles, as `aws iam` has them.
    #[command(subcommand)]
    Role(iam::Role),
    /// Instance profiles, as `aws iam` has them.
    #[command(subcommand)]
    InstanceProfile(iam::InstanceProfile),
    /// Give an instance its instance profile, as `aws ec2` does.
    AssociateIamInstanceProfile(iam::Associate),
    /// Give an instance another instance profile, as `aws ec2` does.
    ReplaceIamInstanceProfileAssociation(iam::Replace),
    /// Take the instance profile off an instance, as `aws ec2` does.
    DisassociateIamInstanceProfile(iam::Association),
    /// List who has which instance profile, as `aws ec2` does.
    DescribeIamInstanceProfileAssociations,
    /// Tell what a guest's software will make of the service, what is in its way, and what helps.
    Doctor(doctor::Arguments),
    /// Grade any EC2-style metadata endpoint by the wire contract, row by row.
    Conformance(conformance::Arguments),
    /// Signed instance identity documents.
    Identity(identity::Arguments),
    /// Instance records of libvirt's domains.
    Libvirt(libvirt::Arguments),
    /// Instance records of a Proxmox VE node's virtual machines.
    Proxmox(proxmox::Arguments),
    /// Write completions and man pages into a directory, for packages.
    #[command(hide = true)]
    Generate {
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
    },
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
            // It may tell what a record or a hypervisor says.
            let lines: Vec<_> = format!("{error:#}").lines().map(print::printable).collect();
            eprintln!("imdsctl: {}", lines.join("\n"));
            exit_code::FAILURE.into()
        }
    }
}

fn run(arguments: Arguments) -> Result<Verdict> {
    let (json, client) = (arguments.json, Client::new(&arguments.socket));
    match arguments.command {
        Command::Status => status::status(&client, json),
        Command::Reload => status::reload(&client, json),
        Command::Trace(trace) => watched::trace(&trace, &client, json),
        Command::Top(top) => top::run(&top, &client, json),
        Command::Instance(command) => instance::run(command, &client, json),
        Command::Get(get) => instance::get(&get, &client, json),
        Command::MetadataOptions(command) => parts::options(command, &client, json),
        Command::UserData(command) => parts::user_data(command, &client, json),
        Command::Tags(command) => parts::tags(command, &client, json),
        Command::Event(command) => event::run(command, &client, json),
        Command::Role(command) => iam::role(command, &client, json),
        Command::InstanceProfile(command) => iam::instance_profile(command, &client, json),
        Command::AssociateIamInstanceProfile(associate) => iam::associate(&associate, &client, json),
        Command::ReplaceIamInstanceProfileAssociation(replace) => iam::replace(&replace, &client, json),
        Command::DisassociateIamInstanceProfile(association) => {
            iam::disassociate(&association, &client, json)
        }
        Command::DescribeIamInstanceProfileAssociations => iam::describe(&client, json),
        Command::Doctor(doctor) => doctor::run(doctor, &client, json),
        Command::Conformance(conformance) => conformance::run(conformance, json),
        Command::Identity(identity) => identity::run(identity, json),
        Command::Libvirt(libvirt) => libvirt::run(libvirt, json),
        Command::Proxmox(proxmox) => proxmox::run(proxmox, json),
        Command::Generate { directory } => {
            generate::write(Arguments::command(), &directory)?;
            Ok(Verdict::Yes)
        }
    }
}
