//! A bridge that hides nothing: whatever enters it by one port leaves it by every other.
//!
//! An ordinary bridge keeps frames to itself that a test of leaks has to see: those to a MAC that it has learned on the port
//! that they came by, malformed IP that its multicast snooping looks at, groups of IEEE 802.1D, and what is longer than 1500
//! bytes.

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::TapIndex;
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

use crate::tap::{bridge, set_mtu};

/// The most that the kernel lets a tap take: IP's 65,535 bytes less an Ethernet header.
const MTU: u16 = u16::MAX - 14;

/// `linux/if_link.h`
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BR_AGEING_TIME: u16 = 4;
const IFLA_BR_GROUP_FWD_MASK: u16 = 9;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;

/// Makes such a bridge of devices in the network namespace of the calling thread.
pub fn hub(name: &str, ports: &[(&str, TapIndex)]) -> Result<()> {
    for (port, _) in ports {
        set_mtu(port, MTU)?;
    }
    let indexes: Vec<_> = ports.iter().map(|(_, index)| *index).collect();
    bridge(name, &indexes)?;
    hide_nothing(name).with_context(|| format!("the options of bridge {name}"))
}

/// Asks the kernel itself, for the reason that [`crate::tap`] has.
fn hide_nothing(bridge: &str) -> Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_AND_ACK: u16 = 5;
    let options = [
        // Nothing is learned.
        attribute(IFLA_BR_AGEING_TIME, &0_u32.to_ne_bytes()),
        attribute(IFLA_BR_MCAST_SNOOPING, &[0]),
        // All groups but the first three, which no bridge may let through; spanning trees go their way where none is kept.
        attribute(IFLA_BR_GROUP_FWD_MASK, &0xfff8_u16.to_ne_bytes()),
    ];
    let kind = attribute(IFLA_INFO_KIND, b"bridge");
    let info = [kind, attribute(IFLA_INFO_DATA, &options.concat())].concat();
    let mut request = vec![0; 32];
    request[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST_AND_ACK.to_ne_bytes());
    request[20..24].copy_from_slice(&if_nametoindex(bridge)?.to_ne_bytes());
    request.extend(attribute(IFLA_LINKINFO, &info));
    let length = request.len() as u32;
    request[..4].copy_from_slice(&length.to_ne_bytes());

    let route = Some(SockProtocol::NetlinkRoute);
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        route,
    )?;
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut reply = [0; 512];
    let length = recv(socket.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    ensure!(length >= 20, "a cut reply");
    let error = i32::from_ne_bytes([reply[16], reply[17], reply[18], reply[19]]);
    ensure!(error == 0, "{}", Errno::from_raw(-error));
    Ok(())
}

/// rtnetlink(7)
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len() as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
