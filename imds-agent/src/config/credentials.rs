//! The section of the configuration about role credentials.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, de};

use super::{path_or_nothing, within};
use crate::{
    credentials::{process::Environment, sources, sts},
    registry::role::{RoleSource, StsRole},
};

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Credentials {
    source: SourceName,
    pub(super) extended: bool,
    #[serde(deserialize_with = "within::<_, 900, 43200>")]
    duration_seconds: u64,
    process: Process,
    sts: Sts,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SourceName {
    #[default]
    Issuer,
    Process,
    Sts,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Process {
    #[serde(deserialize_with = "command")]
    command: Vec<String>,
    #[serde(deserialize_with = "within::<_, 1, 300>")]
    timeout_seconds: u64,
    #[serde(deserialize_with = "environment")]
    environment: Environment,
}

#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sts {
    #[serde(deserialize_with = "url")]
    endpoint: String,
    #[serde(deserialize_with = "path_or_nothing")]
    ca_file: PathBuf,
    region: String,
    profile: String,
    #[serde(deserialize_with = "path_or_nothing")]
    shared_credentials_file: PathBuf,
    external_id: String,
    source_identity: String,
    session_tags: BTreeMap<String, String>,
    instance_tags: Vec<String>,
}

impl Credentials {
    /// For the sources.
    pub fn settings(&self) -> sources::Settings {
        let Self {
            source,
            extended: _,
            duration_seconds,
            process,
            sts,
        } = self;
        sources::Settings {
            default_source: match source {
                SourceName::Issuer => RoleSource::Issuer,
                SourceName::Process => RoleSource::Process {
                    command: process.command.clone(),
                    timeout_seconds: None,
                },
                SourceName::Sts => RoleSource::Sts(StsRole::default()),
            },
            duration_seconds: u32::try_from(*duration_seconds).unwrap_or(u32::MAX),
            process_timeout: Duration::from_secs(process.timeout_seconds),
            process_environment: process.environment.clone(),
            sts: sts.settings(),
        }
    }

    /// What is wrong with the fields together: a field's name, and why.
    pub fn contradiction(&self) -> Option<(&'static str, &'static str)> {
        let is_dangling = self.source == SourceName::Process && self.process.command.is_empty();
        is_dangling.then_some((
            "credentials.process.command",
            "names no program, but credentials.source is \"process\"",
        ))
    }
}

impl Sts {
    fn settings(&self) -> sts::Settings {
        let said = |text: &String| (!text.is_empty()).then(|| text.clone());
        let path = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
        sts::Settings {
            endpoint: said(&self.endpoint),
            ca_file: path(&self.ca_file),
            region: said(&self.region),
            profile: said(&self.profile),
            shared_credentials_file: path(&self.shared_credentials_file),
            external_id: said(&self.external_id),
            source_identity: said(&self.source_identity),
            session_tags: self.session_tags.clone(),
            instance_tags: self.instance_tags.clone(),
        }
    }
}

impl Default for Credentials {
    /// Six hours, as on EC2.
    fn default() -> Self {
        Self {
            source: SourceName::default(),
            extended: true,
            duration_seconds: 6 * 3600,
            process: Process::default(),
            sts: Sts::default(),
        }
    }
}

impl Default for Process {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            timeout_seconds: 30,
            environment: Environment::default(),
        }
    }
}

fn command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let command = Vec::<String>::deserialize(deserializer)?;
    if command.first().is_some_and(|program| !program.starts_with('/')) {
        return Err(de::Error::custom("does not begin with an absolute path"));
    }
    if command.iter().any(|argument| argument.contains('\0')) {
        return Err(de::Error::custom("holds a NUL character"));
    }
    Ok(command)
}

fn environment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Environment, D::Error> {
    // What is there instead is not told: it may be a secret all the same.
    let environment = BTreeMap::<String, String>::deserialize(deserializer)
        .map_err(|_| de::Error::custom("is not a table of texts"))?;
    let legal = |(name, value): (&String, &String)| {
        !name.is_empty() && !name.contains(['=', '\0']) && !name.starts_with("IMDS_") && !value.contains('\0')
    };
    if environment.iter().all(legal) {
        Ok(Environment(environment))
    } else {
        Err(de::Error::custom(
            "a name is empty, holds '=' or begins with IMDS_, or something holds a NUL character",
        ))
    }
}

fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let url = String::deserialize(deserializer)?;
    if url.is_empty() || url.starts_with("https://") || url.starts_with("http://") {
        Ok(url)
    } else {
        Err(de::Error::custom("does not begin with https:// or http://"))
    }
}
