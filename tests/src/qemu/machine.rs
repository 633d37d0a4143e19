//! The machine: which accelerator, which devices, how it starts.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{GuestOptions, Interface, image};
use crate::{debian, netns::Namespace};

/// The emulator.
const QEMU: &str = "qemu-system-x86_64";

/// How long a guest may take from power-on to its first line when KVM is tried. Under KVM it takes one second.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// What runs in a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Software {
    /// `tests/guest-init` and nothing else.
    Init {
        /// The interface's IPv4 address and prefix length: `10.0.0.2/24`.
        address: String,
        /// What the guest does: see `tests/guest-init/src/step.rs`.
        steps: Vec<String>,
    },
    /// A stock Debian with cloud-init, on a disk that forgets what was written. See `tests/clients/guest`.
    Debian {
        /// The system's UUID and serial number in SMBIOS, where something is to be there.
        smbios_uuid: Option<String>,
        /// Whether the operator of a cloud that is not EC2 has told cloud-init where to look.
        operator_config: bool,
    },
    /// `tests/guest-init` on another kernel, and test programs that it runs there.
    Tests {
        /// The kernel.
        kernel: PathBuf,
        /// Holds the programs and all that they need.
        initramfs: PathBuf,
        /// What the kernel is told besides.
        parameters: Vec<String>,
    },
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU.
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
        let nothing = Software::Init {
            address: String::new(),
            steps: Vec::new(),
        };
        Self::Kvm.add_processor(&mut command, "128M");
        add_kernel(&mut command, &nothing, Self::Kvm)?;
        let (mut qemu, lines) = power_on(&mut command)?;
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

    /// Against the processor itself, with what the tests do; see [`crate::pace`].
    fn slowness(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Tcg => 10,
        }
    }

    fn add_processor(self, command: &mut Command, memory: &str) {
        // Emulated processors with more features than this one hang now and then. With `cmpxchg16b` a guest's kernel was
        // seen to die in its allocator, right behind one that had left an operand in the flags (QEMU 7.2).
        let processor = match self {
            Self::Kvm => "host",
            Self::Tcg => "qemu64,-cx16",
        };
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-machine", "q35", "-accel", self.name(), "-cpu", processor])
            .args(["-m", memory, "-smp", "1"]);
    }
}

/// The command line of a guest's machine in `namespace`, all but its console.
pub fn command(namespace: &Namespace, options: &GuestOptions) -> Result<Command> {
    let mut command = namespace.command(QEMU);
    let memory = match options.software {
        Software::Init { .. } => "128M",
        Software::Debian { .. } => "512M",
        Software::Tests { .. } => "1G",
    };
    let accelerator = Accelerator::detect()?;
    accelerator.add_processor(&mut command, memory);
    add_kernel(&mut command, &options.software, accelerator)?;
    if let Software::Debian { smbios_uuid, .. } = &options.software {
        add_disk(&mut command)?;
        if let Some(uuid) = smbios_uuid {
            command.args(["-smbios", &format!("type=1,uuid={uuid},serial={uuid}")]);
        }
    }
    if let Some(interface) = &options.interface {
        add_interface(&mut command, interface);
    }
    Ok(command)
}

/// Starts a guest whose console is read on a thread of its own, so that waiting for a line can have an end.
pub fn power_on(command: &mut Command) -> Result<(Child, Receiver<String>)> {
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

fn add_kernel(command: &mut Command, software: &Software, accelerator: Accelerator) -> Result<()> {
    let Kernel {
        image,
        initramfs,
        arguments,
    } = kernel(software, accelerator)?;
    command.arg("-kernel").arg(image);
    command.arg("-initrd").arg(initramfs);
    command.arg("-append").arg(arguments);
    Ok(())
}

/// What a hypervisor that starts kernels itself has to know.
#[derive(Debug)]
pub struct Kernel {
    /// The kernel.
    pub image: PathBuf,
    /// Its initramfs.
    pub initramfs: PathBuf,
    /// Its command line.
    pub arguments: String,
}

/// The kernel that brings this software up.
pub fn kernel(software: &Software, accelerator: Accelerator) -> Result<Kernel> {
    let mut words = vec![
        "console=ttyS0".to_owned(),
        "quiet".to_owned(),
        "panic=-1".to_owned(),
    ];
    let (image, initramfs) = match software {
        Software::Init { address, steps } => {
            // A machine without them is being tried out.
            if !address.is_empty() {
                words.push(format!("imds.address={address}"));
                words.push(format!("imds.steps={}", steps.join(",")));
            }
            (image().join("vmlinuz"), image().join("initramfs.cpio"))
        }
        Software::Debian { operator_config, .. } => {
            words.push("systemd.wants=imds-report.service".to_owned());
            if *operator_config {
                words.push("imds.operator-config".to_owned());
            }
            (image().join("vmlinuz"), image().join("debian-initramfs.cpio"))
        }
        Software::Tests {
            kernel,
            initramfs,
            parameters,
        } => {
            words.extend_from_slice(parameters);
            words.push("imds.steps=tests".to_owned());
            words.push(format!("imds.slowness={}", accelerator.slowness()));
            (kernel.clone(), initramfs.clone())
        }
    };
    Ok(Kernel {
        image: there(image)?,
        initramfs: there(initramfs)?,
        arguments: words.join(" "),
    })
}

fn add_disk(command: &mut Command) -> Result<()> {
    let disk = there(debian::disk())?;
    let drive = format!("file={},format=raw,if=virtio,snapshot=on", disk.display());
    command.args(["-drive", &drive]);
    Ok(())
}

fn add_interface(command: &mut Command, interface: &Interface) {
    // Offloads stay as QEMU has them: on. A guest's half-computed checksums and merged segments are part of what is
    // tested.
    let tap = format!(
        "tap,id=net0,ifname={},script=no,downscript=no,vhost=off",
        interface.tap
    );
    let device = format!("virtio-net-pci,netdev=net0,mac={},romfile=", interface.mac);
    command.args(["-netdev", &tap, "-device", &device]);
}

fn there(file: PathBuf) -> Result<PathBuf> {
    ensure!(
        file.exists(),
        "{} is missing: `cargo xtask test` builds it",
        file.display()
    );
    Ok(file)
}
