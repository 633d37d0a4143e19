//! An agent with several workers: each tap has one of them, all are served, and a restart may change their number.

use std::{collections::BTreeMap, net::TcpStream, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData, PerCpuHashMap};
use imds_agent::datapath::Counters;
use imds_ebpf::abi::{ABI_VERSION, TapBinding, TapCounters, WorkerNumber};
use imds_tests::{
    agent::{Agent, HostFiles},
    client::{PATIENCE, get, text, token, wait_for},
    host::program,
    kernel_guest::KernelGuest,
    netns::Namespace,
    records::{self, ROLE, guest_mac},
    scrape::Scrape,
    tap::Tap,
};

/// A host with guests, each on a tap of its own. Fields are dropped in order.
struct Host {
    guests: Vec<Guest>,
    files: HostFiles,
    namespace: Namespace,
    program: PathBuf,
}

struct Guest {
    kernel: KernelGuest,
    tap: Arc<Tap>,
    id: String,
}

impl Host {
    fn new(guests: u8, workers: usize) -> Result<Self> {
        let files = HostFiles::new("")?;
        files.set_workers(workers)?;
        files.put("roles", ROLE, &records::role())?;
        let profile = records::instance_profile();
        files.put("instance-profiles", records::INSTANCE_PROFILE, &profile)?;
        let mut host = Self {
            guests: Vec::new(),
            files,
            namespace: Namespace::new()?,
            program: program()?,
        };
        (0..guests).try_for_each(|_| host.add_guest())?;
        Ok(host)
    }

    fn add_guest(&mut self) -> Result<()> {
        let number = u8::try_from(self.guests.len() + 1)?;
        let (id, name, address) = (
            format!("i-{number}"),
            format!("tap{number}"),
            format!("10.0.0.{number}"),
        );
        let record = records::instance(&id, guest_mac(number), &name, &address);
        self.files.put("instances", &id, &record)?;
        let tap = Arc::new(self.namespace.enter(|| Tap::new(&name))?);
        let kernel = KernelGuest::new(Arc::clone(&tap), guest_mac(number), &format!("{address}/24"))?;
        self.guests.push(Guest { kernel, tap, id });
        Ok(())
    }

    fn start(&self) -> Result<Agent> {
        Agent::start(&self.program, &self.namespace, &self.files)
    }

    /// Whose the guests' taps are, in their order.
    fn workers(&self) -> Result<Vec<u8>> {
        let pin = self.files.pins().join(format!("v{ABI_VERSION}/TAPS"));
        let taps: HashMap<MapData, u64, [u8; size_of::<TapBinding>()]> =
            Map::HashMap(MapData::from_pin(pin)?).try_into()?;
        let worker = |guest: &Guest| {
            let WorkerNumber(worker) = TapBinding::from_bytes(taps.get(&guest.tap.index().0, 0)?).worker;
            Ok(worker)
        };
        self.guests.iter().map(worker).collect()
    }

    /// How many taps each worker has.
    fn spread(&self) -> Result<Vec<usize>> {
        let mut taps = BTreeMap::<_, usize>::new();
        for worker in self.workers()? {
            *taps.entry(worker).or_default() += 1;
        }
        ensure!(taps.keys().copied().eq(0..u8::try_from(taps.len())?), "{taps:?}");
        Ok(taps.into_values().collect())
    }

    /// How many frames of a guest were punted.
    fn punted(&self, guest: &Guest) -> Result<u64> {
        let pin = self.files.pins().join(format!("v{ABI_VERSION}/COUNTERS"));
        let counters: PerCpuHashMap<MapData, u64, TapCounters> =
            Map::PerCpuHashMap(MapData::from_pin(pin)?).try_into()?;
        Ok(Counters::sum(&counters.get(&guest.tap.index().0, 0)?).punted)
    }

    /// Each guest gets what is its own, and one more session token.
    fn ensure_served(&self) -> Result<Vec<String>> {
        let tokens = self.guests.iter().map(|guest| {
            let served = guest.kernel.namespace.enter(|| {
                let token = token()?;
                let ask = || get(&token, &format!("meta-data/iam/security-credentials/{ROLE}"));
                wait_for("role credentials", ask, |response| response.status == 200)?;
                ensure!(text(&token, "meta-data/instance-id")? == guest.id);
                Ok(token)
            });
            served.with_context(|| guest.id.clone())
        });
        tokens.collect()
    }
}

/// What each worker says to have answered when the agent ends.
fn answered(log: &[String]) -> Result<Vec<u64>> {
    let counted = log.iter().filter_map(|line| {
        let (_, counted) = line.split_once("counted: worker ")?;
        let (_, requests) = counted.split_once(": ")?;
        requests.split(' ').next()
    });
    counted.map(|requests| Ok(requests.parse()?)).collect()
}

#[test]
fn taps_are_spread_over_the_workers_and_each_guest_gets_its_own() -> Result<()> {
    let mut host = Host::new(4, 2)?;
    let agent = host.start()?;
    ensure!(host.spread()? == [2, 2], "{:?}", host.workers()?);
    // One that comes later has its worker as soon as it is there.
    host.add_guest()?;
    host.ensure_served()?;
    ensure!(host.spread()? == [3, 2]);

    let told = |scrape: &Scrape| scrape.sum("imds_requests_total", &[]);
    // The last one is timed when the kernel has its answer, which may be a moment after its guest.
    let are_timed =
        |scrape: &Scrape| scrape.value("imds_request_duration_seconds_count", &[]) == Some(told(scrape));
    let scrape = || Scrape::of(&host.files.metrics());
    let (scrape, _) = wait_for("every request to be timed", scrape, are_timed)?;
    ensure!(scrape.value("imds_workers", &[]) == Some(2.0));
    let (_, log) = agent.stop()?;
    let answered = answered(&log)?;
    // Each guest asks for a token, its credentials and its id at least.
    ensure!(
        answered.len() == 2 && answered[0] >= 9 && answered[1] >= 6,
        "{answered:?}"
    );
    let told = told(&scrape);
    ensure!(
        answered.iter().sum::<u64>() as f64 == told,
        "{answered:?} are not {told}"
    );
    Ok(())
}

#[test]
fn a_restart_leaves_taps_where_they_are_and_another_number_of_workers_spreads_them_anew() -> Result<()> {
    let host = Host::new(6, 2)?;
    let agent = host.start()?;
    let before = host.workers()?;
    let tokens = host.ensure_served()?;
    agent.kill()?;
    let mut agent = host.start()?;
    ensure!(host.workers()? == before, "a tap changed its worker for nothing");
    host.ensure_served()?;

    for workers in [3, 1, 8, 2] {
        agent.kill()?;
        host.files.set_workers(workers)?;
        agent = host.start()?;
        let spread = host.spread()?;
        ensure!(
            spread.len() == workers.min(6) && spread.iter().all(|taps| *taps == 6 / spread.len()),
            "{workers} workers: {:?}",
            host.workers()?
        );
        host.ensure_served()?;
        for (guest, token) in host.guests.iter().zip(&tokens) {
            let id = guest
                .kernel
                .namespace
                .enter(|| text(token, "meta-data/instance-id"));
            ensure!(id? == guest.id, "the first agent's token is not good any more");
        }
    }
    let (_, log) = agent.stop()?;
    let answered = answered(&log)?;
    ensure!(
        answered.len() == 2 && answered.iter().all(|requests| *requests >= 12),
        "{answered:?}"
    );
    Ok(())
}

#[test]
fn what_waits_for_another_worker_since_the_last_agent_is_passed_over() -> Result<()> {
    let host = Host::new(2, 1)?;
    host.start()?.kill()?;
    let before = host.guests.iter().map(|guest| host.punted(guest));
    let before = before.collect::<Result<Vec<_>>>()?;
    let calls = host
        .guests
        .iter()
        .map(|guest| guest.kernel.namespace.spawn(token));
    let calls = calls.collect::<Result<Vec<_>>>()?;
    for (guest, before) in host.guests.iter().zip(before) {
        wait_for(
            "a SYN in the ring",
            || host.punted(guest),
            |punted| *punted > before,
        )?;
    }
    host.files.set_workers(2)?;
    let _agent = host.start()?;
    ensure!(host.spread()? == [1, 1]);
    // Were the first worker to answer the one that is not its guest any more, the second would know nothing of the connection.
    for call in calls {
        call.join().expect("no panic")?;
    }
    let scrape = Scrape::of(&host.files.metrics())?;
    ensure!(scrape.value("imds_session_tokens_minted_total", &[]) == Some(2.0));
    Ok(())
}

#[test]
fn an_instance_keeps_its_worker_over_changes_of_its_record() -> Result<()> {
    let host = Host::new(2, 2)?;
    let _agent = host.start()?;
    let before = host.workers()?;
    let [one, two] = &host.guests[..] else {
        anyhow::bail!("two guests");
    };
    // Its options are the classifier's business as well.
    let mut record = records::instance(&two.id, guest_mac(2), "tap2", "10.0.0.2");
    record["MetadataOptions"]["HttpProtocolIpv6"] = "enabled".into();
    host.files.put("instances", &two.id, &record)?;
    two.kernel.add_ipv6()?;
    two.kernel.lose_ipv4()?;
    two.kernel.namespace.enter(|| {
        // A SYN that comes too early is sent again.
        TcpStream::connect_timeout(&"[fd00:ec2::254]:80".parse()?, PATIENCE).context("over IPv6")
    })?;
    ensure!(host.workers()? == before);
    let id = one
        .kernel
        .namespace
        .enter(|| text(&token()?, "meta-data/instance-id"))?;
    ensure!(id == one.id);
    Ok(())
}
