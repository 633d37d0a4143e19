//! One file's bytes into one checked record. Pure.
//!
//! A file holds the bare object, or what the AWS CLI prints around it: `{"Reservations": [{"Instances": [...]}]}`,
//! `{"Role": {...}}`, `{"InstanceProfile": {...}}`.

use serde::{Deserialize, de::DeserializeOwned};

use super::{
    check::Check,
    instance::{Instance, MetadataOptions},
    problem::Finding,
    role::{InstanceProfile, Role},
    text::Text,
};

/// Longest record file, in bytes: sixteen times the largest user data of EC2 in base64, and all else EC2 knows of an instance.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// EC2's bound on user data, in bytes before base64 (EC2 user guide, "Run commands on your EC2 instance at launch").
pub const USER_DATA_BYTES_MAX: usize = 16 * 1024;

/// What the host's configuration says about records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Metadata options where a record says none.
    pub options: MetadataOptions,
    /// Longest user data, before base64.
    pub user_data_bytes_max: usize,
}

/// What a file describes. One directory for each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Kind {
    Instance,
    Role,
    InstanceProfile,
}

/// A record that is good by itself.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Record {
    Instance(Box<Instance>),
    Role(Box<Role>),
    InstanceProfile(Box<InstanceProfile>),
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            options: MetadataOptions::default(),
            user_data_bytes_max: USER_DATA_BYTES_MAX,
        }
    }
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Instance, Self::Role, Self::InstanceProfile];

    /// The directory under the state directory.
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Instance => "instances",
            Self::Role => "roles",
            Self::InstanceProfile => "instance-profiles",
        }
    }
}

/// Reads one file: the record and the warnings about it, or what is wrong with it.
pub fn parse(kind: Kind, bytes: &[u8], rules: &Rules) -> Result<(Record, Vec<Finding>), Vec<Finding>> {
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(vec![Finding::whole(format!(
            "is longer than {RECORD_BYTES_MAX} bytes"
        ))]);
    }
    let mut check = Check::default();
    let parsed = match kind {
        Kind::Instance => parse_instance(bytes, &mut check.warnings).map(|instance| {
            check.instance(&instance, rules);
            Record::Instance(Box::new(instance))
        }),
        Kind::Role => match first_key_is(bytes, "Role") {
            true => from_json(bytes, &mut check.warnings).map(|WrappedRole { role }| role),
            false => from_json(bytes, &mut check.warnings),
        }
        .map(|role| {
            check.role(&role);
            Record::Role(Box::new(role))
        }),
        Kind::InstanceProfile => match first_key_is(bytes, "InstanceProfile") {
            true => from_json(bytes, &mut check.warnings)
                .map(|WrappedInstanceProfile { instance_profile }| instance_profile),
            false => from_json(bytes, &mut check.warnings),
        }
        .map(|profile| {
            check.instance_profile(&profile);
            Record::InstanceProfile(Box::new(profile))
        }),
    };
    match parsed {
        Err(finding) => Err(vec![finding]),
        Ok(_) if !check.errors.is_empty() => Err(check.errors),
        Ok(record) => Ok((record, check.warnings)),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    reservations: Vec<Reservation>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Reservation {
    reservation_id: Option<Box<str>>,
    owner_id: Option<Text>,
    instances: Vec<Instance>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WrappedRole {
    role: Role,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WrappedInstanceProfile {
    instance_profile: InstanceProfile,
}

fn parse_instance(bytes: &[u8], warnings: &mut Vec<Finding>) -> Result<Instance, Finding> {
    if !first_key_is(bytes, "Reservations") {
        return from_json(bytes, warnings).map(without_empty_texts);
    }
    let mut described: Described = from_json(bytes, warnings)?;
    let count: usize = described
        .reservations
        .iter()
        .map(|reservation| reservation.instances.len())
        .sum();
    described
        .reservations
        .retain(|reservation| !reservation.instances.is_empty());
    match described.reservations.pop() {
        Some(Reservation {
            reservation_id,
            owner_id,
            mut instances,
        }) if count == 1 => {
            let mut instance = instances.remove(0);
            instance.reservation_id = instance.reservation_id.or(reservation_id);
            instance.owner_id = instance.owner_id.or(owner_id);
            Ok(without_empty_texts(instance))
        }
        _ => Err(Finding::field(
            "Reservations",
            format!("holds {count} instances, but a file describes exactly one"),
        )),
    }
}

/// `describe-instances` prints what an instance lacks as an empty text; in the metadata tree it is absent.
fn without_empty_texts(mut instance: Instance) -> Instance {
    let Instance {
        placement,
        private_dns_name,
        public_dns_name,
        key_name,
        ..
    } = &mut instance;
    for text in [&mut placement.group_name, key_name] {
        text.take_if(|text| text.is_empty());
    }
    for text in [private_dns_name, public_dns_name] {
        text.take_if(|text| text.is_empty());
    }
    instance
}

/// Whether the file is an object whose first key is `key`: enough to tell the AWS CLI's wrappers, which have but one,
/// and it keeps the line and column of an error, which reading by trial would lose.
fn first_key_is(bytes: &[u8], key: &str) -> bool {
    let after_brace = bytes.trim_ascii_start().strip_prefix(b"{").unwrap_or_default();
    let in_key = after_brace
        .trim_ascii_start()
        .strip_prefix(b"\"")
        .unwrap_or_default();
    in_key
        .strip_prefix(key.as_bytes())
        .is_some_and(|rest| rest.first() == Some(&b'"'))
}

fn from_json<T: DeserializeOwned>(bytes: &[u8], warnings: &mut Vec<Finding>) -> Result<T, Finding> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let mut unknown = Vec::new();
    let mut note_unknown = |path: serde_ignored::Path<'_>| {
        if let serde_ignored::Path::Map { key, .. } = &path
            && KNOWN_TO_AWS.contains(&key.as_str())
        {
            return;
        }
        unknown.push(display_path(&path));
    };
    let parsed =
        serde_path_to_error::deserialize(serde_ignored::Deserializer::new(&mut json, &mut note_unknown));
    let value = parsed.map_err(|error| {
        // "?" stands for a key that could not be read, "." for the file.
        let field = error.path().to_string();
        let field = field.trim_end_matches(['?', '.']).to_owned();
        json_finding(field, &error.into_inner())
    })?;
    json.end().map_err(|error| json_finding(String::new(), &error))?;
    if !unknown.is_empty() {
        warnings.push(Finding::whole(unknown_message(&unknown)));
    }
    Ok(value)
}

fn json_finding(field: String, error: &serde_json::Error) -> Finding {
    let (line, column) = (error.line(), error.column());
    let message = error.to_string();
    let message = message
        .strip_suffix(&format!(" at line {line} column {column}"))
        .unwrap_or(&message);
    Finding {
        place: (line > 0).then_some((line, column)),
        field,
        message: message.to_owned(),
    }
}

fn unknown_message(unknown: &[String]) -> String {
    const NAMED_MAX: usize = 8;
    let named: Vec<&str> = unknown.iter().take(NAMED_MAX).map(String::as_str).collect();
    let rest = match unknown.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        rest => format!(" and {rest} more"),
    };
    format!("unknown fields without effect: {}{rest}", named.join(", "))
}

/// The path in the form that `serde_path_to_error` uses.
fn display_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    let (parent, own) = match path {
        Path::Root => return String::new(),
        Path::Seq { parent, index } => return format!("{}[{index}]", display_path(parent)),
        Path::Map { parent, key } => (parent, key.chars().take(64).collect::<String>()),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            return display_path(parent);
        }
    };
    match display_path(parent) {
        parent if parent.is_empty() => own,
        parent => format!("{parent}.{own}"),
    }
}

/// Fields of `describe-instances`, `get-role` and `get-instance-profile` that the metadata tree has no place for:
/// passed over in silence, so that a warning about an unknown field means a slip of the pen.
#[rustfmt::skip]
const KNOWN_TO_AWS: &[&str] = &[
    "Affinity", "Arn", "AssociatedResource", "AssumeRolePolicyDocument", "AttachTime", "AttachedManagedPolicies",
    "AttachmentId", "BootMode", "CapacityBlockId", "CapacityReservationId", "CapacityReservationSpecification",
    "CarrierIp", "ClientToken", "ConnectionTrackingConfiguration", "CpuOptions", "CreateDate",
    "CurrentInstanceBootMode", "CustomerOwnedIp", "DeleteOnTermination", "Description", "EbsCardIndex",
    "EbsOptimized", "ElasticGpuAssociationId", "ElasticGpuAssociationState", "ElasticGpuAssociationTime",
    "ElasticInferenceAcceleratorAssociationId", "ElasticInferenceAcceleratorAssociationState",
    "ElasticInferenceAcceleratorAssociationTime", "EnaQueueCount", "EnaSrdSpecification",
    "EnaSupport", "EnclaveOptions", "GroupId", "Groups", "HostResourceGroupArn", "InstanceProfileList", "InterfaceType", "IsPrimaryIpv6", "Licenses",
    "MaintenanceOptions", "NetworkPerformanceOptions", "NextToken", "NotBeforeDeadline", "Operator", "OutpostArn", "Path",
    "PermissionsBoundary", "Platform", "PlatformDetails", "PrivateDnsNameOptions", "RequesterId",
    "ResponseMetadata", "RoleId", "RoleLastUsed", "RolePolicyList", "RootDeviceType", "SecondaryInterfaces",
    "SourceDestCheck", "SpotInstanceRequestId", "SpreadDomain", "SriovNetSupport", "State", "StateReason",
    "StateTransitionReason", "Status", "SubnetId", "Tags", "Tenancy", "TpmSupport", "UsageOperation",
    "UsageOperationUpdateTime", "VolumeOwnerId", "VpcId",
];

#[cfg(test)]
mod tests;
