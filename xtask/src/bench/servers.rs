//! Who is measured: the agent, and nginx on the kernel's TCP, each behind a tap of the same kind.

use std::{
    fs,
    io::Write as _,
    net::Ipv4Addr,
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

use super::cores::{SERVER_CORE, pin};

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

    /// nginx, which answers as [`Nginx::start`] says.
    pub fn nginx(target: &Path, reply: &[u8]) -> Result<Self> {
        let namespace = Namespace::new()?;
        let tap = namespace.enter(|| Tap::new("tap0"))?;
        let guest = (records::guest_mac(2), GUEST_ADDRESS.into());
        let nginx = Nginx::start(target, &namespace, &[guest], reply)?;
        Ok(Self {
            tap,
            process: nginx.worker,
            _running: Running::Nginx(nginx),
            _namespace: namespace,
        })
    }
}

/// Both servers, and the exchange that is measured.
pub struct Pair {
    /// The agent.
    pub ours: Server,
    /// nginx.
    pub nginx: Server,
    /// A GET with a session token whose reply closes the connection.
    pub closing: Load,
    /// The same on a connection that is kept.
    pub kept: Load,
}

impl Pair {
    /// The agent, and nginx with a reply as long as the agent's.
    pub fn start(program: &Path, target: &Path) -> Result<Self> {
        let ours = Server::agent(program)?;
        let token = session_token(&ours.tap, &load_of(Vec::new()))?;
        let request = |connection: &str| {
            format!(
                "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: {connection}\r\n\
                 X-aws-ec2-metadata-token: {token}\r\n\r\n"
            )
            .into_bytes()
        };
        let closing = load_of(request("close"));
        let reply = load::run(&ours.tap, &closing)?.response;
        let nginx = Server::nginx(target, &reply)?;
        let kept = load_of(request("keep-alive"));
        Ok(Self {
            ours,
            nginx,
            closing,
            kept,
        })
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

/// Debian's nginx with one worker, on the kernel's TCP.
pub struct Nginx {
    master: Child,
    worker: Pid,
    _files: tempfile::TempDir,
}

impl Nginx {
    /// Has it serve guests with these addresses in `namespace`, each on the tap with its number there; every response has the
    /// body of `reply` and headers enough to be as long.
    pub fn start(
        target: &Path,
        namespace: &Namespace,
        guests: &[(MacAddr, Ipv4Addr)],
        reply: &[u8],
    ) -> Result<Self> {
        let mut setup = "address add 169.254.169.254/32 dev lo\n".to_owned();
        for (number, (mac, address)) in guests.iter().enumerate() {
            setup += &format!(
                "link set tap{number} address {NGINX_MAC}\nroute add {address}/32 dev tap{number}\n\
                 neighbour add {address} lladdr {mac} dev tap{number} nud permanent\n"
            );
        }
        ip_batch(namespace, &setup)?;
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
        let worker = worker_of(&master)?;
        pin(worker, SERVER_CORE)?;
        Ok(Self {
            master,
            worker,
            _files: files,
        })
    }
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

/// Many commands of `ip` at once.
fn ip_batch(namespace: &Namespace, commands: &str) -> Result<()> {
    let mut ip = namespace
        .command("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start ip")?;
    let mut stdin = ip.stdin.take().context("ip reads what is written")?;
    stdin.write_all(commands.as_bytes())?;
    drop(stdin);
    let status = ip.wait()?;
    ensure!(status.success(), "ip does not set up nginx's network: {status}");
    Ok(())
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
