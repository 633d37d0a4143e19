//! The section of the configuration about the security token service that the agent itself is.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{path_or_nothing, within};
use crate::sts::{self, tls::Certificate};

/// What relying parties, which verify what many guests have signed, ask for at their busiest.
const REQUESTS_PER_SECOND: u64 = 100;

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StsEndpoint {
    http: Vec<SocketAddr>,
    https: Vec<SocketAddr>,
    #[serde(deserialize_with = "path_or_nothing")]
    certificate_file: PathBuf,
    #[serde(deserialize_with = "path_or_nothing")]
    private_key_file: PathBuf,
    certificate_names: Vec<String>,
    #[serde(deserialize_with = "within::<_, 0, 1000000>")]
    requests_per_second: u64,
}

impl Default for StsEndpoint {
    fn default() -> Self {
        Self {
            http: Vec::new(),
            https: Vec::new(),
            certificate_file: PathBuf::new(),
            private_key_file: PathBuf::new(),
            certificate_names: Vec::new(),
            requests_per_second: REQUESTS_PER_SECOND,
        }
    }
}

impl StsEndpoint {
    /// For the listener, which keeps its own things in `keys`. Nothing if it is to listen nowhere.
    pub fn settings(&self, keys: &Path) -> Option<sts::Settings> {
        if self.http.is_empty() && self.https.is_empty() {
            return None;
        }
        let certificate = if self.certificate_file.as_os_str().is_empty() {
            let addresses = self.https.iter().map(|address| address.ip());
            let addresses = addresses.filter(|address| !address.is_unspecified());
            let mut names = self.certificate_names.clone();
            names.extend(addresses.map(|address| address.to_string()));
            if names.is_empty() {
                names.push("localhost".to_owned());
            }
            Certificate::SelfMade {
                path: keys.join("sts-endpoint.pem"),
                names,
            }
        } else {
            Certificate::Given {
                certificate: self.certificate_file.clone(),
                private_key: self.private_key_file.clone(),
            }
        };
        Some(sts::Settings {
            http: self.http.clone(),
            https: self.https.clone(),
            certificate,
            requests_per_second: u32::try_from(self.requests_per_second).unwrap_or(u32::MAX),
        })
    }

    /// What is wrong with the fields together: a field's name, and why.
    pub fn contradiction(&self) -> Option<(&'static str, &'static str)> {
        let is_said = |path: &PathBuf| !path.as_os_str().is_empty();
        match (is_said(&self.certificate_file), is_said(&self.private_key_file)) {
            (true, false) => Some((
                "sts_endpoint.private_key_file",
                "is missing, but there is a certificate_file",
            )),
            (false, true) => Some((
                "sts_endpoint.certificate_file",
                "is missing, but there is a private_key_file",
            )),
            _ => None,
        }
    }
}
