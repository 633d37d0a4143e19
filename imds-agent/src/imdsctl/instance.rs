//! `imdsctl instance`, and what a guest would see: `imdsctl get`.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::{
    Verdict,
    client::{Client, Expect, Method, Refused, path},
    print::{self, Table, text},
    watched,
};
use crate::imds::path::ApiVersion;

/// `imdsctl instance`
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List the instances in force.
    List,
    /// Print an instance's record.
    Show {
        /// The instance's id.
        instance: String,
    },
    /// Print who asks without a session token: who would be refused if you required tokens now.
    Tokenless {
        /// The instance's id.
        instance: String,
    },
    /// Write an instance's record: a new one, or another in place of the one that is there.
    Put {
        /// What `aws ec2 describe-instances` prints of one instance; "-" for standard input.
        #[arg(value_name = "FILE")]
        record: PathBuf,
        /// Fail if the instance is there already.
        #[arg(long)]
        new: bool,
    },
    /// Delete an instance's record: nobody is served as this instance any more.
    Delete {
        /// The instance's id.
        instance: String,
    },
}

/// `imdsctl get`
#[derive(Args, Debug)]
pub struct Get {
    /// The instance's id.
    instance: String,
    /// As the guest would ask: meta-data/instance-id, dynamic/, 2021-03-23/meta-data/.
    #[arg(default_value = "")]
    path: String,
    /// Show the secrets of credentials too.
    #[arg(long)]
    show_secrets: bool,
}

/// Runs one of the commands.
pub fn run(command: Command, client: &Client, is_json: bool) -> Result<Verdict> {
    match command {
        Command::List => list(client, is_json),
        Command::Show { instance } => {
            print::json(&client.get_json(&path(&["instances", &instance]))?);
            // A record may be there that is not in force yet.
            let warned = watched::warn_undelivered(&instance, client)
                .and_then(|()| watched::warn_at_limit(&instance, client));
            match warned.map_err(|error| error.downcast::<Refused>()) {
                Ok(()) | Err(Ok(Refused { status: 404, .. })) => Ok(Verdict::Yes),
                Err(Ok(error)) => Err(error.into()),
                Err(Err(error)) => Err(error),
            }
        }
        Command::Tokenless { instance } => watched::tokenless(&instance, client, is_json),
        Command::Put { record, new } => {
            let record = read(&record)?;
            let id = id_of(&record)?;
            let expect = if new { Expect::Absent } else { Expect::Anything };
            let written = client.send(Method::PUT, &path(&["instances", &id]), &expect, record)?;
            print::written(&written.json()?, is_json)
        }
        Command::Delete { instance } => {
            print::written(&client.delete(&path(&["instances", &instance]))?, is_json)
        }
    }
}

/// Prints what the guest would see, byte for byte.
pub fn get(get: &Get, client: &Client, is_json: bool) -> Result<Verdict> {
    let asked = get.path.trim_start_matches('/');
    let first = asked.split('/').next().unwrap_or_default();
    let version = if ApiVersion::named(first).is_some() {
        ""
    } else {
        "latest/"
    };
    let query = if get.show_secrets { "?secrets=true" } else { "" };
    // The guest's own path, which is percent-encoded where it has to be.
    let path = format!(
        "{}/metadata/{version}{asked}{query}",
        path(&["instances", &get.instance])
    );
    let reply = client.get(&path)?;
    if is_json {
        let body = String::from_utf8_lossy(&reply.body);
        print::json(&serde_json::json!({ "path": format!("/{version}{asked}"), "body": body }));
        return Ok(Verdict::Yes);
    }
    let mut out = io::stdout().lock();
    out.write_all(&reply.body)?;
    if !reply.body.ends_with(b"\n") && io::IsTerminal::is_terminal(&out) {
        writeln!(out)?;
    }
    Ok(Verdict::Yes)
}

/// A file's bytes, or those of standard input for `-`.
pub fn read(file: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        io::stdin().lock().read_to_end(&mut bytes).map(drop)
    } else {
        fs::read(file).map(|read| bytes = read)
    };
    read.with_context(|| format!("cannot read {}", file.display()))?;
    Ok(bytes)
}

fn list(client: &Client, is_json: bool) -> Result<Verdict> {
    let answer = client.get_json("/v1/instances")?;
    if is_json {
        print::json(&answer);
        return Ok(Verdict::Yes);
    }
    let mut table = Table::new(&["INSTANCE", "NAME", "TYPE", "ADDRESS", "TAPS", "TOKENS", "ROLE"]);
    for instance in answer["instances"].as_array().into_iter().flatten() {
        let interfaces = instance["interfaces"].as_array().into_iter().flatten();
        let taps = interfaces.map(|interface| {
            let mark = if interface["bound"] == true {
                ""
            } else {
                " (not bound)"
            };
            format!("{}{mark}", text(interface, "tap"))
        });
        table.row(vec![
            text(instance, "instanceId"),
            text(instance, "name"),
            text(instance, "instanceType"),
            text(instance, "privateIpAddress"),
            taps.collect::<Vec<_>>().join(", "),
            text(instance, "httpTokens"),
            text(instance, "role"),
        ]);
    }
    table.print();
    Ok(Verdict::Yes)
}

/// Which instance a record is about.
fn id_of(record: &[u8]) -> Result<String> {
    let value: Value = serde_json::from_slice(record).context("the record is not JSON")?;
    let bare = value.pointer("/Reservations/0/Instances/0").unwrap_or(&value);
    match bare["InstanceId"].as_str() {
        Some(id) => Ok(id.to_owned()),
        None => bail!("the record has no InstanceId"),
    }
}
