//! Who is measured: the agent, and nginx on the kernel's TCP, each behind a tap of the same kind.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::{IMDS_MAC, MacAddr};
use imds_tests::{
    agent::{Agent, HostFiles},
    host::{ADDRESS, INSTANCE_ID},
    load::{self, Load},
    netns::Namespace,
    records,
    tap::Tap,
};
use nix::unistd::Pid;

use super::cpu::{SERVER_CORE, pin};

/// What is measured is how fast the agent can go, not how well it holds a guest to its rates.
pub const WITHOUT_LIMITS: &str = "packets_per_second = 0\nrequests_per_second = 0";

const GUEST_ADDRESS: [u8; 4] = [10, 0, 0, 2];

/// The MAC of nginx's tap, which plays the metadata service's part.
const NGINX_MAC: MacAddr = IMDS_MAC;

/// A server behind a tap, of which the test is the guest.
pub struct Server {
    /// Where the guest's frames go.
    pub tap: Tap,
    /// Whose CPU is counted.
    pub process: Pid,
    _running: Running,
    _namespace: Namespace,
}

/// What ends with the server.
#[expect(dead_code, reason = "dropped with the server, which ends what it is")]
enum Running {
    Agent(Agent, HostFiles),
    Nginx(Nginx),
}

impl Server {
    /// The agent with one instance.
    pub fn agent(program: &Path) -> Result<Self> {
        let namespace = Namespace::new()?;
        let tap = namespace.enter(|| Tap::new("tap0"))?;
        let files = HostFiles::new(WITHOUT_LIMITS)?;
        let record = records::instance(INSTANCE_ID, records::guest_mac(2), "tap0", ADDRESS);
        files.put("instances", INSTANCE_ID, &record)?;
        let agent = Agent::start(program, &namespace, &files)?;
        let process = agent.pid()?;
        pin(process, SERVER_CORE)?;
        Ok(Self {
            tap,
            process,
            _running: Running::Agent(agent, files),
            _namespace: namespace,
        })
    }

    /// nginx, whose every response has the body of `reply` and headers enough to be as long.
    pub fn nginx(target: &Path, reply: &[u8]) -> Result<Self> {
        let namespace = Namespace::new()?;
        let tap = namespace.enter(|| Tap::new("tap0"))?;
        let guest: std::net::Ipv4Addr = GUEST_ADDRESS.into();
        namespace.ip(&format!("link set tap0 address {NGINX_MAC}"))?;
        namespace.ip("address add 169.254.169.254/32 dev tap0")?;
        namespace.ip("route add 10.0.0.0/24 dev tap0")?;
        namespace.ip(&format!(
            "neighbour add {guest} lladdr {} dev tap0 nud permanent",
            records::guest_mac(2)
        ))?;
        let files = tempfile::Builder::new()
            .prefix("bench-nginx-")
            .tempdir_in(target)?;
        fs::write(files.path().join("nginx.conf"), configuration(reply)?)?;
        let mut command: Command = namespace.command(target.join("nginx/usr/sbin/nginx"));
        command
            .args(["-c", "nginx.conf", "-e", "error.log", "-p"])
            .arg(files.path());
        let master = command
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start nginx")?;
        let process = worker_of(&master)?;
        pin(process, SERVER_CORE)?;
        Ok(Self {
            tap,
            process,
            _running: Running::Nginx(Nginx {
                master,
                _files: files,
            }),
            _namespace: namespace,
        })
    }

    /// A session token of the agent's.
    pub fn token(&self) -> Result<String> {
        session_token(&self.tap, &load_of(Vec::new()))
    }
}

/// What one guest with one request does, once.
pub fn load_of(request: Vec<u8>) -> Load {
    Load {
        mac: records::guest_mac(2),
        address: GUEST_ADDRESS,
        server: NGINX_MAC,
        requests: vec![request],
        in_flight: 1,
        duration: Duration::from_secs(10),
        exchanges_max: 1,
        pause: Duration::ZERO,
        spins: false,
        kept_alive: None,
    }
}

/// A session token for the guest of `load`.
pub fn session_token(tap: &Tap, load: &Load) -> Result<String> {
    let put = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n";
    let load = Load {
        requests: vec![put.into()],
        exchanges_max: 1,
        ..load.clone()
    };
    let response = String::from_utf8(load::run(tap, &load)?.response)?;
    let (head, token) = response
        .split_once("\r\n\r\n")
        .context("the token response has no body")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "no session token: {head}");
    Ok(token.to_owned())
}

struct Nginx {
    master: Child,
    _files: tempfile::TempDir,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            Pid::from_raw(self.master.id().cast_signed()),
            nix::sys::signal::SIGTERM,
        );
        let _ = self.master.wait();
    }
}

/// A static reply with the same body and headers enough to make it as long as ours.
fn configuration(reply: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(reply)?;
    let (head, body) = text.split_once("\r\n\r\n").context("our reply has no body")?;
    ensure!(
        head.starts_with("HTTP/1.1 200"),
        "our reply is no success: {head}"
    );
    // What nginx sends by itself: status line, Server, Date, Content-Type, Content-Length, Connection.
    let own = "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sat, 21 Nov 2026 08:00:00 GMT\r\nContent-Type: text/plain\r\n\
               Content-Length: 19\r\nConnection: close\r\nX-Pad: ";
    let padding = "x".repeat(head.len().saturating_sub(own.len()).max(1));
    Ok(format!(
        "daemon off; worker_processes 1; pid nginx.pid; error_log error.log crit;
events {{ worker_connections 4096; accept_mutex off; }}
http {{ access_log off; server_tokens off; default_type text/plain; client_body_temp_path body; proxy_temp_path proxy;
fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi; keepalive_requests 1000000000;
server {{ listen 169.254.169.254:80 backlog=4096; add_header X-Pad {padding}; location / {{ return 200 {body}; }} }} }}
"
    ))
}

fn worker_of(master: &Child) -> Result<Pid> {
    let children = format!("/proc/{0}/task/{0}/children", master.id());
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(worker) = fs::read_to_string(&children)?.split_whitespace().next() {
            return Ok(Pid::from_raw(worker.parse()?));
        }
        ensure!(Instant::now() < deadline, "nginx started no worker");
        thread::sleep(Duration::from_millis(10));
    }
}
