//! Whether this host has what the classifier needs, asked before anything is made, mounted or changed.
//!
//! The kernel's own types (BTF) are not among it: the classifier reads frames and its own maps, and nothing else.

use std::{fs, io};

use aya::util::KernelVersion;
use nix::{
    errno::Errno,
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socket},
        utsname::uname,
    },
};
use thiserror::Error;

use super::bpf;

/// Ring buffers came with 5.8, memory accounting for maps without `RLIMIT_MEMLOCK` with 5.11.
const KERNEL_MIN: KernelVersion = KernelVersion::new(5, 11, 0);

/// The host cannot run the classifier, whatever the configuration says.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum SupportError {
    /// The kernel is older than what the classifier is made of.
    #[error("this host runs Linux {release}, and the classifier needs 5.11 or later: boot a newer kernel")]
    KernelTooOld {
        /// As `uname -r` says.
        release: String,
    },
    /// The kernel is built without something.
    #[error("this kernel has no {what}: boot one that is built with {option}")]
    Lacks {
        /// What.
        what: &'static str,
        /// The option of its configuration.
        option: &'static str,
    },
    /// Capabilities are not all that it takes.
    #[error("bpf(2) is refused to this process in spite of its capabilities ({errno}): {obstacle}")]
    Forbidden {
        /// What stands in the way.
        obstacle: Obstacle,
        /// As it is refused.
        errno: Errno,
    },
}

/// What keeps a process with the right capabilities from using BPF. As text, with what helps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Obstacle {
    /// Capabilities in there are worth nothing to bpf(2).
    #[error("it is in a user namespace, as those of rootless containers; run the agent outside")]
    UserNamespace,
    /// A filter of system calls.
    #[error(
        "a system call filter is on it, as on those of containers; allow it bpf(2), or run the agent outside"
    )]
    Filter,
    /// Something else that the kernel asks.
    #[error("a security module of this kernel may be why, and `journalctl --dmesg` say which")]
    SecurityModule,
}

/// Whether the kernel is new enough. Older ones know neither all of the capabilities nor why they refuse something.
pub fn ensure_kernel() -> Result<(), SupportError> {
    match KernelVersion::current() {
        Ok(version) if version >= KERNEL_MIN => Ok(()),
        _ => Err(SupportError::KernelTooOld {
            release: uname().map_or_else(
                |_| "of no known version".to_owned(),
                |name| name.release().to_string_lossy().into_owned(),
            ),
        }),
    }
}

/// Whether the kernel lets this process, which has the capabilities, use BPF.
pub fn ensure_bpf() -> Result<(), SupportError> {
    match bpf::try_map() {
        Ok(()) => Ok(()),
        Err(error) => explain(&error, Surroundings::look).map_or(Ok(()), Err),
    }
}

/// Whether the kernel has what frames are injected through.
pub fn ensure_packet_sockets() -> Result<(), SupportError> {
    match socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None) {
        Err(Errno::EAFNOSUPPORT) => Err(SupportError::Lacks {
            what: "packet sockets",
            option: "CONFIG_PACKET",
        }),
        // Any other error is told by who needs the socket.
        _ => Ok(()),
    }
}

/// Where the process runs.
#[derive(Clone, Copy, Debug)]
struct Surroundings {
    /// Whether the kernel has a BPF file system, which comes and goes with bpf(2).
    has_bpf: bool,
    is_in_user_namespace: bool,
    has_filter: bool,
}

impl Surroundings {
    fn look() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let all_users = ["0", "0", "4294967295"];
        Self {
            has_bpf: read("/proc/filesystems")
                .lines()
                .any(|line| line.ends_with("\tbpf")),
            is_in_user_namespace: !read("/proc/self/uid_map").split_whitespace().eq(all_users),
            has_filter: read("/proc/self/status")
                .lines()
                .any(|line| line == "Seccomp:\t2"),
        }
    }
}

/// What a refused map says about the host; nothing of errors that the real maps may tell better.
fn explain(error: &io::Error, look: impl FnOnce() -> Surroundings) -> Option<SupportError> {
    let errno = Errno::from_raw(error.raw_os_error()?);
    let surroundings = match errno {
        Errno::ENOSYS | Errno::EPERM | Errno::EACCES => look(),
        _ => return None,
    };
    if errno == Errno::ENOSYS && !surroundings.has_bpf {
        return Some(SupportError::Lacks {
            what: "bpf(2)",
            option: "CONFIG_BPF_SYSCALL",
        });
    }
    // Some filters say that there is no such call.
    let obstacle = if surroundings.is_in_user_namespace {
        Obstacle::UserNamespace
    } else if surroundings.has_filter {
        Obstacle::Filter
    } else {
        Obstacle::SecurityModule
    };
    Some(SupportError::Forbidden { obstacle, errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Surroundings = Surroundings {
        has_bpf: true,
        is_in_user_namespace: false,
        has_filter: false,
    };

    fn said(errno: Errno, surroundings: Surroundings) -> String {
        let error = explain(&errno.into(), || surroundings);
        error.map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn refusals_name_what_is_missing_or_in_the_way_and_what_helps() {
        let without_bpf = Surroundings {
            has_bpf: false,
            has_filter: true,
            ..HOST
        };
        let filtered = Surroundings {
            has_filter: true,
            ..HOST
        };
        let inside = Surroundings {
            is_in_user_namespace: true,
            ..filtered
        };
        for (errno, surroundings, expected) in [
            (Errno::ENOSYS, without_bpf, "built with CONFIG_BPF_SYSCALL"),
            (Errno::ENOSYS, filtered, "allow it bpf(2)"),
            (Errno::EPERM, filtered, "allow it bpf(2)"),
            (Errno::EPERM, inside, "user namespace"),
            (Errno::EACCES, HOST, "security module"),
        ] {
            let said = said(errno, surroundings);
            assert!(said.contains(expected), "{errno}: {said}");
        }
    }

    #[test]
    fn what_the_real_maps_tell_better_is_left_to_them() {
        assert_eq!(said(Errno::ENOMEM, HOST), "");
    }
}
