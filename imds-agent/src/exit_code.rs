//! How `imds-agent` ends, so that whoever supervises it can tell what helps from what does not. Code 2, wrong usage, is
//! clap's.

use std::{error::Error, io, iter};

use nix::errno::Errno;

use crate::{
    config::ConfigError,
    control::ControlError,
    datapath::{
        LoadError, attach::EnsureError, inject::InjectorError, namespace::VisitError, pins::PinsError,
        support::SupportError,
    },
    privilege::PrivilegeError,
    registry::CreateError,
    unix_socket::BindError,
};

/// Anything that has no code of its own; and what `check` found.
pub const FAILURE: u8 = 1;
/// The configuration has a mistake, or cannot be read.
pub const CONFIGURATION: u8 = 3;
/// The process lacks root or a capability.
pub const PERMISSION: u8 = 4;
/// Another agent has the control socket or the pins.
pub const OCCUPIED: u8 = 5;
/// The state directory can be neither read nor made.
pub const STATE_DIRECTORY: u8 = 6;
/// The kernel has not what the classifier needs.
pub const KERNEL: u8 = 7;

/// For `imds-agent --help`.
pub const HELP: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 configuration, 4 missing permission, \
                        5 another agent is there, 6 state directory, 7 unsupported kernel";

/// The code for an error: that of the outermost part of it that has one.
pub fn of(error: &anyhow::Error) -> u8 {
    error.chain().find_map(of_part).unwrap_or(FAILURE)
}

fn of_part(error: &(dyn Error + 'static)) -> Option<u8> {
    let is_denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    if error.is::<ConfigError>() {
        return Some(CONFIGURATION);
    }
    if error.is::<CreateError>() {
        return Some(STATE_DIRECTORY);
    }
    if error.is::<InjectorError>() || error.is::<VisitError>() {
        return Some(PERMISSION);
    }
    if let Some(error) = error.downcast_ref() {
        return match error {
            BindError::Occupied(_) => Some(OCCUPIED),
            BindError::NoSocket(_) => Some(CONFIGURATION),
            BindError::Group { .. } => Some(PERMISSION),
            BindError::Io { .. } => None,
        };
    }
    if let Some(ControlError::Group { .. }) = error.downcast_ref() {
        return Some(CONFIGURATION);
    }
    if let Some(error) = error.downcast_ref() {
        return match error {
            PrivilegeError::NoSuchUser { .. } => Some(CONFIGURATION),
            PrivilegeError::Lookup { .. } | PrivilegeError::Prepare { .. } => None,
            PrivilegeError::OtherUser { .. }
            | PrivilegeError::Change { .. }
            | PrivilegeError::Missing { .. }
            | PrivilegeError::MissingForNamespaces
            | PrivilegeError::Capabilities(_)
            | PrivilegeError::NoNewPrivileges(_)
            | PrivilegeError::Owner { .. }
            | PrivilegeError::Access { .. } => Some(PERMISSION),
        };
    }
    if let Some(error) = error.downcast_ref() {
        return match error {
            LoadError::Unsupported(error) => of_part(error),
            LoadError::Refused(error) if is_passing(error) => None,
            LoadError::Refused(_) => Some(KERNEL),
            LoadError::NotPermitted(_) => Some(PERMISSION),
            LoadError::Pins(pins) => of_pins(pins),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref() {
        return match error {
            SupportError::KernelTooOld { .. } | SupportError::Lacks { .. } => Some(KERNEL),
            SupportError::Forbidden { .. } => Some(PERMISSION),
        };
    }
    if let Some(error) = error.downcast_ref() {
        return match error {
            EnsureError::Load(error) => of_part(error),
            EnsureError::Pins(error) => of_pins(error),
            _ => None,
        };
    }
    if let Some(pins) = error.downcast_ref() {
        return of_pins(pins);
    }
    let errno = error
        .downcast_ref()
        .is_some_and(|errno| matches!(errno, Errno::EPERM | Errno::EACCES));
    (errno || error.downcast_ref().is_some_and(is_denied)).then_some(PERMISSION)
}

fn of_pins(error: &PinsError) -> Option<u8> {
    match error {
        PinsError::InUse { .. } => Some(OCCUPIED),
        PinsError::Mount(Errno::EPERM | Errno::EACCES) => Some(PERMISSION),
        PinsError::Mount(errno) if is_passing(errno) => None,
        PinsError::Mount(_) => Some(KERNEL),
        PinsError::NotBpffs { .. } => Some(CONFIGURATION),
        PinsError::Io { .. } => None,
    }
}

/// Whether the errno at the bottom of it says that the same may work in a moment: a host that is short of memory or
/// descriptors now lacks nothing that a newer kernel would have.
fn is_passing(error: &(dyn Error + 'static)) -> bool {
    let of_io = |error: &io::Error| error.raw_os_error().map(Errno::from_raw);
    let of_part = |part: &(dyn Error + 'static)| {
        part.downcast_ref()
            .copied()
            .or_else(|| part.downcast_ref().and_then(of_io))
    };
    let mut parts = iter::successors(Some(error), |part| Error::source(*part));
    let errno = parts.find_map(of_part);
    matches!(
        errno,
        Some(Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN | Errno::EINTR | Errno::EBUSY)
    )
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use aya::{programs::ProgramError, sys::SyscallError};

    use super::*;
    use crate::datapath::support::Obstacle;

    #[test]
    fn what_passes_is_tried_again() {
        let refused = |errno: Errno| {
            let io_error = io::Error::from(errno);
            let call = SyscallError {
                call: "bpf_prog_load",
                io_error,
            };
            of(&LoadError::Refused(ProgramError::from(call).into()).into())
        };
        let mount = |errno| of(&LoadError::Pins(PinsError::Mount(errno)).into());
        let lookup = |source| {
            let (field, name) = ("read_group", "operators".to_owned());
            of(&ControlError::GroupLookup { field, name, source }.into())
        };
        for errno in [
            Errno::ENOMEM,
            Errno::EMFILE,
            Errno::ENFILE,
            Errno::EAGAIN,
            Errno::EINTR,
            Errno::EBUSY,
        ] {
            assert_eq!(
                (refused(errno), mount(errno), lookup(errno)),
                (FAILURE, FAILURE, FAILURE),
                "{errno}"
            );
        }
        // As from a directory service that is not there.
        assert_eq!(
            (lookup(Errno::ENOENT), lookup(Errno::ECONNREFUSED)),
            (FAILURE, FAILURE)
        );
        for errno in [Errno::EINVAL, Errno::E2BIG, Errno::ENOSYS, Errno::EACCES] {
            assert_eq!(refused(errno), KERNEL, "{errno}");
        }
        let unknown = ControlError::Group {
            field: "read_group",
            name: "operators".to_owned(),
        };
        assert_eq!(of(&unknown.into()), CONFIGURATION);
    }

    #[test]
    fn the_outermost_part_with_a_code_decides() {
        let of = |error: anyhow::Error| of(&error);
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(of(anyhow::anyhow!("something")), FAILURE);
        assert_eq!(
            of(anyhow::Error::from(denied()).context("cannot open")),
            PERMISSION
        );
        assert_eq!(of(BindError::Occupied("/s".into()).into()), OCCUPIED);
        let io = BindError::Io {
            action: "make",
            path: "/s".into(),
            source: denied(),
        };
        assert_eq!(of(io.into()), PERMISSION);
        let socket = ControlError::Socket(BindError::Occupied("/s".into()));
        assert_eq!(of(socket.into()), OCCUPIED);
        let missing = PrivilegeError::Missing {
            missing: caps::Capability::CAP_BPF,
        };
        assert_eq!(of(missing.into()), PERMISSION);
        let unwritable = PrivilegeError::Prepare {
            path: "/p".into(),
            source: denied(),
        };
        assert_eq!(of(unwritable.into()), PERMISSION);
        let too_old = || SupportError::KernelTooOld {
            release: "5.10.0".to_owned(),
        };
        assert_eq!(of(too_old().into()), KERNEL);
        let attach = |error: LoadError| of(EnsureError::Load(error).into());
        assert_eq!(attach(too_old().into()), KERNEL);
        let forbidden = SupportError::Forbidden {
            obstacle: Obstacle::Filter,
            errno: Errno::EPERM,
        };
        assert_eq!(attach(forbidden.into()), PERMISSION);
        assert_eq!(
            of(LoadError::Pins(PinsError::InUse { root: "/p".into() }).into()),
            OCCUPIED
        );
        // As whoever opens the pins first has it.
        assert_eq!(of(PinsError::InUse { root: "/p".into() }.into()), OCCUPIED);
        assert_eq!(
            of(LoadError::Pins(PinsError::Mount(Errno::ENODEV)).into()),
            KERNEL
        );
        assert_eq!(
            of(LoadError::Pins(PinsError::Mount(Errno::EPERM)).into()),
            PERMISSION
        );
        let read = ConfigError::Read {
            path: "/c".into(),
            source: denied(),
        };
        assert_eq!(of(Err::<(), _>(read).context("why").unwrap_err()), CONFIGURATION);
    }
}
