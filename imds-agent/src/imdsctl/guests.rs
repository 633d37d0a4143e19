//! The records of a hypervisor's guests in the state directory, for the commands that write them.

use std::{
    cell::OnceCell,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::unistd::{Gid, Uid, getegid, geteuid, setegid, seteuid};
use serde_json::{Value, json};

use super::{
    Verdict,
    print::{self, printable},
};
use crate::{
    config::{Config, ConfigError, ConfigFile},
    registry::{
        Directory, InstanceId,
        instance::Origin,
        store::{Store, StoreError},
    },
    sources::{self, Earlier, Guest, Known, Outcome},
};

/// Where the records are.
#[derive(Args, Debug)]
pub struct Guests {
    /// The agent's configuration file [default: /etc/imds-agent/config.toml, where it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What it says, once it has been read.
    #[arg(skip)]
    read: OnceCell<Config>,
}

impl Guests {
    /// Writes a guest's record, and tells on standard error what should be known about that.
    pub fn put(&self, guest: &Guest, earlier: Earlier<'_>) -> Result<Outcome> {
        for warning in &guest.warnings {
            eprintln!("imdsctl: {}: {}", guest.id, printable(warning));
        }
        let outcome = self.write(|store| sources::put(store, guest, earlier))?;
        if let Outcome::LeftAlone(file) = &outcome {
            let (id, file) = (&guest.id, file.display());
            eprintln!("imdsctl: {id}: {file} has the same id, MAC or tap and is left as it is");
        }
        Ok(outcome)
    }

    /// The records of a source, before its hypervisor is asked for guests to import.
    pub fn known(&self, source: &str) -> Result<Known> {
        self.write(|store| sources::known(store, source))
    }

    /// Writes the records of guests, of each of which its hypervisor says something, or nothing where there is to be no record.
    pub fn import(
        &self,
        known: &Known,
        guests: impl Iterator<Item = (Origin, Result<Option<Guest>>)>,
    ) -> Report {
        self.import_and_name(known, guests).0
    }

    /// The same with all guests that a source has: the records of others go.
    pub fn import_all(
        &self,
        known: &Known,
        guests: impl Iterator<Item = (Origin, Result<Option<Guest>>)>,
    ) -> Result<Report> {
        let (mut report, here) = self.import_and_name(known, guests);
        report.gone(self.write(|store| sources::retain(store, known, &here))?);
        Ok(report)
    }

    fn import_and_name(
        &self,
        known: &Known,
        guests: impl Iterator<Item = (Origin, Result<Option<Guest>>)>,
    ) -> (Report, Vec<Origin>) {
        let mut report = Report::default();
        let mut here = Vec::new();
        for (origin, guest) in guests {
            let put = |guest: Guest| {
                let outcome = self.put(&guest, Earlier::Update(known))?;
                Ok((guest, outcome))
            };
            // A guest that cannot be read is here all the same.
            if let Some(guest) = guest.transpose() {
                report.add(&origin.id, guest.and_then(put));
                here.push(origin);
            }
        }
        (report, here)
    }

    /// Deletes the records of a guest.
    pub fn remove(&self, origin: &Origin) -> Result<Vec<InstanceId>> {
        self.write(|store| sources::remove(store, origin))
    }

    fn write<T>(&self, work: impl FnOnce(&Store) -> Result<T, StoreError>) -> Result<T> {
        let config = self.config()?;
        let directory = &config.state_directory;
        let _owner = directory
            .exists()
            .then(|| Owner::become_that_of(directory))
            .transpose()?;
        Directory::create(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(work(&Store::new(directory, config.rules()))?)
    }

    /// The configuration. A mistake in it, which a running agent lives with, costs no new guest its record, unless it hides where that
    /// belongs.
    fn config(&self) -> Result<&Config> {
        if let Some(config) = self.read.get() {
            return Ok(config);
        }
        let mut file = ConfigFile::new(self.config.clone());
        let config = match file.read() {
            Err(error @ ConfigError::Invalid { .. }) => {
                let (config, lost) = Config::made_out_of(file.path());
                if lost.contains(&"state_directory") {
                    return Err(error.into());
                }
                eprintln!("imdsctl: {error}");
                config
            }
            read => read?.unwrap_or_default(),
        };
        Ok(self.read.get_or_init(|| config))
    }
}

/// Whoever owns the state directory, as long as this lives: hooks run as root, and the agent has to be able to read what they
/// write, and to take the same lock.
struct Owner {
    before: (Uid, Gid),
}

impl Owner {
    fn become_that_of(directory: &Path) -> Result<Self> {
        let before = (geteuid(), getegid());
        let owner = directory.metadata().context("the state directory has no owner")?;
        let this = Self { before };
        if before.0.is_root() && owner.uid() != 0 {
            setegid(Gid::from_raw(owner.gid()))
                .and_then(|()| seteuid(Uid::from_raw(owner.uid())))
                .with_context(|| format!("cannot become the owner of {}", directory.display()))?;
        }
        Ok(this)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let (user, group) = self.before;
        if geteuid() != user {
            // Root's to take back, as the saved user is still root.
            let _ = seteuid(user).and_then(|()| setegid(group));
        }
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
    fn add(&mut self, name: &str, outcome: Result<(Guest, Outcome)>) {
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
    pub fn print(self, is_json: bool) -> Verdict {
        if is_json {
            print::json(&json!({ "Guests": self.guests, "Deleted": self.gone }));
        } else {
            for guest in &self.guests {
                let text = |field| printable(guest.get(field).and_then(Value::as_str).unwrap_or_default());
                let detail = [text("InstanceId"), text("File"), text("Reason")].join(" ");
                let (guest, outcome) = (text("Guest"), text("Outcome"));
                print::line(format_args!("{guest}: {outcome} {}", detail.trim()));
            }
            for instance in &self.gone {
                print::line(format_args!("{instance}: deleted, its guest is gone"));
            }
        }
        if self.has_failed {
            Verdict::No
        } else {
            Verdict::Yes
        }
    }
}
