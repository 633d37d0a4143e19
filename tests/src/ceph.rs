//! A private cloud's security token service that really runs: the gateway of Ceph, on a cluster that lives in memory.
//!
//! It is no copy of AWS's: roles have ARNs without an account, access key ids are not `ASIA...`, ends of sets have
//! nanoseconds, and errors are those of S3.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{debian, netns::Namespace, qemu};

/// Where the gateway listens, among other places.
const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);

const ACCESS_KEY_ID: &str = "HOSTHOSTHOSTHOSTHOST";
const SECRET_ACCESS_KEY: &str = "of-the-host-of-the-host-of-the-host-1234";

/// It makes the pools of its gateway one by one, and takes a dozen seconds for that on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The ARN of the role that the host may assume, which may do anything with S3.
pub const ROLE: &str = "arn:aws:iam:::role/web-server";

/// That of a role which the host may not assume.
pub const FOREIGN_ROLE: &str = "arn:aws:iam:::role/of-others";

/// A running cluster, in process numbers of its own: all of it ends with this value.
#[derive(Debug)]
pub struct Ceph {
    child: Child,
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
    directory: tempfile::TempDir,
}

impl Ceph {
    /// Starts one in `namespace`.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let root = qemu::target().join("ceph/root");
        ensure!(
            root.join("usr/bin/radosgw").exists(),
            "{} is missing: `cargo xtask setup` makes it",
            root.display()
        );
        let directory = tempfile::Builder::new().prefix("imds-ceph-").tempdir()?;
        fs::write(
            directory.path().join("credentials"),
            format!(
                "[imds]\naws_access_key_id = {ACCESS_KEY_ID}\naws_secret_access_key = {SECRET_ACCESS_KEY}\n"
            ),
        )?;
        let log = File::create(directory.path().join("log"))?;
        let mut child = namespace
            .command("unshare")
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .args(["--mount", "--pid", "--fork", "--kill-child"])
            .args(["sh", "-c", debian::ENTER])
            .arg(root)
            // What the programs print is no answer.
            .args(["sh", "-c", "exec 3>&1 >&2; eval \"$0\""])
            .args([include_str!("ceph.sh"), ACCESS_KEY_ID, SECRET_ACCESS_KEY])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let words = child.stdin.take().context("its input is piped")?;
        let answers = BufReader::new(child.stdout.take().context("its output is piped")?);
        let mut ceph = Self {
            child,
            words,
            answers,
            directory,
        };
        ceph.wait_for("ready")?;
        namespace.wait_for_listener(&mut ceph.child, ADDRESS, PATIENCE)?;
        Ok(ceph)
    }

    /// Kills the gateway. Roles and objects outlive it.
    pub fn kill_gateway(&mut self) -> Result<()> {
        self.words.write_all(b"stop\n")?;
        self.wait_for("stopped")
    }

    /// Starts it again.
    pub fn start_gateway(&mut self, namespace: &Namespace) -> Result<()> {
        self.words.write_all(b"start\n")?;
        self.wait_for("ready")?;
        namespace.wait_for_listener(&mut self.child, ADDRESS, PATIENCE)
    }

    /// The lines that make it the agent's source of role credentials.
    pub fn agent_config(&self) -> String {
        let credentials: PathBuf = self.directory.path().join("credentials");
        format!(
            "[credentials]\nsource = \"sts\"\n[credentials.sts]\nendpoint = \"http://{ADDRESS}\"\n\
             profile = \"imds\"\nshared_credentials_file = {credentials:?}\n"
        )
    }

    fn wait_for(&mut self, answer: &str) -> Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.trim_end() != answer {
            let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            bail!("Ceph does not say {answer:?} but {line:?}; its log:\n{log}");
        }
        Ok(())
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
