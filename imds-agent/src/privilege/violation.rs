//! What a confined thread is not allowed kills the process, and this says so first.
//!
//! A seccomp filter that kills leaves its word in the kernel's log at best. So the filter sends SIGSYS instead, and the
//! handler writes one line where the log goes, and then dies of that signal. A handler in a process whose memory may be in
//! somebody else's hands is a courtesy and no defence: it cannot be replaced from within the filter, and while it runs, or where it
//! is blocked, the kernel kills for the second violation at once.

#![expect(unsafe_code, reason = "a signal handler")]

use std::sync::Once;

use nix::{
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

const MESSAGE: &[u8] =
    b"imds-agent: a thread that serves guests made a system call that it never needs, and the agent ends: number ";

/// The part of `siginfo_t` that a violation fills in: asm-generic/siginfo.h, `_sigsys`.
#[repr(C)]
struct Violation {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    call_address: *const libc::c_void,
    number: libc::c_int,
}

/// Has violations of all threads told, from here on.
pub(super) fn tell() {
    static TELL: Once = Once::new();
    TELL.call_once(|| {
        let flags = SaFlags::SA_SIGINFO | SaFlags::SA_RESETHAND;
        let action = SigAction::new(SigHandler::SigAction(handle), flags, SigSet::empty());
        // SAFETY: the handler keeps to what signal-safety(7) allows, and nothing else here handles this signal.
        let told = unsafe { sigaction(Signal::SIGSYS, &action) };
        if let Err(errno) = told {
            log::warn!("violations of the system call filter will not be told here: {errno}");
        }
    });
}

extern "C" fn handle(_: libc::c_int, information: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler of this kind a whole `siginfo_t`, which begins like that.
    let number = unsafe { (*information.cast::<Violation>()).number };
    let mut line = [0; MESSAGE.len() + 11];
    let length = write_line(&mut line, number.unsigned_abs());
    // SAFETY: `length` bytes of `line` are there, and write(2) and raise(3) may be called in a handler.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length);
        // The handler is gone by now: the signal ends the process, at once or when this returns.
        libc::raise(libc::SIGSYS);
    }
}

/// The message and a number of up to ten digits, without an allocation. Returns the length.
fn write_line(line: &mut [u8; MESSAGE.len() + 11], number: u32) -> usize {
    line[..MESSAGE.len()].copy_from_slice(MESSAGE);
    let digits = number.checked_ilog10().map_or(1, |log| log as usize + 1);
    let mut rest = number;
    for digit in line[MESSAGE.len()..MESSAGE.len() + digits].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    line[MESSAGE.len() + digits] = b'\n';
    MESSAGE.len() + digits + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_written_whole() {
        for number in [0, 9, 10, 59, 435, u32::MAX] {
            let mut line = [0; MESSAGE.len() + 11];
            let length = write_line(&mut line, number);
            let expected = [MESSAGE, number.to_string().as_bytes(), b"\n"].concat();
            assert_eq!(line[..length], expected);
        }
    }
}
