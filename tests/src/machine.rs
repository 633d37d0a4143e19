//! A Debian whose systemd runs, without a machine: the root of a stock one, in namespaces and a control group of its own.
//! What is written to it is gone with it.

use std::{
    fs::{self, OpenOptions},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{netns::Namespace, qemu};

/// How long it may take to boot, or a command in it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The first process: goes into a control group of the machine's own.
const OUTER: &str = r#"
set -e
mount -t tmpfs tmpfs "$2"
mkdir "$2/cgroup"
mount -t cgroup2 cgroup2 "$2/cgroup"
mkdir "$2/cgroup/$3"
echo $$ > "$2/cgroup/$3/cgroup.procs"
exec unshare --pid --net --cgroup --ipc --uts --fork --kill-child sh -c "$0" sh "$@"
"#;

/// The machine's first process: what the kernel shows is read-only, but for the machine's own part of it.
const INNER: &str = r#"
set -e
root="$2/root"
mkdir "$2/upper" "$2/work" "$root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t bpf -o mode=0700 bpf "$root/sys/fs/bpf"
echo 0 > "$2/rcu_expedited"
mount --bind "$2/rcu_expedited" "$root/sys/kernel/rcu_expedited"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    mknod -m 666 "$root/dev/$device" c $(stat -c '0x%t 0x%T' "/dev/$device")
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mkdir "$root/media/host"
mount --bind "$3" "$root/media/host"
cd "$root"
pivot_root . mnt
exec env -i container=tests PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    chroot . sh -c 'umount --lazy /mnt; exec /lib/systemd/systemd --unit=basic.target'
"#;

/// A running machine. Killed when dropped, with all that runs in it.
#[derive(Debug)]
pub struct Machine {
    unshare: Child,
    first: u32,
    group: String,
    directory: tempfile::TempDir,
}

impl Machine {
    /// Boots one which sees the files in `shared` below `/media/host`.
    pub fn boot(shared: &std::path::Path) -> Result<Self> {
        let root = qemu::target().join("debian/root");
        ensure!(
            root.join("lib/systemd/systemd").exists(),
            "{} is missing: `cargo xtask setup` makes it",
            root.display()
        );
        let directory = tempfile::Builder::new().prefix("imds-machine-").tempdir()?;
        let group = format!("imds-machine-{}", std::process::id());
        let inner = INNER.replace("\"$3\"", &format!("{shared:?}"));
        let unshare = Command::new("unshare")
            .args(["--mount", "sh", "-c", OUTER])
            .arg(inner)
            .arg(root)
            .arg(directory.path())
            .arg(&group)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(directory.path().with_extension("log"))?,
            )
            .spawn()
            .context("cannot start unshare")?;
        let mut machine = Self {
            unshare,
            first: 0,
            group,
            directory,
        };
        machine.wait_until_booted()?;
        Ok(machine)
    }

    fn wait_until_booted(&mut self) -> Result<()> {
        let id = self.unshare.id();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.unshare.try_wait()? {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                bail!("the machine does not boot ({status}): {log}");
            }
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
            if let Ok(first) = children.trim().parse() {
                self.first = first;
                // Whatever its state is called: that of a container is seldom the best.
                let state = self.command("systemctl is-system-running").output()?;
                if ["running", "degraded"].contains(&String::from_utf8_lossy(&state.stdout).trim()) {
                    return Ok(());
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("the machine did not boot within {PATIENCE:?}")
    }

    /// A shell among the machine's processes and in its network, with the files of the host, for `script`: what the machine's own
    /// programs look after that its Debian does not have. It dies with the machine.
    pub fn beside(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.first.to_string(), "--pid", "--net", "--"])
            .args(["unshare", "--mount", "sh", "-c"])
            .arg(format!("mount -t proc proc /proc\n{script}"));
        command
    }

    /// A line for the machine's shell.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["--target", &self.first.to_string()])
            .args([
                "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--root",
            ])
            .args(["sh", "-c", &format!("cd /; {line}")])
            .stdin(Stdio::null());
        command
    }

    /// Runs a line that has to be content, and returns what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        let output = self.command(line).output()?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(printed);
        }
        let journal = self
            .command("journalctl --boot --lines 30 --unit imds-agent")
            .output()?;
        bail!(
            "{line}: {}: {printed}{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&journal.stdout)
        )
    }

    /// Where the host finds one of its files.
    pub fn file(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.first).into()
    }

    /// Its network.
    pub fn network(&self) -> Result<Namespace> {
        Namespace::of_process(self.first)
    }

    fn log(&self) -> PathBuf {
        self.directory.path().with_extension("log")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With its first process the kernel ends all others.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let _ = fs::remove_file(self.log());
        let remove = r#"mount -t cgroup2 cgroup2 "$0" && cd "$0/$1" && \
            for i in $(seq 100); do
                find . -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null
                cd "$0" && rmdir "$1" 2>/dev/null && exit; cd "$0/$1"; sleep 0.05
            done"#;
        let _ = Command::new("unshare")
            .args(["--mount", "sh", "-c", remove])
            .arg(self.directory.path())
            .arg(&self.group)
            .status();
    }
}
