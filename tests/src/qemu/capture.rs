//! A capture of a guest's tap.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result};

use super::failures;
use crate::netns::Namespace;

/// Everything that crosses a guest's tap, kept only when the guest fails.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    file: PathBuf,
}

impl Capture {
    /// Starts capturing on `tap` for the guest called `name`, and returns when every frame from now on is seen.
    pub fn start(namespace: &Namespace, name: &str, tap: &str) -> Result<Self> {
        fs::create_dir_all(failures()).context("cannot make the directory of failures")?;
        let file = failures().join(format!("{name}.pcap"));
        let mut command = namespace.command("tcpdump");
        command
            .args(["-i", tap, "-U", "-Z", "root", "-w"])
            .arg(&file)
            .stdin(Stdio::null());
        let mut tcpdump = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start tcpdump")?;
        // Its first line says that it listens.
        let errors = tcpdump.stderr.take().context("tcpdump has no output")?;
        let mut first = String::new();
        BufReader::new(errors).read_line(&mut first)?;
        Ok(Self { tcpdump, file })
    }

    fn stop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }

    /// Stops, and removes what was captured.
    pub fn discard(&mut self) {
        self.stop();
        let _ = fs::remove_file(&self.file);
    }

    /// Stops, and returns the file of what was captured.
    pub fn keep(&mut self) -> PathBuf {
        self.stop();
        self.file.clone()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop();
    }
}
