//! Whether a frame concerns the metadata address at all: what every packet of every guest pays for.
//!
//! 1. The frame ends before its EtherType: [`Reason::Truncated`].
//! 2. 802.1Q and 802.1ad tags are looked through. A frame that ends inside them: [`Reason::Truncated`]; more than
//!    [`TAGS_MAX`] of them, which nobody sends and which may hide anything: [`Reason::VlanTagged`].
//!    What stands behind them in 802.3 with a SNAP header is looked at in the same way: hosts that follow RFC 1122 (section
//!    2.3.3) receive IP in it, and a Wi-Fi bridge makes Ethernet of it. A tag or a length inside of it, which nobody sends either:
//!    [`Reason::SnapEncapsulated`].
//! 3. Neither IP nor ARP nor RARP: no concern.
//! 4. IP, ARP or RARP that ends before its addresses: [`Reason::Truncated`], because nobody can tell where it goes. One of its
//!    two addresses is the metadata address: a concern, whatever the source MAC.
//! 5. An NDP message (RFC 4861) may be about the address and go anywhere: it is found behind extension headers, too, and
//!    a solicitation, advertisement or redirect with the address in it is a concern. A chain of headers that the frame
//!    ends in: [`Reason::Truncated`]; one of more than [`EXTENSIONS_MAX`]: [`Reason::ExtensionHeader`].
//!
//! What is deliberately absent: tunnels (an address inside IP, GRE, VXLAN, PPPoE, MPLS or MACsec is for the tunnel's other end,
//! which somebody has set up); translated addresses (whoever translates sends a packet of its own); source routes (whoever
//! forwards along one sends a frame of its own); authenticated and encrypted headers (whoever takes those trusts the
//! sender); later fragments of NDP messages, which receivers refuse (RFC 6980); 802.3 with other LLC than SNAP's.

use crate::{
    abi::{IMDS_IPV4, IMDS_IPV6, Reason},
    classify::Frame,
    headers::{
        ARP_SENDER_IP, ARP_TARGET_IP, ETHERNET_BYTES, ETHERNET_TYPE, EXTENSION_DESTINATION,
        EXTENSION_FRAGMENT, EXTENSION_FRAGMENT_MASK, EXTENSION_HOP_BY_HOP, EXTENSION_ROUTING, EXTENSION_UNIT,
        EXTENSIONS_MAX, IPV4_DESTINATION, IPV4_SOURCE, IPV6_BYTES, IPV6_DESTINATION, IPV6_NEXT_HEADER,
        IPV6_SOURCE, NDP_ADVERTISEMENT, NDP_REDIRECT, NDP_REDIRECT_DESTINATION, NDP_SOLICITATION, NDP_TARGET,
        PROTOCOL_ICMPV6, SNAP_BYTES, SNAP_HEADERS, TAG_BYTES, TAGS_MAX, TYPE_ARP, TYPE_IPV4, TYPE_IPV6,
        TYPE_MIN, TYPE_RARP, TYPE_TAGS,
    },
};

/// A frame that concerns the metadata address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Concern {
    /// What it carries.
    pub protocol: Protocol,
    /// Where the network header starts.
    pub network: usize,
    /// A tag stands inside the frame.
    pub tagged: bool,
    /// It is an 802.3 frame with a SNAP header.
    pub is_snap: bool,
    /// What it has to do with the address.
    pub role: Role,
}

/// The network protocols that have addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are the protocols'")]
pub enum Protocol {
    Arp,
    Ipv4,
    Ipv6,
}

/// What a frame has to do with the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It speaks as the address: as its source or sender, or by telling others where the address is.
    Claims,
    /// It speaks to the address, or asks for it.
    Addresses,
}

/// What `frame` has to do with the address, or nothing. A frame of which that cannot be told has a reason to be dropped.
#[inline(always)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "offsets are of a few headers (`headers`)"
)]
pub fn concern<F: Frame + ?Sized>(frame: &F) -> Result<Option<Concern>, Reason> {
    let mut ethertype = frame.load(ETHERNET_TYPE).ok_or(Reason::Truncated)?;
    let mut network = ETHERNET_BYTES;
    let tagged = is_tag(ethertype);
    if tagged {
        (ethertype, network) = skip_tags(frame)?;
    }
    let is_snap = is_length(ethertype);
    if is_snap {
        ethertype = match behind_snap(frame, network) {
            Some(inner) if is_tag(inner) || is_length(inner) => return Err(Reason::SnapEncapsulated),
            Some(inner) => inner,
            None => return Ok(None),
        };
        network += SNAP_BYTES;
    }
    let (protocol, role) = match ethertype {
        TYPE_IPV4 => (
            Protocol::Ipv4,
            role(
                frame,
                network + IPV4_SOURCE,
                network + IPV4_DESTINATION,
                IMDS_IPV4,
            )?,
        ),
        TYPE_ARP => (
            Protocol::Arp,
            role(frame, network + ARP_SENDER_IP, network + ARP_TARGET_IP, IMDS_IPV4)?,
        ),
        // It gives addresses away: whoever names this one in it says whose it is.
        TYPE_RARP => (
            Protocol::Arp,
            role(frame, network + ARP_SENDER_IP, network + ARP_TARGET_IP, IMDS_IPV4)?.map(|_| Role::Claims),
        ),
        TYPE_IPV6 => (
            Protocol::Ipv6,
            match role(
                frame,
                network + IPV6_SOURCE,
                network + IPV6_DESTINATION,
                IMDS_IPV6,
            )? {
                None => role_in_discovery(frame, network)?,
                role => role,
            },
        ),
        _ => return Ok(None),
    };
    Ok(role.map(|role| Concern {
        protocol,
        network,
        tagged,
        is_snap,
        role,
    }))
}

#[inline(always)]
fn is_tag(ethertype: [u8; 2]) -> bool {
    let [dot1q, dot1ad, qinq] = TYPE_TAGS;
    ethertype == dot1q || ethertype == dot1ad || ethertype == qinq
}

/// Whether it is the length of an 802.3 frame.
#[inline(always)]
fn is_length([high, _]: [u8; 2]) -> bool {
    high < TYPE_MIN
}

/// The EtherType behind the tags, and where its header starts.
#[inline(always)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "offsets are of a few headers (`headers`)"
)]
fn skip_tags<F: Frame + ?Sized>(frame: &F) -> Result<([u8; 2], usize), Reason> {
    for tags in 1..=TAGS_MAX {
        let ethertype = frame
            .load(ETHERNET_TYPE + tags * TAG_BYTES)
            .ok_or(Reason::Truncated)?;
        if !is_tag(ethertype) {
            return Ok((ethertype, ETHERNET_BYTES + tags * TAG_BYTES));
        }
    }
    Err(Reason::VlanTagged)
}

/// The EtherType in the SNAP header at `offset`, if there is one.
#[inline(always)]
fn behind_snap<F: Frame + ?Sized>(frame: &F, offset: usize) -> Option<[u8; 2]> {
    let [header @ .., high, low]: [u8; SNAP_BYTES] = frame.load(offset)?;
    let [ethernet, bridged] = SNAP_HEADERS;
    (header == ethernet || header == bridged).then_some([high, low])
}

/// Which of a header's two addresses is `address`. The second one stands behind the first.
#[inline(always)]
fn role<F: Frame + ?Sized, const N: usize>(
    frame: &F,
    first: usize,
    second: usize,
    address: [u8; N],
) -> Result<Option<Role>, Reason> {
    let is_second = is_at(frame, second, address)?;
    Ok(if is_at(frame, first, address)? {
        Some(Role::Claims)
    } else if is_second {
        Some(Role::Addresses)
    } else {
        None
    })
}

/// Whether `address` stands at `offset`. Its last four bytes are looked at first: they tell nearly every other from it.
#[inline(always)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "offsets are of a few headers, and an address has four bytes or more"
)]
fn is_at<F: Frame + ?Sized, const N: usize>(
    frame: &F,
    offset: usize,
    address: [u8; N],
) -> Result<bool, Reason> {
    let tail: [u8; 4] = frame.load(offset + N - 4).ok_or(Reason::Truncated)?;
    if address.last_chunk() != Some(&tail) {
        return Ok(false);
    }
    Ok(N == 4 || frame.load(offset) == Some(address))
}

/// What an NDP message has to do with the address that is neither from nor to it.
#[inline(always)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "offsets are of a few headers (`headers`)"
)]
fn role_in_discovery<F: Frame + ?Sized>(frame: &F, network: usize) -> Result<Option<Role>, Reason> {
    let [next] = frame.load(network + IPV6_NEXT_HEADER).ok_or(Reason::Truncated)?;
    let payload = network + IPV6_BYTES;
    if next == PROTOCOL_ICMPV6 {
        return role_in_message(frame, payload);
    }
    if !is_extension(next) {
        return Ok(None);
    }
    let frame = &Far(frame);
    match icmpv6(frame, next, payload)? {
        Some(message) => role_in_message(frame, message),
        None => Ok(None),
    }
}

/// The same for the ICMPv6 message at `message`.
#[inline(always)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "offsets are of a few headers (`headers`)"
)]
fn role_in_message<F: Frame + ?Sized>(frame: &F, message: usize) -> Result<Option<Role>, Reason> {
    let [kind] = frame.load(message).ok_or(Reason::Truncated)?;
    if !(NDP_SOLICITATION..=NDP_REDIRECT).contains(&kind) {
        return Ok(None);
    }
    let names_address = is_at(frame, message + NDP_TARGET, IMDS_IPV6)?
        || (kind == NDP_REDIRECT && is_at(frame, message + NDP_REDIRECT_DESTINATION, IMDS_IPV6)?);
    Ok(names_address.then_some(match kind {
        NDP_ADVERTISEMENT | NDP_REDIRECT => Role::Claims,
        _ => Role::Addresses,
    }))
}

/// Where the ICMPv6 message starts behind the extension headers at `offset`, if there is one.
#[inline(always)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "offsets are of a few headers (`headers`)"
)]
fn icmpv6<F: Frame + ?Sized>(frame: &F, mut next: u8, mut offset: usize) -> Result<Option<usize>, Reason> {
    for _ in 0..EXTENSIONS_MAX {
        let [following, length, high, low] = frame.load(offset).ok_or(Reason::Truncated)?;
        let mut units = 1;
        if next != EXTENSION_FRAGMENT {
            units += usize::from(length);
        } else if u16::from_be_bytes([high, low]) & EXTENSION_FRAGMENT_MASK != 0 {
            return Ok(None);
        }
        offset += units * EXTENSION_UNIT;
        next = following;
        if next == PROTOCOL_ICMPV6 {
            return Ok(Some(offset));
        }
        if !is_extension(next) {
            return Ok(None);
        }
    }
    Err(Reason::ExtensionHeader)
}

/// A frame that is read at offsets which it tells itself.
struct Far<'a, F: ?Sized>(&'a F);

impl<F: Frame + ?Sized> Frame for Far<'_, F> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.load_far(offset)
    }

    #[inline(always)]
    fn load_far<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.load_far(offset)
    }

    #[inline(always)]
    fn has_vlan_tag_aside(&self) -> bool {
        self.0.has_vlan_tag_aside()
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.0.length()
    }
}

/// Whether a next header's number is that of an extension header that Linux looks behind without a key.
#[inline(always)]
pub fn is_extension(next: u8) -> bool {
    matches!(
        next,
        EXTENSION_HOP_BY_HOP | EXTENSION_ROUTING | EXTENSION_FRAGMENT | EXTENSION_DESTINATION
    )
}
