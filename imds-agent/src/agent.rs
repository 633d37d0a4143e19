//! Composes everything and keeps it running: taps from the kernel, instances from the registry, bindings between the two.

use std::{
    collections::BTreeSet,
    fmt, io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use imds_ebpf::abi::{TapBinding, TapIndex};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};

use crate::{
    bindings::{Bindings, Change},
    config::{Config, Taps},
    credentials::{Issuer, IssuerKeys, Refresher, Sources, issuer_keys, refresh::Watch, schedule::Kind},
    datapath::{
        Classifier, GracePeriods, Injector,
        link_watch::{LinkEvent, LinkWatch},
    },
    identity_files,
    identity_signer::Signer,
    imds::{
        Imds,
        token::{TokenKey, TokenKeys},
    },
    keys::{self, Key, Purpose},
    observe::{Audit, Requests, audit},
    registry::{Directory, Snapshot},
    sts,
    worker::{self, Facts, Worker},
};

/// How long the kernel is left alone with what it refused.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What wakes the agent.
enum Event {
    Link(LinkEvent),
    Registry(Arc<Snapshot>),
    RegistryEnded(io::Error),
    Ended(&'static str),
    Retry,
    Stop(&'static str),
}

/// The running agent.
struct Agent {
    taps: Taps,
    classifier: Classifier,
    grace_periods: GracePeriods,
    bindings: Bindings,
    snapshot: Arc<Snapshot>,
    signer: Signer,
    worker: worker::Handle,
    /// Taps on which the kernel refused something that is to be tried again.
    refused: BTreeSet<TapIndex>,
    requests: Arc<Requests>,
    audit: Audit,
}

/// Serves until SIGTERM or SIGINT. The classifier stays on the taps then, so that the address goes dark and not astray.
pub async fn run(config: Config) -> Result<()> {
    let mut stop = Stop::new()?;
    Directory::create(&config.state_directory).context("cannot make the state directory")?;
    let directory = Directory::open(&config.state_directory, config.rules())?;
    let mut snapshots = directory.snapshots();
    let audit = match config.audit_file() {
        Some(path) => Audit::start(path).context("cannot start the audit trail")?,
        None => Audit::default(),
    };
    let facts = Facts {
        audit,
        ..Facts::default()
    };
    let keys = config.keys_directory();
    let issuer_keys = IssuerKeys::load_or_create(&keys)?;
    let issuer = Arc::new(Issuer::new(&issuer_keys.newest, &issuer_keys.accepted));
    let refresher = refresher(&config, &facts, &issuer).watched_by(assumptions(&facts.audit));
    let signer = signer(&config, &facts)?;
    let mut classifier = Classifier::load(&config.bpf_directory)?;
    let worker = Worker {
        ring: classifier
            .rings()
            .into_iter()
            .next()
            .context("the classifier has no ring")?,
        injector: Injector::new()?,
        imds: imds(&config)?,
        facts: facts.clone(),
    };
    let snapshot = Arc::clone(&snapshots.borrow_and_update());
    signer.handle_snapshot(Arc::clone(&snapshot));
    let (worker, mut worker_ended) = worker.start(0).context("cannot start a worker")?;
    let mut agent = Agent {
        bindings: Bindings::new(config.packets_per_second()),
        taps: config.taps.clone(),
        classifier,
        grace_periods: GracePeriods::open(),
        snapshot,
        signer,
        worker,
        refused: BTreeSet::new(),
        requests: Arc::clone(&facts.requests),
        audit: facts.audit.clone(),
    };
    // All of it ends with this function.
    let mut upkeep = JoinSet::new();
    if let Some(settings) = config.sts_endpoint() {
        let service = sts::Service::new(Arc::clone(&issuer));
        let registry = Arc::clone(&facts.registry);
        let audit = facts.audit.clone();
        let watch = move |exchange: &sts::Exchange<'_>| {
            if let Some(event) = audit::exchange(exchange) {
                audit.record(event);
            }
        };
        let endpoint = sts::Endpoint::bind(&settings, service, registry, Box::new(watch)).await;
        upkeep.spawn(endpoint.context("the security token service cannot start")?.run());
    }
    upkeep.spawn(refresher.run(directory.snapshots()));
    let refresher = identity_refresher(&config, &facts, &issuer).watched_by(assumptions(&facts.audit));
    upkeep.spawn(refresher.run(directory.snapshots()));
    upkeep.spawn(issuer_keys::follow(issuer, keys, issuer_keys));
    let mut registry_watch = tokio::spawn(directory.watch(facts.registry));
    let mut links = LinkWatch::new()?;
    loop {
        let event = tokio::select! {
            biased;
            signal = stop.signal() => Event::Stop(signal),
            event = links.next() => Event::Link(event?),
            Ok(()) = snapshots.changed() => Event::Registry(Arc::clone(&snapshots.borrow_and_update())),
            ended = &mut registry_watch => Event::RegistryEnded(ended?),
            _ = &mut worker_ended => Event::Ended("the worker"),
            Some(_) = upkeep.join_next() => Event::Ended("the upkeep of credentials"),
            () = tokio::time::sleep(RETRY_AFTER), if !agent.refused.is_empty() => Event::Retry,
        };
        match event {
            Event::Link(event) => agent.handle_link(event),
            Event::Registry(snapshot) => agent.handle_snapshot(snapshot),
            Event::RegistryEnded(error) => {
                return Err(error).context("the registry can no longer be watched");
            }
            // What is left would serve nobody: whoever supervises the agent starts a whole one.
            Event::Ended(what) => bail!("{what} ended"),
            Event::Retry => agent.retry(),
            Event::Stop(signal) => {
                log::info!("{signal}: stopping; the classifier stays on its taps, and the address is dark");
                upkeep.abort_all();
                agent.stop();
                return Ok(());
            }
        }
    }
}

impl Agent {
    fn handle_link(&mut self, event: LinkEvent) {
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
            LinkEvent::Listed => self.handle_listed(),
            // Also one that was renamed to what is none of our business.
            LinkEvent::Appeared { index, .. } | LinkEvent::Gone { index } => {
                let changes = self.bindings.handle_gone(index, &self.snapshot);
                self.apply(changes);
            }
        }
    }

    /// Every tap was told: what an earlier agent left on others is taken off.
    fn handle_listed(&mut self) {
        let ours: BTreeSet<_> = self.bindings.taps().map(|(tap, ..)| tap).collect();
        let others: Vec<_> = self
            .classifier
            .attached()
            .filter(|tap| !ours.contains(tap))
            .collect();
        self.apply(others.into_iter().map(Change::Detach));
        log::info!(
            "ready: {} instances, {} taps",
            self.snapshot.instances.len(),
            ours.len()
        );
    }

    fn handle_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        log::info!(
            "registry revision {}: {} instances",
            snapshot.revision,
            snapshot.instances.len()
        );
        self.signer.handle_snapshot(Arc::clone(&snapshot));
        let changes = self.bindings.handle_snapshot(&snapshot);
        self.snapshot = snapshot;
        self.apply(changes);
    }

    /// Carries changes out. One that the kernel refuses costs its tap the service, and nobody else anything.
    fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            let tap = change.tap();
            if let Err(error) = self.try_apply(change) {
                log::error!("{error:#}; trying again every {RETRY_AFTER:?}");
                self.refused.insert(tap);
            }
        }
    }

    /// Tries again what the kernel refused, and says so only where it works now.
    fn retry(&mut self) {
        for tap in std::mem::take(&mut self.refused) {
            let changes = self.bindings.repeat(tap);
            match changes.into_iter().try_for_each(|change| self.try_apply(change)) {
                Ok(()) => log::info!("tap {}: the kernel no longer refuses", self.name(tap)),
                Err(error) => {
                    log::debug!("{error:#}");
                    self.refused.insert(tap);
                }
            }
        }
    }

    fn try_apply(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Attach(tap) => {
                let is_new = !self.classifier.attached().any(|attached| attached == tap);
                let expedited = is_new.then(|| self.grace_periods.expedite());
                self.classifier.attach(tap)?;
                drop(expedited);
                if is_new {
                    log::info!("tap {}: attached", self.name(tap));
                }
            }
            Change::Bind(tap, binding, instance) => {
                self.worker.tell(worker::Command::Serve(tap, instance));
                self.classifier.bind(tap, binding)?;
                log::info!("tap {}: bound to {}", self.name(tap), Bound(binding));
            }
            Change::Amend(tap, binding) => {
                self.classifier.bind(tap, binding)?;
                log::info!("tap {}: now bound to {}", self.name(tap), Bound(binding));
            }
            Change::Unbind(tap, why) => {
                self.classifier.unbind(tap)?;
                self.worker.tell(worker::Command::Forget(tap));
                let level = if why.is_ambiguous() {
                    log::Level::Warn
                } else {
                    log::Level::Info
                };
                log::log!(level, "tap {}: bound to nobody: {why}", self.name(tap));
            }
            Change::Detach(tap) => {
                self.worker.tell(worker::Command::Forget(tap));
                self.classifier.detach(tap)?;
                log::info!("tap {tap}: detached");
            }
        }
        Ok(())
    }

    fn name(&self, tap: TapIndex) -> String {
        let name = self
            .bindings
            .taps()
            .find(|(index, ..)| *index == tap)
            .map(|(_, name, _)| name);
        name.map_or_else(|| tap.to_string(), str::to_owned)
    }

    /// Ends the worker and tells what was counted.
    fn stop(self) {
        self.worker.stop();
        log::info!("counted: {}", self.requests);
        self.audit.flush();
        let (written, lost) = (self.audit.written(), self.audit.lost());
        log::info!("counted: {written} events in the audit trail, {lost} lost");
        for (tap, name, _) in self.bindings.taps() {
            match self.classifier.counters(tap) {
                Ok(counters) => log::info!("counted: tap {name}: {counters}"),
                Err(error) => log::warn!("{error:#}"),
            }
        }
    }
}

/// A binding as the log tells it.
struct Bound(TapBinding);

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let also = if self.0.serves_ipv6() { ", IPv6 too" } else { "" };
        write!(f, "{}{also}", self.0.mac)
    }
}

fn imds(config: &Config) -> Result<Imds> {
    let key: keys::TokenKey = Key::load_or_create(&config.token_key_path(), Purpose::Token)?;
    let keys = TokenKeys::new(TokenKey::new(key.id, *key.secret()), Vec::new());
    let imds = Imds::new(Arc::new(keys), StdRng::from_rng(&mut rand::rng()));
    Ok(imds.with_extended_credentials(config.extended_credentials()))
}

fn refresher(config: &Config, facts: &Facts, issuer: &Arc<Issuer>) -> Refresher {
    let settings = config.credentials();
    let duration_seconds = settings.duration_seconds;
    let sources = Sources::new(settings, Arc::clone(issuer));
    Refresher::new(
        Kind::InstanceProfile,
        Arc::new(sources),
        Arc::clone(&facts.credentials),
        duration_seconds,
    )
}

/// Writes down what sources answer.
fn assumptions(audit: &Audit) -> Watch {
    let audit = audit.clone();
    Box::new(move |assumption| audit.record(audit::assumption(assumption)))
}

fn identity_refresher(config: &Config, facts: &Facts, issuer: &Arc<Issuer>) -> Refresher {
    Refresher::new(
        Kind::InstanceIdentity,
        // No other source can vouch for what an instance is.
        Arc::<Issuer>::clone(issuer),
        Arc::clone(&facts.identity_credentials),
        config.credentials().duration_seconds,
    )
}

fn signer(config: &Config, facts: &Facts) -> Result<Signer> {
    let keys = identity_files::load_or_create(&config.keys_directory(), &host_name(), unix_time())?;
    Signer::start(keys, Arc::clone(&facts.identities))
        .context("cannot start the signer of identity documents")
}

/// What the host's own certificate is made out to.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() {
        "imds-agent".to_owned()
    } else {
        name.trim().to_owned()
    }
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The signals that end the agent.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn signal(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
