//! What a router of the guest says of one of the service's own packets: that its hop limit was used up on the way.
//!
//! Read first: RFC 792 and RFC 4443 (section 3.3), "Time Exceeded". Such a message quotes the packet's IP header and at
//! least eight bytes behind it. Kernel and agent read it here: the classifier lets it through to the agent, which then
//! knows why a session token is not acknowledged. Checksums are not looked at, as everywhere.

use crate::{
    abi::{IMDS_IPV4, IMDS_IPV6, IMDS_PORT},
    classify::Frame,
    headers::{
        ICMP_QUOTE, ICMP_TIME_EXCEEDED, ICMPV6_TIME_EXCEEDED, IPV4_BYTES_MIN, IPV4_DESTINATION,
        IPV4_PROTOCOL, IPV4_SOURCE, IPV4_VERSION_AND_LENGTH, IPV6_BYTES, IPV6_DESTINATION, IPV6_NEXT_HEADER,
        IPV6_SOURCE, IPV6_VERSION, PROTOCOL_TCP, TCP_DESTINATION_PORT, TCP_SOURCE_PORT,
    },
};

/// Where the packet was to go that did not get there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expired<const N: usize> {
    /// The address, as the guest's end of the connection has it.
    pub address: [u8; N],
    /// The port.
    pub port: u16,
}

/// What the ICMP message at `message` says of a packet from the service's IPv4 address, if it does.
#[inline(always)]
pub fn expired_ipv4<F: Frame + ?Sized>(frame: &F, message: usize) -> Option<Expired<4>> {
    // The service sends no options.
    let layout = Layout {
        kind: ICMP_TIME_EXCEEDED,
        version: (IPV4_VERSION_AND_LENGTH, 0xff, 0x45),
        protocol: IPV4_PROTOCOL,
        source: IPV4_SOURCE,
        destination: IPV4_DESTINATION,
        bytes: IPV4_BYTES_MIN,
    };
    expired(frame, message, &layout, IMDS_IPV4)
}

/// The same of its IPv6 address, for an ICMPv6 message.
#[inline(always)]
pub fn expired_ipv6<F: Frame + ?Sized>(frame: &F, message: usize) -> Option<Expired<16>> {
    let layout = Layout {
        kind: ICMPV6_TIME_EXCEEDED,
        version: (IPV6_VERSION, 0xf0, 0x60),
        protocol: IPV6_NEXT_HEADER,
        source: IPV6_SOURCE,
        destination: IPV6_DESTINATION,
        bytes: IPV6_BYTES,
    };
    expired(frame, message, &layout, IMDS_IPV6)
}

/// Where things stand in the quoted IP header.
struct Layout {
    /// Type and code of the message.
    kind: [u8; 2],
    /// An offset, and what is to be there under a mask.
    version: (usize, u8, u8),
    protocol: usize,
    source: usize,
    destination: usize,
    bytes: usize,
}

#[inline(always)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "the frame has bytes at `message`, and a few headers behind it overflow nothing"
)]
fn expired<F: Frame + ?Sized, const N: usize>(
    frame: &F,
    message: usize,
    layout: &Layout,
    service: [u8; N],
) -> Option<Expired<N>> {
    let kind: [u8; 2] = frame.load_far(message)?;
    if kind != layout.kind {
        return None;
    }
    let packet = message + ICMP_QUOTE;
    let (offset, mask, version) = layout.version;
    let [first] = frame.load_far(packet + offset)?;
    let [protocol] = frame.load_far(packet + layout.protocol)?;
    let source: [u8; N] = frame.load_far(packet + layout.source)?;
    // Ports and sequence number: what every router quotes at least.
    let segment: [u8; 8] = frame.load_far(packet + layout.bytes)?;
    let port = |at: usize| Some(u16::from_be_bytes(*segment.get(at..)?.first_chunk()?));
    if first & mask != version
        || protocol != PROTOCOL_TCP
        || source != service
        || port(TCP_SOURCE_PORT)? != IMDS_PORT
    {
        return None;
    }
    Some(Expired {
        address: frame.load_far(packet + layout.destination)?,
        port: port(TCP_DESTINATION_PORT)?,
    })
}
