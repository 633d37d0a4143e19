//! What systemd is told of the agent, and how the agent speaks to its journal. Elsewhere nobody listens, and none of this
//! does anything.
//!
//! Read first: sd_notify(3), sd-daemon(3), and systemd.exec(5) about `JOURNAL_STREAM`.

use std::{
    env, fs, io,
    io::Write,
    os::{fd::AsFd, unix::fs::MetadataExt},
    time::Duration,
};

use log::{Level, Record};
use sd_notify::NotifyState;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// The service manager that started the agent, if one did.
#[derive(Debug)]
pub struct ServiceManager {
    /// Half of what it waits for a sign of life, as sd_watchdog_enabled(3) recommends.
    watchdog: Option<Interval>,
    is_ready: bool,
    status: String,
}

impl ServiceManager {
    /// To be made inside the runtime.
    pub fn find() -> Self {
        let every = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
        Self {
            watchdog: every.map(|limit| {
                let half = (limit / 2).max(Duration::from_millis(1));
                let mut watchdog = interval_at(Instant::now() + half, half);
                watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
                watchdog
            }),
            is_ready: false,
            status: String::new(),
        }
    }

    /// Ends when it is time for [`Self::tell_alive`]; never, where nobody wants to know.
    pub async fn watchdog(&mut self) {
        match &mut self.watchdog {
            Some(watchdog) => _ = watchdog.tick().await,
            None => std::future::pending().await,
        }
    }

    /// The loop that says this still turns.
    pub fn tell_alive(&self) {
        tell(&[NotifyState::Watchdog]);
    }

    /// The agent serves from now on.
    pub fn tell_ready(&mut self) {
        self.is_ready = true;
        tell(&[NotifyState::Ready]);
    }

    /// The agent reads its configuration, until [`Self::tell_reloaded`].
    pub fn tell_reloading(&self) {
        if !self.is_ready {
            return;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => log::warn!("the service manager cannot be told of the reload: {error}"),
        }
    }

    /// The agent serves on, whatever came of it.
    pub fn tell_reloaded(&self) {
        if self.is_ready {
            tell(&[NotifyState::Ready]);
        }
    }

    /// The agent ends.
    pub fn tell_stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// What `systemctl status` shows of an agent that is ready.
    pub fn tell_status(&mut self, instances: usize, taps: usize) {
        let status = format!("{instances} instances, {taps} taps");
        if self.is_ready && self.status != status {
            tell(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }
}

/// A manager that cannot be told is no reason to serve nobody: if it minds, it says so by a restart.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        log::warn!("the service manager cannot be told how the agent is: {error}");
    }
}

/// Whether what is written to standard error goes into systemd's journal, and nowhere else that a person would read.
pub fn has_journal() -> bool {
    let own = io::stderr().as_fd().try_clone_to_owned();
    let own = own.and_then(|stderr| fs::File::from(stderr).metadata());
    own.is_ok_and(|own| {
        env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(&stream, own.dev(), own.ino()))
    })
}

fn is_stream(said: &str, device: u64, inode: u64) -> bool {
    said == format!("{device}:{inode}")
}

/// Writes a line as the journal takes it: the priority before it, and no time, which is the journal's to note. The journal's own
/// protocol would need system calls that the threads of guests do not have.
pub fn write_line(to: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    writeln!(to, "<{}>{}", priority(record.level()), record.args())
}

/// syslog(3)'s.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_for_the_journal_begin_with_their_priority() {
        let mut lines = Vec::new();
        for level in [Level::Error, Level::Warn, Level::Info, Level::Debug] {
            // In one expression: the arguments live no longer.
            write_line(
                &mut lines,
                &Record::builder()
                    .level(level)
                    .args(format_args!("tap0: {level}"))
                    .build(),
            )
            .unwrap();
        }
        let expected = "<3>tap0: ERROR\n<4>tap0: WARN\n<6>tap0: INFO\n<7>tap0: DEBUG\n";
        assert_eq!(String::from_utf8(lines).unwrap(), expected);
    }

    #[test]
    fn only_the_stream_itself_is_the_journal() {
        assert!(is_stream("9:1234", 9, 1234));
        assert!(!is_stream("9:1234", 9, 1235));
        assert!(!is_stream("", 0, 0));
    }
}
