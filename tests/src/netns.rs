//! Network namespaces that a test makes for itself. They go when the last descriptor is closed, also when a test fails.

use std::{
    fs::File,
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

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
