//! Responses with a hop limit of their own that do not arrive, and how that is told.
//!
//! A token response dies at the first router behind the guest when its hop limit is too low, and its client hangs. Two
//! signs tell of it: the router says so with ICMP's time-exceeded, or nothing acknowledges the response until the
//! connection is over. Neither is believed of a connection that has no such response under way, so that a guest can make
//! up no more than what it could bring about.

use std::net::{IpAddr, SocketAddr};

use imds_ebpf::expired::{expired_ipv4, expired_ipv6};
use smoltcp::wire::{IpAddress, IpEndpoint, IpProtocol, IpVersion, Ipv4Packet, Ipv6Packet};

use super::{IMDS_IPV4, IMDS_IPV6, segment::Peer};

/// A response that did not arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Undelivered {
    /// Who asked for it.
    pub remote: SocketAddr,
    /// The hop limit that its packets had.
    pub hop_limit: u8,
    /// What tells that it did not.
    pub sign: Sign,
}

/// What tells that a response did not arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sign {
    /// A router says that it dropped a packet of it, because the hop limit was used up.
    TimeExceeded {
        /// The router.
        router: IpAddr,
    },
    /// The connection ended, and nobody had acknowledged it.
    Unacknowledged,
}

/// A router's word that a packet of ours expired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TimeExceeded {
    /// The router.
    pub router: IpAddr,
    /// The connection that the packet was of.
    pub peer: Peer,
}

impl TimeExceeded {
    /// Reads the message, or nothing if the packet is none of this kind.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        // smoltcp's `of_packet` panics on nothing at all.
        if packet.is_empty() {
            return None;
        }
        let (router, remote, local): (IpAddress, IpEndpoint, IpAddress) =
            match IpVersion::of_packet(packet).ok()? {
                IpVersion::Ipv4 => {
                    let packet = Ipv4Packet::new_checked(packet).ok()?;
                    if packet.next_header() != IpProtocol::Icmp {
                        return None;
                    }
                    let expired = expired_ipv4(packet.payload(), 0)?;
                    let remote = IpEndpoint::new(IpAddr::from(expired.address).into(), expired.port);
                    (packet.src_addr().into(), remote, IMDS_IPV4.into())
                }
                IpVersion::Ipv6 => {
                    let packet = Ipv6Packet::new_checked(packet).ok()?;
                    if packet.next_header() != IpProtocol::Icmpv6 {
                        return None;
                    }
                    let expired = expired_ipv6(packet.payload(), 0)?;
                    let remote = IpEndpoint::new(IpAddr::from(expired.address).into(), expired.port);
                    (packet.src_addr().into(), remote, IMDS_IPV6.into())
                }
            };
        Some(Self {
            router: router.into(),
            peer: Peer {
                remote,
                local: IpEndpoint::new(local, imds_ebpf::abi::IMDS_PORT),
            },
        })
    }
}

#[cfg(test)]
mod tests;
