//! A guest in QEMU: boot, follow its console, end in bounded time.
//!
//! The guest's own contract is in `tests/guest-init`: one line a step, and exactly one `init: success` or
//! `init: failure` line. Whatever else happens is a failure that this module names: a hang marker in the console, the
//! time limit, or an end without that line. A failed guest leaves its console and a capture of its tap behind.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use imds_ebpf::abi::MacAddr;

use crate::netns::Namespace;

/// The machine.
const QEMU: &str = "qemu-system-x86_64";

/// Enough for the kernel, the initramfs and a shell.
const MEMORY: &str = "128M";

/// How long a guest may take from power-on to its first line when KVM is tried. Under KVM it takes one second.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

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
    /// The tap in the namespace that the guest's interface is connected to.
    pub tap: String,
    /// The interface's address.
    pub mac: MacAddr,
    /// The interface's IPv4 address and prefix length: `10.0.0.2/24`.
    pub address: String,
    /// What the guest does: see `tests/guest-init/src/step.rs`.
    pub steps: Vec<String>,
    /// From power-on to power-off.
    pub limit: Duration,
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    name: String,
    qemu: Child,
    lines: Receiver<String>,
    capture: Capture,
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

/// What runs the guest's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Accelerator {
    Kvm,
    Tcg,
}

impl Guest {
    /// Powers a guest on in `namespace`.
    pub fn boot(namespace: &Namespace, options: &GuestOptions) -> Result<Self> {
        let accelerator = Accelerator::detect()?;
        let capture = Capture::start(namespace, options)?;
        let mut command = namespace.command(QEMU);
        add_machine(&mut command, accelerator, Some(options))?;
        let (qemu, lines) = start(&mut command)?;
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
        let mut command = namespace.command(QEMU);
        add_machine(&mut command, Accelerator::detect()?, Some(options))?;
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
                self.capture.discard();
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
        let capture = self.capture.keep();
        let files = match kept {
            Ok(()) => format!("console: {}, capture: {}", file.display(), capture.display()),
            Err(error) => format!("the console could not be kept: {error}"),
        };
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

impl Accelerator {
    /// KVM where a guest really boots under it: `/dev/kvm` alone proves nothing. The answer is kept beside the image.
    fn detect() -> Result<Self> {
        let kept = image().join("accelerator");
        match fs::read_to_string(&kept).as_deref() {
            Ok("kvm") => return Ok(Self::Kvm),
            Ok("tcg") => return Ok(Self::Tcg),
            _ => {}
        }
        let found = if Self::kvm_boots()? { Self::Kvm } else { Self::Tcg };
        // In one step: another test may be reading it.
        let new = image().join(format!("accelerator.{}", std::process::id()));
        fs::write(&new, found.name())
            .and_then(|()| fs::rename(&new, &kept))
            .context("cannot keep the accelerator")?;
        Ok(found)
    }

    fn kvm_boots() -> Result<bool> {
        if fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
        {
            return Ok(false);
        }
        let mut command = Command::new(QEMU);
        add_machine(&mut command, Self::Kvm, None)?;
        let (mut qemu, lines) = start(&mut command)?;
        let ends_at = Instant::now() + PROBE_LIMIT;
        let mut boots = false;
        while let Ok(line) = lines.recv_timeout(ends_at.saturating_duration_since(Instant::now())) {
            if line == "init: success" {
                boots = true;
                break;
            }
        }
        // A guest that boots is about to end, and one that does not never will.
        let _ = qemu.kill();
        qemu.wait()?;
        Ok(boots)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Everything of the machine but its console.
fn add_machine(
    command: &mut Command,
    accelerator: Accelerator,
    network: Option<&GuestOptions>,
) -> Result<()> {
    let (kernel, initramfs) = (image().join("vmlinuz"), image().join("initramfs.cpio"));
    for file in [&kernel, &initramfs] {
        ensure!(
            file.exists(),
            "{} is missing: `cargo xtask test` builds it",
            file.display()
        );
    }
    // Emulated processors with more features than this one hang now and then.
    let processor = match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "qemu64",
    };
    let mut words = vec![
        "console=ttyS0".to_owned(),
        "quiet".to_owned(),
        "panic=-1".to_owned(),
    ];
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-machine",
            "q35",
        ])
        .args([
            "-accel",
            accelerator.name(),
            "-cpu",
            processor,
            "-m",
            MEMORY,
            "-smp",
            "1",
        ])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs);
    if let Some(options) = network {
        // Offloads stay as QEMU has them: on. A guest's half-computed checksums and merged segments are part of what is
        // tested.
        let tap = format!(
            "tap,id=net0,ifname={},script=no,downscript=no,vhost=off",
            options.tap
        );
        let device = format!("virtio-net-pci,netdev=net0,mac={},romfile=", options.mac);
        command.args(["-netdev", &tap, "-device", &device]);
        words.push(format!("imds.address={}", options.address));
        words.push(format!("imds.steps={}", options.steps.join(",")));
    }
    command.arg("-append").arg(words.join(" "));
    Ok(())
}

/// Starts a guest whose console is read on a thread of its own, so that waiting for a line can have an end.
fn start(command: &mut Command) -> Result<(Child, Receiver<String>)> {
    command
        .args(["-serial", "stdio", "-monitor", "none"])
        .stdin(Stdio::null());
    let mut qemu = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start QEMU")?;
    let console = qemu.stdout.take().context("QEMU has no output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut console = BufReader::new(console);
        let mut line = Vec::new();
        while console
            .read_until(b'\n', &mut line)
            .is_ok_and(|length| length > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    Ok((qemu, lines))
}

fn complaints(qemu: &mut Child) -> String {
    let mut text = String::new();
    if let Some(mut errors) = qemu.stderr.take() {
        // What cannot be read is not worth another error.
        let _ = errors.read_to_string(&mut text);
    }
    text.trim().to_owned()
}

/// Everything that crosses a guest's tap, kept only when the guest fails.
#[derive(Debug)]
struct Capture {
    tcpdump: Child,
    file: PathBuf,
}

impl Capture {
    fn start(namespace: &Namespace, options: &GuestOptions) -> Result<Self> {
        fs::create_dir_all(failures()).context("cannot make the directory of failures")?;
        let file = failures().join(format!("{}.pcap", options.name));
        let mut command = namespace.command("tcpdump");
        command
            .args(["-i", &options.tap, "-U", "-Z", "root", "-w"])
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

    fn discard(&mut self) {
        self.stop();
        let _ = fs::remove_file(&self.file);
    }

    fn keep(&mut self) -> PathBuf {
        self.stop();
        self.file.clone()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where `cargo xtask` puts the guest's kernel and initramfs.
fn image() -> PathBuf {
    target().join("guest")
}

fn failures() -> PathBuf {
    target().join("guest/failures")
}

fn target() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target"))
}
