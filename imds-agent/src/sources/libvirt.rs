//! A libvirt domain's XML into an instance record.
//!
//! Read first: libvirt.org/formatdomain.html, and `docs/hypervisors.md` for the element of ours in `<metadata>` and for what
//! is derived where it says nothing. What neither says is absent from the record.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use roxmltree::{Document, Node};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Guest, derived_id, derived_type, overlay};
use crate::registry::instance::{IdError, Origin};

/// The `Source` of records from here.
pub const SOURCE: &str = "libvirt";

/// The XML namespace of our element in `<metadata>`.
pub const NAMESPACE: &str = "urn:imds-agent:instance:1";

/// The kinds of interfaces that libvirt makes taps for.
const TAP_TYPES: [&str; 3] = ["bridge", "ethernet", "network"];

/// The attributes of `<metadata-options>`, and their fields.
const METADATA_OPTIONS: [(&str, &str); 6] = [
    ("http-endpoint", "HttpEndpoint"),
    ("http-tokens", "HttpTokens"),
    ("http-put-response-hop-limit", "HttpPutResponseHopLimit"),
    ("http-protocol-ipv6", "HttpProtocolIpv6"),
    ("instance-metadata-tags", "InstanceMetadataTags"),
    ("instance-metadata-tags-index", "InstanceMetadataTagsIndex"),
];

/// A domain that makes no record.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// It is no XML.
    #[error("the domain is no well-formed XML")]
    Xml(#[from] roxmltree::Error),
    /// It is something else.
    #[error("this is no <domain> with a <uuid>")]
    NotADomain,
    /// Our element in its `<metadata>` is wrong.
    #[error("<{element}> in the domain's metadata {message}")]
    Metadata {
        /// Which part of it.
        element: String,
        /// What is wrong.
        message: String,
    },
}

/// The guest that a domain is. `launched` is when it was started, where that is known.
pub fn guest(xml: &str, launched: Option<Timestamp>) -> Result<Guest, DomainError> {
    let document = Document::parse(xml)?;
    let domain = document.root_element();
    let uuid = uuid(domain)?;
    let mut record = Map::new();
    record.insert("InstanceId".to_owned(), derived_id(uuid.as_bytes()).into());
    let kind = child(domain, "os").and_then(|os| child(os, "type"));
    if let Some(architecture) = kind.and_then(|kind| kind.attribute("arch")) {
        record.insert("Architecture".to_owned(), architecture_word(architecture).into());
    }
    if kind.and_then(|kind| kind.text()) == Some("hvm") {
        record.insert("VirtualizationType".to_owned(), "hvm".into());
    }
    if let (Some(processors), Some(memory)) = (processors(domain), memory_mib(domain)) {
        record.insert("InstanceType".to_owned(), derived_type(processors, memory).into());
    }
    if let Some(launched) = launched {
        record.insert("LaunchTime".to_owned(), launched.to_string().into());
    }
    if let Some(name) = text_of(domain, "name") {
        overlay::set_tag(&mut record, "Name", name);
    }
    record.insert("NetworkInterfaces".to_owned(), interface_records(domain));
    let mut warnings = Vec::new();
    if let Some(ours) = child(domain, "metadata").and_then(our_element) {
        Metadata {
            record: &mut record,
            warnings: &mut warnings,
        }
        .read(ours)?;
    }
    let id = record
        .get("InstanceId")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let id = id
        .parse()
        .map_err(|error: IdError| invalid("instance-id", error.to_string()))?;
    Ok(Guest {
        origin: origin(uuid),
        id,
        document: record,
        warnings,
    })
}

/// Whose records are this domain's, from its XML alone.
pub fn origin_of(xml: &str) -> Result<Origin, DomainError> {
    let document = Document::parse(xml)?;
    Ok(origin(uuid(document.root_element())?))
}

/// Whose records are the domain's with this UUID.
pub fn origin(uuid: Uuid) -> Origin {
    Origin {
        source: SOURCE.to_owned(),
        id: uuid.to_string(),
    }
}

fn uuid(domain: Node<'_, '_>) -> Result<Uuid, DomainError> {
    let text = text_of(domain, "uuid").filter(|_| domain.has_tag_name("domain"));
    text.and_then(|text| text.parse().ok())
        .ok_or(DomainError::NotADomain)
}

fn interface_records(domain: Node<'_, '_>) -> Value {
    let records = interfaces(domain).enumerate().map(|(index, (mac, tap))| {
        let mut record = json!({ "MacAddress": mac, "Attachment": { "DeviceIndex": index } });
        if let Some(tap) = tap {
            record["Tap"] = tap.into();
        }
        record
    });
    records.collect()
}

/// The MACs of a domain's network interfaces, each with its tap where libvirt makes one and has named it.
pub(crate) fn interfaces<'a>(domain: Node<'a, '_>) -> impl Iterator<Item = (&'a str, Option<&'a str>)> {
    let devices = child(domain, "devices");
    let interfaces = devices
        .into_iter()
        .flat_map(|devices| devices.children())
        .filter(|node| node.has_tag_name("interface"));
    interfaces.filter_map(|interface| {
        let mac = child(interface, "mac")?.attribute("address")?;
        let tap = child(interface, "target")
            .and_then(|target| target.attribute("dev"))
            .filter(|_| {
                interface
                    .attribute("type")
                    .is_some_and(|kind| TAP_TYPES.contains(&kind))
            });
        Some((mac, tap))
    })
}

/// What is running now, which `current` tells where it is not all that could be plugged in.
fn processors(domain: Node<'_, '_>) -> Option<u64> {
    let vcpu = child(domain, "vcpu")?;
    let current = vcpu.attribute("current").or(vcpu.text())?;
    current.trim().parse().ok()
}

fn memory_mib(domain: Node<'_, '_>) -> Option<u64> {
    let memory = child(domain, "currentMemory").or_else(|| child(domain, "memory"))?;
    let amount: u64 = memory.text()?.trim().parse().ok()?;
    let unit_bytes: u64 = match memory.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        _ => return None,
    };
    Some(amount.checked_mul(unit_bytes)? >> 20)
}

/// EC2's word for a processor.
fn architecture_word(libvirt: &str) -> &str {
    match libvirt {
        "aarch64" => "arm64",
        "i686" => "i386",
        other => other,
    }
}

/// Our element in `<metadata>`, on its way into the record.
struct Metadata<'r> {
    record: &'r mut Map<String, Value>,
    warnings: &'r mut Vec<String>,
}

impl Metadata<'_> {
    fn read(&mut self, ours: Node<'_, '_>) -> Result<(), DomainError> {
        // An account and a name make an ARN, in whichever order they stand.
        let account = ours
            .children()
            .find(|node| node.tag_name().name() == "account")
            .map(content);
        for node in ours.children().filter(Node::is_element) {
            self.element(node, account.as_deref())?;
        }
        Ok(())
    }

    fn element(&mut self, node: Node<'_, '_>, account: Option<&str>) -> Result<(), DomainError> {
        let text = content(node);
        match node.tag_name().name() {
            "instance-id" => self.set("InstanceId", text),
            "account" => self.set("OwnerId", text),
            "region" => self.placement("Region", text),
            "availability-zone" => self.placement("AvailabilityZone", text),
            "instance-type" => self.set("InstanceType", text),
            "image-id" => self.set("ImageId", text),
            "hostname" => self.set("PrivateDnsName", text),
            "instance-profile" => {
                let arn = instance_profile_arn(&text, account)?;
                self.set("IamInstanceProfile", json!({ "Arn": arn }));
            }
            "key-pair" => self.key_pair(node, &text)?,
            "tag" => overlay::set_tag(self.record, attribute(node, "key")?, &text),
            "user-data" => {
                let user_data = match node.attribute("encoding") {
                    None => STANDARD.encode(format!("{text}\n")),
                    Some("base64") => text,
                    Some(_) => return Err(invalid("user-data", "has another encoding than base64")),
                };
                self.set("UserData", user_data);
            }
            "metadata-options" => self.metadata_options(node)?,
            "record" => {
                let fields = overlay::parse(&text).map_err(|message| invalid("record", message))?;
                overlay::lay_over(self.record, fields).map_err(|message| invalid("record", message))?;
            }
            other => self
                .warnings
                .push(format!("<{other}> in the domain's metadata has no effect")),
        }
        Ok(())
    }

    fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.record.insert(field.to_owned(), value.into());
    }

    fn placement(&mut self, field: &str, value: String) {
        let placement = self.record.entry("Placement").or_insert_with(|| json!({}));
        // The record's reader has the words for a <record> that made it something else.
        if let Some(placement) = placement.as_object_mut() {
            placement.insert(field.to_owned(), value.into());
        }
    }

    fn key_pair(&mut self, node: Node<'_, '_>, material: &str) -> Result<(), DomainError> {
        let name = attribute(node, "name")?;
        // The one that `describe-instances` would name.
        self.record
            .entry("KeyName")
            .or_insert_with(|| name.to_owned().into());
        let keys = self.record.entry("PublicKeys").or_insert_with(|| json!([]));
        if let Some(keys) = keys.as_array_mut() {
            keys.push(json!({ "KeyName": name, "PublicKeyMaterial": material }));
        }
        Ok(())
    }

    fn metadata_options(&mut self, node: Node<'_, '_>) -> Result<(), DomainError> {
        let mut options = Map::new();
        for attribute in node.attributes() {
            let known = METADATA_OPTIONS
                .iter()
                .find(|(name, _)| *name == attribute.name());
            let Some((_, field)) = known else {
                let message = format!("has no attribute {}", attribute.name());
                return Err(invalid("metadata-options", message));
            };
            let value = attribute.value();
            let value = match value.parse::<u64>() {
                Ok(number) => number.into(),
                Err(_) => value.into(),
            };
            options.insert((*field).to_owned(), value);
        }
        self.set("MetadataOptions", options);
        Ok(())
    }
}

fn instance_profile_arn(text: &str, account: Option<&str>) -> Result<String, DomainError> {
    if text.starts_with("arn:") {
        return Ok(text.to_owned());
    }
    let account = account.ok_or_else(|| invalid("instance-profile", "needs an <account>, or a whole ARN"))?;
    Ok(format!("arn:aws:iam::{account}:instance-profile/{text}"))
}

fn our_element<'a, 'i>(metadata: Node<'a, 'i>) -> Option<Node<'a, 'i>> {
    metadata
        .children()
        .find(|node| node.has_tag_name((NAMESPACE, "instance")))
}

/// The first element of that name right below another.
pub(crate) fn child<'a, 'i>(parent: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    parent.children().find(|node| node.has_tag_name(name))
}

fn text_of<'a>(parent: Node<'a, '_>, name: &str) -> Option<&'a str> {
    child(parent, name)?.text().map(str::trim)
}

/// All text in it, in one piece where CDATA sections make several, without the blanks around it.
pub(crate) fn content(node: Node<'_, '_>) -> String {
    let pieces = node.children().filter_map(|child| child.text());
    pieces.collect::<String>().trim().to_owned()
}

fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Result<&'a str, DomainError> {
    let missing = || invalid(node.tag_name().name(), format!("has no attribute {name}"));
    node.attribute(name).ok_or_else(missing)
}

fn invalid(element: &str, message: impl Into<String>) -> DomainError {
    DomainError::Metadata {
        element: element.to_owned(),
        message: message.into(),
    }
}

#[cfg(test)]
mod tests;
