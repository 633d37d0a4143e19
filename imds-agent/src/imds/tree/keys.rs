//! The placeholders of the table: which names stand for one in a view, and what a name stands for.
//!
//! A placeholder has one definition of its names, [`Placeholder::visit`]. Listings are made of it, and a segment is
//! looked up in it, so the two cannot disagree.

use std::{fmt, fmt::Write as _, net::Ipv4Addr, ops::ControlFlow};

use super::view::{Interface, View, said};
use crate::registry::{
    InstanceMetadataTags, NetworkInterface, Role,
    instance::{PublicKey, Tag},
};

/// A segment of a path template that stands for many names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placeholder {
    /// `{device}`: `ami`, `ebs1`, `ephemeral0`, `root`, `swap`.
    Device,
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
        let mut found = None;
        _ = self.visit(view, outer, &mut |name, keys| {
            let mut rest = Unescaped(segment);
            if write!(rest, "{name}").is_ok() && rest.0.is_empty() {
                found = Some(keys);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found
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
            Self::Mac => {
                // The primary one first: scripts take the first line for it.
                let others = view.interfaces().filter(|interface| !view.is_primary(*interface));
                let mut interfaces = view.primary().into_iter().chain(others);
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
                    let mut tags = view.instance.tags.iter().filter(|tag| is_tag_name(&tag.key));
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
            Some(name) if name.contains('/') => {}
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

/// Whether a tag's key can be a path segment, by EC2's rule (user guide, "View tags using instance metadata").
fn is_tag_name(key: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_+=,.@:".contains(&byte);
    (1..=255).contains(&key.len()) && key.bytes().all(legal) && !matches!(key, "." | ".." | "_index")
}

/// A segment that is compared with what is written to it, character by character, its escapes undone.
struct Unescaped<'a>(&'a str);

impl Unescaped<'_> {
    fn next(&mut self) -> Option<u8> {
        let escaped = self.0.strip_prefix('%').and_then(|rest| rest.split_at_checked(2));
        if let Some((digits, rest)) = escaped
            && let (true, Ok(byte)) = (
                digits.bytes().all(|digit| digit.is_ascii_hexdigit()),
                u8::from_str_radix(digits, 16),
            )
        {
            self.0 = rest;
            return Some(byte);
        }
        // What names are made of is ASCII; other text is compared as itself and never found.
        let (byte, rest) = (self.0.bytes().next()?, self.0.get(1..)?);
        self.0 = rest;
        Some(byte)
    }
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
            let mut rest = Unescaped(segment);
            rest.write_str(name).is_ok() && rest.0.is_empty()
        };
        assert!(is("a:b", "a:b") && is("a%3Ab", "a:b") && is("a%3ab", "a:b"));
        assert!(!is("a", "ab") && !is("ab", "a") && !is("a%2", "a") && !is("A", "a"));
        assert!(is("%2", "%2") && is("%+1", "%+1") && is("%zz", "%zz"));
        assert!(!is("é", "e"));
    }

    #[test]
    fn names_of_tags() {
        for key in ["Name", "a:b", "x_y-z+=,.@1", "...", "_index2"] {
            assert!(is_tag_name(key), "{key}");
        }
        let long = "k".repeat(256);
        for key in ["", ".", "..", "_index", "a b", "a/b", "é", &long] {
            assert!(!is_tag_name(key), "{key}");
        }
    }
}
