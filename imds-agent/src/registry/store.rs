//! The only writer of the registry's files.
//!
//! A write is checked as the agent's reader checks files, refused where it would take what another file holds, written
//! beside, synced and renamed into place, so that a reader and a power cut find the old file or the new one. Every
//! write holds one lock, which other processes with a store on the same directory honour too, and looks at the files
//! anew once it has it: of two writers each builds on what the other wrote. An operator's editor honours nothing, so a
//! [`Revision`] tells whether a file is still what it was when somebody looked.
//!
//! A record may lie under any file name. One that is new gets its own name; one that exists stays where it is.

mod error;
mod files;
mod key;

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::{Map, Value};

use self::files::Files;
pub use self::{
    error::StoreError,
    key::{Expect, Key, Revision},
};
use super::{
    claim::{Claim, account_of},
    directory::is_record_name,
    instance::InstanceId,
    problem::Finding,
    record::{self, Kind, Record, Rules},
    records::FileKey,
};

/// Held by whoever writes.
const LOCK_FILE: &str = ".lock";

/// What the names of half-written files begin with. Such a file outlives its writer only when that was killed.
const UNFINISHED: &str = ".unfinished-";

/// Writes records into a state directory. To be shared by reference; its calls block on the disk.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// Locked for no longer than a copy takes, whatever a writer waits for.
    rules: Mutex<Rules>,
    files: Mutex<Files>,
}

/// One record as it lies on disk, whether the agent can use it or not.
#[derive(Clone, PartialEq)]
pub struct Stored {
    /// The bare object: what the AWS CLI prints around it is taken off.
    pub document: Map<String, Value>,
    /// What the agent's reader makes of the file; nothing if it is wrong.
    pub record: Option<Record>,
    /// Which version.
    pub revision: Revision,
    /// The file, below the state directory.
    pub file: PathBuf,
}

/// Without the document, which may hold user data.
impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stored({} of {})", self.revision.as_str(), self.file.display())
    }
}

/// What came of a write.
#[derive(Clone, PartialEq, Debug)]
pub struct Put {
    /// The version that is on disk now.
    pub revision: Revision,
    /// What the agent's reader makes of it.
    pub record: Record,
    /// What it says without effect.
    pub warnings: Vec<Finding>,
    /// Whether there was no such record before.
    pub is_new: bool,
}

impl Store {
    /// Writes below `state_directory`, which may still have to be made; records have to be good by `rules`.
    pub fn new(state_directory: &Path, rules: Rules) -> Self {
        Self {
            root: state_directory.to_owned(),
            rules: Mutex::new(rules),
            files: Mutex::default(),
        }
    }

    /// What records have to be good by.
    pub fn rules(&self) -> Rules {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on records have to be good by `rules`.
    pub fn set_rules(&self, rules: Rules) {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    /// Writes an instance's record, whatever was there before.
    pub fn put_instance(&self, id: &InstanceId, document: &[u8]) -> Result<Put, StoreError> {
        self.put(&Key::Instance(id.clone()), document, &Expect::Anything)
    }

    /// Deletes an instance's record.
    pub fn delete_instance(&self, id: &InstanceId) -> Result<(), StoreError> {
        self.delete(&Key::Instance(id.clone()), &Expect::Anything)
    }

    /// Changes an instance's record; whatever `change` does not touch stays, known to the agent or not.
    pub fn amend_instance(
        &self,
        id: &InstanceId,
        change: impl FnOnce(&mut Map<String, Value>),
    ) -> Result<Put, StoreError> {
        self.amend(&Key::Instance(id.clone()), &Expect::Anything, |document| {
            change(document);
            Ok(())
        })
    }

    /// The record as it is on disk.
    pub fn get(&self, key: &Key) -> Result<Stored, StoreError> {
        let mut files = self.files();
        files.refresh(&self.root, key.kind())?;
        self.read(&files, key).map(|(stored, _)| stored)
    }

    /// All records of a kind that can be told, in the order of their files' names.
    pub fn list(&self, kind: Kind) -> Result<Vec<Stored>, StoreError> {
        let mut files = self.files();
        files.refresh(&self.root, kind)?;
        let named = files
            .iter()
            .filter(|(file, known)| file.kind == kind && known.identity.is_some());
        let read = named.map(|(file, _)| self.read_file(file).map(|whole| whole.stored));
        // One that went away since it was listed is no longer on the list.
        let is_gone = |read: &Result<Stored, StoreError>| matches!(read, Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound);
        read.filter(|read| !is_gone(read)).collect()
    }

    /// Writes a record, in place of the one that is there or as a new file. `document` is the bare object, or what the AWS
    /// CLI prints around it.
    pub fn put(&self, key: &Key, document: &[u8], expect: &Expect) -> Result<Put, StoreError> {
        let _lock = self.lock()?;
        let mut files = self.files();
        files.refresh(&self.root, key.kind())?;
        let before = match self.read(&files, key) {
            Ok(found) => Some(found),
            Err(StoreError::NotFound(_)) => None,
            Err(error) => return Err(error),
        };
        expect.check(key, before.as_ref().map(|(stored, _)| &stored.revision))?;
        let file = before.map(|(_, whole)| whole.file);
        let is_new = file.is_none();
        let put = self.write(&mut files, key, file, document)?;
        Ok(Put { is_new, ..put })
    }

    /// Reads a record, lets `change` have its way with the bare object, and writes it back with all that is around it.
    /// Nothing is written where nothing was changed.
    pub fn amend(
        &self,
        key: &Key,
        expect: &Expect,
        change: impl FnOnce(&mut Map<String, Value>) -> Result<(), StoreError>,
    ) -> Result<Put, StoreError> {
        let _lock = self.lock()?;
        let mut files = self.files();
        files.refresh(&self.root, key.kind())?;
        let (stored, mut whole) = self.read(&files, key)?;
        expect.check(key, Some(&stored.revision))?;
        let before = whole.value.clone();
        match bare_mut(key.kind(), &mut whole.value) {
            Some(document) => change(document)?,
            None => return Err(StoreError::Invalid(vec![Finding::whole("holds no such object")])),
        }
        if whole.value == before
            && let Ok((record, warnings)) = record::parse(key.kind(), &whole.bytes, &self.rules())
        {
            let (revision, is_new) = (stored.revision, false);
            return Ok(Put {
                revision,
                record,
                warnings,
                is_new,
            });
        }
        self.write(&mut files, key, Some(whole.file), &to_text(&whole.value))
    }

    /// Deletes a record. A role that an instance profile names stays, and so does an instance profile with a role in it, as
    /// in IAM.
    pub fn delete(&self, key: &Key, expect: &Expect) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let mut files = self.files();
        for kind in Kind::ALL {
            files.refresh(&self.root, kind)?;
        }
        let (stored, whole) = self.read(&files, key)?;
        expect.check(key, Some(&stored.revision))?;
        let identity = files.identity(&whole.file);
        if let Some(file) = identity.and_then(|identity| files.namer(identity)) {
            let (key, file) = (key.clone(), file.path());
            return Err(StoreError::InUse { key, file });
        }
        let is_holding = matches!(key, Key::InstanceProfile(_))
            && stored
                .document
                .get("Roles")
                .and_then(Value::as_array)
                .is_some_and(|roles| !roles.is_empty());
        if is_holding {
            return Err(StoreError::Refused(format!(
                "{key} has a role in it: remove that first"
            )));
        }
        let path = self.root.join(whole.file.path());
        fs::remove_file(&path).map_err(|source| StoreError::io("delete", &path, source))?;
        self.sync_directory(whole.file.kind)
    }

    /// The record, and the file that it is in.
    fn read(&self, files: &Files, key: &Key) -> Result<(Stored, Whole), StoreError> {
        let mut found = files
            .iter()
            .filter(|(_, known)| key.means(known.identity.as_ref()));
        let Some((file, _)) = found.next() else {
            return Err(StoreError::NotFound(key.clone()));
        };
        if let Some((other, _)) = found.next() {
            let files = [file.path(), other.path()];
            return Err(StoreError::Ambiguous {
                key: key.clone(),
                files,
            });
        }
        let whole = self.read_file(file)?;
        Ok((whole.stored.clone(), whole))
    }

    fn read_file(&self, file: &FileKey) -> Result<Whole, StoreError> {
        let path = self.root.join(file.path());
        let bytes = fs::read(&path).map_err(|source| StoreError::io("read", &path, source))?;
        let mut value = files::parse(&bytes).map_err(|finding| StoreError::Invalid(vec![finding]))?;
        let document = bare_mut(file.kind, &mut value).cloned().unwrap_or_default();
        let (revision, path) = (Revision::of(&bytes), file.path());
        let record = record::parse(file.kind, &bytes, &self.rules()).ok();
        let stored = Stored {
            document,
            record: record.map(|(record, _)| record),
            revision,
            file: path,
        };
        Ok(Whole {
            file: file.clone(),
            bytes,
            value,
            stored,
        })
    }

    /// Checks, writes and takes note. The record is taken as an old one.
    fn write(
        &self,
        files: &mut Files,
        key: &Key,
        file: Option<FileKey>,
        document: &[u8],
    ) -> Result<Put, StoreError> {
        let (record, warnings) =
            record::parse(key.kind(), document, &self.rules()).map_err(StoreError::Invalid)?;
        let claims = Claim::of(&record);
        key.check(&record)?;
        // A name may be another account's, too.
        if let Some(file) = &file
            && files.identity(file) != claims.first()
        {
            let other = format!(
                "is not that of {key} in {}: say which by its ARN",
                file.path().display()
            );
            return Err(StoreError::Invalid(vec![Finding::field("Arn", other)]));
        }
        let holders = |claim| files.holder(claim, file.as_ref());
        if let Some((claim, holder)) = claims.iter().find_map(|claim| Some((claim, holders(claim)?))) {
            let (what, file) = (claim.to_string(), holder.path());
            return Err(StoreError::Taken { what, file });
        }
        // For whoever reads it with an editor.
        let value = files::parse(document).map_err(|finding| StoreError::Invalid(vec![finding]))?;
        let text = to_text(&value);
        if text.len() > record::RECORD_BYTES_MAX {
            let finding = format!("is longer than {} bytes", record::RECORD_BYTES_MAX);
            return Err(StoreError::Invalid(vec![Finding::whole(finding)]));
        }
        let file = file.unwrap_or_else(|| files.free_name(key.kind(), key.name()));
        self.replace(&file, &text)?;
        files.refresh(&self.root, key.kind())?;
        let (revision, is_new) = (Revision::of(&text), false);
        Ok(Put {
            revision,
            record,
            warnings,
            is_new,
        })
    }

    /// Beside, synced, renamed, and the rename synced.
    fn replace(&self, file: &FileKey, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.root.join(file.path());
        let mode = match path.symlink_metadata() {
            Ok(found) if found.is_symlink() => return Err(StoreError::Link(path)),
            Ok(found) => found.permissions().mode() & 0o777,
            // Records hold user data.
            Err(_) => 0o600,
        };
        let directory = self.root.join(file.kind.directory());
        let beside = directory.join(format!("{UNFINISHED}{}", std::process::id()));
        let write = || -> io::Result<()> {
            let mut unfinished = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&beside)?;
            io::Write::write_all(&mut unfinished, bytes)?;
            unfinished.set_permissions(fs::Permissions::from_mode(mode))?;
            unfinished.sync_all()?;
            fs::rename(&beside, &path)
        };
        write().map_err(|source| {
            // What is left of it goes with the next write, if not now.
            let _ = fs::remove_file(&beside);
            StoreError::io("write", &path, source)
        })?;
        self.sync_directory(file.kind)
    }

    fn sync_directory(&self, kind: Kind) -> Result<(), StoreError> {
        let path = self.root.join(kind.directory());
        File::open(&path)
            .and_then(|directory| directory.sync_all())
            .map_err(|source| StoreError::io("sync", &path, source))
    }

    /// Waits for other writers, of other processes too; held until dropped.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.root.join(LOCK_FILE);
        let lock = || {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            file.lock()?;
            Ok(file)
        };
        let lock = lock().map_err(|source| StoreError::io("lock", &path, source))?;
        for kind in Kind::ALL {
            self.remove_unfinished(kind);
        }
        Ok(lock)
    }

    /// Removes what killed writers left; whoever has the lock is the only writer.
    fn remove_unfinished(&self, kind: Kind) {
        let entries = fs::read_dir(self.root.join(kind.directory()));
        for entry in entries.into_iter().flatten().flatten() {
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(UNFINISHED.as_bytes())
            {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        // What is in there is only a memory of the files, and read again where it is wrong.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file, read.
struct Whole {
    file: FileKey,
    bytes: Vec<u8>,
    value: Value,
    stored: Stored,
}

/// The object itself, without what the AWS CLI prints around it.
fn bare_mut(kind: Kind, value: &mut Value) -> Option<&mut Map<String, Value>> {
    let wrapper = match kind {
        Kind::Instance => "Reservations",
        Kind::Role => "Role",
        Kind::InstanceProfile => "InstanceProfile",
    };
    // As the reader does: what is around it has one key, or has it first.
    let is_wrapped = value
        .as_object()
        .and_then(|object| object.keys().next())
        .is_some_and(|key| key == wrapper);
    if !is_wrapped {
        return value.as_object_mut();
    }
    let inner = value.get_mut(wrapper)?;
    if kind != Kind::Instance {
        return inner.as_object_mut();
    }
    let reservations = inner.as_array_mut()?.iter_mut();
    let instances = reservations.filter_map(|reservation| reservation.get_mut("Instances")?.as_array_mut());
    instances.flatten().next()?.as_object_mut()
}

fn to_text(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}");
    text.push('\n');
    text.into_bytes()
}

#[cfg(test)]
mod tests;
