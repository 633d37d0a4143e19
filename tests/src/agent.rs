//! The real agent, started on records that the test writes.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{clock::Clock, netns::Namespace, records};

/// How long the agent may take to say that it serves, or to end. An emulated processor takes seconds to find the primes of
/// its identity key, by chance many.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the names of all hosts' directories begin with; the owning process follows.
pub(crate) const PREFIX: &str = "imds-host-";

/// Whom the agents run as: any user but root will do, and this one is everywhere.
pub const USER: &str = "nobody";

/// Where the agents pin.
const BPF_FILE_SYSTEM: &str = "/sys/fs/bpf";

/// A host's files: configuration and registry, in a temporary directory, and pins of its own.
#[derive(Debug)]
pub struct HostFiles {
    directory: tempfile::TempDir,
    pins: PathBuf,
}

impl HostFiles {
    /// Writes a configuration with `extra` TOML lines at its end, of an agent that runs as [`USER`].
    pub fn new(extra: &str) -> Result<Self> {
        Self::of_user(USER, extra)
    }

    /// The same of an agent that runs as `user`, or as root if that is empty.
    pub fn of_user(user: &str, extra: &str) -> Result<Self> {
        remove_leftovers();
        let directory = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", std::process::id()))
            .tempdir()?;
        // The agent's user comes through.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711))?;
        let name = directory
            .path()
            .file_name()
            .context("a temporary directory has a name")?;
        let pins = Path::new(BPF_FILE_SYSTEM).join(name);
        let files = Self { directory, pins };
        for kind in ["instances", "roles", "instance-profiles"] {
            fs::create_dir_all(files.state().join(kind))?;
        }
        // Whoever the agent is.
        let run = files.directory.path().join("run");
        fs::create_dir(&run)?;
        fs::set_permissions(&run, fs::Permissions::from_mode(0o777))?;
        let config = format!(
            "user = {user:?}\nstate_directory = {:?}\nbpf_directory = {:?}\naudit_file = {:?}\nmetrics.socket = {:?}\ncontrol.socket = {:?}\n{extra}\n",
            files.state(),
            files.pins,
            files.audit(),
            files.metrics(),
            files.socket(),
        );
        fs::write(files.config(), config)?;
        if let Some(kept) = kept_keys() {
            copy_keys(&kept, &files.keys());
        }
        Ok(files)
    }

    fn keys(&self) -> PathBuf {
        self.state().join("keys")
    }

    /// Has the next agent run as another user.
    pub fn set_user(&self, user: &str) -> Result<()> {
        let config = fs::read_to_string(self.config())?;
        let (_, rest) = config.split_once('\n').context("the first line is the user's")?;
        Ok(fs::write(self.config(), format!("user = {user:?}\n{rest}"))?)
    }

    /// Has the next agent so many workers.
    pub fn set_workers(&self, workers: usize) -> Result<()> {
        let config = fs::read_to_string(self.config())?;
        let others = config.lines().filter(|line| !line.starts_with("workers "));
        let config = others.fold(String::new(), |config, line| format!("{config}{line}\n"));
        Ok(fs::write(
            self.config(),
            format!("{config}workers = {workers}\n"),
        )?)
    }

    /// Has the pins in a directory that lets nobody but root through, and returns that directory.
    pub fn hide_pins(&mut self) -> Result<PathBuf> {
        let closed = self.pins.clone();
        fs::DirBuilder::new().mode(0o700).create(&closed)?;
        let config = fs::read_to_string(self.config())?;
        let pins = |pins: &Path| format!("bpf_directory = {pins:?}\n");
        let moved = config.replace(&pins(&closed), &pins(&closed.join("pins")));
        fs::write(self.config(), moved)?;
        Ok(closed)
    }

    /// Runs `imds-agent` with these words and this configuration, which must succeed: what it says. `command` starts the program.
    pub fn run(&self, command: Command, words: &[&str]) -> Result<String> {
        let output = self.output(command, words)?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(output.status.success(), "{words:?}: {said}");
        Ok(said)
    }

    /// The same, which must fail: with which code, and what it says.
    pub fn refusal(&self, command: Command, words: &[&str]) -> Result<(Option<i32>, String)> {
        let output = self.output(command, words)?;
        ensure!(!output.status.success(), "{words:?} works");
        Ok((output.status.code(), String::from_utf8(output.stderr)?))
    }

    fn output(&self, mut command: Command, words: &[&str]) -> Result<Output> {
        command.args(words).arg("--config").arg(self.config());
        Ok(command.stdin(Stdio::null()).output()?)
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// The audit trail.
    pub fn audit(&self) -> PathBuf {
        self.directory.path().join("log/audit.jsonl")
    }

    /// The socket of the agent's metrics.
    pub fn metrics(&self) -> PathBuf {
        self.directory.path().join("run/metrics.sock")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("run/control.sock")
    }

    /// The directory of the agent's pins.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Writes a record the way an operator should: beside, then renamed into place.
    pub fn put(&self, kind: &str, name: &str, record: &Value) -> Result<()> {
        let path = self.state().join(kind).join(format!("{name}.json"));
        let beside = path.with_extension("tmp");
        fs::write(&beside, serde_json::to_vec_pretty(record)?)?;
        fs::rename(&beside, &path)?;
        Ok(())
    }

    /// Writes the record of the first guest, on `tap`, after `change` had its way with it; and its role and profile.
    pub fn put_guest(
        &self,
        id: &str,
        tap: &str,
        address: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<()> {
        self.put_guest_with(id, tap, address, |_, record| {
            change(record);
            Ok(())
        })
    }

    /// The same, with a `change` that may put other records too.
    pub fn put_guest_with(
        &self,
        id: &str,
        tap: &str,
        address: &str,
        change: impl FnOnce(&Self, &mut Value) -> Result<()>,
    ) -> Result<()> {
        let mut record = records::instance(id, records::guest_mac(2), tap, address);
        change(self, &mut record)?;
        self.put("roles", records::ROLE, &records::role())?;
        let profile = records::INSTANCE_PROFILE;
        self.put("instance-profiles", profile, &records::instance_profile())?;
        self.put("instances", id, &record)
    }

    /// Removes a record.
    pub fn delete(&self, kind: &str, name: &str) -> Result<()> {
        Ok(fs::remove_file(
            self.state().join(kind).join(format!("{name}.json")),
        )?)
    }
}

impl Drop for HostFiles {
    fn drop(&mut self) {
        if let Some(kept) = kept_keys() {
            copy_keys(&self.keys(), &kept);
        }
        let _ = fs::remove_dir_all(&self.pins);
    }
}

/// The keys that an agent signs identity documents with, and their certificates.
const IDENTITY_FILES: [&str; 4] = [
    "identity.key",
    "identity.crt",
    "identity-dsa.key",
    "identity-dsa.crt",
];

/// Where one host's identity is kept for the next, as `tests/guest-init` says: an emulated processor finds their primes in
/// seconds. On real ones each host makes its own.
fn kept_keys() -> Option<PathBuf> {
    env::var_os("IMDS_TEST_KEYS").map(PathBuf::from)
}

/// Copies an identity to where there is none. One that is not whole, of an agent that was killed, is made anew.
fn copy_keys(from: &Path, to: &Path) {
    if to.join(IDENTITY_FILES[3]).exists() || !IDENTITY_FILES.iter().all(|file| from.join(file).exists()) {
        return;
    }
    let copied = fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(to)
        .and_then(|()| {
            IDENTITY_FILES
                .iter()
                .try_for_each(|file| fs::copy(from.join(file), to.join(file)).map(drop))
        });
    if copied.is_err() {
        // The agent takes all or none.
        let _ = fs::remove_dir_all(to);
    }
}

/// Removes the files and pins of tests that were killed, as by Ctrl-C: their names begin with a process that is no more.
/// What cannot be removed is left to the next one.
fn remove_leftovers() {
    for place in [env::temp_dir(), BPF_FILE_SYSTEM.into()] {
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner = name
                .to_str()
                .and_then(|name| name.strip_prefix(PREFIX)?.split_once('-'));
            if owner.is_some_and(|(process, _)| !Path::new("/proc").join(process).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// A running agent. Killed when dropped. Ctrl-C on a terminal reaches it too.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// Every line it has logged so far that was looked at.
    pub log: Vec<String>,
}

impl Agent {
    /// Starts `program run --config ...` in `namespace` and waits until it serves.
    pub fn start(program: &Path, namespace: &Namespace, files: &HostFiles) -> Result<Self> {
        Self::start_by(namespace.command(program), files)
    }

    /// The same by a clock of the test's.
    pub fn start_at(clock: &Clock, program: &Path, namespace: &Namespace, files: &HostFiles) -> Result<Self> {
        let mut command = namespace.command(program);
        clock.show_to(&mut command);
        Self::start_by(command, files)
    }

    /// The same without waiting.
    pub fn spawn(program: &Path, namespace: &Namespace, files: &HostFiles) -> Result<Self> {
        Self::spawn_by(namespace.command(program), files)
    }

    /// The same by a `command` that ends with the program.
    pub fn start_by(command: Command, files: &HostFiles) -> Result<Self> {
        let mut agent = Self::spawn_by(command, files)?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    fn spawn_by(mut command: Command, files: &HostFiles) -> Result<Self> {
        command.arg("run").arg("--config").arg(files.config());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start the agent")?;
        let stderr = child.stderr.take().context("the agent's log is piped")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if env::var_os("IMDS_TEST_LOG").is_some() {
                    eprintln!("agent: {line}");
                }
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            lines,
            log: Vec::new(),
        })
    }

    /// Waits until it serves.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        self.wait_for_log("ready").map(drop)
    }

    /// Whether it has said by now that it serves.
    pub fn is_ready(&mut self) -> bool {
        self.log.extend(self.lines.try_iter());
        self.log.iter().any(|line| line.contains("ready"))
    }

    /// The first line of all that contains `text`, which may be logged already.
    pub fn logged(&mut self, text: &str) -> Result<String> {
        let logged = self.log.iter().find(|line| line.contains(text)).cloned();
        logged.map_or_else(|| self.wait_for_log(text), Ok)
    }

    /// Waits for a line that contains `text`, and returns it.
    pub fn wait_for_log(&mut self, text: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    let is_it = line.contains(text);
                    self.log.push(line.clone());
                    if is_it {
                        return Ok(line);
                    }
                }
                Err(error) => bail!(
                    "the agent logged no {text:?} ({error}); it said:\n{}",
                    self.log.join("\n")
                ),
            }
        }
    }

    /// Stops all its threads until [`resume`](Self::resume), as if it hung.
    pub fn pause(&self) -> Result<()> {
        kill(self.pid()?, Signal::SIGSTOP)?;
        let tasks = format!("/proc/{}/task", self.child.id());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut are_stopped = true;
            for task in fs::read_dir(&tasks)? {
                let stat = fs::read_to_string(task?.path().join("stat"))?;
                let (_, state) = stat.rsplit_once(") ").context("a state behind the name")?;
                are_stopped &= state.starts_with('T');
            }
            if are_stopped {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the agent does not stop");
            thread::yield_now();
        }
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        Ok(kill(self.pid()?, Signal::SIGCONT)?)
    }

    /// Asks it to end, and returns how it did.
    pub fn stop(mut self) -> Result<(ExitStatus, Vec<String>)> {
        kill(self.pid()?, Signal::SIGTERM)?;
        let status = self.wait()?;
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.log.push(line);
        }
        Ok((status, std::mem::take(&mut self.log)))
    }

    /// Kills it without warning.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// How it ended, if it did.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Its process.
    pub fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(self.child.id().try_into()?))
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("the agent did not end within {PATIENCE:?}")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
