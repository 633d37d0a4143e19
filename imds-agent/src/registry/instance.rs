//! An instance as the registry knows it, in the shape of `aws ec2 describe-instances`.
//!
//! Read first: EC2 API reference, data types `Instance`, `InstanceNetworkInterface`, `InstanceMetadataOptionsResponse`.
//! Beyond EC2's own shape a record may say what only a hypervisor or the rest of EC2's API knows; those fields are
//! marked *ours*. What a record does not say is absent from the metadata tree, never invented.

use std::fmt;

use imds_ebpf::abi::MacAddr;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    accelerators::{ElasticGpuAssociation, ElasticInferenceAcceleratorAssociation},
    events::Events,
    keyed::{HasKey, Keyed},
    text::Text,
};

/// Declares a newtype over text that `$check` lets through: [`check_id`], or what is named.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $crate::registry::instance::text_id! { $(#[$doc])* $name check_id }
    };
    ($(#[$doc:meta])* $name:ident $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(arcstr::ArcStr);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::registry::instance::IdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::registry::instance::$check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::registry::text::parse(deserializer)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}
pub(crate) use text_id;

/// The text is not an id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IdError {
    /// It is not one at all.
    #[error("an id is 1 to 255 visible ASCII characters without '/'")]
    Id,
    /// It is not one that stands in paths.
    #[error("a name is 1 to 255 of the letters and digits of ASCII and -_+=,.@: and neither '.' nor '..'")]
    Name,
}

pub(crate) fn check_id(text: &str) -> Result<(), IdError> {
    let legal =
        (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if legal { Ok(()) } else { Err(IdError::Id) }
}

/// Whether a name means itself in a listing of the metadata tree and in a path. The characters are those of EC2's tags (user guide,
/// "View tags using instance metadata"), and all that IAM has in names.
pub(crate) fn check_name(text: &str) -> Result<(), IdError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_+=,.@:".contains(&byte);
    let legal = (1..=255).contains(&text.len()) && text.bytes().all(legal) && !matches!(text, "." | "..");
    if legal { Ok(()) } else { Err(IdError::Name) }
}

/// Whether a tag is listed by its key (EC2 user guide, "View tags using instance metadata").
pub(crate) fn is_metadata_tag_key(key: &str) -> bool {
    check_name(key).is_ok() && key != "_index"
}

text_id! {
    /// Names one instance: `i-0123456789abcdef0`, or whatever the hypervisor calls it.
    InstanceId
}

text_id! {
    /// Names one network interface (ENI): `eni-0123456789abcdef0`.
    InterfaceId
}

/// One instance. Field meanings are EC2's unless marked *ours*.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(
    missing_docs,
    reason = "the names and meanings are those of the EC2 API reference"
)]
pub struct Instance {
    pub instance_id: InstanceId,
    pub image_id: Option<Text>,
    pub instance_type: Option<Text>,
    #[serde(default)]
    pub ami_launch_index: u32,
    pub ami_manifest_path: Option<Text>,
    #[serde(default)]
    pub ancestor_ami_ids: Box<[Text]>,
    pub architecture: Option<Text>,
    /// RFC 3339, as EC2 writes it: `2026-11-21T08:00:00+00:00` or with `Z`.
    pub launch_time: Option<jiff::Timestamp>,
    pub kernel_id: Option<Text>,
    pub ramdisk_id: Option<Text>,
    pub key_name: Option<Text>,
    /// *Ours*: the public half of the key pairs, in the order of their index.
    #[serde(default)]
    pub public_keys: Box<[PublicKey]>,
    /// From the reservation that EC2 nests the instance in.
    pub reservation_id: Option<Box<str>>,
    /// The account that owns the instance, from the reservation.
    pub owner_id: Option<Text>,
    #[serde(default)]
    pub placement: Placement,
    pub private_dns_name: Option<Box<str>>,
    pub private_ip_address: Option<std::net::Ipv4Addr>,
    pub public_dns_name: Option<Box<str>>,
    pub public_ip_address: Option<std::net::Ipv4Addr>,
    pub ipv6_address: Option<std::net::Ipv6Addr>,
    #[serde(default)]
    pub security_groups: Box<[SecurityGroup]>,
    #[serde(default)]
    pub product_codes: Box<[ProductCode]>,
    pub root_device_name: Option<Text>,
    #[serde(default)]
    pub block_device_mappings: Box<[BlockDeviceMapping]>,
    #[serde(default)]
    pub elastic_gpu_associations: Box<[ElasticGpuAssociation]>,
    #[serde(default)]
    pub elastic_inference_accelerator_associations: Box<[ElasticInferenceAcceleratorAssociation]>,
    /// `spot`, `scheduled`, `capacity-block`; absent means on-demand.
    pub instance_lifecycle: Option<Text>,
    /// `nitro`, `xen`.
    pub hypervisor: Option<Text>,
    /// `hvm`, `paravirtual`.
    pub virtualization_type: Option<Text>,
    pub hibernation_options: Option<HibernationOptions>,
    pub monitoring: Option<Monitoring>,
    pub iam_instance_profile: Option<IamInstanceProfile>,
    #[serde(default)]
    pub metadata_options: MetadataOptionsRecord,
    #[serde(default)]
    pub tags: Keyed<Tag>,
    pub network_interfaces: Keyed<NetworkInterface>,
    /// *Ours*: what is about to happen to it.
    pub events: Option<Box<Events>>,
    /// Base64, as `aws ec2 run-instances` takes it.
    pub user_data: Option<UserData>,
    /// *Ours*: which hypervisor source wrote the record and may write and delete it again. An operator's record has none.
    pub origin: Option<Box<Origin>>,
}

/// One network interface of an instance.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(
    missing_docs,
    reason = "the names and meanings are those of the EC2 API reference"
)]
pub struct NetworkInterface {
    pub network_interface_id: Option<InterfaceId>,
    #[serde(deserialize_with = "super::text::parse")]
    pub mac_address: MacAddr,
    /// *Ours*: the host's tap device of this interface, when it is known beforehand; `namespace/tap` in another network namespace
    /// than the agent's own.
    pub tap: Option<Text>,
    pub owner_id: Option<Text>,
    pub subnet_id: Option<Text>,
    pub vpc_id: Option<Text>,
    pub private_dns_name: Option<Box<str>>,
    pub private_ip_address: Option<std::net::Ipv4Addr>,
    #[serde(default)]
    pub private_ip_addresses: Box<[PrivateIpAddress]>,
    pub association: Option<Box<Association>>,
    #[serde(default)]
    pub ipv6_addresses: Box<[Ipv6Address]>,
    #[serde(default)]
    pub ipv4_prefixes: Box<[Ipv4Prefix]>,
    #[serde(default)]
    pub ipv6_prefixes: Box<[Ipv6Prefix]>,
    #[serde(default)]
    pub groups: Box<[SecurityGroup]>,
    pub attachment: Option<Attachment>,
    /// *Ours*: the subnet's IPv4 block, in CIDR notation.
    pub subnet_ipv4_cidr_block: Option<Text>,
    /// *Ours*: the subnet's IPv6 blocks.
    #[serde(default)]
    pub subnet_ipv6_cidr_blocks: Box<[Text]>,
    /// *Ours*: the network's IPv4 blocks, the primary one first.
    #[serde(default)]
    pub vpc_ipv4_cidr_blocks: Box<[Text]>,
    /// *Ours*: the network's IPv6 blocks.
    #[serde(default)]
    pub vpc_ipv6_cidr_blocks: Box<[Text]>,
}

impl NetworkInterface {
    /// The network namespace that its tap is in, if it is another than the agent's own.
    pub fn namespace(&self) -> Option<&str> {
        namespace_of(self.tap.as_deref()?)
    }
}

/// The network namespace in a tap's name. No device has a slash in its own.
pub fn namespace_of(tap: &str) -> Option<&str> {
    tap.split_once('/').map(|(namespace, _)| namespace)
}

macro_rules! parts {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),+ $(,)? })+) => { $(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
        #[serde(rename_all = "PascalCase")]
        #[expect(missing_docs, reason = "the names and meanings are those of the EC2 API reference")]
        pub struct $name { $($(#[$field_doc])* pub $field: $type),+ }
    )+ };
}

parts! {
    /// Who wrote a record: `libvirt` or `proxmox`, and what that calls the guest. *Ours*.
    Origin { source: String, id: String }
    /// A key pair's public half. *Ours*: EC2 keeps it outside the instance.
    PublicKey { key_name: Text, public_key_material: Text }
    /// A security group that applies to the instance or the interface.
    SecurityGroup { group_id: Option<Text>, group_name: Option<Text> }
    /// A marketplace product code.
    ProductCode { product_code_id: Text, product_code_type: Option<Text> }
    /// A block device: EC2's shape for an EBS volume; `VirtualName` (`ami`, `ephemeral0`, `swap`) says another name.
    BlockDeviceMapping { device_name: Text, virtual_name: Option<Text>, ebs: Option<Ebs> }
    /// The volume behind a block device.
    Ebs { volume_id: Option<Box<str>> }
    /// Whether the instance was launched so that it can hibernate.
    HibernationOptions { configured: bool }
    /// Detailed monitoring: `enabled` or `disabled`.
    Monitoring { state: Text }
    /// Which instance profile the instance has.
    IamInstanceProfile { arn: Text, id: Option<Text> }
    /// A tag of the instance.
    Tag { key: Text, value: Text }
    /// A private IPv4 address of an interface.
    PrivateIpAddress {
        private_ip_address: std::net::Ipv4Addr,
        #[serde(default)] primary: bool,
        private_dns_name: Option<Box<str>>,
        association: Option<Box<Association>>,
    }
    /// The public address that maps to a private one.
    Association { public_ip: Option<std::net::Ipv4Addr>, public_dns_name: Option<Box<str>>, ip_owner_id: Option<Text> }
    /// An IPv6 address of an interface.
    Ipv6Address { ipv6_address: std::net::Ipv6Addr }
    /// A delegated IPv4 prefix, in CIDR notation.
    Ipv4Prefix { ipv4_prefix: Text }
    /// A delegated IPv6 prefix, in CIDR notation.
    Ipv6Prefix { ipv6_prefix: Text }
    /// How the interface is attached to the instance.
    Attachment { #[serde(default)] device_index: u32, network_card_index: Option<u32> }
}

/// Where the instance runs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(
    missing_docs,
    reason = "the names and meanings are those of the EC2 API reference"
)]
pub struct Placement {
    pub availability_zone: Option<Text>,
    pub availability_zone_id: Option<Text>,
    /// *Ours*: the region, where it is not the zone without its last letter.
    pub region: Option<Text>,
    pub group_name: Option<Text>,
    pub host_id: Option<Text>,
    pub partition_number: Option<u32>,
}

impl Placement {
    /// The region: as said, else the zone without its last letter.
    pub fn region(&self) -> Option<&str> {
        let said = self.region.as_deref().filter(|region| !region.is_empty());
        said.or_else(|| {
            let zone = self.availability_zone.as_deref()?;
            zone.strip_suffix(|last: char| last.is_ascii_lowercase())
                .filter(|region| region.ends_with(|last: char| last.is_ascii_digit()))
        })
    }
}

/// `MetadataOptions` as a record says it: what is not said is taken from the host's defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(
    missing_docs,
    reason = "the names and meanings are those of the EC2 API reference"
)]
pub struct MetadataOptionsRecord {
    pub http_endpoint: Option<HttpEndpoint>,
    pub http_tokens: Option<HttpTokens>,
    #[serde(default, deserialize_with = "hop_limit")]
    pub http_put_response_hop_limit: Option<u8>,
    pub http_protocol_ipv6: Option<HttpProtocolIpv6>,
    pub instance_metadata_tags: Option<InstanceMetadataTags>,
    /// *Ours*, see [`InstanceMetadataTagsIndex`].
    pub instance_metadata_tags_index: Option<InstanceMetadataTagsIndex>,
}

/// The metadata options in force for one instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(
    missing_docs,
    reason = "the names and meanings are those of the EC2 API reference"
)]
pub struct MetadataOptions {
    pub http_endpoint: HttpEndpoint,
    pub http_tokens: HttpTokens,
    /// 1 to 64.
    pub http_put_response_hop_limit: u8,
    pub http_protocol_ipv6: HttpProtocolIpv6,
    pub instance_metadata_tags: InstanceMetadataTags,
    /// *Ours*, see [`InstanceMetadataTagsIndex`].
    pub instance_metadata_tags_index: InstanceMetadataTagsIndex,
}

macro_rules! option_words {
    ($($(#[$doc:meta])* $name:ident { $($variant:ident),+ })+) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
        #[serde(rename_all = "lowercase")]
        #[expect(missing_docs, reason = "the names and meanings are those of the EC2 API reference")]
        pub enum $name { $($variant),+ }
    )+ };
}

option_words! {
    /// Whether the service answers the instance at all.
    HttpEndpoint { Enabled, Disabled }
    /// Whether a session token is needed (IMDSv2 only) or not (IMDSv1 too).
    HttpTokens { Optional, Required }
    /// Whether the service answers on IPv6 too.
    HttpProtocolIpv6 { Enabled, Disabled }
    /// Whether the instance's tags are in the tree.
    InstanceMetadataTags { Enabled, Disabled }
    /// *Ours*: whether tags that are in the tree can also be had, whatever their keys, as one JSON document at
    /// `tags/instance-index` and one by one under their percent-encoded keys.
    InstanceMetadataTagsIndex { Enabled, Disabled }
}

impl Instance {
    /// What is about to happen to it.
    pub fn events(&self) -> &Events {
        static NONE: Events = Events::NONE;
        self.events.as_deref().unwrap_or(&NONE)
    }
}

impl HasKey for Tag {
    type Key = str;

    fn key(&self) -> &str {
        &self.key
    }
}

impl HasKey for NetworkInterface {
    type Key = MacAddr;

    fn key(&self) -> &MacAddr {
        &self.mac_address
    }
}

impl Default for MetadataOptions {
    /// The defaults of the wire contract: tokens required, hop limit 1, endpoint on, IPv6 and tags off.
    fn default() -> Self {
        Self {
            http_endpoint: HttpEndpoint::Enabled,
            http_tokens: HttpTokens::Required,
            http_put_response_hop_limit: 1,
            http_protocol_ipv6: HttpProtocolIpv6::Disabled,
            instance_metadata_tags: InstanceMetadataTags::Disabled,
            instance_metadata_tags_index: InstanceMetadataTagsIndex::Disabled,
        }
    }
}

impl MetadataOptionsRecord {
    /// The options in force: what the record says, else the host's `defaults`.
    pub fn or(self, defaults: MetadataOptions) -> MetadataOptions {
        MetadataOptions {
            http_endpoint: self.http_endpoint.unwrap_or(defaults.http_endpoint),
            http_tokens: self.http_tokens.unwrap_or(defaults.http_tokens),
            http_put_response_hop_limit: self
                .http_put_response_hop_limit
                .unwrap_or(defaults.http_put_response_hop_limit),
            http_protocol_ipv6: self.http_protocol_ipv6.unwrap_or(defaults.http_protocol_ipv6),
            instance_metadata_tags: self
                .instance_metadata_tags
                .unwrap_or(defaults.instance_metadata_tags),
            instance_metadata_tags_index: self
                .instance_metadata_tags_index
                .unwrap_or(defaults.instance_metadata_tags_index),
        }
    }
}

/// User data: exact bytes, often with secrets in them, so never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct UserData(pub Box<[u8]>);

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserData({} bytes)", self.0.len())
    }
}

impl<'de> Deserialize<'de> for UserData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine as _;
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        // `base64` wraps its lines unless told otherwise.
        let text: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        // The decoder's own error would show a byte of the user data.
        base64::engine::general_purpose::STANDARD
            .decode(text)
            .map(|bytes| Self(bytes.into()))
            .map_err(|_| de::Error::custom("user data is not base64"))
    }
}

fn hop_limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
    let Some(limit) = Option::<u64>::deserialize(deserializer)? else {
        return Ok(None);
    };
    match u8::try_from(limit) {
        Ok(limit @ 1..=64) => Ok(Some(limit)),
        _ => Err(de::Error::custom(format_args!(
            "HttpPutResponseHopLimit is {limit}, not 1 to 64"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tags() {
        for key in ["Name", "a:b", "x_y-z+=,.@1", "...", "_index2"] {
            assert!(is_metadata_tag_key(key), "{key}");
        }
        let long = "k".repeat(256);
        for key in [
            "", ".", "..", "_index", "a b", "a/b", "a?b", "a%41", "a\nb", "é", &long,
        ] {
            assert!(!is_metadata_tag_key(key), "{key}");
        }
    }
}
