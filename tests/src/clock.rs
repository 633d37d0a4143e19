//! A clock that a test puts forward: for programs that go by it hours pass at once.
//!
//! libfaketime stands between a program and the C library and adds an offset to the time of day. The kernel's other clock
//! is left alone: the agent compares its readings with those of the classifier, and no timeout of anybody's runs out. So
//! a program sees what it sees when an administrator puts the clock right, and it sees it when it wakes up and looks.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Result, ensure};

use crate::qemu;

/// Where the library keeps what processes share: files by their process's number.
const SHARED: &str = "/dev/shm";

/// The clock. Cheap to clone; all clones show the same time.
#[derive(Clone, Debug)]
pub struct Clock {
    library: PathBuf,
    files: Arc<Files>,
    offset_seconds: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Files(tempfile::TempDir);

impl Clock {
    /// A clock that is right.
    pub fn new() -> Result<Self> {
        // The library's own directory is that of Debian's architecture.
        let libraries = qemu::target().join("faketime/usr/lib");
        let library = fs::read_dir(&libraries)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
            .find(|library| library.is_file());
        ensure!(
            library.is_some(),
            "libfaketime is missing in {}: `cargo xtask setup` fetches it",
            libraries.display()
        );
        let clock = Self {
            library: library.unwrap_or_default(),
            files: Arc::new(Files(tempfile::Builder::new().prefix("imds-clock-").tempdir()?)),
            offset_seconds: Arc::default(),
        };
        clock.advance(Duration::ZERO)?;
        Ok(clock)
    }

    /// Makes the program of `command` go by this clock, and what it starts.
    pub fn show_to(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", self.offset_file())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
    }

    /// Puts it forward by whole seconds.
    pub fn advance(&self, by: Duration) -> Result<()> {
        let offset = self.offset_seconds.fetch_add(by.as_secs(), Ordering::SeqCst) + by.as_secs();
        let beside = self.offset_file().with_extension("new");
        fs::write(&beside, format!("+{offset}"))?;
        fs::rename(&beside, self.offset_file())?;
        Ok(())
    }

    /// What it shows.
    pub fn now(&self) -> SystemTime {
        SystemTime::now() + Duration::from_secs(self.offset_seconds.load(Ordering::SeqCst))
    }

    fn offset_file(&self) -> PathBuf {
        self.files.0.path().join("offset")
    }
}

impl Drop for Files {
    /// Removes what the library leaves behind of processes that were killed.
    fn drop(&mut self) {
        for entry in fs::read_dir(SHARED).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|name| {
                let name = name.strip_prefix("sem.").unwrap_or(name);
                name.strip_prefix("faketime_sem_")
                    .or_else(|| name.strip_prefix("faketime_shm_"))
            });
            if owner.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}
