//! A switch of Open vSwitch as the kernel has it, without its daemons: what they ask of the kernel, by generic netlink.
//!
//! Read first: the kernel's include/uapi/linux/genetlink.h and openvswitch.h, where all numbers below are from.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;

/// Lengths of `nlmsghdr`, `genlmsghdr` and `ovs_header`.
const NETLINK_HEAD: usize = 16;
const GENERIC_HEAD: usize = 4;
const SWITCH_HEAD: usize = 4;

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const OVS_DP_CMD_NEW: u8 = 1;
const OVS_DP_CMD_GET: u8 = 3;
const OVS_DP_ATTR_NAME: u16 = 1;
const OVS_DP_ATTR_UPCALL_PID: u16 = 2;
const OVS_DP_ATTR_STATS: u16 = 3;

const OVS_VPORT_CMD_NEW: u8 = 1;
const OVS_VPORT_ATTR_TYPE: u16 = 2;
const OVS_VPORT_ATTR_NAME: u16 = 3;
const OVS_VPORT_ATTR_UPCALL_PID: u16 = 5;
const OVS_VPORT_TYPE_NETDEV: u32 = 1;

/// Nobody is told of frames that the switch has no flow for.
const NOBODY: [u8; 4] = [0; 4];

/// A switch without flows. It goes with its network namespace.
#[derive(Debug)]
pub struct OpenVswitch {
    socket: OwnedFd,
    datapath: u16,
    vport: u16,
    index: u32,
}

impl OpenVswitch {
    /// Makes one in the network namespace of the calling thread. Nothing where the kernel has no Open vSwitch.
    pub fn new(name: &str) -> Result<Option<Self>> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )?;
        let mut switch = Self {
            socket,
            datapath: 0,
            vport: 0,
            index: 0,
        };
        let Some(datapath) = switch.family("ovs_datapath")? else {
            return Ok(None);
        };
        switch.datapath = datapath;
        switch.vport = switch.family("ovs_vport")?.context("half an Open vSwitch")?;
        let attributes = [
            attribute(OVS_DP_ATTR_NAME, &text(name)),
            attribute(OVS_DP_ATTR_UPCALL_PID, &NOBODY),
        ];
        switch
            .tell(switch.datapath, OVS_DP_CMD_NEW, &attributes.concat())
            .context("the kernel makes no switch")?;
        switch.index = if_nametoindex(name)?;
        Ok(Some(switch))
    }

    /// Makes a device a port of it.
    pub fn add(&self, device: &str) -> Result<()> {
        let attributes = [
            attribute(OVS_VPORT_ATTR_TYPE, &OVS_VPORT_TYPE_NETDEV.to_ne_bytes()),
            attribute(OVS_VPORT_ATTR_NAME, &text(device)),
            attribute(OVS_VPORT_ATTR_UPCALL_PID, &NOBODY),
        ];
        self.tell(self.vport, OVS_VPORT_CMD_NEW, &attributes.concat())
            .with_context(|| format!("{device} does not become a port"))
    }

    /// How many frames have come to it from its ports.
    pub fn frames(&self) -> Result<u64> {
        let answer = self.ask(
            self.datapath,
            OVS_DP_CMD_GET,
            NLM_F_REQUEST,
            &self.index.to_ne_bytes(),
        )?;
        let attributes = &answer[GENERIC_HEAD + SWITCH_HEAD..];
        let stats = find(attributes, OVS_DP_ATTR_STATS).context("no statistics")?;
        // `struct ovs_dp_stats`: without a flow every frame is a miss, which is its second number.
        let misses = stats.get(8..16).context("short statistics")?;
        Ok(u64::from_ne_bytes(misses.try_into()?))
    }

    fn family(&self, name: &str) -> Result<Option<u16>> {
        let request = attribute(CTRL_ATTR_FAMILY_NAME, &text(name));
        match self.ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, NLM_F_REQUEST, &request) {
            Ok(answer) => {
                let id = find(&answer[GENERIC_HEAD..], CTRL_ATTR_FAMILY_ID).context("a family without id")?;
                Ok(Some(u16::from_ne_bytes(id.try_into()?)))
            }
            Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn tell(&self, family: u16, command: u8, attributes: &[u8]) -> Result<()> {
        let body = [&self.index.to_ne_bytes(), attributes].concat();
        self.ask(family, command, NLM_F_REQUEST | NLM_F_ACK, &body)?;
        Ok(())
    }

    /// Sends a request, and returns what the answer has behind its netlink head.
    fn ask(&self, family: u16, command: u8, flags: u16, body: &[u8]) -> Result<Vec<u8>> {
        let length = u32::try_from(NETLINK_HEAD + GENERIC_HEAD + body.len())?;
        let mut request = length.to_ne_bytes().to_vec();
        request.extend(family.to_ne_bytes());
        request.extend(flags.to_ne_bytes());
        request.extend([0; 8]);
        request.extend([command, 1, 0, 0]);
        request.extend(body);
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut answer = vec![0; 8192];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        answer.truncate(length);
        let kind = answer.get(4..6).context("a short answer")?;
        let content = answer.get(NETLINK_HEAD..).context("a short answer")?.to_vec();
        if kind == NLMSG_ERROR.to_ne_bytes() {
            let code = content.get(..4).context("a short error")?;
            match i32::from_ne_bytes(code.try_into()?) {
                0 => {}
                code => bail!(Errno::from_raw(-code)),
            }
        }
        Ok(content)
    }
}

/// With a zero at its end, as the kernel has them.
fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// `struct nlattr`, and zeros up to the next.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("a short value");
    let mut attribute = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        if kind == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}
