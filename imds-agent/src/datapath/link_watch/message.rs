//! What the kernel says of a link.
//!
//! Read first: rtnetlink(7), "RTM_NEWLINK". Only the fixed head and what matters here are read. An alias or a further name, which need not
//! even be text, hides no link: a tap that nobody sees would be one without the classifier.

use imds_ebpf::abi::{MacAddr, TapIndex};
use rtnetlink::{
    packet_core::{DecodeError, Emitable as _, NetlinkDeserializable, NetlinkHeader},
    packet_route::{
        AddressFamily,
        link::{LinkHeader, LinkLayerType},
    },
};

use super::super::netlink::attribute;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;

/// What one message says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// A link is there, or has changed.
    There(TapIndex, Told),
    /// A link is no more.
    Gone(TapIndex),
    /// Nothing that matters here.
    Other,
}

/// What matters of a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    pub name: String,
    /// A tap's own.
    pub mac: Option<MacAddr>,
    pub is_tap: bool,
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        if ![RTM_NEWLINK, RTM_DELLINK].contains(&header.message_type) {
            return Ok(Self::Other);
        }
        let head = LinkHeader::parse(payload)?;
        // A bridge speaks of its ports in its own address family, and without saying what kind of link one is. It also says "deleted" of
        // a port that leaves it: that link lives on.
        if head.interface_family != AddressFamily::Unspec {
            return Ok(Self::Other);
        }
        let index = TapIndex(head.index.into());
        if header.message_type == RTM_DELLINK {
            return Ok(Self::Gone(index));
        }
        let told = told(&head, payload.get(head.buffer_len()..).unwrap_or_default())?;
        Ok(told.map_or(Self::Other, |told| Self::There(index, told)))
    }
}

/// Nothing of a link without a name.
fn told(head: &LinkHeader, attributes: &[u8]) -> Result<Option<Told>, DecodeError> {
    let Some(name) = attribute(attributes, IFLA_IFNAME)? else {
        return Ok(None);
    };
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    let mac = attribute(attributes, IFLA_ADDRESS)?.and_then(|octets| octets.try_into().ok());
    let info = attribute(attributes, IFLA_LINKINFO)?.unwrap_or_default();
    // Layer 3 "tun" devices are of the same kind, but carry no Ethernet.
    let is_tun_kind = attribute(info, IFLA_INFO_KIND)? == Some(b"tun\0");
    let is_tap = is_tun_kind && head.link_layer_type == LinkLayerType::Ether;
    Ok(Some(Told {
        name: String::from_utf8_lossy(name).into_owned(),
        mac: mac.map(MacAddr).filter(|_| is_tap),
        is_tap,
    }))
}
