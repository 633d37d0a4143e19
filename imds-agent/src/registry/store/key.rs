//! Which record is meant, and in which version.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::{Claim, Finding, Kind, Record, StoreError, account_of};
use crate::registry::InstanceId;

/// Which record is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Key {
    /// An instance by its id.
    Instance(InstanceId),
    /// A role by its ARN, or by its name where only one account has a role of that name.
    Role(String),
    /// An instance profile by its ARN or name, in the same way.
    InstanceProfile(String),
}

/// Tells one version of a file from another: a digest of its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revision(String);

/// What has to be so, else nothing is written.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Expect {
    /// Nothing.
    #[default]
    Anything,
    /// There is no such record yet.
    Absent,
    /// There is, in this version.
    At(Revision),
}

impl Key {
    /// What kind of record.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Instance(_) => Kind::Instance,
            Self::Role(_) => Kind::Role,
            Self::InstanceProfile(_) => Kind::InstanceProfile,
        }
    }

    /// The id, or the name without an ARN around it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Instance(id) => id.as_str(),
            Self::Role(name) | Self::InstanceProfile(name) => name.rsplit('/').next().unwrap_or(name),
        }
    }

    /// Whether it is what a file describes.
    pub(super) fn means(&self, identity: Option<&Claim>) -> bool {
        match (self, identity) {
            (Self::Instance(id), Some(Claim::InstanceId(other))) => id == other,
            (Self::Role(asked), Some(Claim::Role(named))) => is_named(asked, "role", &named.0, &named.1),
            (Self::InstanceProfile(asked), Some(Claim::InstanceProfile(named))) => {
                is_named(asked, "instance-profile", &named.0, &named.1)
            }
            _ => false,
        }
    }

    /// Whether the record is the one that this names.
    pub(super) fn check(&self, record: &Record) -> Result<(), StoreError> {
        if self.means(Claim::of(record).first()) {
            return Ok(());
        }
        let field = match self {
            Self::Instance(_) => "InstanceId",
            Self::Role(_) => "RoleName",
            Self::InstanceProfile(_) => "InstanceProfileName",
        };
        Err(StoreError::Invalid(vec![Finding::field(
            field,
            format!("is not that of {self}"),
        )]))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(id) => write!(f, "instance {id}"),
            Self::Role(name) => write!(f, "role {name}"),
            Self::InstanceProfile(name) => write!(f, "instance profile {name}"),
        }
    }
}

impl Revision {
    /// The revision of a file with these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let digest = Sha256::digest(bytes);
        Self(digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
    }

    /// As text: 32 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Revision {
    /// What [`Self::as_str`] gave; any other text is the revision of nothing.
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Expect {
    pub(super) fn check(&self, key: &Key, found: Option<&Revision>) -> Result<(), StoreError> {
        match (self, found) {
            (Self::Anything, _) | (Self::Absent, None) => Ok(()),
            (Self::Absent, Some(_)) => Err(StoreError::Exists(key.clone())),
            (Self::At(expected), Some(found)) if expected == found => Ok(()),
            (Self::At(_), _) => Err(StoreError::Changed(key.clone())),
        }
    }
}

/// Whether `asked`, a name or an ARN, means the one that `account` calls `name`.
fn is_named(asked: &str, kind: &str, account: &str, name: &str) -> bool {
    if !asked.starts_with("arn:") {
        return asked == name;
    }
    account_of(asked, kind) == account && asked.rsplit('/').next() == Some(name)
}
