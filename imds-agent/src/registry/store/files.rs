//! What the store remembers of the files, so that a write need not read thousands of them: a file is read again only
//! where its inode, size or times say that it is another.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Claim, FileKey, Finding, Kind, StoreError, account_of, bare_mut, is_record_name};
use crate::registry::record::RECORD_BYTES_MAX;

/// All files that may be records.
#[derive(Default, Debug)]
pub(super) struct Files(BTreeMap<FileKey, Known>);

/// What a file says, as far as it can be told; it need not be good.
#[derive(Clone, PartialEq, Default, Debug)]
pub(super) struct Known {
    stamp: Stamp,
    /// Whom or what the file describes.
    pub identity: Option<Claim>,
    /// Whatever else it claims.
    claims: Vec<Claim>,
    /// Roles that it names, for an instance profile.
    names: Vec<Claim>,
}

/// Inode, bytes, and the nanoseconds of the last writing and the last change of anything.
type Stamp = (u64, u64, i128, i128);

impl Files {
    /// Brings the memory of one directory up to date.
    pub fn refresh(&mut self, root: &Path, kind: Kind) -> Result<(), StoreError> {
        let directory = root.join(kind.directory());
        let mut before: HashMap<FileKey, Known> =
            self.0.extract_if(.., |file, _| file.kind == kind).collect();
        let failed = |source| StoreError::io("read", &directory, source);
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if !is_record_name(&name) {
                continue;
            }
            let path = directory.join(&name);
            // Gone since it was listed, or a link to nowhere.
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            let nanoseconds =
                |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
            let stamp = (
                metadata.ino(),
                metadata.size(),
                nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
                nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            );
            let file = FileKey { kind, name };
            let known = match before.remove(&file) {
                Some(known) if known.stamp == stamp => known,
                _ if metadata.is_file() => Known {
                    stamp,
                    ..look(kind, &path)
                },
                _ => Known {
                    stamp,
                    ..Known::default()
                },
            };
            self.0.insert(file, known);
        }
        Ok(())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&FileKey, &Known)> {
        self.0.iter()
    }

    /// What a file describes.
    pub fn identity(&self, file: &FileKey) -> Option<&Claim> {
        self.0.get(file)?.identity.as_ref()
    }

    /// The file, other than `except`, that has what is claimed.
    pub fn holder(&self, claim: &Claim, except: Option<&FileKey>) -> Option<&FileKey> {
        let holds = |known: &Known| known.identity.as_ref() == Some(claim) || known.claims.contains(claim);
        let found = self
            .0
            .iter()
            .find(|(file, known)| Some(*file) != except && holds(known));
        found.map(|(file, _)| file)
    }

    /// The file that names what `identity` says.
    pub fn namer(&self, identity: &Claim) -> Option<&FileKey> {
        let found = self.0.iter().find(|(_, known)| known.names.contains(identity));
        found.map(|(file, _)| file)
    }

    /// The name for the file of a new record: its own name if that can be a file's, and if no other record has it. A file of that
    /// name that describes nothing that can be told is taken for a broken version of this one.
    pub fn free_name(&self, kind: Kind, name: &str) -> FileKey {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.+=,@".contains(byte);
        let is_name = name.len() <= 200 && !name.starts_with('.') && name.bytes().all(|byte| is_plain(&byte));
        let base = if is_name {
            name.to_owned()
        } else {
            let digest = Sha256::digest(name);
            digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
        };
        let names = (1_u32..).map(|number| match number {
            1 => format!("{base}.json"),
            number => format!("{base}.{number}.json"),
        });
        let mut files = names.map(|name| FileKey {
            kind,
            name: name.into(),
        });
        let is_free = |file: &FileKey| self.0.get(file).is_none_or(|known| known.identity.is_none());
        files.find(is_free).expect("there are more numbers than files")
    }
}

/// A file's JSON.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, Finding> {
    serde_json::from_slice(bytes).map_err(|error| Finding {
        place: Some((error.line(), error.column())),
        ..Finding::whole("is not JSON")
    })
}

/// Reads what a file claims from its JSON alone: one with a slip in another field still means the same instance.
fn look(kind: Kind, path: &Path) -> Known {
    let mut bytes = Vec::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(RECORD_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
    let Ok(mut value) = read.map_err(drop).and_then(|_| parse(&bytes).map_err(drop)) else {
        return Known::default();
    };
    let Some(document) = bare_mut(kind, &mut value) else {
        return Known::default();
    };
    let text = |value: &Value, field: &str| Some(value.get(field)?.as_str()?.to_owned());
    let document = Value::Object(std::mem::take(document));
    let list = |field| {
        document
            .get(field)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let arn = text(&document, "Arn").unwrap_or_default();
    match kind {
        Kind::Instance => {
            let claims = list("NetworkInterfaces").flat_map(|interface| {
                let mac = text(interface, "MacAddress").and_then(|mac| mac.parse().ok());
                let tap = text(interface, "Tap");
                [
                    mac.map(|mac| Claim::mac(mac, tap.as_deref())),
                    tap.map(|tap| Claim::Tap(tap.as_str().into())),
                ]
            });
            Known {
                identity: text(&document, "InstanceId")
                    .and_then(|id| id.parse().ok())
                    .map(Claim::InstanceId),
                claims: claims.flatten().collect(),
                ..Known::default()
            }
        }
        Kind::Role => Known {
            identity: text(&document, "RoleName").map(|name| Claim::role(account_of(&arn, "role"), name)),
            ..Known::default()
        },
        Kind::InstanceProfile => {
            let account = account_of(&arn, "instance-profile");
            let names = list("Roles").filter_map(|role| {
                let account = text(role, "Arn").map_or(account.clone(), |arn| account_of(&arn, "role"));
                Some(Claim::role(account, text(role, "RoleName")?))
            });
            Known {
                names: names.collect(),
                identity: text(&document, "InstanceProfileName")
                    .map(|name| Claim::instance_profile(account.clone(), name)),
                ..Known::default()
            }
        }
    }
}
