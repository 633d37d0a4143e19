//! How the classifier hangs on a tap: a program on its ingress hook, and one on its egress hook.
//!
//! With TCX (kernel 6.6 and later) a link per hook, pinned: it stays when the agent dies, and an adopting agent swaps its
//! program atomically. A link belongs to the device itself; when the device goes, the kernel takes the link off and its
//! info names no device any more. When the device goes to another network namespace the link stays on it, and only the
//! device that has the index here tells that it has no such link. That is how a reused interface index is recognised.
//!
//! Before 6.6 a clsact filter per hook, under a priority and handle of our own: it stays by nature, and is replaced
//! atomically by a new one under the same handle. A device that reuses an index has no such filter. On a tap that somebody
//! gave the elder `ingress` in clsact's place, both hooks are one, and a filter for the egress hook would take the place of
//! that which guards the address: what the guest sends has its filter there, what it is sent has none, and the tap is told
//! of as one that cannot be served.
//!
//! An index means a device only within its network namespace, which the calling thread has to be in: pins say which one
//! besides, but the kernel is asked about the index alone.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::{
    pin::PinError,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, Link, LinkError, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
    },
    util::KernelVersion,
};
use imds_ebpf::abi::TapIndex;
use nix::errno::Errno;
use thiserror::Error;

use super::{
    LoadError, bpf, filters,
    pins::{Pins, PinsError, link_in, remove_pin, shown},
    support,
    tap::{self, TapError},
};

/// The clsact filter's priority: before everyone who does not insist.
pub(super) const CLSACT_PRIORITY: u16 = 1;

/// The clsact filter's handle under that priority: "a9fe" as in 169.254, which nobody gets by automatic numbering.
pub(super) const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0xa9fe);

/// TCX came with 6.6.
const KERNEL_TCX: KernelVersion = KernelVersion::new(6, 6, 0);

/// Which of a tap's two hooks, from the guest's point of view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// What the guest sends: the tap's ingress.
    Outbound,
    /// What the guest is sent: the tap's egress.
    Inbound,
}

/// Both, in the order of being taken care of: the address never leaks before it is guarded.
pub(super) const DIRECTIONS: [Direction; 2] = [Direction::Outbound, Direction::Inbound];

impl Direction {
    fn attach_type(self) -> TcAttachType {
        match self {
            Self::Outbound => TcAttachType::Ingress,
            Self::Inbound => TcAttachType::Egress,
        }
    }
}

/// The kind of hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// TCX link.
    Tcx,
    /// Filter of the clsact queueing discipline.
    Clsact,
}

/// The classifier cannot be put on or taken off a tap.
#[derive(Debug, Error)]
pub enum HookError {
    /// The device is not there (any more).
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The index went over to another device meanwhile.
    #[error("another device took over index {tap} meanwhile")]
    Reused {
        /// The index.
        tap: TapIndex,
    },
    /// The clsact queueing discipline cannot be added.
    #[error("cannot add the clsact queueing discipline, which is the kernel's module sch_ingress")]
    Clsact(#[source] TcError),
    /// Somebody's queueing discipline, in the place of clsact, has no hook for what the guest is sent.
    #[error(
        "it is dark, because the queueing discipline \"ingress\" is where clsact belongs: it has no hook for what the guest \
         is sent, and is to be taken off (tc qdisc del dev {name} ingress)"
    )]
    NoEgress {
        /// The tap's name.
        name: String,
    },
    /// The kernel refuses.
    #[error("the kernel refuses to attach the classifier")]
    Program(#[source] ProgramError),
    /// The kernel does not list its filters, or does not remove what held ours.
    #[error("cannot list filters, or remove the clsact queueing discipline")]
    Filters(#[source] io::Error),
    /// The link cannot be pinned.
    #[error("cannot pin the link at {path}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: PinError,
    },
    /// A pinned link cannot be opened or asked.
    #[error("cannot use the pinned link at {path}")]
    PinnedLink {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A pinned link is none of ours.
    #[error("what is pinned at {path} is no TCX link")]
    ForeignPin {
        /// Where.
        path: PathBuf,
        /// What it is.
        source: LinkError,
    },
    /// A pin cannot be removed.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The tap's network namespace has no name any more, or is none of the agent's business.
    #[error("its network namespace is out of sight")]
    OutOfSight,
    /// The classifier cannot be loaded for the tap's network namespace.
    #[error("cannot load the classifier for its network namespace")]
    Load(#[source] Box<LoadError>),
    /// The tap's network namespace cannot be gone to.
    #[error("cannot enter its network namespace")]
    Away(#[source] io::Error),
}

impl Hook {
    /// The best that this kernel has.
    pub(super) fn of_this_kernel() -> Result<Self, LoadError> {
        support::ensure_kernel()?;
        let has_tcx = KernelVersion::current().is_ok_and(|kernel| kernel >= KERNEL_TCX);
        Ok(if has_tcx { Self::Tcx } else { Self::Clsact })
    }

    /// Puts `program` on `tap` in place of the one that hangs there already. False when none does; a dead link's pin is
    /// removed then.
    pub(super) fn adopt(
        self,
        program: &mut SchedClassifier,
        tap: TapIndex,
        direction: Direction,
        pins: &Pins,
    ) -> Result<bool, HookError> {
        match self {
            Self::Tcx => adopt_link(program, tap, &pins.link(tap, direction)),
            Self::Clsact => adopt_filter(program, tap, direction),
        }
    }

    /// Puts `program` on `tap`, before every other program there: nobody else is to see metadata traffic.
    pub(super) fn attach(
        self,
        program: &mut SchedClassifier,
        tap: TapIndex,
        direction: Direction,
        pins: &Pins,
    ) -> Result<(), HookError> {
        match self {
            Self::Tcx => attach_link(program, tap, direction, &pins.link(tap, direction)),
            Self::Clsact => attach_filter(program, tap, direction, pins),
        }
    }

    /// Whether a program of ours hangs on both hooks of `tap`, by what is pinned below `root`, whoever holds that.
    pub(super) fn is_on(self, root: &Path, tap: TapIndex) -> Result<bool, HookError> {
        for direction in DIRECTIONS {
            let is_on = match self {
                Self::Tcx => pinned_ifindex(&link_in(root, tap, direction))? == Some(tap.ifindex()),
                Self::Clsact => filters::is_on(tap, direction).map_err(HookError::Filters)?,
            };
            if !is_on {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Takes the programs off `tap`, which may be gone already, whatever they hang on it by.
pub(super) fn take_off(tap: TapIndex, pins: &Pins) -> Result<(), HookError> {
    for direction in DIRECTIONS {
        detach_link(&pins.link(tap, direction))?;
    }
    take_filters_off(tap)?;
    if pins.forget_clsact(tap)? {
        filters::remove_empty_clsact(tap).map_err(HookError::Filters)?;
    }
    Ok(())
}

/// Takes what is pinned off `tap`, wherever that is.
pub(super) fn take_links_off(tap: TapIndex, pins: &Pins) -> Result<(), HookError> {
    for direction in DIRECTIONS {
        detach_link(&pins.link(tap, direction))?;
    }
    pins.forget_clsact(tap)?;
    Ok(())
}

/// Removes what is pinned of `tap`, whose network namespace cannot be gone to, where the device is no more. False while something
/// hangs on it still.
pub(super) fn forget_if_gone(tap: TapIndex, pins: &Pins) -> Result<bool, HookError> {
    for direction in DIRECTIONS {
        let pin = pins.link(tap, direction);
        match bpf::open_link(&pin).and_then(|link| bpf::is_alive(link.as_fd())) {
            Ok(true) => return Ok(false),
            Ok(false) => remove_pin(&pin)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(HookError::PinnedLink {
                    path: shown(&pin),
                    source,
                });
            }
        }
    }
    pins.forget_clsact(tap)?;
    Ok(true)
}

/// Takes the filters off `tap`, and nothing else.
pub(super) fn take_filters_off(tap: TapIndex) -> Result<(), HookError> {
    DIRECTIONS
        .into_iter()
        .try_for_each(|direction| detach_filter(tap, direction))
}

fn adopt_link(program: &mut SchedClassifier, tap: TapIndex, pin: &Path) -> Result<bool, HookError> {
    if pinned_ifindex(pin)? != Some(tap.ifindex()) {
        remove_pin(pin)?;
        return Ok(false);
    }
    match update_link(program, pin) {
        // The device went away in between.
        Err(_) if pinned_ifindex(pin)? != Some(tap.ifindex()) => {
            remove_pin(pin)?;
            Ok(false)
        }
        updated => updated.map(|()| true),
    }
}

fn update_link(program: &mut SchedClassifier, pin: &Path) -> Result<(), HookError> {
    let foreign = |source| HookError::ForeignPin {
        path: shown(pin),
        source,
    };
    let link = FdLink::from(PinnedLink::from_pin(pin).map_err(foreign)?);
    let link = SchedClassifierLink::try_from(link).map_err(foreign)?;
    let id = program.attach_to_link(link).map_err(HookError::Program)?;
    // Closing our descriptor leaves the link to its pin.
    drop(program.take_link(id).map_err(HookError::Program)?);
    Ok(())
}

/// The device that the pinned link hangs on, if there is such a link and such a device.
fn pinned_ifindex(pin: &Path) -> Result<Option<u32>, HookError> {
    match bpf::open_link(pin).and_then(|link| bpf::link_ifindex(link.as_fd())) {
        Ok(ifindex) => Ok(ifindex),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HookError::PinnedLink {
            path: shown(pin),
            source,
        }),
    }
}

fn attach_link(
    program: &mut SchedClassifier,
    tap: TapIndex,
    direction: Direction,
    pin: &Path,
) -> Result<(), HookError> {
    let name = tap::name_of(tap)?;
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(&name, direction.attach_type(), order)
        .map_err(HookError::Program)?;
    let link = program.take_link(id).map_err(HookError::Program)?;
    let link = FdLink::try_from(link).map_err(|source| HookError::ForeignPin {
        path: shown(pin),
        source,
    })?;
    link.pin(pin).map_err(|source| HookError::Pin {
        path: shown(pin),
        source,
    })?;
    // Aya attaches by name, and names move: only the link itself tells what it hangs on.
    if pinned_ifindex(pin)? != Some(tap.ifindex()) {
        detach_link(pin)?;
        return Err(HookError::Reused { tap });
    }
    Ok(())
}

fn detach_link(pin: &Path) -> Result<(), HookError> {
    match bpf::open_link(pin) {
        Ok(link) => {
            // It fails when the device is gone, and then there is nothing to take the link off of.
            let _ = bpf::detach_link(link.as_fd());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(HookError::PinnedLink {
                path: shown(pin),
                source,
            });
        }
    }
    Ok(remove_pin(pin)?)
}

fn adopt_filter(
    program: &mut SchedClassifier,
    tap: TapIndex,
    direction: Direction,
) -> Result<bool, HookError> {
    if direction == Direction::Inbound && !filters::has_clsact(tap).map_err(HookError::Filters)? {
        return Ok(false);
    }
    let Some(filter) = filter_of(tap, direction) else {
        return Ok(false);
    };
    match program.attach_to_link(filter) {
        Ok(id) => {
            // Dropping it would take the filter off; it is to stay when the agent ends.
            std::mem::forget(program.take_link(id).map_err(HookError::Program)?);
            Ok(true)
        }
        // What the kernel refuses for another reason is not taken for absent: that would uncover the tap.
        Err(ProgramError::TcError(TcError::NetlinkError(error)))
            if filters::is_absent(error.raw_os_error())
                && !filters::is_on(tap, direction).map_err(HookError::Filters)? =>
        {
            Ok(false)
        }
        Err(error) => Err(HookError::Program(error)),
    }
}

fn attach_filter(
    program: &mut SchedClassifier,
    tap: TapIndex,
    direction: Direction,
    pins: &Pins,
) -> Result<(), HookError> {
    let name = tap::name_of(tap)?;
    match qdisc_add_clsact(&name) {
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(Errno::EEXIST as i32) => {}
        Err(error) => return Err(HookError::Clsact(error)),
        Ok(()) => pins.note_clsact(tap)?,
    }
    // What is there may be `ingress`.
    if direction == Direction::Inbound && !filters::has_clsact(tap).map_err(HookError::Filters)? {
        return Err(HookError::NoEgress { name });
    }
    let options = NlOptions {
        priority: CLSACT_PRIORITY,
        handle: CLSACT_HANDLE,
        ..NlOptions::default()
    };
    let id = program
        .attach_with_options(&name, direction.attach_type(), TcAttachOptions::Netlink(options))
        .map_err(HookError::Program)?;
    std::mem::forget(program.take_link(id).map_err(HookError::Program)?);
    Ok(())
}

fn detach_filter(tap: TapIndex, direction: Direction) -> Result<(), HookError> {
    match filter_of(tap, direction).map(Link::detach) {
        Some(Err(ProgramError::NetlinkError(error))) if filters::is_absent(error.raw_os_error()) => Ok(()),
        Some(Err(error)) => Err(HookError::Program(error)),
        Some(Ok(())) | None => Ok(()),
    }
}

/// Our filter on `tap`, whether it is there or not. Nothing when the device is gone. Never to be dropped lightly: that
/// takes the filter off.
fn filter_of(tap: TapIndex, direction: Direction) -> Option<SchedClassifierLink> {
    let name = tap::name_of(tap).ok()?;
    SchedClassifierLink::attached(
        &name,
        direction.attach_type(),
        CLSACT_PRIORITY,
        CLSACT_HANDLE,
        None,
    )
    .ok()
}
