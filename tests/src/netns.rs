//! Network namespaces that a test makes for itself. They go when the last descriptor is closed, also when a test fails; and so do
//! the names that it gives them.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpStream},
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::Path,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use tempfile::TempDir;

/// One network namespace without a name.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// Makes one and brings its loopback up. Needs root.
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace: root is needed")?;
            File::open("/proc/thread-self/ns/net").context("cannot open the new network namespace")
        });
        let namespace = Self(made.join().expect("the thread does not panic")?);
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// That of a process.
    pub fn of_process(process: u32) -> Result<Self> {
        let path = format!("/proc/{process}/ns/net");
        let namespace = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        Ok(Self(namespace))
    }

    /// One that has a name.
    pub fn named(path: &Path) -> Result<Self> {
        let namespace = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self(namespace))
    }

    /// Runs `work` on a thread inside the namespace: sockets it opens stay in there.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("entering one's own namespace works");
                work()
            });
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread inside the namespace that outlives the call.
    pub fn spawn<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<thread::JoinHandle<R>> {
        let namespace = self.0.try_clone()?;
        Ok(thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).expect("entering one's own namespace works");
            work()
        }))
    }

    /// A command that will run inside. Mounts stay as they are: bpffs is seen.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path()));
        command.arg("--").arg(program);
        command
    }

    /// Where other programs find it, as long as it and this process are there.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Waits until `child` listens at `address` inside.
    pub fn wait_for_listener(&self, child: &mut Child, address: SocketAddr, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        while !self.enter(|| TcpStream::connect(address).is_ok()) {
            if let Some(status) = child.try_wait()? {
                bail!("what was to listen at {address} ended: {status}");
            }
            ensure!(Instant::now() < deadline, "nothing listens at {address}");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Runs `ip` inside with `arguments`, split at spaces, and returns what it prints.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let output = self
            .command("ip")
            .args(arguments.split_whitespace())
            .output()
            .context("cannot run ip")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "`ip {arguments}` failed: {}",
            errors.trim()
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// A directory in which network namespaces have names, as `ip netns` gives them: seen by the calling thread, and by threads and
/// programs that it starts from now on. The names are mounts in a mount namespace of theirs, and end with it.
#[derive(Debug)]
pub struct Names(TempDir);

impl Names {
    /// Without names yet.
    pub fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace: root is needed")?;
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?;
        let directory = tempfile::tempdir()?;
        // An agent of any user comes through.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Self(directory))
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        self.0.path()
    }

    /// Gives a namespace a name: makes a file, and mounts the namespace on it.
    pub fn give(&self, name: &str, namespace: &Namespace) -> Result<()> {
        let file = self.0.path().join(name);
        File::create(&file)?;
        let source = namespace.path();
        mount(
            Some(source.as_str()),
            &file,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .with_context(|| format!("cannot mount a network namespace on {}", file.display()))
    }

    /// Takes a name away.
    pub fn take(&self, name: &str) -> Result<()> {
        let file = self.0.path().join(name);
        umount2(&file, MntFlags::MNT_DETACH)?;
        Ok(fs::remove_file(&file)?)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        for name in fs::read_dir(self.0.path()).into_iter().flatten().flatten() {
            // Otherwise the directory would not go.
            let _ = umount2(&name.path(), MntFlags::MNT_DETACH);
        }
    }
}
