//! The placeholders of the table: which names stand for one in a view, and what a name stands for.
//!
//! A placeholder's names are what [`Placeholder::visit`] lists. A segment is looked up in the same list, or, where an
//! instance may have thousands of them, in the record's index over it: a crawl of its own listings holds the two together.
//! More is found than is listed in one case: tags with keys that EC2 has no place for, where the instance has them switched on.

use std::{cmp::Ordering, fmt, fmt::Write as _, net::Ipv4Addr, ops::ControlFlow};

use imds_ebpf::abi::MacAddr;

use super::{
    steps,
    view::{Interface, View, said},
};
use crate::registry::{
    InstanceMetadataTags, InstanceMetadataTagsIndex, NetworkInterface, Role,
    accelerators::{ElasticGpuAssociation, ElasticInferenceAcceleratorAssociation},
    instance::{PublicKey, Tag, check_name, is_metadata_tag_key},
};

/// A segment of a path template that stands for many names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placeholder {
    /// `{device}`: `ami`, `ebs1`, `ephemeral0`, `root`, `swap`.
    Device,
    /// `{eia-id}`: the id of an Elastic Inference accelerator.
    ElasticInferenceAccelerator,
    /// `{elastic-gpu-id}`: the id of an Elastic Graphics accelerator.
    ElasticGpu,
    /// `{mac}`: the MAC of an interface.
    Mac,
    /// `{public-ip}`: a public address of the interface.
    PublicIp,
    /// `{index}`: the index of a key pair.
    PublicKey,
    /// `{role}`: the one role.
    Role,
    /// `{tag}`: the key of a tag.
    Tag,
}

/// What the placeholders on the way to a leaf stand for.
#[derive(Clone, Copy, Default, Debug)]
#[expect(missing_docs, reason = "each is the meaning of the placeholder of its name")]
pub struct Keys<'v> {
    pub device: Option<&'v str>,
    pub elastic_inference_accelerator: Option<&'v ElasticInferenceAcceleratorAssociation>,
    pub elastic_gpu: Option<&'v ElasticGpuAssociation>,
    pub interface: Option<Interface<'v>>,
    pub public_ip: Option<Ipv4Addr>,
    pub public_key: Option<&'v PublicKey>,
    pub role: Option<&'v Role>,
    pub tag: Option<&'v Tag>,
}

impl<'v> Keys<'v> {
    /// The record of the interface.
    pub fn eni(&self) -> Option<&'v NetworkInterface> {
        Some(self.interface?.record)
    }
}

/// Is told every name and what it stands for.
type Visit<'a, 'v> = &'a mut dyn FnMut(&dyn fmt::Display, Keys<'v>) -> ControlFlow<()>;

impl Placeholder {
    /// The placeholder that `segment` of a path template is, if it is one.
    pub fn of(segment: &str) -> Option<Self> {
        match segment {
            "{device}" => Some(Self::Device),
            "{eia-id}" => Some(Self::ElasticInferenceAccelerator),
            "{elastic-gpu-id}" => Some(Self::ElasticGpu),
            "{mac}" => Some(Self::Mac),
            "{public-ip}" => Some(Self::PublicIp),
            "{index}" => Some(Self::PublicKey),
            "{role}" => Some(Self::Role),
            "{tag}" => Some(Self::Tag),
            _ => None,
        }
    }

    /// What `segment` of a request stands for. Escaped characters are the same as plain ones.
    pub(super) fn find<'v>(self, view: &View<'v>, outer: &Keys<'v>, segment: &str) -> Option<Keys<'v>> {
        let outer = *outer;
        match self {
            Self::Mac => {
                let interface = Some(interface_of(view, segment)?);
                Some(Keys { interface, ..outer })
            }
            Self::PublicKey => {
                let public_key = Some(public_key_of(view, segment)?);
                Some(Keys { public_key, ..outer })
            }
            Self::Tag => {
                let tag = Some(tag_of(view, segment)?);
                Some(Keys { tag, ..outer })
            }
            // An instance has a handful of these.
            Self::Device
            | Self::ElasticInferenceAccelerator
            | Self::ElasticGpu
            | Self::PublicIp
            | Self::Role => {
                let mut found = None;
                _ = self.visit(view, &outer, &mut |name, keys| {
                    steps::count();
                    if Unescaped::of(segment).is(name) {
                        found = Some(keys);
                        return ControlFlow::Break(());
                    }
                    ControlFlow::Continue(())
                });
                found
            }
        }
    }

    /// Calls `visit` for every name, in the order in which they are listed.
    pub(super) fn visit<'v>(
        self,
        view: &View<'v>,
        outer: &Keys<'v>,
        visit: Visit<'_, 'v>,
    ) -> ControlFlow<()> {
        let outer = *outer;
        match self {
            Self::Device => devices(view, &mut |name, device| {
                let device = Some(device);
                visit(name, Keys { device, ..outer })
            }),
            Self::ElasticInferenceAccelerator => {
                let associations = &view.instance.elastic_inference_accelerator_associations;
                associations.iter().try_for_each(|association| {
                    let Some(id) = association.accelerator_id() else {
                        return ControlFlow::Continue(());
                    };
                    let elastic_inference_accelerator = Some(association);
                    let keys = Keys {
                        elastic_inference_accelerator,
                        ..outer
                    };
                    visit(&id, keys)
                })
            }
            Self::ElasticGpu => {
                let mut associations = view.instance.elastic_gpu_associations.iter();
                associations.try_for_each(|association| {
                    let elastic_gpu = Some(association);
                    let keys = Keys { elastic_gpu, ..outer };
                    visit(&association.elastic_gpu_id, keys)
                })
            }
            Self::Mac => {
                // The primary one first: scripts take the first line for it.
                let primary = view.primary();
                let is_primary = |interface: &Interface<'_>| {
                    primary.is_some_and(|primary| std::ptr::eq(primary.record, interface.record))
                };
                let others = view.interfaces().filter(|interface| !is_primary(interface));
                let mut interfaces = primary.into_iter().chain(others);
                interfaces.try_for_each(|interface| {
                    let keys = Keys {
                        interface: Some(interface),
                        ..outer
                    };
                    visit(&interface.record.mac_address, keys)
                })
            }
            Self::PublicIp => {
                let mut addresses = outer.interface.into_iter().flat_map(Interface::public_ipv4s);
                addresses.try_for_each(|address| {
                    let public_ip = Some(address);
                    visit(&address, Keys { public_ip, ..outer })
                })
            }
            Self::PublicKey => {
                let mut keys = view.instance.public_keys.iter().enumerate();
                keys.try_for_each(|(index, key)| {
                    let public_key = Some(key);
                    visit(&index, Keys { public_key, ..outer })
                })
            }
            Self::Role => view.member.role.iter().try_for_each(|role| {
                let keys = Keys {
                    role: Some(role),
                    ..outer
                };
                visit(&role.role_name, keys)
            }),
            Self::Tag => match view.member.options.instance_metadata_tags {
                InstanceMetadataTags::Disabled => ControlFlow::Continue(()),
                InstanceMetadataTags::Enabled => {
                    let mut tags = view
                        .instance
                        .tags
                        .iter()
                        .filter(|tag| is_metadata_tag_key(&tag.key));
                    tags.try_for_each(|tag| {
                        visit(
                            &tag.key,
                            Keys {
                                tag: Some(tag),
                                ..outer
                            },
                        )
                    })
                }
            },
        }
    }
}

/// The interface with this MAC, in the one way to write it that the tree has.
fn interface_of<'v>(view: &View<'v>, segment: &str) -> Option<Interface<'v>> {
    let mut text = [0; "0e:49:61:0f:c3:11".len()];
    let mut bytes = Unescaped::of(segment);
    for place in &mut text {
        *place = bytes.next()?;
    }
    let mac: MacAddr = str::from_utf8(&text).ok()?.parse().ok()?;
    if !Unescaped::of(segment).is(&mac) {
        return None;
    }
    let (place, record) = view.instance.network_interfaces.find(|other| {
        steps::count();
        other.cmp(&mac)
    })?;
    Some(Interface::new(place, record))
}

/// The key pair of this index, a number without leading zeroes.
fn public_key_of<'v>(view: &View<'v>, segment: &str) -> Option<&'v PublicKey> {
    let mut index = 0_usize;
    for digit in Unescaped::of(segment) {
        let digit = usize::from(digit.checked_sub(b'0')?);
        index = index.checked_mul(10)?.checked_add(digit)?;
    }
    let key = view.instance.public_keys.get(index)?;
    Unescaped::of(segment).is(&index).then_some(key)
}

/// The tag with this key, if keys like it are to be had.
fn tag_of<'v>(view: &View<'v>, segment: &str) -> Option<&'v Tag> {
    let options = view.member.options;
    if options.instance_metadata_tags == InstanceMetadataTags::Disabled {
        return None;
    }
    let (_, tag) = view.instance.tags.find(|key| {
        steps::count();
        Unescaped::of(segment).compare(key)
    })?;
    match options.instance_metadata_tags_index {
        InstanceMetadataTagsIndex::Disabled => is_metadata_tag_key(&tag.key),
        // These two are directories to clients, who resolve them before they ask.
        InstanceMetadataTagsIndex::Enabled => !matches!(tag.key.as_str(), "." | ".."),
    }
    .then_some(tag)
}

/// The block devices under EC2's names for them. A record may say the name; else the root device is `ami` and `root`, and
/// the other EBS volumes are numbered from 1 in its order (*ours*: how EC2 numbers them is not documented).
fn devices<'v>(
    view: &View<'v>,
    visit: &mut dyn FnMut(&dyn fmt::Display, &'v str) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mappings = &view.instance.block_device_mappings;
    let root = said(view.instance.root_device_name.as_deref());
    let called = |name: &str| {
        let mut mappings = mappings.iter();
        mappings
            .find(|mapping| mapping.virtual_name.as_deref() == Some(name))
            .map(|mapping| mapping.device_name.as_str())
    };
    if let Some(device) = called("ami").or(root) {
        visit(&"ami", device)?;
    }
    let unnamed = mappings
        .iter()
        .filter(|mapping| said(mapping.virtual_name.as_deref()).is_none());
    let volumes =
        unnamed.filter(|mapping| mapping.ebs.is_some() && Some(mapping.device_name.as_str()) != root);
    for (number, mapping) in (1_u32..).zip(volumes) {
        visit(&format_args!("ebs{number}"), short(&mapping.device_name))?;
    }
    for mapping in mappings {
        match mapping.virtual_name.as_deref() {
            None | Some("" | "ami" | "root" | "swap") => {}
            // A path could not say it.
            Some(name) if check_name(name).is_err() => {}
            Some(name) => visit(&name, short(&mapping.device_name))?,
        }
    }
    if let Some(device) = called("root").or(root) {
        visit(&"root", device)?;
    }
    match called("swap") {
        Some(device) => visit(&"swap", short(device)),
        None => ControlFlow::Continue(()),
    }
}

/// EC2 says `/dev/xvda` of the root device, but `sdb` of any other.
fn short(device: &str) -> &str {
    device.strip_prefix("/dev/").unwrap_or(device)
}

/// The bytes of a segment, its escapes undone. What is no escape is itself.
#[derive(Clone)]
struct Unescaped<'a>(&'a [u8]);

impl<'a> Unescaped<'a> {
    fn of(segment: &'a str) -> Self {
        Self(segment.as_bytes())
    }

    /// Whether they are those of `name`.
    fn is(mut self, name: &(impl fmt::Display + ?Sized)) -> bool {
        write!(self, "{name}").is_ok() && self.0.is_empty()
    }

    /// How `key` is to them.
    fn compare(self, key: &str) -> Ordering {
        key.bytes().cmp(self)
    }
}

impl Iterator for Unescaped<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        if let [b'%', high, low, rest @ ..] = self.0
            && let (Some(high), Some(low)) = (hex_digit(*high), hex_digit(*low))
        {
            self.0 = rest;
            return Some(high << 4 | low);
        }
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| value.try_into().ok())
}

impl fmt::Write for Unescaped<'_> {
    fn write_str(&mut self, name: &str) -> fmt::Result {
        name.bytes()
            .all(|byte| self.next() == Some(byte))
            .then_some(())
            .ok_or(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_against_names() {
        let is = |segment, name: &str| {
            let is = Unescaped::of(segment).is(name);
            assert_eq!(
                Unescaped::of(segment).compare(name).is_eq(),
                is,
                "{segment} {name}"
            );
            is
        };
        assert!(is("a:b", "a:b") && is("a%3Ab", "a:b") && is("a%3ab", "a:b"));
        assert!(!is("a", "ab") && !is("ab", "a") && !is("a%2", "a") && !is("A", "a"));
        assert!(is("%2", "%2") && is("%+1", "%+1") && is("%zz", "%zz"));
        assert!(!is("é", "e") && is("%C3%A9", "é") && is("é", "é"));
        assert!(is("a%2Fb%20c", "a/b c") && !is("a%252Fb", "a/b") && is("a%00", "a\0"));
    }
}
