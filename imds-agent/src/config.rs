//! The configuration file, read into a validated [`Config`]. `docs/examples/config.toml` shows every field with its default.

mod control;
mod credentials;
mod file;
mod metrics;
mod network_namespaces;
#[cfg(test)]
mod reference;
mod sts_endpoint;
mod taps;

use std::{
    collections::BTreeSet,
    fmt, io,
    ops::Range,
    path::{Path, PathBuf},
};

use imds_ebpf::abi::{PACKETS_PER_SECOND, WORKERS_MAX};
use serde::{Deserialize, Deserializer, de};
use toml::de::DeTable;

use self::{control::Control, credentials::Credentials, metrics::Metrics, sts_endpoint::StsEndpoint};
pub use self::{file::ConfigFile, network_namespaces::NetworkNamespaces, taps::Taps};
use crate::{
    control::{self as operators, Reloaded},
    credentials::sources,
    imds::ExtendedCredentials,
    observe,
    registry::{
        HttpEndpoint, HttpProtocolIpv6, HttpTokens, InstanceMetadataTags, InstanceMetadataTagsIndex,
        MetadataOptions, Rules, record::USER_DATA_BYTES_MAX,
    },
    sts,
};

/// Where the configuration is unless the operator says otherwise.
pub const DEFAULT_PATH: &str = "/etc/imds-agent/config.toml";

/// Requests of one interface that are answered in a second, sustained: a quarter of the packets that EC2 lets it send, which is
/// as many as can come with a connection each (SYN, acknowledgement, request, FIN). Two hundred guests that all ask
/// that much are what one worker can answer.
const REQUESTS_PER_SECOND: u32 = PACKETS_PER_SECOND / 4;

/// One answers more than all but the largest hosts ask ([`WORKERS_MAX`] has the sum), and their cores are the guests'.
const WORKERS: u64 = 1;

/// What is made out of an invalid file: where pins and records are, and what holds for records. `taps` is not, as those that half a list
/// leaves out would be without the classifier.
const MADE_OUT: [&str; 5] = [
    "bpf_directory",
    "network_namespaces",
    "state_directory",
    "user_data_bytes_max",
    "metadata_options",
];

/// Everything that can be configured.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The user that the agent becomes when root starts it; empty to stay root.
    user: String,
    /// Holds the registry's directories and the keys.
    #[serde(deserialize_with = "absolute")]
    pub state_directory: PathBuf,
    /// Where the classifier's links and maps are pinned.
    #[serde(deserialize_with = "absolute")]
    pub bpf_directory: PathBuf,
    /// On which taps the classifier is attached.
    pub taps: Taps,
    /// In which other network namespaces there are taps.
    pub network_namespaces: NetworkNamespaces,
    /// Threads that serve guests.
    #[serde(deserialize_with = "within::<_, 1, { WORKERS_MAX as u64 }>")]
    workers: u64,
    /// Packets of one tap that are served in a second; zero sets no limit.
    #[serde(deserialize_with = "within::<_, 0, 1000000>")]
    packets_per_second: u64,
    /// Requests of one interface that are answered in a second; zero sets no limit.
    #[serde(deserialize_with = "within::<_, 0, 1000000>")]
    requests_per_second: u64,
    /// Longest user data, before base64.
    #[serde(deserialize_with = "within::<_, 0, 524288>")]
    pub user_data_bytes_max: u64,
    /// The least severe messages that are logged.
    pub log_level: LogLevel,
    /// The audit trail; empty for none.
    #[serde(deserialize_with = "path_or_nothing")]
    audit_file: PathBuf,
    /// The operators' socket.
    control: Control,
    /// What holds for an instance whose record does not say.
    metadata_options: MetadataDefaults,
    /// Role credentials.
    credentials: Credentials,
    /// The security token service for the credentials of the embedded issuer.
    sts_endpoint: StsEndpoint,
    /// Metrics for Prometheus.
    metrics: Metrics,
}

/// How much is logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are those of the log crate")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What the file says is wrong.
    #[error("{}{}{}: {message}", path.display(), Place(*place), Named(field))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line and column, from 1.
        place: Option<(usize, usize)>,
        /// `credentials.source`, or empty.
        field: String,
        /// What is wrong, and what would be right.
        message: String,
    },
}

impl Config {
    /// Reads the file at `path`, which must be there.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// The defaults with what can be made out of a file that is invalid otherwise, of the fields [`MADE_OUT`]: for what has to
    /// work with such a file, too. And which of them are written there and could not be made out.
    pub fn made_out_of(path: &Path) -> (Self, Vec<&'static str>) {
        let mut text = std::fs::read_to_string(path).unwrap_or_default();
        let mut lost = MADE_OUT.to_vec();
        lost.retain(|name| text.lines().any(|line| line.trim_start().starts_with(name)));
        // A mistake may hide all that is written behind it.
        loop {
            let (_, errors) = DeTable::parse_recoverable(&text);
            let without = without_lines(&text, errors.iter().filter_map(toml::de::Error::span));
            if without == text {
                break;
            }
            text = without;
        }
        let (root, errors) = DeTable::parse_recoverable(&text);
        // Half a string would be another place.
        let is_whole = |value: &Range<usize>| {
            let mut errors = errors.iter().filter_map(toml::de::Error::span);
            errors.all(|error| are_on_other_lines(&text, value, &error))
        };
        let values = root.get_ref().iter();
        let whole: BTreeSet<String> = values
            .filter(|(_, value)| is_whole(&value.span()))
            .map(|(name, _)| name.get_ref().to_string())
            .collect();
        let table = toml::Table::deserialize(toml::Deserializer::from(root)).unwrap_or_default();
        let fields = table.into_iter().filter(|(name, value)| {
            let alone = toml::Table::from_iter([(name.clone(), value.clone())]);
            MADE_OUT.contains(&&**name) && whole.contains(name) && alone.try_into::<Self>().is_ok()
        });
        let fields = toml::Table::from_iter(fields);
        lost.retain(|name| !fields.contains_key(*name));
        (fields.try_into().unwrap_or_default(), lost)
    }

    /// What holds for instance records.
    pub fn rules(&self) -> Rules {
        let options = self.metadata_options;
        Rules {
            options: MetadataOptions {
                http_endpoint: options.http_endpoint,
                http_tokens: options.http_tokens,
                http_put_response_hop_limit: u8::try_from(options.http_put_response_hop_limit)
                    .unwrap_or(u8::MAX),
                http_protocol_ipv6: options.http_protocol_ipv6,
                instance_metadata_tags: options.instance_metadata_tags,
                instance_metadata_tags_index: options.instance_metadata_tags_index,
            },
            user_data_bytes_max: usize::try_from(self.user_data_bytes_max).unwrap_or(usize::MAX),
        }
    }

    /// Who the agent is to be, if not who started it.
    pub fn user(&self) -> Option<&str> {
        (!self.user.is_empty()).then_some(&*self.user)
    }

    /// What holds for role credentials.
    pub fn credentials(&self) -> sources::Settings {
        self.credentials.settings()
    }

    /// Where the host's keys are.
    pub fn keys_directory(&self) -> PathBuf {
        self.state_directory.join("keys")
    }

    /// How many threads serve guests.
    pub fn workers(&self) -> usize {
        usize::try_from(self.workers).unwrap_or(usize::MAX)
    }

    /// How many packets of one tap are served in a second; zero sets no limit.
    pub fn packets_per_second(&self) -> u32 {
        u32::try_from(self.packets_per_second).unwrap_or(u32::MAX)
    }

    /// How many requests of one interface are answered in a second; zero sets no limit.
    pub fn requests_per_second(&self) -> u32 {
        u32::try_from(self.requests_per_second).unwrap_or(u32::MAX)
    }

    /// The file of the key that authenticates session tokens.
    pub fn token_key_path(&self) -> PathBuf {
        self.keys_directory().join("token")
    }

    /// Whether guests may ask for the undocumented form of role credentials.
    pub fn extended_credentials(&self) -> ExtendedCredentials {
        if self.credentials.extended {
            ExtendedCredentials::Enabled
        } else {
            ExtendedCredentials::Disabled
        }
    }

    /// The file of the audit trail, if there is to be one.
    pub fn audit_file(&self) -> Option<&Path> {
        (!self.audit_file.as_os_str().is_empty()).then_some(&*self.audit_file)
    }

    /// The operators' socket; nothing if there is to be none.
    pub fn control(&self) -> Option<operators::Settings> {
        self.control.settings()
    }

    /// What differs in `new`: the fields that a running agent can put in force, and those that wait for its restart. To go to other
    /// network namespaces takes a capability that an agent which began without any has given up.
    pub fn changes(&self, new: &Self, goes_elsewhere: bool) -> Reloaded {
        let namespaces_differ = self.network_namespaces != new.network_namespaces;
        let live = [
            ("log_level", self.log_level != new.log_level),
            ("taps", self.taps != new.taps),
            ("network_namespaces", namespaces_differ && goes_elsewhere),
            (
                "packets_per_second",
                self.packets_per_second != new.packets_per_second,
            ),
            (
                "user_data_bytes_max",
                self.user_data_bytes_max != new.user_data_bytes_max,
            ),
            ("metadata_options", self.metadata_options != new.metadata_options),
        ];
        let fixed = [
            ("network_namespaces", namespaces_differ && !goes_elsewhere),
            ("user", self.user != new.user),
            ("state_directory", self.state_directory != new.state_directory),
            ("bpf_directory", self.bpf_directory != new.bpf_directory),
            ("workers", self.workers != new.workers),
            (
                "requests_per_second",
                self.requests_per_second != new.requests_per_second,
            ),
            ("audit_file", self.audit_file != new.audit_file),
            ("control", self.control != new.control),
            ("credentials", self.credentials != new.credentials),
            ("sts_endpoint", self.sts_endpoint != new.sts_endpoint),
            ("metrics", self.metrics != new.metrics),
        ];
        let named = |fields: &[(&'static str, bool)]| {
            fields
                .iter()
                .filter(|(_, differs)| *differs)
                .map(|(name, _)| *name)
                .collect()
        };
        Reloaded {
            changed: named(&live),
            needs_restart: named(&fixed),
        }
    }

    /// This configuration with those fields of `new` that a running agent can put in force.
    #[must_use]
    pub fn with_live_fields_of(self, new: Self, goes_elsewhere: bool) -> Self {
        let network_namespaces = if goes_elsewhere {
            new.network_namespaces
        } else {
            self.network_namespaces
        };
        Self {
            log_level: new.log_level,
            taps: new.taps,
            network_namespaces,
            packets_per_second: new.packets_per_second,
            user_data_bytes_max: new.user_data_bytes_max,
            metadata_options: new.metadata_options,
            ..self
        }
    }

    /// Where the security token service listens; nothing if it does not.
    pub fn sts_endpoint(&self) -> Option<sts::Settings> {
        self.sts_endpoint.settings(&self.keys_directory())
    }

    /// Where metrics are to be had; nothing if nowhere.
    pub fn metrics(&self) -> Option<observe::metrics::Settings> {
        self.metrics.settings()
    }

    /// Whether metrics tell each tap's frames.
    pub fn has_metrics_per_tap(&self) -> bool {
        self.metrics.per_tap
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let invalid = |place, field, message| ConfigError::Invalid {
            path: path.to_owned(),
            place,
            field,
            message,
        };
        let syntax = |error: &toml::de::Error| {
            (
                error.span().map(|span| place(text, span.start)),
                error.message().to_owned(),
            )
        };
        let deserializer = toml::Deserializer::parse(text).map_err(|error| {
            let (place, message) = syntax(&error);
            invalid(place, String::new(), message)
        })?;
        let config: Self = serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let field = error.path().to_string();
            let (place, message) = syntax(error.inner());
            invalid(place, field.trim_matches('.').to_owned(), message)
        })?;
        let contradictions = [
            config.credentials.contradiction(),
            config.sts_endpoint.contradiction(),
        ];
        if let Some((field, message)) = contradictions.into_iter().flatten().next() {
            return Err(invalid(None, field.to_owned(), message.to_owned()));
        }
        Ok(config)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
struct MetadataDefaults {
    http_endpoint: HttpEndpoint,
    http_tokens: HttpTokens,
    #[serde(deserialize_with = "within::<_, 1, 64>")]
    http_put_response_hop_limit: u64,
    http_protocol_ipv6: HttpProtocolIpv6,
    instance_metadata_tags: InstanceMetadataTags,
    instance_metadata_tags_index: InstanceMetadataTagsIndex,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            user: String::new(),
            state_directory: "/var/lib/imds-agent".into(),
            bpf_directory: "/sys/fs/bpf/imds-agent".into(),
            taps: Taps::default(),
            network_namespaces: NetworkNamespaces::default(),
            workers: WORKERS,
            packets_per_second: PACKETS_PER_SECOND.into(),
            requests_per_second: REQUESTS_PER_SECOND.into(),
            user_data_bytes_max: USER_DATA_BYTES_MAX as u64,
            log_level: LogLevel::default(),
            audit_file: "/var/log/imds-agent/audit.jsonl".into(),
            control: Control::default(),
            metadata_options: MetadataDefaults::default(),
            credentials: Credentials::default(),
            sts_endpoint: StsEndpoint::default(),
            metrics: Metrics::default(),
        }
    }
}

impl Default for MetadataDefaults {
    fn default() -> Self {
        let options = MetadataOptions::default();
        Self {
            http_endpoint: options.http_endpoint,
            http_tokens: options.http_tokens,
            http_put_response_hop_limit: options.http_put_response_hop_limit.into(),
            http_protocol_ipv6: options.http_protocol_ipv6,
            instance_metadata_tags: options.instance_metadata_tags,
            instance_metadata_tags_index: options.instance_metadata_tags_index,
        }
    }
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

fn absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(de::Error::custom("not an absolute path"))
    }
}

fn path_or_nothing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.is_absolute() || path.as_os_str().is_empty() {
        Ok(path)
    } else {
        Err(de::Error::custom("not an absolute path"))
    }
}

fn within<'de, D: Deserializer<'de>, const MIN: u64, const MAX: u64>(
    deserializer: D,
) -> Result<u64, D::Error> {
    match i64::deserialize(deserializer)? {
        number if (MIN..=MAX).contains(&u64::try_from(number).unwrap_or(u64::MAX)) => {
            Ok(number.unsigned_abs())
        }
        number => Err(de::Error::custom(format_args!("{number} is not {MIN} to {MAX}"))),
    }
}

/// Line and column of a byte, from 1.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before.get(line_start..).unwrap_or_default().chars().count() + 1,
    )
}

/// The text with spaces in place of the lines on which any of `spans` is.
fn without_lines(text: &str, spans: impl Iterator<Item = Range<usize>>) -> String {
    let spans: Vec<_> = spans.collect();
    let mut line_end = 0;
    let lines = text.split_inclusive('\n').map(|line| {
        let line_start = line_end;
        line_end += line.len();
        let is_on_line = |span: &Range<usize>| {
            // Some are of no length, or behind the last character.
            let start = span.start.min(text.len().saturating_sub(1));
            start < line_end && span.end.max(start + 1) > line_start
        };
        if spans.iter().any(is_on_line) {
            line.replace(|character| character != '\n', " ")
        } else {
            line.to_owned()
        }
    });
    lines.collect()
}

fn are_on_other_lines(text: &str, one: &Range<usize>, other: &Range<usize>) -> bool {
    let (first, second) = if one.start < other.start {
        (one, other)
    } else {
        (other, one)
    };
    let between = text.get(first.end..second.start);
    between.is_some_and(|between| between.contains('\n'))
}

struct Place(Option<(usize, usize)>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .map_or(Ok(()), |(line, column)| write!(f, ":{line}:{column}"))
    }
}

struct Named<'a>(&'a str);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", self.0)
        }
    }
}

#[cfg(test)]
mod tests;
