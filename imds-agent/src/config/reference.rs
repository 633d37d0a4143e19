//! `docs/configuration.md`, written from the table below. `GOLDEN_BLESS=1` writes it anew.
//!
//! The table has what no type can say: a sentence on each key. All else in it is held against the code: the keys are those that
//! serde knows, each bound is tried on both sides, the default is the example's, which is the code's, and whether a running
//! agent takes a change is asked of [`Config::with_live_fields_of`].

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use super::Config;

const EXAMPLE: &str = include_str!("../../../docs/examples/config.toml");

const PREAMBLE: &str = "\
# Configuration

`/etc/imds-agent/config.toml`, or the file that `--config` names. Every key is optional, an unknown one is refused;
[examples/config.toml](examples/config.toml) has all of them with their defaults, to be copied. `imds-agent check --config FILE` says what is
wrong with a file, by line and key, before an agent has to live with it.

*Live* is what a running agent puts in force on SIGHUP or `imdsctl reload`; the rest waits for a restart, and the agent names what
waits ([control.md](control.md#reload)).

Written from the table in `imds-agent/src/config/reference.rs`, which a test holds against the code and the example.
`GOLDEN_BLESS=1 cargo test --package imds-agent --lib config::reference` writes this file anew.

";

struct Field {
    /// With dots, as TOML has it.
    key: &'static str,
    kind: Kind,
    /// A legal value, in TOML, that is not the default.
    another: &'static str,
    what: &'static str,
}

enum Kind {
    Boolean,
    Integer(u64, u64),
    Choice(&'static [&'static str]),
    Path,
    PathOrEmpty,
    /// Type, bounds in words, and values in TOML that are over them.
    Other(&'static str, &'static str, &'static [&'static str]),
}

use Kind::{Boolean, Choice, Integer, Other, Path as FilePath, PathOrEmpty};

const TEXT: Kind = Other("text", "", &["1"]);
const TEXTS: Kind = Other("list of texts", "", &["\"x\"", "[1]"]);
const ADDRESSES: Kind = Other(
    "list of texts",
    "IP addresses, each with a port",
    &["[\"localhost:1\"]", "[\"127.0.0.1\"]"],
);
const SWITCH: Kind = Choice(&["enabled", "disabled"]);

const fn field(key: &'static str, kind: Kind, another: &'static str, what: &'static str) -> Field {
    Field {
        key,
        kind,
        another,
        what,
    }
}

#[rustfmt::skip]
const FIELDS: &[Field] = &[
    field("user", TEXT, "\"imds-agent\"", "The user that the agent becomes when root starts it; empty stays root."),
    field("state_directory", FilePath, "\"/s\"", "Holds `instances/`, `roles/`, `instance-profiles/` and `keys/`."),
    field("bpf_directory", FilePath, "\"/b\"", "Where the classifier's links and maps are pinned: a directory of a mounted bpffs."),
    field("taps", Other("text or list of texts", "`\"auto\"`, or names and patterns with `*` and `?`", &["\"tap0\"", "1"]), "[\"tap*\"]",
        "On which taps the classifier is attached; `auto` is every tap of the host."),
    field("network_namespaces", Other("list of texts", "names and patterns of network namespaces below `/run/netns`, or absolute paths, all in one directory", &["\"one\"", "[\"a/b\"]", "[\"/a/*/b\"]", "[\"a\", \"/elsewhere/b\"]"]), "[\"fc-*\"]",
        "In which other network namespaces there are taps, which needs `CAP_SYS_ADMIN`. Once there is one it may change without a restart."),
    field("workers", Integer(1, 8), "2", "Threads that serve guests; a tap stays with one of them."),
    field("packets_per_second", Integer(0, 1_000_000), "0", "Packets of one tap that are served in a second; 0 sets no limit."),
    field("requests_per_second", Integer(0, 1_000_000), "0", "Requests of one interface that are answered in a second, the rest is told 503; 0 sets no limit."),
    field("user_data_bytes_max", Integer(0, 524_288), "1", "Longest user data of an instance, before base64."),
    field("log_level", Choice(&["error", "warn", "info", "debug", "trace"]), "\"warn\"", "The least severe messages that are logged."),
    field("audit_file", PathOrEmpty, "\"/a\"", "The audit trail of role credentials; empty for none."),
    field("control.socket", PathOrEmpty, "\"/c\"", "The operators' socket; empty for none."),
    field("control.mode", Other("text", "octal digits up to `0777`, or empty", &["\"0888\"", "\"1000\"", "432"]), "\"0660\"",
        "The socket's file mode; empty is what the groups need."),
    field("control.read_group", TEXT, "\"r\"", "Members of this group may look, but see neither user data nor secrets; empty is nobody."),
    field("control.admin_group", TEXT, "\"a\"", "Members of this group may do everything; empty is nobody."),
    field("metadata_options.HttpEndpoint", SWITCH, "\"disabled\"", "Whether the service answers."),
    field("metadata_options.HttpTokens", Choice(&["required", "optional"]), "\"optional\"", "Whether requests need a session token."),
    field("metadata_options.HttpPutResponseHopLimit", Integer(1, 64), "2", "IP hop limit of the response that has a session token."),
    field("metadata_options.HttpProtocolIpv6", SWITCH, "\"enabled\"", "Whether the service answers at fd00:ec2::254 too."),
    field("metadata_options.InstanceMetadataTags", SWITCH, "\"enabled\"", "Whether the guest may read its instance's tags."),
    field("metadata_options.InstanceMetadataTagsIndex", SWITCH, "\"enabled\"", "Tags with any key, in an index of our own."),
    field("credentials.source", Choice(&["issuer", "process", "sts"]), "\"sts\"", "Where a role's credentials come from when its record does not say."),
    field("credentials.extended", Boolean, "false", "Whether there is `iam/security-credentials-extended/`."),
    field("credentials.duration_seconds", Integer(900, 43_200), "900", "How long a set of credentials is asked to live."),
    field("credentials.process.command", Other("list of texts", "begins with an absolute path", &["[\"aws\"]", "\"/x\""]), "[\"/x\"]",
        "The program of the source `process`, with its arguments."),
    field("credentials.process.timeout_seconds", Integer(1, 300), "1", "After this long the program is killed."),
    field("credentials.process.environment", Other("table of texts", "no name begins with `IMDS_`", &["{ IMDS_X = \"x\" }", "1"]), "{ HOME = \"/root\" }",
        "What every program finds in its environment."),
    field("credentials.sts.endpoint", Other("text", "`http://` or `https://`, or empty", &["\"sts.example\""]), "\"https://s\"",
        "URL of the security token service; empty is AWS in the region."),
    field("credentials.sts.ca_file", PathOrEmpty, "\"/c\"", "Certificates, in PEM, that are trusted besides the system's."),
    field("credentials.sts.region", TEXT, "\"r\"", "The region that requests are signed for; empty is the host's own, else us-east-1."),
    field("credentials.sts.profile", TEXT, "\"p\"", "The host's profile; empty is the default one."),
    field("credentials.sts.shared_credentials_file", PathOrEmpty, "\"/f\"", "The file of that profile; empty is `~/.aws/credentials`, in the package `/var/lib/imds-agent/.aws/credentials`."),
    field("credentials.sts.external_id", TEXT, "\"x\"", "For roles whose trust policy asks for an external id."),
    field("credentials.sts.source_identity", TEXT, "\"{instance-id}\"", "Follows the session into all roles that it assumes; `{instance-id}` stands for the instance's id."),
    field("credentials.sts.instance_tags", TEXTS, "[\"t\"]", "Keys of instance tags that become session tags."),
    field("credentials.sts.session_tags", Other("table of texts", "", &["{ t = 1 }", "1"]), "{ t = \"v\" }", "Session tags that every session gets."),
    field("sts_endpoint.http", ADDRESSES, "[\"[::1]:1\"]", "Where the agent's own security token service listens; nowhere, and it is off."),
    field("sts_endpoint.https", ADDRESSES, "[\"[::1]:1\"]", "The same, with TLS."),
    field("sts_endpoint.certificate_file", PathOrEmpty, "\"/c\"", "The certificate that HTTPS shows, in PEM; empty makes one."),
    field("sts_endpoint.private_key_file", PathOrEmpty, "\"/k\"", "Its private key; both or neither are given."),
    field("sts_endpoint.certificate_names", TEXTS, "[\"n\"]", "Names in the certificate that the agent makes."),
    field("sts_endpoint.requests_per_second", Integer(0, 1_000_000), "0", "Requests of one address (one IPv6 /64) that are answered in a second, after a burst of four seconds' worth; the rest is told `Throttling`; 0 sets no limit."),
    field("metrics.socket", PathOrEmpty, "\"/m\"", "A Unix socket that serves metrics; empty for none."),
    field("metrics.addresses", ADDRESSES, "[\"[::1]:1\"]", "Addresses that serve metrics, to whoever can reach them."),
    field("metrics.per_tap", Boolean, "true", "Whether each tap's frames, and what it has left of its limits, are told too: up to 23 series a tap."),
];

impl Field {
    /// Type and bounds, in words.
    fn kind(&self) -> (&'static str, String) {
        match self.kind {
            Boolean => ("boolean", String::new()),
            Integer(min, max) => ("integer", format!("{min} to {max}")),
            Choice(words) => ("text", format!("`\"{}\"`", words.join("\"` `\""))),
            FilePath => ("path", "absolute".to_owned()),
            PathOrEmpty => ("path", "absolute, or empty".to_owned()),
            Other(kind, bounds, _) => (kind, bounds.to_owned()),
        }
    }

    /// Values in TOML that are just within the bounds, and such that are just over them.
    fn edges(&self) -> (Vec<String>, Vec<String>) {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let (mut legal, refused): (Vec<String>, Vec<String>) = match self.kind {
            Boolean => (texts(&["true", "false"]), texts(&["1", "\"true\""])),
            Integer(min, max) => (
                vec![min.to_string(), max.to_string()],
                vec![(i128::from(min) - 1).to_string(), (max + 1).to_string()],
            ),
            Choice(words) => (
                words.iter().map(|word| format!("\"{word}\"")).collect(),
                texts(&["\"\"", "\"other\"", "1"]),
            ),
            FilePath => (texts(&["\"/x\""]), texts(&["\"\"", "\"x/y\""])),
            PathOrEmpty => (texts(&["\"/x\"", "\"\""]), texts(&["\"x/y\""])),
            Other(_, _, refused) => (Vec::new(), texts(refused)),
        };
        legal.push(self.another.to_owned());
        (legal, refused)
    }

    fn default(&self) -> toml::Value {
        let example: toml::Value = toml::from_str(EXAMPLE).unwrap();
        let value = self
            .key
            .split('.')
            .try_fold(&example, |table, name| table.get(name));
        value
            .unwrap_or_else(|| panic!("{} is not in the example", self.key))
            .clone()
    }

    /// The defaults but for this field.
    fn changed(&self) -> Config {
        parse(self.key, self.another).unwrap()
    }

    fn is_live(&self) -> bool {
        Config::default().with_live_fields_of(self.changed(), false) == self.changed()
    }
}

/// The configuration that says nothing but this.
fn parse(key: &str, value: &str) -> Result<Config, String> {
    toml::from_str(&format!("{key} = {value}")).map_err(|error| error.message().to_owned())
}

#[test]
fn the_keys_are_those_that_serde_knows() {
    let sections = FIELDS.iter().flat_map(|field| {
        let dots = field.key.match_indices('.').map(|(at, _)| &field.key[..=at]);
        [""].into_iter().chain(dots)
    });
    for section in sections.collect::<BTreeSet<_>>() {
        let error = parse(&format!("{section}no-such-key"), "1").unwrap_err();
        let (_, expected) = error.split_once("expected").expect("what is expected");
        let known: BTreeSet<_> = expected.split('`').skip(1).step_by(2).collect();
        let below = FIELDS.iter().filter_map(|field| field.key.strip_prefix(section));
        let told: BTreeSet<_> = below.filter_map(|rest| rest.split('.').next()).collect();
        assert_eq!(told, known, "in [{section}]");
    }
}

#[test]
fn bounds_are_where_they_are_told() {
    for field in FIELDS {
        let (legal, refused) = field.edges();
        for value in legal {
            assert!(parse(field.key, &value).is_ok(), "{} = {value}", field.key);
        }
        for value in refused {
            assert!(parse(field.key, &value).is_err(), "{} = {value}", field.key);
        }
        assert_ne!(field.changed(), Config::default(), "{}", field.key);
    }
}

#[test]
fn what_is_named_after_a_reload_is_what_waits() {
    for field in FIELDS {
        let reloaded = Config::default().changes(&field.changed(), false);
        let name = field.key.split('.').next().unwrap();
        let (named, other) = if field.is_live() {
            (reloaded.changed, reloaded.needs_restart)
        } else {
            (reloaded.needs_restart, reloaded.changed)
        };
        assert_eq!((named, other), (vec![name], vec![]), "{}", field.key);
    }
}

#[test]
fn the_configuration_is_documented_as_it_is() {
    let mut document = PREAMBLE.to_owned();
    document.push_str("| key | type | default | bounds | live | what |\n|---|---|---|---|---|---|\n");
    for field in FIELDS {
        let (kind, bounds) = field.kind();
        let live = if field.is_live() { "yes" } else { "no" };
        let (key, default, what) = (field.key, field.default(), field.what);
        writeln!(
            document,
            "| `{key}` | {kind} | `{default}` | {bounds} | {live} | {what} |"
        )
        .unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    if std::env::var_os("GOLDEN_BLESS").is_some() {
        fs::write(&path, &document).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == document,
        "docs/configuration.md is not what the code says: GOLDEN_BLESS=1 writes it anew"
    );
}
