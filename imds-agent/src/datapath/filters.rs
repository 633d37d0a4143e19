//! The clsact queueing discipline and its filters as the kernel lists them: which taps have ours, and who else has any.
//!
//! Read first: rtnetlink(7), "RTM_NEWTFILTER", and net/sched/sch_ingress.c of the kernel. Aya attaches and replaces filters, but
//! lists none. Of what the kernel tells, only the fixed head and the kind are read: others' filters may say what nobody here knows.
//!
//! Where clsact goes there may be its elder, `ingress`, as a limit on what a guest sends brings along. It has a hook for that
//! alone, and takes a filter for either end of clsact for one of its own: what is put on the egress hook lands, and is
//! listed, among those of the ingress hook.

use std::{collections::BTreeSet, io};

use imds_ebpf::abi::TapIndex;
use nix::{errno::Errno, net::if_::if_nameindex};
use rtnetlink::{
    packet_core::{
        DecodeError, Emitable as _, NLM_F_ACK, NLM_F_DUMP, NLM_F_ECHO, NetlinkDeserializable, NetlinkHeader,
        NetlinkSerializable,
    },
    packet_route::tc::{TcHandle, TcHeader},
};

use super::{
    Direction,
    hook::{CLSACT_HANDLE, CLSACT_PRIORITY},
    netlink,
};

const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;

/// `TC_H_CLSACT`, and the two ends of it where filters are.
const CLSACT: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xfff1,
};
const INGRESS_MINOR: u16 = 0xfff2;
const EGRESS_MINOR: u16 = 0xfff3;

/// The taps that have a filter of ours on either hook, whatever version of the agent put it there.
pub fn taps() -> io::Result<BTreeSet<TapIndex>> {
    let mut taps = BTreeSet::new();
    for device in &if_nameindex()? {
        let tap = TapIndex(device.index().into());
        if filters_of(tap)?.iter().any(Listed::is_ours) {
            taps.insert(tap);
        }
    }
    Ok(taps)
}

/// Whether `tap` has a filter of ours on that hook.
pub fn is_on(tap: TapIndex, direction: Direction) -> io::Result<bool> {
    if direction == Direction::Inbound && !has_clsact(tap)? {
        return Ok(false);
    }
    Ok(filters(tap, direction)?.iter().any(Listed::is_ours))
}

/// Whether `tap` has the queueing discipline with both hooks, and not one with the ingress hook alone, or none.
pub fn has_clsact(tap: TapIndex) -> io::Result<bool> {
    let question = Question {
        kind: RTM_GETQDISC,
        header: TcHeader {
            index: tap.ifindex().cast_signed(),
            parent: CLSACT,
            ..TcHeader::default()
        },
    };
    // Without the echo, only those are answered who listen to all changes.
    match netlink::ask::<_, Listed>(question, NLM_F_ACK | NLM_F_ECHO) {
        Err(error) if is_absent(error.raw_os_error()) => Ok(false),
        listed => Ok(listed?.iter().any(|listed| listed.kind == "clsact")),
    }
}

/// Takes the queueing discipline off `tap` unless somebody has a filter in it. A tap that is gone has none.
pub fn remove_empty_clsact(tap: TapIndex) -> io::Result<()> {
    if !has_clsact(tap)? || !filters_of(tap)?.is_empty() {
        return Ok(());
    }
    let header = TcHeader {
        index: tap.ifindex().cast_signed(),
        handle: TcHandle { minor: 0, ..CLSACT },
        parent: CLSACT,
        ..TcHeader::default()
    };
    let question = Question {
        kind: RTM_DELQDISC,
        header,
    };
    let removed = netlink::ask::<_, Listed>(question, NLM_F_ACK);
    match removed {
        Err(error) if is_absent(error.raw_os_error()) => Ok(()),
        removed => removed.map(drop),
    }
}

/// No such device (any more), no clsact on it, or no such filter in that.
pub(super) fn is_absent(errno: Option<i32>) -> bool {
    matches!(
        errno.map(Errno::from_raw),
        Some(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV)
    )
}

fn filters_of(tap: TapIndex) -> io::Result<Vec<Listed>> {
    let mut filters = filters(tap, Direction::Outbound)?;
    filters.append(&mut self::filters(tap, Direction::Inbound)?);
    Ok(filters)
}

fn filters(tap: TapIndex, direction: Direction) -> io::Result<Vec<Listed>> {
    let minor = match direction {
        Direction::Outbound => INGRESS_MINOR,
        Direction::Inbound => EGRESS_MINOR,
    };
    let header = TcHeader {
        index: tap.ifindex().cast_signed(),
        parent: TcHandle { minor, ..CLSACT },
        ..TcHeader::default()
    };
    let question = Question {
        kind: RTM_GETTFILTER,
        header,
    };
    match netlink::ask(question, NLM_F_DUMP) {
        Err(error) if is_absent(error.raw_os_error()) => Ok(Vec::new()),
        listed => listed,
    }
}

/// One filter, the head of all filters of a priority, or a queueing discipline.
struct Listed {
    header: TcHeader,
    kind: String,
}

impl Listed {
    fn is_ours(&self) -> bool {
        let handle = u32::from(self.header.handle) == u32::from(CLSACT_HANDLE);
        self.kind == "bpf" && handle && self.header.info >> 16 == u32::from(CLSACT_PRIORITY)
    }
}

struct Question {
    kind: u16,
    header: TcHeader,
}

impl NetlinkSerializable for Question {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.header.buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.header.emit(buffer);
    }
}

impl NetlinkDeserializable for Listed {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let header = TcHeader::parse(payload)?;
        let attributes = payload.get(header.buffer_len()..).unwrap_or_default();
        let kind = netlink::attribute(attributes, TCA_KIND)?.unwrap_or_default();
        let kind = String::from_utf8_lossy(kind.strip_suffix(b"\0").unwrap_or(kind)).into_owned();
        Ok(Self { header, kind })
    }
}
