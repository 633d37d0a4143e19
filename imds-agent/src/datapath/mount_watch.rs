//! Tells when something is mounted or unmounted: that is how network namespaces get their names, and lose them.
//!
//! Read first: proc_pid_mountinfo(5), "monitoring for changes". A namespace's name is a file that the namespace is mounted on,
//! and that it is mounted on an existing file is what no watch of the directory tells.

#![expect(
    unsafe_code,
    reason = "tokio asks for a promise about a descriptor that it waits for"
)]

use std::{fs::File, io};

use tokio::io::{Interest, unix::AsyncFd};

/// The mounts of the process's mount namespace.
#[derive(Debug)]
pub struct MountWatch(AsyncFd<File>);

impl MountWatch {
    /// Watches from now on. To be called within a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let mounts = File::open("/proc/self/mountinfo")?;
        // SAFETY: a file keeps its descriptor for as long as it lives, and this one is nobody else's.
        let mounts = unsafe { AsyncFd::register_with_interest(mounts, Interest::PRIORITY) };
        Ok(Self(mounts?))
    }

    /// Returns when mounts have changed since the last call. A call that is cancelled loses nothing.
    pub async fn changed(&self) -> io::Result<()> {
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}
