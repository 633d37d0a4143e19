//! A guest in QEMU: boot, follow its console, end in bounded time.
//!
//! The guest's own contract is in `tests/guest-init`: one line a step, and exactly one `init: success` or
//! `init: failure` line. Whatever else happens is a failure that this module names: a hang marker in the console, the
//! time limit, or an end without that line. A failed guest leaves its console and a capture of its tap behind.

mod capture;
mod machine;

use std::{
    fs,
    io::Read as _,
    path::PathBuf,
    process::Child,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use imds_ebpf::abi::MacAddr;

pub use self::machine::{Accelerator, Kernel, Software, kernel};
use self::{capture::Capture, machine::power_on};
use crate::netns::Namespace;

/// Lines after which a guest never ends by itself, and what they mean.
const HANG_MARKERS: &[(&str, &str)] = &[
    ("Kernel panic - not syncing", "the guest's kernel panicked"),
    ("Attempted to kill init", "the guest's init died"),
    ("soft lockup - CPU", "the guest's processor is stuck"),
    ("rcu_sched self-detected stall", "the guest's processor is stuck"),
    (
        "rcu_preempt self-detected stall",
        "the guest's processor is stuck",
    ),
    ("blocked for more than", "a task of the guest hangs"),
    (
        "VFS: Unable to mount root fs",
        "the guest's kernel found no initramfs",
    ),
];

/// A guest to boot.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Names the files that a failure leaves behind.
    pub name: String,
    /// Its network interface, where it has one.
    pub interface: Option<Interface>,
    /// What runs in the guest.
    pub software: Software,
    /// From power-on to power-off.
    pub limit: Duration,
}

/// A guest's network interface.
#[derive(Clone, Debug)]
pub struct Interface {
    /// The tap in the namespace that it is connected to.
    pub tap: String,
    /// Its address.
    pub mac: MacAddr,
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    name: String,
    qemu: Child,
    lines: Receiver<String>,
    capture: Option<Capture>,
    console: Console,
    limit: Duration,
    ends_at: Instant,
}

/// What a guest wrote on its console.
#[derive(Clone, Default, Debug)]
pub struct Console {
    /// Its lines, in order.
    pub lines: Vec<String>,
}

impl Guest {
    /// Powers a guest on in `namespace`.
    pub fn boot(namespace: &Namespace, options: &GuestOptions) -> Result<Self> {
        let mut command = machine::command(namespace, options)?;
        let capture = options
            .interface
            .as_ref()
            .map(|interface| Capture::start(namespace, &options.name, &interface.tap))
            .transpose()?;
        let (qemu, lines) = power_on(&mut command)?;
        Ok(Self {
            name: options.name.clone(),
            qemu,
            lines,
            capture,
            console: Console::default(),
            limit: options.limit,
            ends_at: Instant::now() + options.limit,
        })
    }

    /// Boots a guest whose console is this terminal, and waits for its end. Ctrl-A X ends it.
    pub fn boot_on_terminal(namespace: &Namespace, options: &GuestOptions) -> Result<()> {
        let mut command = machine::command(namespace, options)?;
        let status = command
            .args(["-serial", "mon:stdio"])
            .status()
            .context("cannot start QEMU")?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }

    /// Waits for the guest's success.
    pub fn wait(self) -> Result<Console> {
        self.wait_showing(|_| ())
    }

    /// Waits for the guest's success, and shows each line of its console as it comes.
    pub fn wait_showing(mut self, mut show: impl FnMut(&str)) -> Result<Console> {
        match self.run(&mut show) {
            Ok(()) => {
                if let Some(capture) = &mut self.capture {
                    capture.discard();
                }
                Ok(std::mem::take(&mut self.console))
            }
            Err(error) => Err(self.report(error)),
        }
    }

    fn run(&mut self, show: &mut impl FnMut(&str)) -> Result<()> {
        let mut verdict = None;
        loop {
            match self
                .lines
                .recv_timeout(self.ends_at.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    show(&line);
                    if let Some((_, meaning)) = HANG_MARKERS.iter().find(|(marker, _)| line.contains(marker))
                    {
                        bail!("{meaning}: {line}");
                    }
                    if let Some(text) = line.strip_prefix("init: ") {
                        ensure!(
                            verdict.replace(text.to_owned()).is_none(),
                            "the guest ended twice"
                        );
                    }
                    self.console.lines.push(line);
                }
                Err(RecvTimeoutError::Timeout) => bail!("the guest did not end within {:?}", self.limit),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = self.qemu.wait().context("cannot wait for QEMU")?;
        match verdict.as_deref() {
            Some("success") if status.success() => Ok(()),
            Some("success") => bail!("QEMU ended with {status}"),
            Some(failure) => bail!("the guest says: {failure}"),
            None => bail!(
                "the guest ended without a word ({status}): {}",
                complaints(&mut self.qemu)
            ),
        }
    }

    /// Keeps what helps to understand a failure, and says where it is.
    fn report(&mut self, error: anyhow::Error) -> anyhow::Error {
        let file = failures().join(format!("{}.console", self.name));
        let kept =
            fs::create_dir_all(failures()).and_then(|()| fs::write(&file, self.console.lines.join("\n")));
        let last = self
            .console
            .lines
            .iter()
            .rev()
            .take(20)
            .rev()
            .map(|line| format!("  | {line}\n"));
        let last: String = last.collect();
        let mut files = match kept {
            Ok(()) => format!("console: {}", file.display()),
            Err(error) => format!("the console could not be kept: {error}"),
        };
        if let Some(capture) = &mut self.capture {
            files.push_str(&format!(", capture: {}", capture.keep().display()));
        }
        error.context(format!("guest {} failed\n{last}{files}", self.name))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It has ended already, unless something went wrong.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Console {
    /// What step `step` said in its end: nothing when it did not run.
    pub fn step(&self, step: &str) -> Option<&str> {
        let prefix = format!("step {step}: ");
        self.lines.iter().find_map(|line| line.strip_prefix(&prefix))
    }

    /// Status and quoted body that a `get` or `get-v1` step of `path` was answered with, as `200 "i-..."`.
    pub fn answer(&self, path: &str) -> Option<&str> {
        let prefix = format!("got {path}: ");
        self.lines.iter().find_map(|line| line.strip_prefix(&prefix))
    }
}

fn complaints(qemu: &mut Child) -> String {
    let mut text = String::new();
    if let Some(mut errors) = qemu.stderr.take() {
        // What cannot be read is not worth another error.
        let _ = errors.read_to_string(&mut text);
    }
    text.trim().to_owned()
}

/// Where `cargo xtask` puts guests' kernel and initramfs.
pub fn image() -> PathBuf {
    target().join("guest")
}

fn failures() -> PathBuf {
    target().join("guest/failures")
}

/// The directory of everything that is built.
pub fn target() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target"))
}
