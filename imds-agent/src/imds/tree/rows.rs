//! The table: every category, the version that brought it, and where its value comes from.
//!
//! Read first: section 3 of the wire contract, from which paths and dates are taken. A category that the record says
//! nothing of is absent. Constants are those that EC2 itself answers where there is nothing to say.

use std::{fmt, io::Write as _};

use super::{
    Answer, Found,
    keys::Keys,
    view::{View, said},
};
use crate::{credentials::RoleState, http::ContentType, imds::Delivery, imds::documents};

/// One category.
#[derive(Debug)]
pub struct Row {
    /// Below the version; a segment in braces is a placeholder.
    pub path: &'static str,
    /// The first version that has it, as documented; `1.0` is the oldest.
    pub first: &'static str,
    /// Where the value comes from.
    pub value: Value,
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
}

const fn row(path: &'static str, first: &'static str, value: Value) -> Row {
    Row { path, first, value }
}

use Value::{Document, Lines as List, Text};

/// Every category.
#[rustfmt::skip]
pub static ROWS: &[Row] = &[
    row("dynamic/fws/instance-monitoring", "2009-04-04", Text(|view, _| Some(&view.instance.monitoring.as_ref()?.state))),
    row("dynamic/instance-identity/document", "2009-04-04", Document(identity_document)),

    row("meta-data/ami-id", "1.0", Text(|view, _| view.instance.image_id.as_deref())),
    row("meta-data/ami-launch-index", "1.0", List(|view, _, lines| lines.extend([view.instance.ami_launch_index]))),
    row("meta-data/ami-manifest-path", "1.0", Text(|view, _| said(view.instance.ami_manifest_path.as_deref()).or(Some("(unknown)")))),
    row("meta-data/ancestor-ami-ids", "2007-10-10", List(|view, _, lines| lines.extend(&view.instance.ancestor_ami_ids))),
    row("meta-data/block-device-mapping/{device}", "2007-12-15", Text(|_, keys| keys.device)),
    row("meta-data/hostname", "1.0", Text(|view, _| view.local_hostname())),
    row("meta-data/iam/info", "2012-01-12", Document(iam_info)),
    row("meta-data/iam/security-credentials/{role}", "2012-01-12", Document(|view, _, out| role_credentials(view, None, out))),
    // Undocumented, and asked for by the SDKs of today. It is as old as what it extends.
    row("meta-data/iam/security-credentials-extended/{role}", "2012-01-12", Document(|view, keys, out| role_credentials(view, keys.role.and_then(documents::account_of), out))),
    row("meta-data/identity-credentials/ec2/info", "2018-05-23", Document(identity_credentials_info)),
    row("meta-data/instance-action", "2008-09-01", Text(|_, _| Some("none"))),
    row("meta-data/instance-id", "1.0", Text(|view, _| Some(view.instance.instance_id.as_str()))),
    row("meta-data/instance-life-cycle", "2019-10-01", Text(|view, _| said(view.instance.instance_lifecycle.as_deref()).or(Some("on-demand")))),
    row("meta-data/instance-type", "2007-08-29", Text(|view, _| view.instance.instance_type.as_deref())),
    row("meta-data/ipv6", "2021-01-03", List(|view, _, lines| lines.extend(view.ipv6()))),
    row("meta-data/kernel-id", "2008-02-01", Text(|view, _| view.instance.kernel_id.as_deref())),
    row("meta-data/local-hostname", "2007-01-19", Text(|view, _| view.local_hostname())),
    row("meta-data/local-ipv4", "1.0", List(|view, _, lines| lines.extend(view.local_ipv4()))),
    row("meta-data/mac", "2011-01-01", List(|view, _, lines| lines.extend(view.primary().map(|interface| interface.record.mac_address)))),
    row("meta-data/metrics/vhostmd", "2011-05-01", Text(|_, _| Some("<?xml version=\"1.0\" encoding=\"UTF-8\"?>"))),

    row("meta-data/network/interfaces/macs/{mac}/device-number", "2011-01-01", List(|_, keys, lines| lines.extend(keys.interface.map(|interface| interface.device_number)))),
    row("meta-data/network/interfaces/macs/{mac}/interface-id", "2011-01-01", Text(|_, keys| Some(keys.interface?.record.network_interface_id.as_ref()?.as_str()))),
    row("meta-data/network/interfaces/macs/{mac}/ipv4-associations/{public-ip}", "2011-01-01", List(ipv4_association)),
    // The two prefixes have no documented date; delegation of prefixes came in July 2021.
    row("meta-data/network/interfaces/macs/{mac}/ipv4-prefix", "2021-07-15", List(|_, keys, lines| lines.extend(keys.interface.iter().flat_map(|interface| &interface.record.ipv4_prefixes).map(|prefix| &prefix.ipv4_prefix)))),
    row("meta-data/network/interfaces/macs/{mac}/ipv6-prefix", "2021-07-15", List(|_, keys, lines| lines.extend(keys.interface.iter().flat_map(|interface| &interface.record.ipv6_prefixes).map(|prefix| &prefix.ipv6_prefix)))),
    row("meta-data/network/interfaces/macs/{mac}/ipv6s", "2016-06-30", List(|_, keys, lines| lines.extend(keys.interface.iter().flat_map(|interface| &interface.record.ipv6_addresses).map(|address| address.ipv6_address)))),
    row("meta-data/network/interfaces/macs/{mac}/local-hostname", "2007-01-19", Text(|view, keys| view.interface_local_hostname(keys.interface?))),
    row("meta-data/network/interfaces/macs/{mac}/local-ipv4s", "2011-01-01", List(|_, keys, lines| lines.extend(keys.interface.into_iter().flat_map(|interface| interface.local_ipv4s())))),
    row("meta-data/network/interfaces/macs/{mac}/mac", "2011-01-01", List(|_, keys, lines| lines.extend(keys.interface.map(|interface| interface.record.mac_address)))),
    row("meta-data/network/interfaces/macs/{mac}/network-card", "2020-11-01", List(network_card)),
    row("meta-data/network/interfaces/macs/{mac}/network-card-index", "2020-11-01", List(network_card)),
    row("meta-data/network/interfaces/macs/{mac}/owner-id", "2011-01-01", Text(|view, keys| said(keys.interface?.record.owner_id.as_deref()).or_else(|| view.account()))),
    row("meta-data/network/interfaces/macs/{mac}/public-hostname", "2011-01-01", Text(|_, keys| keys.interface?.public_hostname())),
    row("meta-data/network/interfaces/macs/{mac}/public-ipv4s", "2011-01-01", List(|_, keys, lines| lines.extend(keys.interface.into_iter().flat_map(|interface| interface.public_ipv4s())))),
    row("meta-data/network/interfaces/macs/{mac}/security-group-ids", "2011-01-01", List(|view, keys, lines| lines.extend(keys.interface.iter().flat_map(|interface| view.interface_security_groups(*interface)).filter_map(|group| said(group.group_id.as_deref()))))),
    row("meta-data/network/interfaces/macs/{mac}/security-groups", "2011-01-01", List(|view, keys, lines| lines.extend(keys.interface.iter().flat_map(|interface| view.interface_security_groups(*interface)).filter_map(|group| said(group.group_name.as_deref()))))),
    row("meta-data/network/interfaces/macs/{mac}/subnet-id", "2011-01-01", Text(|_, keys| keys.interface?.record.subnet_id.as_deref())),
    row("meta-data/network/interfaces/macs/{mac}/subnet-ipv4-cidr-block", "2011-01-01", Text(|_, keys| keys.interface?.record.subnet_ipv4_cidr_block.as_deref())),
    row("meta-data/network/interfaces/macs/{mac}/subnet-ipv6-cidr-blocks", "2016-06-30", List(|_, keys, lines| lines.extend(keys.interface.iter().flat_map(|interface| &interface.record.subnet_ipv6_cidr_blocks)))),
    row("meta-data/network/interfaces/macs/{mac}/vpc-id", "2011-01-01", Text(|_, keys| keys.interface?.record.vpc_id.as_deref())),
    row("meta-data/network/interfaces/macs/{mac}/vpc-ipv4-cidr-block", "2011-01-01", Text(|_, keys| Some(keys.interface?.record.vpc_ipv4_cidr_blocks.first()?))),
    row("meta-data/network/interfaces/macs/{mac}/vpc-ipv4-cidr-blocks", "2016-06-30", List(|_, keys, lines| lines.extend(keys.interface.iter().flat_map(|interface| &interface.record.vpc_ipv4_cidr_blocks)))),
    row("meta-data/network/interfaces/macs/{mac}/vpc-ipv6-cidr-blocks", "2016-06-30", List(|_, keys, lines| lines.extend(keys.interface.iter().flat_map(|interface| &interface.record.vpc_ipv6_cidr_blocks)))),

    row("meta-data/placement/availability-zone", "2008-02-01", Text(|view, _| view.availability_zone())),
    row("meta-data/placement/availability-zone-id", "2019-10-01", Text(|view, _| view.instance.placement.availability_zone_id.as_deref())),
    row("meta-data/placement/group-name", "2020-08-24", Text(|view, _| view.instance.placement.group_name.as_deref())),
    row("meta-data/placement/host-id", "2020-08-24", Text(|view, _| view.instance.placement.host_id.as_deref())),
    row("meta-data/placement/partition-number", "2020-08-24", List(|view, _, lines| lines.extend(view.instance.placement.partition_number))),
    row("meta-data/placement/region", "2020-08-24", Text(|view, _| view.region())),
    row("meta-data/product-codes", "2007-03-01", List(|view, _, lines| lines.extend(view.instance.product_codes.iter().map(|code| &code.product_code_id)))),
    row("meta-data/public-hostname", "2007-01-19", Text(|view, _| view.public_hostname())),
    row("meta-data/public-ipv4", "2007-01-19", List(|view, _, lines| lines.extend(view.public_ipv4()))),
    row("meta-data/public-keys/{index}/openssh-key", "1.0", Text(|_, keys| Some(&keys.public_key?.public_key_material))),
    row("meta-data/ramdisk-id", "2007-10-10", Text(|view, _| view.instance.ramdisk_id.as_deref())),
    row("meta-data/reservation-id", "1.0", Text(|view, _| view.instance.reservation_id.as_deref())),
    row("meta-data/security-groups", "1.0", List(|view, _, lines| lines.extend(view.security_groups().iter().filter_map(|group| said(group.group_name.as_deref()))))),
    row("meta-data/services/domain", "2014-02-25", Text(|view, _| Some(view.partition().1))),
    row("meta-data/services/partition", "2015-10-20", Text(|view, _| Some(view.partition().0))),
    // `describe-instances` says `xen` of Nitro instances too, so that says nothing.
    row("meta-data/system", "2022-09-24", Text(|view, _| view.instance.hypervisor.as_deref().filter(|system| matches!(*system, "nitro" | "xen-on-nitro")))),
    row("meta-data/tags/instance/{tag}", "2021-03-23", Document(tag)),

    row("user-data", "1.0", Document(user_data)),
];

fn ipv4_association<'v>(_: &View<'v>, keys: &Keys<'v>, lines: &mut Lines<'_>) {
    if let (Some(interface), Some(public_ip)) = (keys.interface, keys.public_ip) {
        lines.extend(interface.associated_with(public_ip));
    }
}

fn network_card<'v>(_: &View<'v>, keys: &Keys<'v>, lines: &mut Lines<'_>) {
    let attachment = keys
        .interface
        .and_then(|interface| interface.record.attachment.as_ref());
    lines.extend(attachment.and_then(|attachment| attachment.network_card_index));
}

fn identity_document<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    documents::identity(view, out);
    Answer::Found(Found::TEXT)
}

fn iam_info<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    match documents::iam_info(view, out) {
        Some(last_updated) => Answer::Found(Found {
            last_modified: Some(last_updated),
            ..Found::TEXT
        }),
        None => Answer::Absent,
    }
}

fn role_credentials(view: &View<'_>, account: Option<&str>, out: &mut Vec<u8>) -> Answer {
    match view.role_state {
        Some(RoleState::Ready(credentials)) if view.is_current(credentials) => {
            documents::role_credentials(credentials, account, out);
            Answer::Found(Found {
                last_modified: Some(credentials.last_updated),
                delivery: Delivery::RoleCredentials,
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

fn identity_credentials_info<'v>(view: &View<'v>, _: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
    match view.account() {
        Some(account) => {
            documents::identity_credentials_info(account, view.member.last_modified, out);
            Answer::Found(Found::TEXT)
        }
        None => Answer::Absent,
    }
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
