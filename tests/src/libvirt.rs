//! A libvirtd of the test's own, with domains that QEMU emulates.
//!
//! It has process, mount and network namespaces of its own, where its directories are empty, and a socket in the host's files'
//! directory. All of it, domains included, ends with this value, and with the test's process too.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use imds_ebpf::abi::MacAddr;

use crate::{
    agent::PREFIX,
    debian,
    machine::Machine,
    netns::Namespace,
    qemu::{self, Console, Software},
};

/// Makes the directories that libvirt has, and runs libvirtd. The shell stays the first process of its namespace: libvirtd
/// waits for emulators to be gone that are not its children, and would not bury them.
const START: &str = r#"
set -e
for directory in /run /var/lib /var/log /var/cache /etc/libvirt; do mount -t tmpfs tmpfs "$directory"; done
# Debian's libvirtd looks for a user that only its package of services makes.
for table in passwd group; do cp "/etc/$table" "$DIRECTORY/$table"; done
echo "libvirt-qemu:x:64055:64055::/:/bin/false" >> "$DIRECTORY/passwd"
echo "libvirt-qemu:x:64055:" >> "$DIRECTORY/group"
for table in passwd group; do mount --bind "$DIRECTORY/$table" "/etc/$table"; done
mkdir -p /etc/libvirt/hooks/qemu.d
cp "$HOOK" /etc/libvirt/hooks/qemu.d/imds-agent
cat > /etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
END
cat > "$DIRECTORY/libvirtd.conf" <<END
unix_sock_dir = "$DIRECTORY"
END
libvirtd --config "$DIRECTORY/libvirtd.conf" &
wait $!
"#;

/// How long libvirtd may take to answer, and a guest of our own to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a stock Debian may take: see `tests/guest_cloud_init.rs`.
const DEBIANS_PATIENCE: Duration = Duration::from_secs(400);

/// The hook's `imdsctl` where an agent is a service of a machine's.
const MACHINES_IMDSCTL: &str = "#!/bin/sh\nexec nsenter --target 1 --mount --root imdsctl \"$@\"\n";

/// The running libvirtd.
#[derive(Debug)]
pub struct Libvirt {
    directory: tempfile::TempDir,
    daemon: Child,
}

/// A domain of a machine with one interface.
#[derive(Clone, Debug)]
pub struct Domain {
    /// Its name.
    pub name: &'static str,
    /// Its UUID.
    pub uuid: &'static str,
    /// What is in its `<metadata>`.
    pub metadata: &'static str,
    /// The `<interface>` without its MAC.
    pub interface: &'static str,
    /// The interface's type.
    pub interface_type: &'static str,
    /// The interface's MAC.
    pub mac: MacAddr,
    /// What runs in the guest.
    pub software: Software,
}

impl Libvirt {
    /// Starts one in `namespace`, whose hook is the file `hook` and finds `imdsctl` working on `config`.
    pub fn start(namespace: &Namespace, hook: &Path, imdsctl: &Path, config: &Path) -> Result<Self> {
        let script = format!(
            "#!/bin/sh\ncommand=$1; shift\nexec {imdsctl:?} \"$command\" --config {config:?} \"$@\"\n"
        );
        let mut command = namespace.command("setpriv");
        command
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"])
            .args(["--kill-child=KILL", "--mount-proc", "sh", "-c", START]);
        Self::start_by(command, hook, &script)
    }

    /// Starts one that is the machine's, whose hook is what the machine's package has and finds the machine's own imdsctl.
    pub fn start_in(machine: &Machine) -> Result<Self> {
        let hook = format!("/proc/1/root{}", "/usr/share/imds-agent/libvirt/imds-agent");
        Self::start_by(machine.beside(START), Path::new(&hook), MACHINES_IMDSCTL)
    }

    fn start_by(mut command: Command, hook: &Path, imdsctl: &str) -> Result<Self> {
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        // What an installed imdsctl finds in its usual place.
        let program = directory.path().join("imdsctl");
        fs::write(&program, imdsctl)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let log = fs::File::create(directory.path().join("libvirtd.log"))?;
        let daemon = command
            .env("PATH", path_with(directory.path()))
            .env("DIRECTORY", directory.path())
            .env("HOOK", hook)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start libvirtd")?;
        let mut libvirt = Self { directory, daemon };
        let begin = Instant::now();
        while let Err(error) = libvirt.virsh(&["version"]) {
            let ended = libvirt.daemon.try_wait()?;
            if ended.is_some() || begin.elapsed() > PATIENCE {
                return Err(error.context(libvirt.log()));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(libvirt)
    }

    /// What virsh and `imdsctl libvirt import` are to connect to.
    pub fn uri(&self) -> String {
        let socket = self.directory.path().join("libvirt-sock");
        format!("qemu:///system?socket={}", socket.display())
    }

    /// Runs virsh and returns what it prints.
    pub fn virsh(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("virsh");
        command
            .args(["--quiet", "--connect", &self.uri()])
            .args(arguments);
        let output = command.output().context("cannot run virsh")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "virsh {arguments:?}: {}",
            complaint.trim()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Makes a domain that is gone when it ends. A paused one has run nothing yet.
    pub fn create(&self, domain: &Domain, is_paused: bool) -> Result<()> {
        let file = self.describe(domain)?;
        let paused: &[&str] = if is_paused { &["--paused"] } else { &[] };
        self.virsh(&[&["create", &*file], paused].concat())
            .with_context(|| self.log())?;
        Ok(())
    }

    /// Makes a domain that stays when it ends, and does not run yet.
    pub fn define(&self, domain: &Domain) -> Result<()> {
        self.virsh(&["define", &self.describe(domain)?])
            .with_context(|| self.log())?;
        Ok(())
    }

    /// Writes the domain's XML into a file.
    fn describe(&self, domain: &Domain) -> Result<String> {
        let file = self.directory.path().join(format!("{}.xml", domain.name));
        fs::write(&file, domain.xml(&self.console_file(domain))?)?;
        Ok(file.to_string_lossy().into_owned())
    }

    /// Waits until the domain's guest has said how it ended, and returns its console.
    pub fn wait(&self, domain: &Domain) -> Result<Console> {
        let console = self.wait_for_line(domain, "init: ")?;
        match console.lines.iter().find_map(|line| line.strip_prefix("init: ")) {
            Some("success") => Ok(console),
            _ => bail!("the guest says that it failed\n{}", console.lines.join("\n")),
        }
    }

    /// Waits until the domain's guest has written a line that begins so, and returns its console as far as it has come.
    pub fn wait_for_line(&self, domain: &Domain, start: &str) -> Result<Console> {
        let begin = Instant::now();
        let patience = match domain.software {
            Software::Debian { .. } => DEBIANS_PATIENCE,
            _ => PATIENCE,
        };
        loop {
            let bytes = fs::read(self.console_file(domain)).unwrap_or_default();
            let lines: Vec<_> = String::from_utf8_lossy(&bytes)
                .lines()
                .map(|line| line.trim_end().to_owned())
                .collect();
            if lines
                .iter()
                .any(|line| line.starts_with(start) || line.starts_with("init: "))
            {
                return Ok(Console { lines });
            }
            ensure!(
                begin.elapsed() < patience,
                "{} never says {start:?}\n{}\n{}",
                domain.name,
                lines.join("\n"),
                self.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What libvirtd complained about.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("libvirtd.log")).unwrap_or_default()
    }

    fn console_file(&self, domain: &Domain) -> PathBuf {
        self.directory.path().join(format!("{}.console", domain.name))
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // The first process of its namespace dies with it, and every other one in there with that.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Domain {
    fn xml(&self, console: &Path) -> Result<String> {
        let Self {
            name,
            uuid,
            metadata,
            interface,
            interface_type,
            mac,
            software,
        } = self;
        let qemu::Kernel {
            image,
            initramfs,
            arguments,
        } = qemu::kernel(software, qemu::Accelerator::Tcg)?;
        let (image, initramfs, console) = (image.display(), initramfs.display(), console.display());
        let (memory, smbios, sysinfo, disk) = match software {
            Software::Debian {
                smbios_uuid: Some(uuid),
                ..
            } => (512, "<smbios mode='sysinfo'/>", sysinfo(uuid), disk()),
            _ => (128, "", String::new(), String::new()),
        };
        // The processor and the one virtual CPU are those that emulation is good at.
        Ok(format!(
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
               <name>{name}</name><uuid>{uuid}</uuid>
               <metadata>{metadata}</metadata>
               <memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
               {sysinfo}
               <os>
                 <type arch='x86_64' machine='q35'>hvm</type>
                 <kernel>{image}</kernel><initrd>{initramfs}</initrd><cmdline>{arguments}</cmdline>
                 {smbios}
               </os>
               <features><acpi/></features>
               <cpu mode='custom' match='exact' check='none'>
                 <model fallback='allow'>qemu64</model><feature policy='disable' name='cx16'/>
               </cpu>
               <on_poweroff>destroy</on_poweroff><on_crash>destroy</on_crash>
               <devices>
                 <emulator>/usr/bin/qemu-system-x86_64</emulator>
                 <serial type='file'><source path='{console}'/></serial>
                 <interface type='{interface_type}'>
                   <mac address='{mac}'/>{interface}
                   <model type='virtio'/><driver name='qemu'/><rom enabled='no'/>
                 </interface>
                 <memballoon model='none'/>
               </devices>
               {disk}
             </domain>"
        ))
    }
}

/// A system whose serial number is its UUID, as on EC2.
fn sysinfo(uuid: &str) -> String {
    format!(
        "<sysinfo type='smbios'><system><entry name='uuid'>{uuid}</entry><entry name='serial'>{uuid}</entry></system></sysinfo>"
    )
}

/// The disk of a stock Debian, which forgets what is written: libvirt's own way to that leaves files behind. It is where libvirt puts
/// none of its devices.
fn disk() -> String {
    let drive = format!(
        "file={},format=raw,if=none,id=forgetful,snapshot=on",
        debian::disk().display()
    );
    let words = [
        "-drive",
        &drive,
        "-device",
        "virtio-blk-pci,drive=forgetful,addr=0x1e",
    ];
    let words = words.map(|word| format!("<qemu:arg value='{word}'/>"));
    format!("<qemu:commandline>{}</qemu:commandline>", words.concat())
}

fn path_with(directory: &Path) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin:{path}", directory.display())
}
