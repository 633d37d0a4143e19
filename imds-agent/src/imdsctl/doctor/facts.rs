//! All that a diagnosis is made from, out of what the agent answers at its control socket.

use std::collections::BTreeMap;

use serde_json::Value;

use super::machine::Machine;
use crate::registry::instance::namespace_of;

/// What is known of one instance.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Facts {
    /// The instance's id; nothing if no record is this machine's.
    pub instance: Option<String>,
    /// What the guest runs in.
    pub machine: Machine,
    /// What its image says to cloud-init.
    pub image: Image,
    /// The options that its record asks for.
    pub options: Options,
    /// Those options are what guests are answered by.
    pub is_applied: bool,
    /// Mistakes in records, as `file: field message`.
    pub errors: Vec<String>,
    /// Its network interfaces, as the record has them.
    pub interfaces: Vec<Interface>,
    /// Frames that the classifier dropped on its taps, by the reason's name.
    pub dropped: BTreeMap<String, u64>,
    /// It has public keys, user data, a host name.
    pub found: Found,
    /// Its instance profile, as the record names it.
    pub instance_profile: Option<String>,
    /// Its role, and how the credentials are.
    pub role: Option<Role>,
    /// Requests that were refused for want of a token, and the software and paths of some.
    pub tokenless: Tokenless,
    /// Token responses that a router behind the guest dropped, and those that nobody acknowledged.
    pub undelivered: Undelivered,
}

/// What an image is configured with.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Image {
    /// `datasource_list: [Ec2]`
    pub names_ec2: bool,
    /// `datasource: {Ec2: {strict_id: true}}`
    pub is_strict: bool,
}

/// Metadata options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names and meanings are those of the EC2 API")]
pub struct Options {
    pub http_endpoint: bool,
    pub http_tokens_required: bool,
    pub hop_limit: u64,
    pub ipv6: bool,
}

impl Default for Options {
    /// EC2's, with tokens required.
    fn default() -> Self {
        Self {
            http_endpoint: true,
            http_tokens_required: true,
            hop_limit: 1,
            ipv6: false,
        }
    }
}

/// A network interface of the record.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Interface {
    /// In lower case.
    pub mac: String,
    /// The tap that the record names.
    pub tap: Option<String>,
    /// It is served.
    pub is_bound: bool,
    /// Why it is not, in the agent's words; nothing if the agent has no such tap.
    pub why_not: Option<String>,
}

/// What there is for a first boot.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[expect(missing_docs, reason = "the fields' names say it")]
pub struct Found {
    pub user_data: bool,
    pub public_keys: bool,
    pub hostname: bool,
}

/// A role and its session.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Role {
    /// Its ARN.
    pub arn: String,
    /// `ready`, `pending` or `refused`.
    pub state: String,
    /// What the source says.
    pub why: String,
}

/// Requests without a token that were refused.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Tokenless {
    /// How many.
    pub rejected: u64,
    /// `user agent path` of the latest refused.
    pub last: Option<String>,
}

/// Token responses that did not arrive.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Undelivered {
    /// A router said so.
    pub time_exceeded: u64,
    /// Nobody acknowledged them.
    pub unacknowledged: u64,
    /// Who asked last, and the hop limit of then.
    pub last: Option<(String, u64)>,
}

/// The agent's answers about an instance.
#[derive(Clone, PartialEq, Debug)]
pub struct Answers {
    /// `/v1/instances/{id}`
    pub record: Value,
    /// `/v1/instances/{id}/metadata-options`
    pub options: Value,
    /// `/v1/instances/{id}/observed`; nothing if no version of the record is in force.
    pub observed: Value,
    /// `/v1/instances/{id}/tokenless`, likewise
    pub tokenless: Value,
    /// `/v1/instances/{id}/hop-limit`, likewise
    pub hop_limit: Value,
    /// `/v1/status`
    pub status: Value,
}

impl Facts {
    /// What the agent says of `instance`.
    pub fn read(instance: &str, answers: &Answers, machine: Machine, image: Image) -> Self {
        let Answers {
            record,
            options,
            observed,
            tokenless,
            hop_limit,
            status,
        } = answers;
        let options = &options["InstanceMetadataOptions"];
        let filled = |field: &str| record[field].as_str().is_some_and(|text| !text.is_empty());
        let role = observed.get("RoleCredentials").map(|role| Role {
            arn: text(role, "Role"),
            state: text(role, "State"),
            why: [text(role, "Code"), text(role, "Message")].join(" "),
        });
        Self {
            instance: Some(instance.to_owned()),
            machine,
            image,
            options: Options {
                http_endpoint: options["HttpEndpoint"] != "disabled",
                http_tokens_required: options["HttpTokens"] == "required",
                hop_limit: options["HttpPutResponseHopLimit"].as_u64().unwrap_or(1),
                ipv6: options["HttpProtocolIpv6"] == "enabled",
            },
            is_applied: options["State"] == "applied",
            errors: errors(status),
            interfaces: list(&record["NetworkInterfaces"])
                .map(|interface| bound(interface, status))
                .collect(),
            dropped: dropped(observed),
            found: Found {
                user_data: observed["HasUserData"] == true,
                public_keys: list(&record["PublicKeys"]).next().is_some(),
                hostname: filled("PrivateDnsName") || filled("PrivateIpAddress"),
            },
            instance_profile: record["IamInstanceProfile"]["Arn"].as_str().map(str::to_owned),
            role,
            tokenless: refused(tokenless),
            undelivered: undelivered(hop_limit),
        }
    }
}

fn errors(status: &Value) -> Vec<String> {
    let errors = list(&status["problems"]).filter(|problem| problem["severity"] == "error");
    let told = errors.map(|error| {
        let [file, field, message] = ["file", "field", "message"].map(|name| text(error, name));
        format!("{file}: {field} {message}")
    });
    told.collect()
}

fn bound(interface: &Value, status: &Value) -> Interface {
    let mac = text(interface, "MacAddress").to_ascii_lowercase();
    let named = interface["Tap"].as_str();
    let tap = list(&status["taps"]).find(|tap| {
        let served = tap["macAddress"].as_str() == Some(mac.as_str());
        // In other network namespaces there are clones with the same MAC.
        let is_here = tap["name"]
            .as_str()
            .is_some_and(|name| namespace_of(name).is_none());
        named.map_or(served && is_here, |name| tap["name"] == name)
    });
    let is_bound = tap.is_some_and(|tap| tap["macAddress"].as_str() == Some(mac.as_str()));
    let why_not = tap.filter(|_| !is_bound).map(|tap| text(tap, "reason"));
    Interface {
        tap: named.map(str::to_owned),
        mac,
        is_bound,
        why_not,
    }
}

fn dropped(observed: &Value) -> BTreeMap<String, u64> {
    let mut dropped = BTreeMap::new();
    let reasons = list(&observed["Taps"]).filter_map(|tap| tap["Dropped"].as_object());
    for (reason, count) in reasons.flatten() {
        *dropped.entry(reason.clone()).or_default() += count.as_u64().unwrap_or_default();
    }
    dropped
}

fn refused(report: &Value) -> Tokenless {
    let last = list(&report["Callers"]).find(|caller| caller["Rejected"].as_u64() > Some(0));
    Tokenless {
        rejected: report["MetadataNoTokenRejected"].as_u64().unwrap_or_default(),
        last: last.map(|caller| format!("{} for {}", text(caller, "UserAgent"), text(caller, "Path"))),
    }
}

fn undelivered(report: &Value) -> Undelivered {
    let last = report.get("Last").filter(|last| last.is_object());
    Undelivered {
        time_exceeded: report["TimeExceeded"].as_u64().unwrap_or_default(),
        unacknowledged: report["Unacknowledged"].as_u64().unwrap_or_default(),
        last: last.map(|last| {
            (
                text(last, "Remote"),
                last["HopLimit"].as_u64().unwrap_or_default(),
            )
        }),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}
