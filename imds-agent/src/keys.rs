//! The agent's own keys: made once, kept in a file that only root can read.
//!
//! A key file is one line, `imds-agent-key-1:<purpose>:<id>:<secret>`, both in hexadecimal, so that it can be copied to the hosts
//! that instances migrate to.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use zeroize::Zeroizing;

/// Bytes of every key's secret.
pub const SECRET_BYTES: usize = 32;

const FORMAT: &str = "imds-agent-key-1";

/// Longer than any key file.
const FILE_BYTES_MAX: u64 = 1024;

/// A secret with a name, so that what was made with it says which key opens it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key<const ID_BYTES: usize> {
    /// The name; not a secret.
    pub id: [u8; ID_BYTES],
    secret: Zeroizing<[u8; SECRET_BYTES]>,
}

/// Authenticates IMDSv2 session tokens.
pub type TokenKey = Key<3>;

/// Seals the session tokens of the embedded issuer's credentials.
pub type IssuerKey = Key<4>;

/// What a key is for: part of its file, so that no file is taken for another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// [`TokenKey`].
    Token,
    /// [`IssuerKey`].
    Issuer,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Reading or making the file failed.
    #[error("key file {path}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else could have read the key.
    #[error(
        "key file {path} is open to others than its owner (mode {mode:o}): make it 0600, or delete it for a new key"
    )]
    Exposed {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key file of this purpose.
    #[error("{path} is not a key file of the expected purpose")]
    Malformed {
        /// The file.
        path: String,
    },
}

impl<const ID_BYTES: usize> Key<ID_BYTES> {
    /// A key from its parts.
    pub fn new(id: [u8; ID_BYTES], secret: [u8; SECRET_BYTES]) -> Self {
        Self {
            id,
            secret: Zeroizing::new(secret),
        }
    }

    /// The secret itself.
    pub fn secret(&self) -> &[u8; SECRET_BYTES] {
        &self.secret
    }

    /// The key in `path`; a new random one is made and kept there if there is none. Of several callers at once, one makes it
    /// and all get that one.
    pub fn load_or_create(path: &Path, purpose: Purpose) -> Result<Self, KeyError> {
        match Self::load(path, purpose) {
            Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Self::create(path, purpose).map_err(|source| KeyError::Io {
                    path: path.display().to_string(),
                    source,
                })?;
                Self::load(path, purpose)
            }
            loaded => loaded,
        }
    }

    /// The keys in all files of `directory`, by name; none if there is no such directory.
    pub fn load_all(directory: &Path, purpose: Purpose) -> Result<Vec<Self>, KeyError> {
        let io_error = |source| KeyError::Io {
            path: directory.display().to_string(),
            source,
        };
        let mut paths = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries
                .and_then(|entries| {
                    entries
                        .map(|entry| Ok(entry?.path()))
                        .collect::<io::Result<Vec<_>>>()
                })
                .map_err(io_error)?,
        };
        paths.sort();
        paths.iter().map(|path| Self::load(path, purpose)).collect()
    }

    /// The key in `path`.
    pub fn load(path: &Path, purpose: Purpose) -> Result<Self, KeyError> {
        let display = || path.display().to_string();
        let io_error = |source| KeyError::Io {
            path: display(),
            source,
        };
        let file = File::open(path).map_err(io_error)?;
        let mode = file.metadata().map_err(io_error)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed {
                path: display(),
                mode,
            });
        }
        let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize));
        file.take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(io_error)?;
        Self::parse(&text, purpose).ok_or_else(|| KeyError::Malformed { path: display() })
    }

    fn parse(text: &str, purpose: Purpose) -> Option<Self> {
        let mut parts = text.trim_end().split(':');
        if parts.next()? != FORMAT || parts.next()? != purpose.name() {
            return None;
        }
        let id = from_hex(parts.next()?)?;
        let secret = Zeroizing::new(from_hex(parts.next()?)?);
        parts.next().is_none().then_some(Self { id, secret })
    }

    /// Makes a random key and keeps it in `path`. A file that is there stays.
    pub fn create(path: &Path, purpose: Purpose) -> io::Result<()> {
        let mut key = Self::new([0; ID_BYTES], [0; SECRET_BYTES]);
        getrandom::fill(&mut key.id)?;
        getrandom::fill(key.secret.as_mut_slice())?;
        let line = Zeroizing::new(format!(
            "{FORMAT}:{}:{}:{}\n",
            purpose.name(),
            &*to_hex(&key.id),
            &*to_hex(key.secret.as_slice())
        ));
        write_once(path, 0o600, line.as_bytes())
    }
}

/// Makes the file whole or not at all, and never over another: then the other one stays. Its directory is made for root
/// alone where there is none.
pub fn write_once(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().mode(0o700).recursive(true).create(directory)?;
    let mut suffix = [0; 8];
    getrandom::fill(&mut suffix)?;
    let temporary = directory.join(format!(".new-key-{}", &*to_hex(&suffix)));
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(mode).open(&temporary);
    let written = opened.and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    // A link, unlike a rename, does not replace what another agent made in the meantime.
    let linked = written.and_then(|()| match fs::hard_link(&temporary, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    let removed = fs::remove_file(&temporary);
    linked.and(removed)?;
    File::open(directory)?.sync_all()
}

impl<const ID_BYTES: usize> fmt::Debug for Key<ID_BYTES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", &*to_hex(&self.id))
    }
}

impl Purpose {
    const fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Issuer => "issuer",
        }
    }
}

fn to_hex(bytes: &[u8]) -> Zeroizing<String> {
    // Room for all of it beforehand: growing would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(bytes.len() * 2));
    for byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(nibble.into(), 16));
        }
    }
    text
}

fn from_hex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    if text.len() != BYTES * 2 {
        return None;
    }
    let mut bytes = [0; BYTES];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |at: usize| pair.get(at).and_then(|&digit| char::from(digit).to_digit(16));
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn created_once_then_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys/token");
        let made = TokenKey::load_or_create(&path, Purpose::Token).unwrap();
        let loaded = TokenKey::load_or_create(&path, Purpose::Token).unwrap();
        assert!(made == loaded);
        assert_ne!(made.secret(), &[0; SECRET_BYTES]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777,
            0o700
        );
        let names: Vec<_> = fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["token"], "nothing is left behind");
    }

    #[test]
    fn of_many_creators_all_get_one_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("issuer");
        let keys: Vec<IssuerKey> = std::thread::scope(|scope| {
            let load = || IssuerKey::load_or_create(&path, Purpose::Issuer).unwrap();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn exposed_foreign_or_damaged_file_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let key = TokenKey::load_or_create(&path, Purpose::Token).unwrap();
        assert!(matches!(
            IssuerKey::load_or_create(&path, Purpose::Issuer),
            Err(KeyError::Malformed { .. })
        ));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = TokenKey::load_or_create(&path, Purpose::Token).unwrap_err();
        assert!(matches!(error, KeyError::Exposed { mode: 0o640, .. }), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();

        let good = fs::read_to_string(&path).unwrap();
        for damaged in [
            String::new(),
            good[..good.len() - 3].to_owned(),
            good.replace(':', "-"),
            format!("{}:\n", good.trim()),
        ] {
            fs::write(&path, &damaged).unwrap();
            let error = TokenKey::load_or_create(&path, Purpose::Token).unwrap_err();
            assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
        fs::write(&path, &good).unwrap();
        assert!(TokenKey::load_or_create(&path, Purpose::Token).unwrap() == key);
    }

    #[test]
    fn debug_shows_the_id_alone() {
        assert_eq!(
            format!("{:?}", TokenKey::new([1, 2, 255], [0xab; 32])),
            "Key(0102ff)"
        );
    }
}
