//! Capabilities: which the agent takes from root's power, where, and for how long.

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

use super::PrivilegeError;

/// Without these the agent cannot start:
/// - `CAP_BPF` makes maps and loads programs;
/// - `CAP_PERFMON` lets the verifier accept a program that compares packet pointers;
/// - `CAP_NET_ADMIN` loads programs for traffic control and hangs them on taps;
/// - `CAP_NET_RAW` opens the packet socket and marks its frames.
pub const NEEDED: [Capability; 4] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
];

/// What putting the classifier on a tap takes, without serving anybody.
pub const ATTACHING: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
];

/// What the main thread goes on needing: taps come and go, and bindings change.
const SERVING: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];

/// What the thread keeps that goes to other network namespaces: to go there, to load the classifier for there and to hang it on taps,
/// and to open the packet sockets.
const GOING_ELSEWHERE: [Capability; 5] = [
    ELSEWHERE,
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
];

/// What it takes to go to another network namespace.
const ELSEWHERE: Capability = Capability::CAP_SYS_ADMIN;

/// Kept until everything is open, where it is there: an operator may want a security token service below port 1024.
const WELCOME: Capability = Capability::CAP_NET_BIND_SERVICE;

/// Whether the process has these.
pub fn ensure(needed: &[Capability]) -> Result<(), PrivilegeError> {
    permitted(needed).map(drop)
}

/// What it takes to start, and to go to other network namespaces if that is configured.
pub(super) fn needed(goes_elsewhere: bool) -> Vec<Capability> {
    let elsewhere = goes_elsewhere.then_some(ELSEWHERE);
    NEEDED.into_iter().chain(elsewhere).collect()
}

/// Leaves the process with what opening takes, `change` of its user in between. No program that it runs gains any: the
/// bounding set is empty where the process may change that, the inheritable and the ambient set are in any case.
pub(super) fn keep_for_opening(
    goes_elsewhere: bool,
    change: impl FnOnce() -> Result<(), PrivilegeError>,
) -> Result<(), PrivilegeError> {
    let permitted = permitted(&needed(goes_elsewhere))?;
    if permitted.contains(&Capability::CAP_SETPCAP) {
        // Without it, as under systemd, whoever started the process bounds it.
        caps::clear(None, CapSet::Bounding).map_err(PrivilegeError::Capabilities)?;
    }
    caps::securebits::set_keepcaps(true).map_err(PrivilegeError::Capabilities)?;
    change()?;
    caps::securebits::set_keepcaps(false).map_err(PrivilegeError::Capabilities)?;
    let kept = needed(goes_elsewhere)
        .into_iter()
        .chain(permitted.contains(&WELCOME).then_some(WELCOME));
    keep(&kept.collect()).map_err(PrivilegeError::Capabilities)
}

/// Leaves the calling thread with what serving takes.
pub fn keep_for_serving() -> Result<(), PrivilegeError> {
    keep(&SERVING.into()).map_err(PrivilegeError::Capabilities)
}

/// Leaves the calling thread with what going to other network namespaces takes. One that cannot give up the rest does not go on.
pub fn keep_for_namespaces() {
    keep_or_abort(&GOING_ELSEWHERE.into());
}

/// Leaves the calling thread without any capability. A thread that cannot give up its capabilities does not go on: then
/// the process ends, which is for no other reason than a kernel that refuses to take privileges away.
pub fn give_up() {
    keep_or_abort(&CapsHashSet::new());
}

fn keep_or_abort(kept: &CapsHashSet) {
    if let Err(error) = keep(kept) {
        log::error!("cannot give capabilities up: {error}");
        std::process::abort();
    }
}

/// All that the process may make effective, with the needed ones among them.
fn permitted(needed: &[Capability]) -> Result<CapsHashSet, PrivilegeError> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(PrivilegeError::Capabilities)?;
    match needed.iter().find(|needed| !permitted.contains(needed)) {
        Some(&ELSEWHERE) => Err(PrivilegeError::MissingForNamespaces),
        Some(&missing) => Err(PrivilegeError::Missing { missing }),
        None => Ok(permitted),
    }
}

/// As systemd's `AmbientCapabilities=` wants them.
pub(super) fn names(capabilities: &[Capability]) -> String {
    let names: Vec<_> = capabilities.iter().map(ToString::to_string).collect();
    names.join(" ")
}

/// Sets the calling thread's capabilities, which it must have.
fn keep(kept: &CapsHashSet) -> Result<(), CapsError> {
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    // No capability may be effective that is not permitted, at any moment.
    caps::clear(None, CapSet::Effective)?;
    caps::set(None, CapSet::Permitted, kept)?;
    caps::set(None, CapSet::Effective, kept)
}
