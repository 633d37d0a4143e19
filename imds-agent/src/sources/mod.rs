//! Hypervisors as sources of instance records.
//!
//! Read in this order: [`libvirt`] and [`proxmox`] (what each says of a guest, into a record: pure), [`overlay`] (what its
//! operator says beyond that), then this file (the record into the state directory).
//!
//! A record that a source wrote says so in its `Origin`, and only such a record is ever overwritten or deleted by that source.
//! A record without that mark is an operator's: the source leaves it alone, and writes none beside it.

pub mod libvirt;
mod overlay;
pub mod proxmox;

use std::{collections::HashMap, path::PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::registry::{
    InstanceId,
    instance::Origin,
    record::{self, Kind},
    store::{Expect, Key, Revision, Store, StoreError, Stored},
};

/// Hexadecimal digits of an EC2 instance id.
const ID_DIGITS: usize = 17;

/// A guest as its hypervisor describes it.
#[derive(Clone, PartialEq, Debug)]
pub struct Guest {
    /// Who says so.
    pub origin: Origin,
    /// Its instance.
    pub id: InstanceId,
    /// Its record, without the origin.
    pub document: Map<String, Value>,
    /// What the hypervisor's description says without effect.
    pub warnings: Vec<String>,
}

/// What became of a guest's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is written.
    Written,
    /// It was there.
    Kept,
    /// A record that is not this guest's, an operator's as a rule, stands in its place in this file.
    LeftAlone(PathBuf),
}

/// The records that a source has written, as they were before its hypervisor was asked. What became of one since then somebody
/// did who knew better.
#[derive(Debug)]
pub struct Known {
    source: String,
    records: HashMap<InstanceId, Revision>,
}

/// What is to become of an earlier record of the same guest.
#[derive(Clone, Copy, Debug)]
pub enum Earlier<'a> {
    /// It is from an earlier run of the guest: nothing of it stays.
    Replace,
    /// It is of this very run: when that began, and the notices that were given since, stay. One that is newer than what is known
    /// stays whole.
    Update(&'a Known),
    /// It is of this very run, and what was changed in it since is to last.
    Keep,
}

/// Takes note of what `source` has written.
pub fn known(store: &Store, source: &str) -> Result<Known, StoreError> {
    let records = of_source(store, source)?.into_iter();
    Ok(Known {
        source: source.to_owned(),
        records: records.map(|(id, stored)| (id, stored.revision)).collect(),
    })
}

/// Writes the record of a guest.
pub fn put(store: &Store, guest: &Guest, earlier: Earlier<'_>) -> Result<Outcome, StoreError> {
    let of_source = of_source(store, &guest.origin.source)?.into_iter();
    let (own, others): (Vec<_>, Vec<_>) =
        of_source.partition(|(_, stored)| origin_of(stored).as_ref() == Some(&guest.origin));
    match earlier {
        Earlier::Keep if !own.is_empty() => return Ok(Outcome::Kept),
        Earlier::Update(known) if own.iter().any(|record| !known.has(record)) => return Ok(Outcome::Kept),
        Earlier::Replace | Earlier::Update(_) | Earlier::Keep => {}
    }
    let mut document = guest.document.clone();
    document.insert(
        "Origin".to_owned(),
        json!({ "Source": guest.origin.source, "Id": guest.origin.id }),
    );
    if let (Earlier::Update(_), Some((_, before))) = (earlier, own.first()) {
        for field in ["LaunchTime", "Events"] {
            if let (false, Some(value)) = (document.contains_key(field), before.document.get(field)) {
                document.insert(field.to_owned(), value.clone());
            }
        }
    }
    let (same, mut stale): (Vec<_>, Vec<_>) = own.into_iter().partition(|(id, _)| *id == guest.id);
    // A hypervisor that gives a tap to a guest has taken it from whoever had it, even if no word of that came through.
    let taps: Vec<&str> = taps(&guest.document).collect();
    let has_our_tap = |stored: &Stored| self::taps(&stored.document).any(|tap| taps.contains(&tap));
    let is_newer =
        |record: &(InstanceId, Stored)| matches!(earlier, Earlier::Update(known) if !known.has(record));
    let others = others.into_iter().filter(|(_, stored)| has_our_tap(stored));
    stale.extend(others.filter(|record| !is_newer(record)));
    let document = Value::Object(document).to_string().into_bytes();
    // Nobody loses a record to one that is not written.
    record::parse(Kind::Instance, &document, &store.rules()).map_err(StoreError::Invalid)?;
    delete_all(store, stale)?;
    let key = Key::Instance(guest.id.clone());
    let revision = same.into_iter().next().map(|(_, stored)| stored.revision);
    let expect = revision.map_or(Expect::Absent, Expect::At);
    match store.put(&key, &document, &expect) {
        Ok(_) => Ok(Outcome::Written),
        Err(StoreError::Exists(_)) => Ok(Outcome::LeftAlone(store.get(&key)?.file)),
        Err(StoreError::Taken { file, .. }) => Ok(Outcome::LeftAlone(file)),
        Err(error) => Err(error),
    }
}

/// Deletes what its source wrote of a guest; the instances that went.
pub fn remove(store: &Store, origin: &Origin) -> Result<Vec<InstanceId>, StoreError> {
    let mut own = of_source(store, &origin.source)?;
    own.retain(|(_, stored)| origin_of(stored).as_ref() == Some(origin));
    delete_all(store, own)
}

/// Deletes what is known of guests that are not in `here`; the instances that went.
pub fn retain(store: &Store, known: &Known, here: &[Origin]) -> Result<Vec<InstanceId>, StoreError> {
    let mut gone = of_source(store, &known.source)?;
    gone.retain(|record| known.has(record));
    gone.retain(|(_, stored)| origin_of(stored).is_none_or(|origin| !here.contains(&origin)));
    delete_all(store, gone)
}

impl Known {
    /// Whether a record is as it was then.
    fn has(&self, (id, stored): &(InstanceId, Stored)) -> bool {
        self.records.get(id) == Some(&stored.revision)
    }
}

fn delete_all(store: &Store, records: Vec<(InstanceId, Stored)>) -> Result<Vec<InstanceId>, StoreError> {
    let delete = |(id, stored): (InstanceId, Stored)| {
        store.delete(&Key::Instance(id.clone()), &Expect::At(stored.revision))?;
        Ok(id)
    };
    records.into_iter().map(delete).collect()
}

fn of_source(store: &Store, source: &str) -> Result<Vec<(InstanceId, Stored)>, StoreError> {
    let records = store.list(Kind::Instance)?.into_iter().filter_map(|stored| {
        let origin = origin_of(&stored)?;
        let id = stored.document.get("InstanceId")?.as_str()?.parse().ok()?;
        (origin.source == source).then_some((id, stored))
    });
    Ok(records.collect())
}

fn origin_of(stored: &Stored) -> Option<Origin> {
    serde_json::from_value(stored.document.get("Origin")?.clone()).ok()
}

/// The taps that a record names.
fn taps(document: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let interfaces = document.get("NetworkInterfaces").and_then(Value::as_array);
    let interfaces = interfaces.into_iter().flatten();
    interfaces.filter_map(|interface| interface.get("Tap")?.as_str())
}

/// The id of an instance that has no other: `i-` and the first digits of a digest, so that ids stay apart where UUIDs or
/// numbers differ in their last digit only.
fn derived_id(name: &[u8]) -> String {
    let digest = Sha256::digest(name);
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("i-{}", digits.get(..ID_DIGITS).unwrap_or(&digits))
}

/// The instance type of a machine that nobody gave one.
fn derived_type(processors: u64, memory_mib: u64) -> String {
    format!("{processors}vcpu-{memory_mib}mib")
}

#[cfg(test)]
mod tests;
