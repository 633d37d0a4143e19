//! `cargo xtask bench`: the agent beside nginx on the kernel's TCP, over the same kind of tap, in one run.
//!
//! Both sides get the same frames from the same client code ([`imds_tests::load`]), the same request, and a reply of the
//! same size. The server has the first core, the client the second. CPU is the kernel's accounting: of the server
//! process, and of the whole machine with soft interrupts. Runs alternate, and the table shows medians and spreads.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::{IMDS_MAC, MacAddr};
use imds_tests::{
    agent::{Agent, HostFiles},
    host::{ADDRESS, INSTANCE_ID},
    load::{self, Load, Outcome},
    netns::Namespace,
    records,
    tap::Tap,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;
const GUEST_ADDRESS: [u8; 4] = [10, 0, 0, 2];
/// The MAC of nginx's tap, which plays the metadata service's part.
const NGINX_MAC: MacAddr = IMDS_MAC;

/// How long and how often to measure.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// Half a minute instead of several: enough to see a direction, not to quote
    #[arg(long)]
    quick: bool,
}

/// One side's figures of one run.
#[derive(Clone, Copy, Debug)]
struct Figures {
    exchanges_per_second: f64,
    server_cpu_us: f64,
    machine_cpu_us: f64,
    p50_us: f64,
    p99_us: f64,
}

/// Measures and prints the table; the figures also go to `target/bench.json`.
pub fn run(options: Options, agent: &Path, target: &Path) -> Result<()> {
    let (rounds, duration) = if options.quick {
        (3, Duration::from_secs(1))
    } else {
        (7, Duration::from_secs(5))
    };
    let ours = Ours::start(agent)?;
    let request = ours.request()?;
    let sample = ours.load(&request, 1, Duration::from_millis(200));
    let reply = load::run(&ours.tap, &sample)?.response;
    let nginx = Nginx::start(target, &reply)?;
    pin(Pid::from_raw(0), CLIENT_CORE)?;

    let mut report = serde_json::Map::new();
    println!("| in flight | figure | imds-agent | nginx | ratio |");
    println!("|---|---|---|---|---|");
    for in_flight in [1, 16] {
        let mut sides = [Vec::new(), Vec::new()];
        // The first round warms up and is thrown away.
        for round in 0..=rounds {
            let ours = ours
                .measure(&request, in_flight, duration)
                .context("imds-agent")?;
            let nginx = nginx.measure(&request, in_flight, duration).context("nginx")?;
            if round > 0 {
                sides[0].push(ours);
                sides[1].push(nginx);
            }
        }
        print_rows(in_flight, &sides, &mut report);
    }
    fs::write(target.join("bench.json"), serde_json::to_vec_pretty(&report)?)?;
    Ok(())
}

type Figure = (&'static str, fn(&Figures) -> f64);

const FIGURES: [Figure; 5] = [
    ("exchanges/s", |figures| figures.exchanges_per_second),
    ("server CPU, µs per exchange", |figures| figures.server_cpu_us),
    ("machine CPU, µs per exchange", |figures| figures.machine_cpu_us),
    ("p50, µs", |figures| figures.p50_us),
    ("p99, µs", |figures| figures.p99_us),
];

fn print_rows(
    in_flight: usize,
    [ours, nginx]: &[Vec<Figures>; 2],
    report: &mut serde_json::Map<String, serde_json::Value>,
) {
    for (name, figure) in FIGURES {
        let (ours, nginx) = (Spread::of(ours, figure), Spread::of(nginx, figure));
        let ratio = ours.median / nginx.median;
        println!("| {in_flight} | {name} | {ours} | {nginx} | {ratio:.2} |");
        let row = serde_json::json!({ "imds-agent": ours.median, "nginx": nginx.median, "ratio": ratio });
        report.insert(format!("{name}, {in_flight} in flight"), row);
    }
}

struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(runs: &[Figures], figure: fn(&Figures) -> f64) -> Self {
        let mut values: Vec<_> = runs.iter().map(figure).collect();
        values.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self {
            least: at(0),
            median: at(values.len() / 2),
            most: at(values.len().saturating_sub(1)),
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.median >= 1000.0 { 0 } else { 1 };
        write!(
            f,
            "{:.digits$} ({:.digits$} to {:.digits$})",
            self.median, self.least, self.most
        )
    }
}

/// The agent behind a tap.
struct Ours {
    agent: Agent,
    tap: Arc<Tap>,
    _files: HostFiles,
    _namespace: Namespace,
}

impl Ours {
    fn start(program: &Path) -> Result<Self> {
        let namespace = Namespace::new()?;
        let tap = Arc::new(namespace.enter(|| Tap::new("tap0"))?);
        // What is measured is how fast it can go, not how well it holds a guest to its rates.
        let files = HostFiles::new("packets_per_second = 0\nrequests_per_second = 0")?;
        let record = records::instance(INSTANCE_ID, records::guest_mac(2), "tap0", ADDRESS);
        files.put("instances", INSTANCE_ID, &record)?;
        let agent = Agent::start(program, &namespace, &files)?;
        pin(agent.pid()?, SERVER_CORE)?;
        Ok(Self {
            agent,
            tap,
            _files: files,
            _namespace: namespace,
        })
    }

    /// A GET with a session token.
    fn request(&self) -> Result<Vec<u8>> {
        let put = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n";
        let outcome = load::run(&self.tap, &self.load(put.as_bytes(), 1, Duration::ZERO))?;
        let response = String::from_utf8(outcome.response)?;
        let (head, token) = response
            .split_once("\r\n\r\n")
            .context("the token response has no body")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "no session token: {head}");
        let request = format!(
            "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
        );
        Ok(request.into_bytes())
    }

    fn load(&self, request: &[u8], in_flight: usize, duration: Duration) -> Load {
        load_of(request, in_flight, duration)
    }

    fn measure(&self, request: &[u8], in_flight: usize, duration: Duration) -> Result<Figures> {
        measure(
            &self.tap,
            self.agent.pid()?,
            &load_of(request, in_flight, duration),
        )
    }
}

/// nginx on the kernel's TCP, in a namespace where the tap itself has the metadata address.
struct Nginx {
    master: Child,
    worker: Pid,
    tap: Tap,
    _files: tempfile::TempDir,
    _namespace: Namespace,
}

impl Nginx {
    fn start(target: &Path, reply: &[u8]) -> Result<Self> {
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
        let worker = worker_of(&master)?;
        pin(worker, SERVER_CORE)?;
        Ok(Self {
            master,
            worker,
            tap,
            _files: files,
            _namespace: namespace,
        })
    }

    fn measure(&self, request: &[u8], in_flight: usize, duration: Duration) -> Result<Figures> {
        measure(&self.tap, self.worker, &load_of(request, in_flight, duration))
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

fn load_of(request: &[u8], in_flight: usize, duration: Duration) -> Load {
    let request = request.to_vec();
    Load {
        mac: records::guest_mac(2),
        address: GUEST_ADDRESS,
        server: NGINX_MAC,
        request,
        in_flight,
        duration,
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
fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
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

fn measure(tap: &Tap, server: Pid, load: &Load) -> Result<Figures> {
    let (server_before, machine_before) = (process_cpu(server)?, machine_cpu()?);
    let outcome: Outcome = load::run(tap, load)?;
    let (server_after, machine_after) = (process_cpu(server)?, machine_cpu()?);
    ensure!(
        outcome.lost * 1000 <= outcome.exchanges,
        "{} of {} exchanges were lost",
        outcome.lost,
        outcome.exchanges
    );
    let exchanges = outcome.exchanges as f64;
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    Ok(Figures {
        exchanges_per_second: outcome.per_second(),
        server_cpu_us: micros(server_after.saturating_sub(server_before)) / exchanges,
        machine_cpu_us: micros(machine_after.saturating_sub(machine_before)) / exchanges,
        p50_us: micros(outcome.quantile(0.5)),
        p99_us: micros(outcome.quantile(0.99)),
    })
}

/// User and system time of all threads of a process, exact to the nanosecond.
fn process_cpu(process: Pid) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let schedstat = fs::read_to_string(thread?.path().join("schedstat"))?;
        let nanoseconds = schedstat
            .split_whitespace()
            .next()
            .context("an empty schedstat")?;
        total += Duration::from_nanos(nanoseconds.parse()?);
    }
    Ok(total)
}

/// Everything that the machine's cores did but idle, soft interrupts included; in ticks of 10 ms.
fn machine_cpu() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("an empty /proc/stat")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    // user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user time already.
    let busy: u64 = [0, 1, 2, 5, 6]
        .into_iter()
        .filter_map(|field: usize| ticks.get(field))
        .sum();
    Ok(Duration::from_millis(busy * 10))
}

fn pin(process: Pid, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    let tasks = if process.as_raw() == 0 {
        vec![process]
    } else {
        threads_of(process)?
    };
    for task in tasks {
        sched_setaffinity(task, &cores).with_context(|| format!("cannot pin {task} to core {core}"))?;
    }
    Ok(())
}

fn threads_of(process: Pid) -> Result<Vec<Pid>> {
    let names = fs::read_dir(format!("/proc/{process}/task"))?.map(|entry| Ok(entry?.file_name()));
    names
        .map(|name: Result<_>| Ok(Pid::from_raw(name?.to_string_lossy().parse()?)))
        .collect()
}
