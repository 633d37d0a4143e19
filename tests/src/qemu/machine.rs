//! The machine: which accelerator, which devices, how it starts.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{GuestOptions, image};

/// The program.
pub const QEMU: &str = "qemu-system-x86_64";

/// Enough for the kernel, the initramfs and a shell.
const MEMORY: &str = "128M";

/// How long a guest may take from power-on to its first line when KVM is tried. Under KVM it takes one second.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// What runs the guest's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accelerator {
    /// The processor's own virtualization.
    Kvm,
    /// QEMU's translation.
    Tcg,
}

impl Accelerator {
    /// KVM where a guest really boots under it: `/dev/kvm` alone proves nothing. The answer is kept beside the image.
    pub fn detect() -> Result<Self> {
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
pub fn add_machine(
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
pub fn start(command: &mut Command) -> Result<(Child, Receiver<String>)> {
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
