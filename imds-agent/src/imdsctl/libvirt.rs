//! `imdsctl libvirt`: records of libvirt's domains, written by libvirt's own hook or from the domains that run.
//!
//! Both write the state directory and need no agent: it takes the records up when it is there.

use std::{
    io::{self, Read as _},
    time::SystemTime,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use uuid::Uuid;

use super::{Verdict, guests::Guests, virsh::virsh};
use crate::sources::{Earlier, libvirt};

/// More than any domain has: user data may be half a megabyte, and more in base64.
const XML_BYTES_MAX: u64 = 4 << 20;

/// `imdsctl libvirt`
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    command: Subcommands,
    #[command(flatten)]
    guests: Guests,
}

#[derive(Subcommand, Debug)]
enum Subcommands {
    /// What libvirt's qemu hook says: its own arguments, and the domain's XML on standard input.
    ///
    /// Writes the domain's record when the domain starts, and deletes it when it has ended. Prints nothing on standard output,
    /// where libvirt would look for another XML.
    Hook {
        /// The domain's name
        domain: String,
        /// prepare, start, started, stopped, release, migrate, restore, reconnect, attach
        operation: String,
        /// begin or end
        sub_operation: String,
        /// What else libvirt says
        extra: Vec<String>,
    },
    /// Write the records of all domains that run, and delete those of domains that do not.
    Import {
        /// The libvirtd to ask, as for virsh
        #[arg(long, value_name = "URI", default_value = "qemu:///system")]
        connect: String,
    },
}

/// Runs one of the commands.
pub fn run(arguments: Arguments, is_json: bool) -> Result<Verdict> {
    let guests = arguments.guests;
    match arguments.command {
        Subcommands::Hook {
            domain, operation, ..
        } => hook(&guests, &operation).with_context(|| format!("domain {domain}, {operation}")),
        Subcommands::Import { connect } => import(&guests, &connect, is_json),
    }
}

/// What libvirt waits for. It may not be called back from here.
fn hook(guests: &Guests, operation: &str) -> Result<Verdict> {
    let (launched, earlier) = match operation {
        // Its taps have their names now, and nothing of the guest runs yet; incoming migrations and restored domains come
        // by here too.
        "start" => (Some(Timestamp::try_from(SystemTime::now())?), Earlier::Replace),
        // libvirtd was restarted, or took over a QEMU that ran already.
        "reconnect" | "attach" => (None, Earlier::Keep),
        "stopped" | "release" => {
            let gone = libvirt::origin_of(&domain_xml()?)?;
            guests.remove(&gone)?;
            return Ok(Verdict::Yes);
        }
        _ => return Ok(Verdict::Yes),
    };
    let guest = libvirt::guest(&domain_xml()?, launched)?;
    guests.put(&guest, earlier)?;
    Ok(Verdict::Yes)
}

fn domain_xml() -> Result<String> {
    let mut xml = String::new();
    let read = io::stdin()
        .lock()
        .take(XML_BYTES_MAX + 1)
        .read_to_string(&mut xml);
    let bytes = read.context("cannot read the domain's XML from standard input")?;
    ensure!(
        bytes as u64 <= XML_BYTES_MAX,
        "the domain's XML is longer than {XML_BYTES_MAX} bytes"
    );
    Ok(xml)
}

fn import(guests: &Guests, connect: &str, is_json: bool) -> Result<Verdict> {
    let known = guests.known(libvirt::SOURCE)?;
    let listed = virsh(connect, &["list", "--uuid"])?;
    let uuids = listed.split_whitespace().map(str::parse::<Uuid>);
    let uuids: Vec<Uuid> = uuids.collect::<Result<_, _>>().context("virsh lists no UUIDs")?;
    let domain = |uuid: Uuid| {
        // It may have ended since.
        let xml = virsh(connect, &["dumpxml", &uuid.to_string()])?;
        Ok(Some(libvirt::guest(&xml, None)?))
    };
    let domains = uuids
        .into_iter()
        .map(|uuid| (libvirt::origin(uuid), domain(uuid)));
    Ok(guests.import_all(&known, domains)?.print(is_json))
}
