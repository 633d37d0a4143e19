//! The table: every category, the version that brought it, and where its value comes from.
//!
//! Read first: section 3 of the wire contract, from which paths and dates are taken. A category that the record says
//! nothing of is absent. Constants are those that EC2 itself answers where there is nothing to say.

use std::{fmt, io::Write as _};

use jiff::Timestamp;

use super::{
    Answer, Found,
    keys::Keys,
    view::{View, said},
};
use crate::{
    credentials::RoleState,
    http::ContentType,
    imds::{
        Delivery, ExtendedCredentials,
        documents::{self, accelerators, events},
        identity::Part,
    },
    registry::{InstanceMetadataTags, InstanceMetadataTagsIndex, instance::SecurityGroup},
};

/// One category.
#[derive(Debug)]
pub struct Row {
    /// Below the version; a segment in braces is a placeholder.
    pub path: &'static str,
    /// The first version that has it, as documented; `1.0` is the oldest.
    pub first: &'static str,
    /// Where the value comes from.
    pub value: Value,
    /// What a client makes of it.
    pub kind: Kind,
    /// For people: when it is not there.
    pub absent: &'static str,
}

/// What a client makes of a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One string.
    String,
    /// Strings, one a line.
    List,
    /// A JSON document.
    Json,
    /// Any bytes.
    Bytes,
}

/// Where a value comes from.
#[derive(Debug)]
pub enum Value {
    /// Text of the record, or a constant. Empty is absent.
    Text(for<'v> fn(&View<'v>, &Keys<'v>) -> Option<&'v str>),
    /// Any number of lines. None is absent.
    Lines(for<'v> fn(&View<'v>, &Keys<'v>, &mut Lines<'_>)),
    /// Anything else, written to the end of a buffer.
    Document(for<'v> fn(&View<'v>, &Keys<'v>, &mut Vec<u8>) -> Answer),
}

impl Value {
    /// Writes the value to the end of `out`.
    pub(super) fn write<'v>(&self, view: &View<'v>, keys: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
        match self {
            Self::Text(value) => match said(value(view, keys)) {
                Some(text) => {
                    out.extend_from_slice(text.as_bytes());
                    Answer::Found(Found::TEXT)
                }
                None => Answer::Absent,
            },
            Self::Lines(write) => {
                let before = out.len();
                write(view, keys, &mut Lines { before, out });
                if out.len() > before {
                    Answer::Found(Found::TEXT)
                } else {
                    Answer::Absent
                }
            }
            Self::Document(write) => write(view, keys, out),
        }
    }
}

/// Lines on their way out: one per item, and no newline after the last.
pub struct Lines<'o> {
    before: usize,
    out: &'o mut Vec<u8>,
}

impl Lines<'_> {
    fn extend<T: fmt::Display>(&mut self, items: impl IntoIterator<Item = T>) {
        for item in items {
            if self.out.len() > self.before {
                self.out.push(b'\n');
            }
            _ = write!(self.out, "{item}");
        }
    }

    fn each<S, I: IntoIterator<Item: fmt::Display>>(
        &mut self,
        source: Option<S>,
        items: impl FnOnce(S) -> I,
    ) {
        if let Some(source) = source {
            self.extend(items(source));
        }
    }
}

use Value::{Document, Lines as List, Text};

const fn row(path: &'static str, first: &'static str, value: Value) -> Row {
    let kind = match value {
        Text(_) => Kind::String,
        List(_) => Kind::List,
        Document(_) => Kind::Json,
    };
    Row {
        path,
        first,
        value,
        kind,
        absent: "the record does not say it",
    }
}

impl Row {
    /// A value that is written in another way than most of its kind.
    const fn of(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// A value that is not there when more, or something else, is missing than a field of the record.
    const fn absent(mut self, when: &'static str) -> Self {
        self.absent = when;
        self
    }

    /// A value that is always there.
    const fn always(self) -> Self {
        self.absent("never")
    }
}

/// Directories that are served and not listed. The SDKs that know of extended credentials ask for them by name, and
/// cloud-init keeps on the guest's disk whatever it finds listed, except in a directory called `security-credentials`.
pub const UNLISTED: &[&str] = &["security-credentials-extended"];

/// A path under an interface.
macro_rules! eni {
    ($path:literal) => {
        concat!("meta-data/network/interfaces/macs/{mac}/", $path)
    };
}

/// Every category: path, first version, value. `v` is the view, `k` what the placeholders stand for, `l` the lines.
#[rustfmt::skip]
pub static ROWS: &[Row] = &[
    row("dynamic/fws/instance-monitoring", "2009-04-04", Text(|v, _| Some(&v.instance.monitoring.as_ref()?.state))),
    row("dynamic/instance-identity/document", "2009-04-04", Document(identity_document)).always(),
    row("dynamic/instance-identity/dsa2048", "2009-04-04", Document(identity_dsa)).of(Kind::String).always(),
    row("dynamic/instance-identity/pkcs7", "2009-04-04", Document(identity_signed_data)).of(Kind::String).always(),
    row("dynamic/instance-identity/rsa2048", "2009-04-04", Document(identity_signed_data)).of(Kind::String).always(),
    row("dynamic/instance-identity/signature", "2009-04-04", Document(identity_signature)).of(Kind::String).always(),

    row("meta-data/ami-id", "1.0", Text(|v, _| v.instance.image_id.as_deref())),
    row("meta-data/ami-launch-index", "1.0", List(|v, _, l| l.extend([v.instance.ami_launch_index]))).of(Kind::String).always(),
    row("meta-data/ami-manifest-path", "1.0", Text(|v, _| v.ami_manifest_path())).always(),
    row("meta-data/ancestor-ami-ids", "2007-10-10", List(|v, _, l| l.extend(&v.instance.ancestor_ami_ids))),
    row("meta-data/autoscaling/target-lifecycle-state", "2021-07-15", Document(target_lifecycle_state)).of(Kind::String).absent("no state of an Auto Scaling group is visible"),
    row("meta-data/block-device-mapping/{device}", "2007-12-15", Text(|_, k| k.device)).absent("the record says nothing of block devices"),
    row("meta-data/elastic-gpus/associations/{elastic-gpu-id}", "2016-11-30", Document(elastic_gpu)),
    row("meta-data/elastic-inference/associations/{eia-id}", "2018-11-29", Document(elastic_inference_accelerator)),
    row("meta-data/events/maintenance/history", "2018-08-17", Document(maintenance_history)).always(),
    row("meta-data/events/maintenance/scheduled", "2018-08-17", Document(maintenance_scheduled)).always(),
    row("meta-data/events/recommendations/rebalance", "2020-10-27", Document(rebalance)).absent("no recommendation is visible"),
    // Without a documented date; hibernation came in November 2018.
    row("meta-data/hibernation/configured", "2018-11-28", Text(|v, _| v.hibernation_configured())),
    row("meta-data/hostname", "1.0", Text(|v, _| v.local_hostname())).absent("the record says no private host name"),
    row("meta-data/iam/info", "2012-01-12", Document(iam_info)).absent("the record names no instance profile"),
    row("meta-data/iam/security-credentials/{role}", "2012-01-12", Document(role_credentials)).absent("there is no instance profile or no role in it"),
    // Undocumented, and asked for by some SDKs. It is as old as what it extends.
    row("meta-data/iam/security-credentials-extended/{role}", "2012-01-12", Document(extended_role_credentials)).absent("there is no instance profile or no role in it, or `credentials.extended` is false"),
    row("meta-data/identity-credentials/ec2/info", "2018-05-23", Document(identity_credentials_info)).absent("the record says no account"),
    row("meta-data/identity-credentials/ec2/security-credentials/ec2-instance", "2018-05-23", Document(identity_credentials)).always(),
    row("meta-data/instance-action", "2008-09-01", Text(|_, _| Some("none"))).always(),
    row("meta-data/instance-id", "1.0", Text(|v, _| Some(v.instance.instance_id.as_str()))).always(),
    row("meta-data/instance-life-cycle", "2019-10-01", Text(|v, _| v.life_cycle())).always(),
    row("meta-data/instance-type", "2007-08-29", Text(|v, _| v.instance.instance_type.as_deref())),
    row("meta-data/ipv6", "2021-01-03", List(|v, _, l| l.extend(v.ipv6()))).of(Kind::String).absent("the instance has no IPv6 address"),
    row("meta-data/kernel-id", "2008-02-01", Text(|v, _| v.instance.kernel_id.as_deref())),
    row("meta-data/local-hostname", "2007-01-19", Text(|v, _| v.local_hostname())).absent("the record says no private host name"),
    row("meta-data/local-ipv4", "1.0", List(|v, _, l| l.extend(v.local_ipv4()))).of(Kind::String).absent("the instance has no IPv4 address"),
    row("meta-data/mac", "2011-01-01", List(|v, _, l| l.extend(v.primary().map(|i| i.record.mac_address)))).of(Kind::String).absent("no interface has device number 0"),
    row("meta-data/metrics/vhostmd", "2011-05-01", Text(|_, _| Some("<?xml version=\"1.0\" encoding=\"UTF-8\"?>"))).always(),

    row(eni!("device-number"), "2011-01-01", List(|_, k, l| l.extend(k.interface.map(|i| i.device_number)))).of(Kind::String).always(),
    row(eni!("interface-id"), "2011-01-01", Text(|_, k| Some(k.eni()?.network_interface_id.as_ref()?.as_str()))),
    row(eni!("ipv4-associations/{public-ip}"), "2011-01-01", List(ipv4_association)).absent("the interface has no public address"),
    // The two prefixes have no documented date; delegation of prefixes came in July 2021.
    row(eni!("ipv4-prefix"), "2021-07-15", List(|_, k, l| l.each(k.eni(), |e| e.ipv4_prefixes.iter().map(|p| &p.ipv4_prefix)))).absent("no prefix is delegated to the interface"),
    row(eni!("ipv6-prefix"), "2021-07-15", List(|_, k, l| l.each(k.eni(), |e| e.ipv6_prefixes.iter().map(|p| &p.ipv6_prefix)))).absent("no prefix is delegated to the interface"),
    row(eni!("ipv6s"), "2016-06-30", List(|_, k, l| l.each(k.eni(), |e| e.ipv6_addresses.iter().map(|a| a.ipv6_address)))).absent("the interface has no IPv6 address"),
    // Documented with a date of 2007, which is that of the instance's: nothing per interface is older than its directory.
    row(eni!("local-hostname"), "2011-01-01", Text(|v, k| v.interface_local_hostname(k.interface?))),
    row(eni!("local-ipv4s"), "2011-01-01", List(|_, k, l| l.each(k.interface, |i| i.local_ipv4s()))).absent("the interface has no IPv4 address"),
    row(eni!("mac"), "2011-01-01", List(|_, k, l| l.extend(k.eni().map(|e| e.mac_address)))).of(Kind::String).always(),
    row(eni!("network-card"), "2020-11-01", List(|_, k, l| l.extend(k.interface.and_then(|i| i.network_card())))).of(Kind::String),
    row(eni!("network-card-index"), "2020-11-01", List(|_, k, l| l.extend(k.interface.and_then(|i| i.network_card())))).of(Kind::String),
    row(eni!("owner-id"), "2011-01-01", Text(|v, k| said(k.eni()?.owner_id.as_deref()).or_else(|| v.account()))).absent("the record says no account"),
    row(eni!("public-hostname"), "2011-01-01", Text(|_, k| k.interface?.public_hostname())).absent("the record says no public host name"),
    row(eni!("public-ipv4s"), "2011-01-01", List(|_, k, l| l.each(k.interface, |i| i.public_ipv4s()))).absent("the interface has no public address"),
    row(eni!("security-group-ids"), "2011-01-01", List(|v, k, l| l.each(k.interface, |i| ids(v.interface_security_groups(i))))),
    row(eni!("security-groups"), "2011-01-01", List(|v, k, l| l.each(k.interface, |i| names(v.interface_security_groups(i))))),
    row(eni!("subnet-id"), "2011-01-01", Text(|_, k| k.eni()?.subnet_id.as_deref())),
    row(eni!("subnet-ipv4-cidr-block"), "2011-01-01", Text(|_, k| k.eni()?.subnet_ipv4_cidr_block.as_deref())),
    row(eni!("subnet-ipv6-cidr-blocks"), "2016-06-30", List(|_, k, l| l.each(k.eni(), |e| &e.subnet_ipv6_cidr_blocks))),
    row(eni!("vpc-id"), "2011-01-01", Text(|_, k| k.eni()?.vpc_id.as_deref())),
    row(eni!("vpc-ipv4-cidr-block"), "2011-01-01", Text(|_, k| Some(k.eni()?.vpc_ipv4_cidr_blocks.first()?))),
    row(eni!("vpc-ipv4-cidr-blocks"), "2016-06-30", List(|_, k, l| l.each(k.eni(), |e| &e.vpc_ipv4_cidr_blocks))),
    row(eni!("vpc-ipv6-cidr-blocks"), "2016-06-30", List(|_, k, l| l.each(k.eni(), |e| &e.vpc_ipv6_cidr_blocks))),

    row("meta-data/placement/availability-zone", "2008-02-01", Text(|v, _| v.availability_zone())),
    row("meta-data/placement/availability-zone-id", "2019-10-01", Text(|v, _| v.placement().availability_zone_id.as_deref())),
    row("meta-data/placement/group-name", "2020-08-24", Text(|v, _| v.placement().group_name.as_deref())),
    row("meta-data/placement/host-id", "2020-08-24", Text(|v, _| v.placement().host_id.as_deref())),
    row("meta-data/placement/partition-number", "2020-08-24", List(|v, _, l| l.extend(v.placement().partition_number))).of(Kind::String),
    row("meta-data/placement/region", "2020-08-24", Text(|v, _| v.region())).absent("the record says no region, and no zone to tell it from"),
    row("meta-data/product-codes", "2007-03-01", List(|v, _, l| l.extend(v.instance.product_codes.iter().map(|c| &c.product_code_id)))),
    // Undocumented. The oldest version that it was seen in is that of the capture in cloud-init's tests.
    row("meta-data/profile", "2016-09-02", Text(|v, _| v.profile())).absent("the record does not say `hvm` or `paravirtual`"),
    row("meta-data/public-hostname", "2007-01-19", Text(|v, _| v.public_hostname())).absent("the record says no public host name"),
    row("meta-data/public-ipv4", "2007-01-19", List(|v, _, l| l.extend(v.public_ipv4()))).of(Kind::String).absent("the instance has no public address"),
    row("meta-data/public-keys/{index}/openssh-key", "1.0", Text(|_, k| Some(&k.public_key?.public_key_material))).absent("the record says no key pair"),
    row("meta-data/ramdisk-id", "2007-10-10", Text(|v, _| v.instance.ramdisk_id.as_deref())),
    row("meta-data/reservation-id", "1.0", Text(|v, _| v.instance.reservation_id.as_deref())),
    row("meta-data/security-groups", "1.0", List(|v, _, l| l.extend(names(v.security_groups())))),
    row("meta-data/services/domain", "2014-02-25", Text(|v, _| Some(v.partition().1))).always(),
    row("meta-data/services/partition", "2015-10-20", Text(|v, _| Some(v.partition().0))).always(),
    row("meta-data/spot/instance-action", "2016-11-15", Document(spot_instance_action)).absent("no interruption is visible"),
    row("meta-data/spot/termination-time", "2014-11-05", Document(spot_termination_time)).of(Kind::String).absent("no interruption is visible, or it does not terminate the instance"),
    row("meta-data/system", "2022-09-24", Text(|v, _| v.system())).absent("the record does not say `nitro` or `xen-on-nitro`"),
    // Ours, and as old as what it is an index of.
    row("meta-data/tags/instance-index", "2021-03-23", Document(tag_index)).absent("`InstanceMetadataTags` or `InstanceMetadataTagsIndex` is disabled"),
    row("meta-data/tags/instance/{tag}", "2021-03-23", Document(tag)).of(Kind::String).absent("`InstanceMetadataTags` is disabled or there are no tags"),

    row("user-data", "1.0", Document(user_data)).of(Kind::Bytes).absent("there is none or it is empty"),
];

fn names(groups: &[SecurityGroup]) -> impl Iterator<Item = &str> {
    groups
        .iter()
        .filter_map(|group| said(group.group_name.as_deref()))
}

fn ids(groups: &[SecurityGroup]) -> impl Iterator<Item = &str> {
    groups.iter().filter_map(|group| said(group.group_id.as_deref()))
}

fn ipv4_association<'v>(_: &View<'v>, keys: &Keys<'v>, lines: &mut Lines<'_>) {
    if let (Some(interface), Some(public_ip)) = (keys.interface, keys.public_ip) {
        lines.extend(interface.associated_with(public_ip));
    }
}

fn identity_document<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    documents::identity(view, out);
    Answer::Found(Found::TEXT)
}

fn identity_signature<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    signed_identity(view, out, Part::Signature)
}

/// CMS signed data around the document. EC2's `pkcs7` is signed with DSA and SHA-1, which nobody should trust any more:
/// *ours* is the same as `rsa2048`.
fn identity_signed_data<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    signed_identity(view, out, Part::Rsa2048)
}

fn identity_dsa<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    signed_identity(view, out, Part::Dsa2048)
}

fn signed_identity(view: &View<'_>, out: &mut Vec<u8>, part: Part) -> Answer {
    // The document goes where the answer will, so that nothing is allocated for it.
    let start = out.len();
    documents::identity(view, out);
    let signatures = view.signatures(out.get(start..).unwrap_or_default(), part);
    match signatures.and_then(|signatures| signatures.put(part, start, out)) {
        Some(()) => Answer::Found(Found::TEXT),
        None => {
            out.truncate(start);
            Answer::Pending
        }
    }
}

fn iam_info<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    changed(documents::iam_info(view, out))
}

/// What has been written, and when it last changed; nothing if nothing is there.
fn changed(last_modified: Option<Timestamp>) -> Answer {
    match last_modified {
        Some(_) => Answer::Found(Found {
            last_modified,
            ..Found::TEXT
        }),
        None => Answer::Absent,
    }
}

fn elastic_gpu<'v>(_: &View<'v>, keys: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    json(keys.elastic_gpu.map(accelerators::ElasticGpu::of), out)
}

fn elastic_inference_accelerator<'v>(_: &View<'v>, keys: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    let association = keys.elastic_inference_accelerator;
    json(
        association.and_then(accelerators::ElasticInferenceAccelerator::of),
        out,
    )
}

fn json(document: Option<impl serde::Serialize>, out: &mut Vec<u8>) -> Answer {
    match document.map(|document| serde_json::to_writer(out, &document)) {
        Some(Ok(())) => Answer::Found(Found::TEXT),
        // Text and addresses are always JSON.
        Some(Err(_)) | None => Answer::Absent,
    }
}

fn target_lifecycle_state<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    changed(events::target_lifecycle_state(view, out))
}

fn maintenance_history<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    changed(Some(events::maintenance_history(view, out)))
}

fn maintenance_scheduled<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    changed(Some(events::maintenance_scheduled(view, out)))
}

fn rebalance<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    changed(events::rebalance(view, out))
}

fn spot_instance_action<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    changed(events::spot_instance_action(view, out))
}

fn spot_termination_time<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    changed(events::spot_termination_time(view, out))
}

fn role_credentials<'v>(view: &View<'v>, keys: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    credentials(
        view,
        (view.role_state, Delivery::RoleCredentials),
        keys.role.and_then(documents::account_of),
        out,
    )
}

fn extended_role_credentials<'v>(view: &View<'v>, keys: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    match view.extended_credentials {
        ExtendedCredentials::Enabled => role_credentials(view, keys, out),
        ExtendedCredentials::Disabled => Answer::Absent,
    }
}

fn credentials(
    view: &View<'_>,
    (state, delivery): (Option<&RoleState>, Delivery),
    account: Option<&str>,
    out: &mut Vec<u8>,
) -> Answer {
    match state {
        Some(RoleState::Ready(credentials)) if view.is_current(credentials) => {
            let Some(credentials) = credentials.for_guest_that(view.asked) else {
                // It is being made since guests may ask so.
                return Answer::Pending;
            };
            documents::role_credentials(credentials, account, out);
            Answer::Found(Found {
                last_modified: Some(credentials.last_updated),
                delivery,
                ..Found::TEXT
            })
        }
        Some(RoleState::Refused(refusal)) => {
            documents::refused(refusal, out);
            Answer::Found(Found {
                last_modified: Some(refusal.last_updated),
                ..Found::TEXT
            })
        }
        Some(RoleState::Ready(_)) | None => Answer::Pending,
    }
}

fn identity_credentials<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    let state = (view.identity_state, Delivery::IdentityCredentials);
    credentials(view, state, view.account(), out)
}

fn identity_credentials_info<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    match view.account() {
        Some(account) => {
            documents::identity_credentials_info(account, view.member.last_modified, out);
            Answer::Found(Found::TEXT)
        }
        None => Answer::Absent,
    }
}

/// Every tag in one document, where that is switched on.
fn tag_index<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    let options = view.member.options;
    let enabled = (InstanceMetadataTags::Enabled, InstanceMetadataTagsIndex::Enabled);
    if (
        options.instance_metadata_tags,
        options.instance_metadata_tags_index,
    ) != enabled
    {
        return Answer::Absent;
    }
    documents::tags(view, out);
    Answer::Found(Found::TEXT)
}

/// A tag's value, which may be empty.
fn tag<'v>(_: &View<'v>, keys: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    match keys.tag {
        Some(tag) => {
            out.extend_from_slice(tag.value.as_bytes());
            Answer::Found(Found::TEXT)
        }
        None => Answer::Absent,
    }
}

fn user_data<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    match &view.instance.user_data {
        Some(user_data) if !user_data.0.is_empty() => {
            out.extend_from_slice(&user_data.0);
            Answer::Found(Found {
                content_type: ContentType::OctetStream,
                ..Found::TEXT
            })
        }
        _ => Answer::Absent,
    }
}
