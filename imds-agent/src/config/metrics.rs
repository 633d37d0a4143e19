//! The section of the configuration about metrics.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;

use super::path_or_nothing;
use crate::observe::metrics::Settings;

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Metrics {
    #[serde(deserialize_with = "path_or_nothing")]
    socket: PathBuf,
    addresses: Vec<SocketAddr>,
    pub(super) per_tap: bool,
}

impl Metrics {
    /// For the endpoint. Nothing if it is to listen nowhere.
    pub fn settings(&self) -> Option<Settings> {
        let socket = (!self.socket.as_os_str().is_empty()).then(|| self.socket.clone());
        (socket.is_some() || !self.addresses.is_empty()).then(|| Settings {
            socket,
            addresses: self.addresses.clone(),
        })
    }
}

impl Default for Metrics {
    /// The socket alone. What listens on the loopback address can be reached by every user of the host, and by every guest
    /// whose network is QEMU's own (`-netdev user` maps 10.0.2.2 to it); a socket has a mode.
    fn default() -> Self {
        Self {
            socket: "/run/imds-agent/metrics.sock".into(),
            addresses: Vec::new(),
            per_tap: false,
        }
    }
}
