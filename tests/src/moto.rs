//! A security token service that really runs: moto, checking signatures and policies.

use std::{
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::netns::Namespace;

/// Python has a lot to import.
const PATIENCE: Duration = Duration::from_secs(60);

/// The external id that the roles of the server ask for.
pub const EXTERNAL_ID: &str = "of-the-host";

/// A role of the server that the host may not assume. [`crate::records::ROLE`] it may.
pub const FOREIGN_ROLE: &str = "of-others";

/// A running server. Killed when dropped.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Moto {
    /// Starts one on the loopback of `namespace`, with a user for the host and two roles.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("imds-moto-").tempdir()?;
        let address = SocketAddr::from(([127, 0, 0, 1], 5000));
        let child = clean(namespace.command(python()?))
            .args(["-m", "moto.server", "-p", &address.port().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let mut moto = Self {
            child,
            address,
            directory,
        };
        moto.wait_until_it_listens(namespace)?;
        let script = clean(namespace.command(python()?))
            .args(["-c", include_str!("moto.py"), &moto.url()])
            .arg(moto.credentials_file())
            .output()?;
        ensure!(
            script.status.success(),
            "moto was not filled: {}",
            String::from_utf8_lossy(&script.stderr)
        );
        Ok(moto)
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The shared credentials file with the profile `imds`.
    pub fn credentials_file(&self) -> PathBuf {
        self.directory.path().join("credentials")
    }

    fn wait_until_it_listens(&mut self, namespace: &Namespace) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let address = self.address;
        while !namespace.enter(move || TcpStream::connect(address).is_ok()) {
            if let Some(status) = self.child.try_wait()? {
                bail!("moto ended: {status}");
            }
            ensure!(Instant::now() < deadline, "moto does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Python interpreter that has moto, boto3 and the AWS CLI.
pub fn python() -> Result<PathBuf> {
    Ok(venv()?.join("bin/python"))
}

/// The AWS CLI.
pub fn aws_cli() -> Result<PathBuf> {
    Ok(venv()?.join("bin/aws"))
}

/// `command` without what the machine's own environment says about AWS and proxies.
pub fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars()
        .filter(|(name, _)| name.starts_with("AWS_") || name.to_ascii_lowercase().ends_with("_proxy"))
    {
        command.env_remove(name);
    }
    command
}

fn venv() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let venv = own
        .ancestors()
        .map(|directory| directory.join("venv"))
        .find(|directory| Path::is_file(&directory.join("bin/moto_server")));
    venv.context("there is no moto: `cargo xtask setup` installs it")
}
