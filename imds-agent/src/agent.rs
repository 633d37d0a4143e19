//! Composes everything and keeps it running: taps from the kernel, instances from the registry, bindings between the two.

mod assignment;
mod changes;
mod namespaces;
mod parts;
mod signals;
mod taps;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::ready,
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use imds_ebpf::abi::{NamespaceNumber, TapIndex, WorkerNumber};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};

use self::{
    namespaces::{Elsewhere, Notice},
    signals::Signals,
    taps::Round,
    work::Work,
};
use crate::{
    bindings::{Bindings, Change},
    config::{Config, Taps},
    control::{self, Control, Reloaded},
    credentials::{Issuer, IssuerKeys, Totals, issuer_keys},
    datapath::{
        Classifier, GracePeriods,
        link_watch::{LinkEvent, LinkWatch},
    },
    identity_signer::Signer,
    observe::{
        Audit, Frames, Guests, Requests, StsExchanges, audit,
        metrics::{self, Endpoint},
    },
    privilege,
    registry::{Directory, Rules, Snapshot, Store},
    reload::{self, Reload},
    service_manager::ServiceManager,
    sts,
    worker::Facts,
};

/// How often what the kernel refused is tried again, whatever else happens meanwhile.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Commands of the operators' socket that wait for their turn.
const COMMANDS_MAX: usize = 64;

/// What wakes the agent.
enum Event {
    Control(control::Command),
    Reload(&'static str),
    Link(LinkEvent),
    Elsewhere(Notice),
    CatchUp,
    Registry(Arc<Snapshot>),
    RegistryEnded(io::Error),
    Ended(&'static str),
    Retry,
    Watchdog,
    Asked(metrics::Asked),
    Read,
    Look,
    Stop(&'static str),
}

/// The running agent.
struct Agent {
    taps: Taps,
    links: LinkWatch,
    elsewhere: Elsewhere,
    /// Namespaces whose taps were not all told since the start.
    untold: BTreeSet<NamespaceNumber>,
    reload: Reload,
    manager: ServiceManager,
    rules: watch::Sender<Rules>,
    control: Arc<Control>,
    classifier: Classifier,
    grace_periods: GracePeriods,
    bindings: Bindings,
    snapshot: Arc<Snapshot>,
    signer: Signer,
    work: Work,
    /// Taps on which the kernel refused something that is to be tried again, and what it said.
    refused: BTreeMap<TapIndex, String>,
    /// The registry's revision that the taps are bound by; nothing before all taps are told.
    applied: watch::Sender<Option<u64>>,
    facts: Facts,
    /// What each worker counts.
    requests: Vec<Arc<Requests>>,
    /// Of the sessions of roles, and of those of the instances' own.
    fetches: [Arc<Totals>; 2],
    frames: Frames,
    /// Who waits for taps to be read, in the order in which they asked.
    rounds: VecDeque<Round>,
    has_metrics_per_tap: bool,
    /// When the snapshot was taken over.
    loaded: Timestamp,
}

/// Serves until SIGTERM or SIGINT. The classifier stays on the taps then, so that the address goes dark and not astray.
/// The directory of the pins is reached at `pins`, and `read` reads the configuration again.
pub async fn run(config: Config, pins: &Path, grace_periods: GracePeriods, read: reload::Read) -> Result<()> {
    let started = Instant::now();
    let mut signals = Signals::new()?;
    Directory::create(&config.state_directory)?;
    let socket = match config.control() {
        Some(settings) => Some(control::Socket::bind(&settings).await?),
        None => None,
    };
    // Before the records are read: what the loader takes for a moment, some 17 MB to read the kernel's types, is theirs afterwards.
    let mut classifier = Classifier::load_for(pins, config.workers())?;
    grace_periods.tell();
    let expedited = grace_periods.expedite();
    let elsewhere = Elsewhere::start(&config.network_namespaces, &mut classifier)?;
    drop(expedited);
    let directory = Directory::open(&config.state_directory, config.rules())?;
    let mut snapshots = directory.snapshots();
    let audit = match config.audit_file() {
        Some(path) => Audit::start(path).context("cannot start the audit trail")?,
        None => Audit::default(),
    };
    let facts = Facts {
        audit,
        guests: Guests::start().context("cannot start the thread that keeps what guests do")?,
        requests_per_second: config.requests_per_second(),
        ..Facts::default()
    };
    let of_workers: Vec<_> = (0..config.workers()).map(|_| facts.of_worker()).collect();
    let keys = config.keys_directory();
    let issuer_keys = IssuerKeys::load_or_create(&keys)?;
    let issuer = Arc::new(Issuer::new(&issuer_keys.newest, &issuer_keys.accepted));
    let watch = || parts::assumptions(&facts.audit);
    let refresher = parts::refresher(&config, &facts, &issuer).watched_by(watch());
    let identity_refresher = parts::identity_refresher(&config, &facts, &issuer).watched_by(watch());
    let fetches = [refresher.totals(), identity_refresher.totals()];
    let signer = parts::signer(&config, &facts)?;
    let exchanges = Arc::<StsExchanges>::default();
    let (asks, mut scrapes) = mpsc::channel(1);
    let endpoint = match config.metrics() {
        Some(settings) => {
            let problems = directory.problems();
            let metrics = parts::metrics(&facts, &of_workers, problems, &fetches, &exchanges);
            let endpoint = Endpoint::bind(&settings, metrics, asks).await;
            Some(endpoint.context("metrics cannot be served")?)
        }
        None => None,
    };
    let requests: Vec<_> = of_workers
        .iter()
        .map(|facts| Arc::clone(&facts.requests))
        .collect();
    let workers = parts::workers(&config, &mut classifier, of_workers)?;
    let snapshot = Arc::clone(&snapshots.borrow_and_update());
    signer.handle_snapshot(Arc::clone(&snapshot));
    let (commands, mut commanded) = mpsc::channel(COMMANDS_MAX);
    let applied = watch::Sender::new(None);
    let control = Arc::new(Control {
        store: Store::new(&config.state_directory, config.rules()),
        facts: facts.clone(),
        snapshots: directory.snapshots(),
        problems: directory.problems(),
        applied: applied.subscribe(),
        commands,
        extended_credentials: config.extended_credentials(),
        started,
    });
    let mut agent = Agent {
        bindings: Bindings::new(config.packets_per_second()),
        taps: config.taps.clone(),
        links: LinkWatch::new()?,
        untold: elsewhere
            .waiting()
            .into_iter()
            .chain([NamespaceNumber::OWN])
            .collect(),
        elsewhere,
        reload: Reload::new(config.clone(), read),
        manager: ServiceManager::find(),
        rules: directory.rules(),
        control: Arc::clone(&control),
        applied,
        work: Work::new(workers, &assigned(&classifier), refresher.rests()),
        classifier,
        grace_periods,
        snapshot,
        signer,
        refused: BTreeMap::new(),
        facts: facts.clone(),
        requests,
        fetches,
        frames: Frames::default(),
        rounds: VecDeque::new(),
        has_metrics_per_tap: config.has_metrics_per_tap(),
        loaded: Timestamp::now(),
    };
    agent.adopt_counters_in(NamespaceNumber::OWN);
    // All of it ends with this function.
    let mut upkeep = JoinSet::new();
    if let Some(endpoint) = endpoint {
        upkeep.spawn(endpoint.run());
    }
    if let Some(socket) = socket {
        upkeep.spawn(socket.serve(control::routes::router(control)));
    }
    if let Some(settings) = config.sts_endpoint() {
        let service = sts::Service::new(Arc::clone(&issuer));
        let registry = Arc::clone(&facts.registry);
        let audit = facts.audit.clone();
        let watch = move |exchange: &sts::Exchange<'_>| {
            exchanges.count(exchange);
            if let Some(event) = audit::exchange(exchange) {
                audit.record(event);
            }
        };
        let endpoint = sts::Endpoint::bind(&settings, service, registry, Box::new(watch)).await;
        upkeep.spawn(endpoint.context("the security token service cannot start")?.run());
    }
    // Everything is open.
    privilege::capabilities::keep_for_serving()?;
    upkeep.spawn(refresher.run(directory.snapshots()));
    upkeep.spawn(identity_refresher.run(directory.snapshots()));
    upkeep.spawn(issuer_keys::follow(issuer, keys, issuer_keys));
    let mut registry_watch = tokio::spawn(directory.watch(facts.registry));
    let mut retries = tokio::time::interval(RETRY_AFTER);
    retries.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            biased;
            event = signals.next() => event,
            () = agent.manager.watchdog() => Event::Watchdog,
            event = agent.links.next() => Event::Link(event?),
            Ok(()) = snapshots.changed() => Event::Registry(Arc::clone(&snapshots.borrow_and_update())),
            ended = &mut registry_watch => Event::RegistryEnded(ended?),
            has_ended = agent.work.changed() => if has_ended { Event::Ended("a worker") } else { Event::Look },
            Some(command) = commanded.recv() => Event::Control(command),
            Some(_) = upkeep.join_next() => Event::Ended("the upkeep of credentials"),
            Some(asked) = scrapes.recv() => Event::Asked(asked),
            _ = retries.tick(), if agent.has_to_retry() => Event::Retry,
            () = ready(()), if agent.is_reading() => Event::Read,
            // Hundreds at once keep nobody above from anything.
            notice = agent.elsewhere.next() => Event::Elsewhere(notice?),
            () = ready(()), if agent.is_behind() => Event::CatchUp,
        };
        match event {
            Event::Link(event) => agent.handle_link(NamespaceNumber::OWN, event),
            Event::Elsewhere(Notice::News(news)) => agent.handle_news(news),
            Event::Elsewhere(Notice::Look) => agent.handle_namespaces(),
            Event::CatchUp => agent.catch_up(),
            Event::Elsewhere(Notice::Ended) => {
                bail!("the thread that goes to other network namespaces ended")
            }
            Event::Registry(snapshot) => agent.handle_snapshot(snapshot),
            Event::Control(command) => agent.handle_control(command),
            Event::Reload(signal) => drop(agent.reload(signal)),
            Event::RegistryEnded(error) => {
                return Err(error).context("the registry can no longer be watched");
            }
            // What is left would serve nobody: whoever supervises the agent starts a whole one.
            Event::Ended(what) => bail!("{what} ended"),
            Event::Retry => {
                agent.retry();
                agent.handle_namespaces();
            }
            Event::Watchdog => agent.manager.tell_alive(),
            Event::Asked(asked) => agent.tell(asked),
            Event::Read => agent.read_on(),
            Event::Look => {}
            Event::Stop(signal) => {
                agent.manager.tell_stopping();
                log::info!("{signal}: stopping; the classifier stays on its taps, and the address is dark");
                upkeep.abort_all();
                agent.stop();
                return Ok(());
            }
        }
        agent.begin_if_ready()?;
        agent.tell_status();
    }
}

impl Agent {
    fn handle_link(&mut self, namespace: NamespaceNumber, event: LinkEvent) {
        let refused = match event {
            LinkEvent::Appeared { index, .. } | LinkEvent::Gone { index } => Some(index),
            LinkEvent::Listed | LinkEvent::ListedInPart => None,
        };
        let refused = refused.filter(|tap| self.refused.contains_key(tap));
        match event {
            LinkEvent::Appeared {
                index,
                name,
                mac,
                is_tap: true,
            } if self.taps.select(&name) => {
                let changes = self.bindings.handle_tap(index, &name, mac, &self.snapshot);
                self.apply(changes);
            }
            LinkEvent::Listed => {
                self.detach_untold(namespace);
                self.handle_listed(namespace);
            }
            LinkEvent::ListedInPart => self.handle_listed(namespace),
            // Also one that was renamed to what is none of our business.
            LinkEvent::Appeared { index, .. } | LinkEvent::Gone { index } => {
                let changes = self.bindings.handle_gone(index, &self.snapshot);
                self.apply(changes);
            }
        }
        if let Some(tap) = refused {
            // What it was refused for may be over.
            self.retry_tap(tap);
        }
    }

    /// Every tap of a namespace was told: what an earlier agent left on others is taken off.
    fn detach_untold(&mut self, namespace: NamespaceNumber) {
        let others: Vec<_> = self
            .classifier
            .attached()
            .filter(|tap| tap.namespace() == namespace && self.bindings.tap(*tap).is_none())
            .collect();
        self.apply(others.into_iter().map(Change::Detach));
    }

    /// Every tap of a namespace was told, as far as the kernel can tell.
    fn handle_listed(&mut self, namespace: NamespaceNumber) {
        if namespace == NamespaceNumber::OWN {
            self.signer.handle_listed();
            self.work.handle_listed();
        }
        self.handle_told(namespace);
    }

    /// There is nothing (more) to be told of a namespace. Once that is so everywhere, all is told.
    fn handle_told(&mut self, namespace: NamespaceNumber) {
        self.untold.remove(&namespace);
        if self.untold.is_empty() {
            self.applied.send_replace(Some(self.snapshot.revision));
        }
    }

    fn has_to_retry(&self) -> bool {
        !self.refused.is_empty()
            || self.elsewhere.has_refused()
            || self.classifier.left_behind().next().is_some()
    }

    fn tell_status(&mut self) {
        let taps = self.bindings.count();
        self.manager.tell_status(self.snapshot.instances.len(), taps);
    }

    fn begin_if_ready(&mut self) -> Result<()> {
        let (snapshot, facts, untold) = (&self.snapshot, &self.facts, &self.untold);
        let begun = self
            .work
            .begin_if(|| untold.is_empty() && has_first_sets(snapshot, facts));
        if begun.context("cannot start a worker")? {
            log::info!(
                "ready: {} instances, {} taps",
                self.snapshot.instances.len(),
                self.bindings.count()
            );
            self.manager.tell_ready();
        }
        Ok(())
    }

    fn handle_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        log::info!(
            "registry revision {}: {} instances",
            snapshot.revision,
            snapshot.instances.len()
        );
        self.signer.handle_snapshot(Arc::clone(&snapshot));
        self.facts.guests.handle_snapshot(&snapshot);
        let changes = self.bindings.handle_snapshot(&snapshot);
        self.snapshot = snapshot;
        self.loaded = Timestamp::now();
        self.apply(changes);
        // Before all taps are told nothing is applied, whatever the registry says meanwhile.
        let revision = self.snapshot.revision;
        self.applied
            .send_if_modified(|applied| applied.is_some() && applied.replace(revision) != Some(revision));
    }

    fn handle_control(&mut self, command: control::Command) {
        // Whoever asked may have gone meanwhile.
        match command {
            control::Command::Describe(answer) => drop(answer.send(self.describe())),
            control::Command::DescribeRefused(answer) => drop(answer.send(self.describe_refused())),
            control::Command::DescribeNamespaces(answer) => drop(answer.send(self.elsewhere.describe())),
            control::Command::Measure(taps, answer) => self.measure(taps, answer),
            control::Command::Reload(answer) => drop(answer.send(self.reload("the control socket"))),
        }
    }

    /// Puts in force what a changed configuration says. With a mistake in it nothing changes.
    fn reload(&mut self, why: &str) -> Result<Reloaded, String> {
        self.manager.tell_reloading();
        let reloaded = self.reload.read(why);
        self.manager.tell_reloaded();
        let reloaded = reloaded?;
        let config = self.reload.config();
        self.rules.send_replace(config.rules());
        self.control.store.set_rules(config.rules());
        self.bindings.set_packets_per_second(config.packets_per_second());
        if self.taps != config.taps {
            self.taps = config.taps.clone();
            // Those that are selected no more are detached then.
            self.links.tell_again();
            self.elsewhere.tell_again();
        }
        self.handle_namespaces();
        let changes = self.bindings.handle_snapshot(&self.snapshot);
        self.apply(changes);
        Ok(reloaded)
    }

    /// Ends the workers and tells what was counted.
    fn stop(self) {
        self.work.stop();
        for (worker, requests) in self.requests.iter().enumerate() {
            log::info!("counted: worker {worker}: {requests}");
        }
        let Facts {
            guests,
            panics,
            audit,
            ..
        } = &self.facts;
        log::info!("counted: {}", guests.totals());
        log::info!("counted: {panics}");
        let [of_roles, of_identities] = &self.fetches;
        log::info!("counted: sets of credentials: {of_roles}; of instance identities: {of_identities}");
        audit.flush();
        let (written, lost) = (audit.written(), audit.lost());
        log::info!("counted: {written} events in the audit trail, {lost} lost");
        for (tap, name, _) in self.bindings.taps() {
            match self.classifier.counters(tap) {
                Ok(counters) => log::info!("counted: tap {name}: {counters}"),
                Err(error) => log::warn!("{error:#}"),
            }
        }
    }
}

/// Where the last agent assigned the taps that it bound.
fn assigned(classifier: &Classifier) -> Vec<(TapIndex, WorkerNumber)> {
    let taps = classifier.attached().chain(classifier.left_behind());
    let assigned = taps.filter_map(|tap| {
        let binding = classifier.binding(tap).ok()??;
        Some((tap, binding.worker))
    });
    assigned.collect()
}

/// Whether every role session has been answered for once.
fn has_first_sets(snapshot: &Snapshot, facts: &Facts) -> bool {
    let now = Timestamp::now();
    let mut sessions = snapshot.instances.values().filter_map(|member| {
        let role = member.role.as_ref()?;
        Some((&member.instance.instance_id, role))
    });
    sessions.all(|(instance, role)| facts.credentials.state(instance, role, now).is_some())
}
