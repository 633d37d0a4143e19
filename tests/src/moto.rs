//! A security token service that really runs: moto, checking signatures and policies.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{clock::Clock, kernel_guest::KernelGuest, netns::Namespace};

/// Python has a lot to import.
const PATIENCE: Duration = Duration::from_secs(60);

/// The external id that the roles of the server ask for.
pub const EXTERNAL_ID: &str = "of-the-host";

/// A role of the server that the host may assume, as it may [`crate::records::ROLE`].
pub const SECOND_ROLE: &str = "batch";

/// A role of the server that the host may not assume.
pub const FOREIGN_ROLE: &str = "of-others";

/// A running server. Killed when dropped.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    address: SocketAddr,
    is_tls: bool,
    directory: tempfile::TempDir,
}

impl Moto {
    /// Starts one at all addresses of `namespace`, with a user for the host and three roles.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        Self::start_with(namespace, false, |_| ())
    }

    /// The same over TLS, with a certificate of an authority that nobody knows.
    pub fn start_tls(namespace: &Namespace) -> Result<Self> {
        Self::start_with(namespace, true, |_| ())
    }

    /// The same by a clock of the test's.
    pub fn start_by(clock: &Clock, namespace: &Namespace) -> Result<Self> {
        Self::start_with(namespace, false, |server| clock.show_to(server))
    }

    fn start_with(namespace: &Namespace, is_tls: bool, prepare: impl FnOnce(&mut Command)) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("imds-moto-").tempdir()?;
        let address = SocketAddr::from(([127, 0, 0, 1], 5000));
        let mut server = clean(namespace.command(python()?));
        server.args(["-m", "moto.server", "-H", "0.0.0.0"]);
        server.args(["-p", &address.port().to_string()]);
        prepare(&mut server);
        if is_tls {
            certify(directory.path(), address.ip())?;
            server.arg("-c").arg(directory.path().join("server.crt"));
            server.arg("-k").arg(directory.path().join("server.key"));
        }
        let child = server
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let mut moto = Self {
            child,
            address,
            is_tls,
            directory,
        };
        namespace.wait_for_listener(&mut moto.child, moto.address, PATIENCE)?;
        let script = clean(namespace.command(python()?))
            .args(["-c", include_str!("moto.py"), &moto.url()])
            .arg(moto.credentials_file())
            .arg(if is_tls { moto.ca_file() } else { PathBuf::new() })
            .output()?;
        ensure!(
            script.status.success(),
            "moto was not filled: {}",
            String::from_utf8_lossy(&script.stderr)
        );
        Ok(moto)
    }

    /// Where it is to be reached from its own host.
    pub fn url(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The certificate of the authority, where there is TLS.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// The shared credentials file with the profile `imds`.
    pub fn credentials_file(&self) -> PathBuf {
        self.directory.path().join("credentials")
    }

    /// The lines that make it the agent's source of role credentials; the last of them is in the source's own table.
    pub fn agent_config(&self) -> String {
        self.agent_config_at(&self.url())
    }

    /// The same for an agent that reaches it at another address.
    pub fn agent_config_at(&self, url: &str) -> String {
        format!(
            "[credentials]\nsource = \"sts\"\n[credentials.sts]\nendpoint = {:?}\nprofile = \"imds\"\n\
             shared_credentials_file = {:?}\nexternal_id = {EXTERNAL_ID:?}\n",
            url,
            self.credentials_file(),
        )
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes an authority, `ca.crt`, and a certificate of it for `address`, `server.crt` with `server.key`.
pub fn certify(directory: &Path, address: IpAddr) -> Result<()> {
    let openssl = |arguments: &str| -> Result<()> {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(directory)
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "openssl {arguments}: {errors}");
        Ok(())
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -batch";
    openssl(&format!(
        "req -x509 {key} -keyout ca.key -out ca.crt -days 2 -subj /CN=authority"
    ))?;
    openssl(&format!(
        "req {key} -keyout server.key -out server.csr -subj /CN=server"
    ))?;
    fs::write(
        directory.join("extensions"),
        format!("subjectAltName=IP:{address}\nbasicConstraints=CA:FALSE\n"),
    )?;
    openssl(
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out server.crt",
    )
}

/// The Python interpreter that has moto, boto3 and the AWS CLI.
pub fn python() -> Result<PathBuf> {
    Ok(venv()?.join("bin/python"))
}

/// What a Python program prints in the guest, which may use boto3 and knows nothing of the machine's own environment.
pub fn run_python(guest: &KernelGuest, program: &str, arguments: &[&str]) -> Result<String> {
    let output = clean(guest.command(&python()?.to_string_lossy()))
        .args(["-c", program])
        .args(arguments)
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{errors}");
    Ok(String::from_utf8(output.stdout)?)
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
