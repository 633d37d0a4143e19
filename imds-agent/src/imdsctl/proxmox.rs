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
    Guest,
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
        /// Where the node's configuration files are; those of the cluster's other nodes are beside it
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
    let report = match arguments.command {
        Subcommands::Remove { machine } => {
            let mut report = Report::default();
            report.gone(guests.remove(&proxmox::origin(machine))?);
            report
        }
        Subcommands::Import { machines, directory } => {
            let known = guests.known(proxmox::SOURCE)?;
            let all = machines.is_empty().then(|| list(&directory)).transpose()?;
            let is_all = all.is_some();
            let described = all.unwrap_or(machines).into_iter().map(|machine| {
                let guest = describe(&directory, machine);
                (proxmox::origin(machine), guest)
            });
            if is_all {
                guests.import_all(&known, described)?
            } else {
                guests.import(&known, described)
            }
        }
    };
    Ok(report.print(is_json))
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
fn describe(directory: &Path, machine: u32) -> Result<Option<Guest>> {
    let path = conf_file(directory, machine);
    let conf = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    match proxmox::guest(machine, &conf) {
        Err(ConfError::Template) => Ok(None),
        guest => Ok(Some(guest.with_context(|| path.display().to_string())?)),
    }
}

/// A machine's number is its cluster's. One that is on its way here, running, has its file with the node that it comes from until
/// it has arrived.
fn conf_file(directory: &Path, machine: u32) -> PathBuf {
    let name = format!("{machine}.conf");
    let own = directory.join(&name);
    let (Some(cluster), Some(kind)) = (directory.parent(), directory.file_name()) else {
        return own;
    };
    if own.exists() {
        return own;
    }
    let nodes = fs::read_dir(cluster.join("nodes"))
        .into_iter()
        .flatten()
        .flatten();
    let mut others = nodes.map(|node| node.path().join(kind).join(&name));
    others.find(|file| file.exists()).unwrap_or(own)
}
