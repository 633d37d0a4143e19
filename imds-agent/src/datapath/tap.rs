//! Tap devices by name and index, in the network namespace of the calling thread.

use std::io;

use imds_ebpf::abi::{NamespaceNumber, TapIndex};
use nix::{
    errno::Errno,
    net::if_::{if_indextoname, if_nametoindex},
};
use thiserror::Error;

/// A device cannot be told.
#[derive(Debug, Error)]
pub enum TapError {
    /// There is none of this name.
    #[error("there is no network device {name:?}")]
    NoSuchName {
        /// The name asked for.
        name: String,
        /// What the kernel said.
        source: Errno,
    },
    /// There is none of this index.
    #[error("there is no network device with index {tap}")]
    NoSuchIndex {
        /// The index asked for.
        tap: TapIndex,
        /// What the kernel said.
        source: Errno,
    },
    /// The network namespace is not known.
    #[error(
        "there is no network namespace {namespace:?}, or `network_namespaces` in the configuration leaves it out"
    )]
    NoSuchNamespace {
        /// Its name.
        namespace: String,
    },
    /// The network namespace cannot be gone to.
    #[error("cannot enter network namespace {namespace:?}")]
    Away {
        /// Its name.
        namespace: String,
        /// Why not.
        source: io::Error,
    },
}

/// The index of the device called `name`.
pub fn index_of(name: &str) -> Result<TapIndex, TapError> {
    match if_nametoindex(name) {
        Ok(index) => Ok(TapIndex(index.into())),
        Err(source) => Err(TapError::NoSuchName {
            name: name.to_owned(),
            source,
        }),
    }
}

/// The name of the device with index `tap`.
pub fn name_of(tap: TapIndex) -> Result<String, TapError> {
    match if_indextoname(tap.ifindex()) {
        Ok(name) => Ok(name.to_string_lossy().into_owned()),
        Err(source) => Err(TapError::NoSuchIndex { tap, source }),
    }
}

/// A device as messages name it: its name when it still has one, and its index. `name` asks for that of one that is elsewhere.
pub(super) fn describe(tap: TapIndex, name: impl FnOnce() -> Option<String>) -> String {
    let name = match tap.namespace() {
        NamespaceNumber::OWN => name_of(tap).ok(),
        _ => name(),
    };
    match (name, tap.namespace()) {
        (Some(name), _) => format!("{name} (index {})", tap.ifindex()),
        (None, NamespaceNumber::OWN) => format!("index {tap}"),
        (None, NamespaceNumber(number)) => {
            format!("index {} of network namespace {number}", tap.ifindex())
        }
    }
}
