//! A Proxmox VE virtual machine's configuration file into an instance record.
//!
//! Read first: qm.conf(5), pve.proxmox.com/wiki/Manual:_qm.conf. What counts is what is above the first section: a section is a
//! snapshot of an earlier configuration, what has been changed but waits for the next start (`[PENDING]`), or what Proxmox's own
//! drive for cloud-init was made from (`[special:cloudinit]`).

use std::{collections::BTreeMap, net::IpAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Guest, derived_id, derived_type, overlay};
use crate::registry::instance::Origin;

/// The `Source` of records from here.
pub const SOURCE: &str = "proxmox";

/// What a line of the description begins with that is meant for us.
const OURS: &str = "imds-agent:";

/// What Proxmox's own drive for cloud-init would tell the guest, and a record does not say.
const WITHOUT_EFFECT: [(&str, &str); 2] = [
    ("cicustom", "user data is a field of the description's record"),
    ("cipassword", "a guest of the service has keys"),
];

/// The properties of a network device that are not its model.
const NET_PROPERTIES: [&str; 9] = [
    "bridge",
    "firewall",
    "link_down",
    "macaddr",
    "mtu",
    "queues",
    "rate",
    "tag",
    "trunks",
];

/// A configuration that makes no record.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// It is a template, which never runs.
    #[error("is a template")]
    Template,
    /// What the operator added in the description is wrong.
    #[error("the line {OURS} of the description {0}")]
    Description(String),
    /// The record names an id that is none.
    #[error("the InstanceId {0:?} is none")]
    InstanceId(String),
}

/// The guest that virtual machine number `vmid` is.
pub fn guest(vmid: u32, conf: &str) -> Result<Guest, ConfError> {
    let conf = Conf::parse(conf);
    if conf.flag("template") {
        return Err(ConfError::Template);
    }
    let mut record = Map::new();
    let mut set = |field: &str, value: Value| record.insert(field.to_owned(), value);
    set("InstanceId", instance_id(vmid, &conf).into());
    set("VirtualizationType", "hvm".into());
    let architecture = conf.value("arch").map(|arch| match arch {
        "aarch64" => "arm64",
        other => other,
    });
    if let Some(architecture) = architecture {
        set("Architecture", architecture.into());
    }
    set("InstanceType", instance_type(&conf).into());
    let keys = public_keys(&conf);
    if let Some(first) = keys.first() {
        set("KeyName", first["KeyName"].clone());
        set("PublicKeys", keys.into());
    }
    if let Some(user) = conf.value("ciuser") {
        // A JSON text is a YAML text. Without the last line root would be told to log in as somebody else.
        let may_be_root = if user == "root" {
            "disable_root: false\n"
        } else {
            ""
        };
        let user_data = format!("#cloud-config\nuser: {}\n{may_be_root}", Value::from(user));
        set("UserData", STANDARD.encode(user_data).into());
    }
    set("NetworkInterfaces", interfaces(vmid, &conf).into());
    for tag in conf.tags() {
        overlay::set_tag(&mut record, tag, "");
    }
    if let Some(name) = conf.value("name") {
        overlay::set_tag(&mut record, "Name", name);
    }
    for line in conf.description.lines() {
        if let Some(text) = line.trim().strip_prefix(OURS) {
            let fields = overlay::parse(text).map_err(ConfError::Description)?;
            overlay::lay_over(&mut record, fields).map_err(ConfError::Description)?;
        }
    }
    let id = record
        .get("InstanceId")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let id = id.parse().map_err(|_| ConfError::InstanceId(id.to_owned()))?;
    let without_effect = WITHOUT_EFFECT.iter().filter(|(key, _)| conf.value(key).is_some());
    let warnings = without_effect.map(|(key, instead)| format!("{key} has no effect: {instead}"));
    Ok(Guest {
        origin: origin(vmid),
        id,
        document: record,
        warnings: warnings.collect(),
    })
}

/// Whose records are this machine's.
pub fn origin(vmid: u32) -> Origin {
    Origin {
        source: SOURCE.to_owned(),
        id: vmid.to_string(),
    }
}

/// The current configuration.
struct Conf<'c> {
    lines: Vec<(&'c str, &'c str)>,
    description: String,
}

impl<'c> Conf<'c> {
    fn parse(text: &'c str) -> Self {
        let mut conf = Self {
            lines: Vec::new(),
            description: String::new(),
        };
        for line in text.lines().take_while(|line| !is_section(line)) {
            if let Some(comment) = line.strip_prefix('#') {
                conf.describe(comment);
            } else if let Some((key, value)) = line.split_once(':') {
                match key.trim() {
                    "description" => conf.describe(value.trim()),
                    key => conf.lines.push((key, value.trim())),
                }
            }
        }
        conf
    }

    fn describe(&mut self, encoded: &str) {
        self.description += &percent_decode_str(encoded).decode_utf8_lossy();
        self.description.push('\n');
    }

    /// Of lines with the same key the last one counts.
    fn value(&self, key: &str) -> Option<&'c str> {
        let line = self.lines.iter().rfind(|(name, _)| *name == key);
        line.map(|(_, value)| *value).filter(|value| !value.is_empty())
    }

    fn flag(&self, key: &str) -> bool {
        matches!(self.value(key), Some("1" | "on" | "yes" | "true"))
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.value(key)?.parse().ok()
    }

    fn tags(&self) -> impl Iterator<Item = &'c str> {
        let tags = self.value("tags").unwrap_or_default();
        tags.split(|letter: char| matches!(letter, ';' | ',') || letter.is_whitespace())
            .filter(|tag| !tag.is_empty())
    }

    /// What is called `prefix` and a number.
    fn numbered(&self, prefix: &str) -> BTreeMap<u32, &'c str> {
        let lines = self.lines.iter();
        lines
            .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.parse().ok()?, *value)))
            .collect()
    }
}

fn is_section(line: &str) -> bool {
    let line = line.trim_end();
    line.starts_with('[') && line.ends_with(']')
}

/// From the machine's UUID, which moves with it; its number is only its cluster's.
fn instance_id(vmid: u32, conf: &Conf<'_>) -> String {
    let smbios = conf.value("smbios1").unwrap_or_default();
    let uuid = properties(smbios).find_map(|(name, value)| (name == "uuid").then_some(value));
    match uuid.and_then(|uuid| uuid.parse::<Uuid>().ok()) {
        Some(uuid) => derived_id(uuid.as_bytes()),
        None => derived_id(format!("{SOURCE}/{vmid}").as_bytes()),
    }
}

/// With the defaults of qm.conf(5).
fn instance_type(conf: &Conf<'_>) -> String {
    let sockets = conf.number("sockets").unwrap_or(1);
    let all = conf.number("cores").unwrap_or(1).saturating_mul(sockets);
    let memory = conf.value("memory").unwrap_or("512");
    let memory = properties(memory)
        .find_map(|(name, value)| matches!(name, "" | "current").then_some(value))
        .and_then(|memory| memory.parse().ok());
    derived_type(conf.number("vcpus").unwrap_or(all), memory.unwrap_or(512))
}

fn public_keys(conf: &Conf<'_>) -> Vec<Value> {
    let text = percent_decode_str(conf.value("sshkeys").unwrap_or_default()).decode_utf8_lossy();
    let lines = text.lines().map(str::trim);
    let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut names: Vec<String> = Vec::new();
    keys.enumerate()
        .map(|(index, key)| {
            // The comment behind type and key, as long as it is one of a kind.
            let comment = key.split_whitespace().nth(2).map(str::to_owned);
            let name = comment
                .filter(|comment| !names.contains(comment))
                .unwrap_or_else(|| format!("key-{index}"));
            names.push(name.clone());
            json!({ "KeyName": name, "PublicKeyMaterial": key })
        })
        .collect()
}

fn interfaces(vmid: u32, conf: &Conf<'_>) -> Vec<Value> {
    let addresses = conf.numbered("ipconfig");
    let devices = conf.numbered("net").into_iter();
    let with_mac = devices.filter_map(|(number, device)| Some((number, device, mac(device)?)));
    let records = with_mac.enumerate().map(|(index, (number, device, mac))| {
        let mut record = json!({ "MacAddress": mac, "Attachment": { "DeviceIndex": index } });
        // Without a bridge it is QEMU's own network, with no device on the host. With Proxmox's firewall a bridge of its own,
        // `fwbr<vmid>i<n>`, comes between tap and bridge: the tap is the same.
        if properties(device).any(|(name, _)| name == "bridge") {
            record["Tap"] = format!("tap{vmid}i{number}").into();
        }
        let address = addresses.get(&number);
        if let Some((address, block)) = address.and_then(|config| fixed_ipv4(config)) {
            record["PrivateIpAddress"] = address.into();
            record["SubnetIpv4CidrBlock"] = block.into();
        }
        record
    });
    records.collect()
}

/// `virtio=BC:24:11:00:00:01,bridge=vmbr0` or `virtio,macaddr=...`.
fn mac(device: &str) -> Option<String> {
    let found = properties(device).find_map(|(name, value)| {
        let is_mac = name == "macaddr" || !NET_PROPERTIES.contains(&name);
        (is_mac && value.split(':').count() == 6).then_some(value)
    });
    found.map(str::to_ascii_lowercase)
}

/// The address of `ip=10.0.0.5/24`, and the block that it is in. `ip=dhcp` is nobody's to say.
fn fixed_ipv4(config: &str) -> Option<(String, String)> {
    let fixed = properties(config).find_map(|(name, value)| (name == "ip").then_some(value))?;
    let (address, length) = fixed.split_once('/')?;
    let (IpAddr::V4(address), Ok(length @ 0..=32)) = (address.parse().ok()?, length.parse::<u32>()) else {
        return None;
    };
    let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
    let network = std::net::Ipv4Addr::from(u32::from(address) & mask);
    Some((address.to_string(), format!("{network}/{length}")))
}

/// The parts of `name=value,name=value`; a part without a name has the empty one.
fn properties(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let parts = text.split(',').map(str::trim);
    parts.map(|part| part.split_once('=').unwrap_or(("", part)))
}

#[cfg(test)]
mod tests;
