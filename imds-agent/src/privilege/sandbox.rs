//! The sandbox of a thread that a guest's bytes reach.
//!
//! Such a thread has its ring, its socket and its memory, and asks the kernel for nothing else. What it needs not is closed
//! four times over: it has no capability, may gain none, its system calls are an allow-list, and landlock leaves it no
//! file. What this cannot do: threads share one memory, so whoever runs code in one of them holds the keys that are in
//! it, and may try to bend another thread. `docs/security.md` says so too.

use std::{collections::BTreeMap, fmt, io, sync::Once};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, LandlockStatus, Ruleset, RulesetAttr as _, RulesetError, Scope,
};
use nix::{
    errno::Errno,
    libc,
    sys::{
        prctl,
        signal::{SigSet, Signal},
    },
};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is, SeccompCondition,
    SeccompFilter, SeccompRule,
};

use super::{capabilities, violation};

/// The newest landlock that is asked for; an older kernel does what it can.
const LANDLOCK: ABI = ABI::V9;

/// The system calls of a serving thread.
const CALLS: &[libc::c_long] = &[
    // Frames, wake-ups and the log.
    libc::SYS_sendmmsg,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    // Other threads, and the time where the vDSO does not know it.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    // Memory; mmap and mprotect have rules of their own, as have fcntl and tgkill.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // The allocator asks how many processors there are before it makes another arena.
    libc::SYS_sched_getaffinity,
    libc::SYS_getrandom,
    // A panic's abort, the return from a handler, the end of the thread.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What the C library tries now and then by itself, as glibc's allocator does with `/proc/sys/vm/overcommit_memory`, and
/// takes a refusal of. It gets the refusal.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_openat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
];

/// A thread cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Its signals cannot be left to others.
    #[error("cannot block signals")]
    Signals(#[source] Errno),
    /// The kernel refuses `no_new_privs`.
    #[error("cannot do without new privileges")]
    NoNewPrivileges(#[source] Errno),
    /// The kernel refuses the rules for files.
    #[error("landlock refuses its rules")]
    Landlock(#[from] RulesetError),
    /// The filter of system calls is none.
    #[error("the system call filter cannot be made")]
    Filter(#[from] BackendError),
    /// The kernel refuses the filter of system calls.
    #[error("seccomp refuses the filter")]
    Seccomp(#[source] seccompiler::Error),
}

/// What is in force besides the capabilities that are gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Confined {
    /// The ABI of landlock in force; nothing where the kernel has none.
    pub landlock: Option<ABI>,
    /// Whether system calls are filtered.
    pub seccomp: bool,
}

/// Confines the calling thread, for good. Where the kernel lacks a part, that is told once and the rest is in force.
pub fn confine() -> Result<Confined, ConfineError> {
    violation::tell();
    leave_signals_to_others().map_err(ConfineError::Signals)?;
    capabilities::give_up();
    prctl::set_no_new_privs().map_err(ConfineError::NoNewPrivileges)?;
    let landlock = close_files()?;
    let seccomp = filter_calls()?;
    let confined = Confined { landlock, seccomp };
    if landlock.is_none() || !seccomp {
        static TOLD: Once = Once::new();
        TOLD.call_once(|| log::warn!("this kernel does not confine threads as it could: {confined}"));
    }
    Ok(confined)
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.landlock {
            Some(abi) => write!(f, "landlock ABI {}", abi as i32)?,
            None => f.write_str("no landlock")?,
        }
        f.write_str(if self.seccomp { ", seccomp" } else { ", no seccomp" })
    }
}

/// A handler of the process might do here what it may not. Those of faults, which only the thread itself causes, stay.
fn leave_signals_to_others() -> Result<(), Errno> {
    let mut others = SigSet::all();
    for own in [
        Signal::SIGSYS,
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGABRT,
        Signal::SIGTRAP,
    ] {
        others.remove(own);
    }
    others.thread_block()
}

/// No file, no TCP, no socket of a name that is not in the file system, no signal to another process.
fn close_files() -> Result<Option<ABI>, ConfineError> {
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => Some(effective_abi),
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => None,
    })
}

/// The stricter of two filters counts: what is allowed by the first may be refused by the second.
fn filter_calls() -> Result<bool, ConfineError> {
    let mut allowed: BTreeMap<_, _> = CALLS
        .iter()
        .chain(REFUSED)
        .map(|call| (*call, Vec::new()))
        .collect();
    // Before it closes a descriptor std looks whether it is open, where it is built with debug assertions.
    let looks = condition(1, Is::Eq, libc::F_GETFD as u64)?;
    allowed.insert(libc::SYS_fcntl, vec![SeccompRule::new(vec![looks])?]);
    // No memory that is executed.
    let not_executable = || condition(2, Is::MaskedEq(libc::PROT_EXEC as u64), 0);
    allowed.insert(libc::SYS_mmap, vec![SeccompRule::new(vec![not_executable()?])?]);
    allowed.insert(
        libc::SYS_mprotect,
        vec![SeccompRule::new(vec![not_executable()?])?],
    );
    // An abort, and no other signal.
    let aborts = vec![
        condition(0, Is::Eq, std::process::id().into())?,
        condition(2, Is::Eq, libc::SIGABRT as u64)?,
    ];
    allowed.insert(libc::SYS_tgkill, vec![SeccompRule::new(aborts)?]);
    let refused = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let refusal = SeccompAction::Errno(libc::EACCES as u32);
    let filters = [
        (refused, SeccompAction::Allow, refusal),
        (allowed, SeccompAction::Trap, SeccompAction::Allow),
    ];
    // Both are made before the first is in force.
    let programs = filters.map(|(calls, other, these)| {
        let filter = SeccompFilter::new(calls, other, these, std::env::consts::ARCH.try_into()?)?;
        BpfProgram::try_from(filter)
    });
    for program in programs {
        match seccompiler::apply_filter(&program?) {
            Ok(()) => {}
            Err(seccompiler::Error::Seccomp(error)) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(ConfineError::Seccomp(error)),
        }
    }
    Ok(true)
}

fn condition(argument: u8, is: Is, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Width::Dword, is, value)
}

/// A kernel without seccomp has no such call, one without filters no such mode.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL))
}

#[cfg(test)]
mod tests;
