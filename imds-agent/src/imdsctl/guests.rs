//! The records of a hypervisor's guests in the state directory, for the commands that write them.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::{Value, json};

use super::Verdict;
use crate::{
    config::Config,
    registry::{Directory, InstanceId, instance::Origin, store::Store},
    sources::{self, Earlier, Guest, Outcome},
};

/// Where the records are.
#[derive(Args, Debug)]
pub struct Guests {
    /// The agent's configuration file [default: /etc/imds-agent/config.toml, where it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Guests {
    /// Writes a guest's record, and tells on standard error what should be known about that.
    pub fn put(&self, guest: &Guest, earlier: Earlier) -> Result<Outcome> {
        for warning in &guest.warnings {
            eprintln!("imdsctl: {}: {warning}", guest.id);
        }
        let outcome = sources::put(&self.store()?, guest, earlier)?;
        if let Outcome::LeftAlone(file) = &outcome {
            let (id, file) = (&guest.id, file.display());
            eprintln!("imdsctl: {id}: {file} has the same id, MAC or tap and is left as it is");
        }
        Ok(outcome)
    }

    /// Deletes the records of a guest.
    pub fn remove(&self, origin: &Origin) -> Result<Vec<InstanceId>> {
        Ok(sources::remove(&self.store()?, origin)?)
    }

    /// Deletes the records of a source's guests that are not here.
    pub fn retain(&self, source: &str, here: &[Origin]) -> Result<Vec<InstanceId>> {
        Ok(sources::retain(&self.store()?, source, here)?)
    }

    fn store(&self) -> Result<Store> {
        let config = match &self.config {
            Some(file) => Some(Config::load(file)?),
            None => Config::load_default()?,
        };
        let config = config.unwrap_or_default();
        let directory = &config.state_directory;
        Directory::create(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Store::new(directory, config.rules()))
    }
}

/// What became of several guests.
#[derive(Default, Debug)]
pub struct Report {
    guests: Vec<Value>,
    gone: Vec<InstanceId>,
    has_failed: bool,
}

impl Report {
    /// Takes note of one guest, which the hypervisor calls `name`.
    pub fn add(&mut self, name: &str, outcome: Result<(Guest, Outcome)>) {
        self.guests.push(match outcome {
            Ok((guest, Outcome::LeftAlone(file))) => {
                json!({ "Guest": name, "InstanceId": guest.id, "Outcome": "left-alone", "File": file })
            }
            Ok((guest, _)) => json!({ "Guest": name, "InstanceId": guest.id, "Outcome": "written" }),
            Err(error) => {
                self.has_failed = true;
                json!({ "Guest": name, "Outcome": "failed", "Reason": format!("{error:#}") })
            }
        });
    }

    /// Takes note of records that were deleted.
    pub fn gone(&mut self, instances: Vec<InstanceId>) {
        self.gone.extend(instances);
    }

    /// Prints it all. It is so if every guest has its record.
    pub fn print(self, is_json: bool) -> Result<Verdict> {
        let mut out = io::stdout().lock();
        if is_json {
            writeln!(
                out,
                "{:#}",
                json!({ "Guests": self.guests, "Deleted": self.gone })
            )?;
        } else {
            for guest in &self.guests {
                let text = |field| guest.get(field).and_then(Value::as_str).unwrap_or_default();
                let detail = [text("InstanceId"), text("File"), text("Reason")].join(" ");
                writeln!(out, "{}: {} {}", text("Guest"), text("Outcome"), detail.trim())?;
            }
            for instance in &self.gone {
                writeln!(out, "{instance}: deleted, its guest is gone")?;
            }
        }
        Ok(if self.has_failed {
            Verdict::No
        } else {
            Verdict::Yes
        })
    }
}
