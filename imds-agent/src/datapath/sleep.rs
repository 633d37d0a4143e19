//! How a worker sleeps until there is something to do.
//!
//! By a system call of its own, and not on tokio: tokio's driver of a thread that waits for descriptors also handles the
//! process's signals and ended children, wherever they come in, and a thread that serves guests is not allowed to
//! (`docs/security.md`).

use std::{os::fd::AsFd as _, sync::Arc, time::Duration};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        prctl,
        time::TimeSpec,
    },
};

use super::PuntRing;

/// Wakes a worker from another thread.
#[derive(Clone, Debug)]
pub struct Alarm(Arc<EventFd>);

impl Alarm {
    /// One that nobody sleeps by yet.
    pub fn new() -> Result<Self, Errno> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(Arc::new(EventFd::from_flags(flags)?)))
    }

    /// Has the calling thread's sleeps end when they say, and not up to 50 microseconds later as is usual. Where that is
    /// refused they go on being a little longer.
    pub fn be_exact() {
        let _ = prctl::set_timerslack(1);
    }

    /// Ends the worker's sleep, or the next one if it is awake.
    pub fn ring(&self) {
        // What cannot be counted any more has long been rung.
        let _ = self.0.write(1);
    }

    /// Sleeps until the alarm rings, a frame is in `ring`, or `timeout` is over.
    pub fn sleep(&self, ring: &PuntRing, timeout: Option<Duration>) -> Result<(), Errno> {
        let wanted = PollFlags::POLLIN;
        let mut fds = [
            PollFd::new(self.0.as_fd(), wanted),
            PollFd::new(ring.as_fd(), wanted),
        ];
        match ppoll(&mut fds, timeout.map(TimeSpec::from_duration), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        if fds.first().and_then(PollFd::any) == Some(true) {
            // Before the caller looks what it was rung for, so that no ring is missed.
            let _ = self.0.read();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_that_rang_before_ends_one_sleep_and_no_more() {
        let alarm = Alarm::new().unwrap();
        let is_ringing = || alarm.0.read();
        alarm.ring();
        alarm.ring();
        assert_eq!(is_ringing(), Ok(2));
        assert_eq!(is_ringing(), Err(Errno::EAGAIN));
    }
}
