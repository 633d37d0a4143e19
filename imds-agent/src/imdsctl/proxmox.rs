//! `imdsctl proxmox`: records of the virtual machines of a Proxmox VE node.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use super::{
    Verdict,
    guests::{Guests, Report},
};
use crate::sources::{
    Earlier, Guest, Outcome,
    proxmox::{self, ConfError},
};

/// `imdsctl proxmox`
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    command: Subcommands,
    #[command(flatten)]
    guests: Guests,
}

#[derive(Subcommand, Debug)]
enum Subcommands {
    /// Write the records of this node's virtual machines, running or not.
    ///
    /// Without numbers of machines all are written, and records of machines that are no longer here are deleted.
    Import {
        /// Only these machines
        #[arg(value_name = "VMID")]
        machines: Vec<u32>,
        /// Where the node's configuration files are
        #[arg(long, value_name = "DIRECTORY", default_value = "/etc/pve/qemu-server")]
        directory: PathBuf,
    },
    /// Delete the record of a virtual machine.
    Remove {
        /// The machine's number
        #[arg(value_name = "VMID")]
        machine: u32,
    },
}

/// Runs one of the commands.
pub fn run(arguments: Arguments, is_json: bool) -> Result<Verdict> {
    let guests = arguments.guests;
    let mut report = Report::default();
    match arguments.command {
        Subcommands::Remove { machine } => {
            report.gone(guests.remove(&proxmox::origin(machine))?);
        }
        Subcommands::Import { machines, directory } => {
            let is_all = machines.is_empty();
            let machines = if is_all { list(&directory)? } else { machines };
            for machine in &machines {
                if let Some(outcome) = import(&guests, &directory, *machine).transpose() {
                    report.add(&machine.to_string(), outcome);
                }
            }
            if is_all {
                let here: Vec<_> = machines.into_iter().map(proxmox::origin).collect();
                report.gone(guests.retain(proxmox::SOURCE, &here)?);
            }
        }
    }
    report.print(is_json)
}

/// The numbers of all machines, which are the names of their files.
fn list(directory: &Path) -> Result<Vec<u32>> {
    let names = fs::read_dir(directory).and_then(|entries| {
        entries
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()
    });
    let names = names.with_context(|| format!("cannot list {}", directory.display()))?;
    let numbers = names
        .iter()
        .filter_map(|name| name.to_str()?.strip_suffix(".conf")?.parse().ok());
    let mut numbers: Vec<u32> = numbers.collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Nothing for a template.
fn import(guests: &Guests, directory: &Path, machine: u32) -> Result<Option<(Guest, Outcome)>> {
    let path = directory.join(format!("{machine}.conf"));
    let conf = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let guest = match proxmox::guest(machine, &conf) {
        Err(ConfError::Template) => return Ok(None),
        guest => guest.with_context(|| path.display().to_string())?,
    };
    let outcome = guests.put(&guest, Earlier::Update)?;
    Ok(Some((guest, outcome)))
}
