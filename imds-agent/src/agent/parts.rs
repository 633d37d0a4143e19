//! What the agent is composed of, each as the configuration has it.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::sync::watch;

use crate::{
    config::Config,
    credentials::{Issuer, Refresher, Sources, Totals, refresh::Watch, schedule::Kind},
    datapath::{Classifier, Injector},
    identity_files,
    identity_signer::Signer,
    imds::{
        Imds,
        token::{TokenKey, TokenKeys},
    },
    keys::{self, Key, Purpose},
    observe::{Audit, Metrics, StsExchanges, audit, metrics},
    registry::Problem,
    worker::{Facts, Worker},
};

/// A worker for each of the classifier's rings, and for each of `facts`.
pub(super) fn workers(
    config: &Config,
    classifier: &mut Classifier,
    facts: Vec<Facts>,
) -> Result<Vec<Worker>> {
    let key: keys::TokenKey = Key::load_or_create(&config.token_key_path(), Purpose::Token)?;
    let keys = Arc::new(TokenKeys::new(TokenKey::new(key.id, *key.secret()), Vec::new()));
    let started = Instant::now();
    let worker = |(ring, facts)| {
        let imds = Imds::new(Arc::clone(&keys), StdRng::from_rng(&mut rand::rng()));
        Ok(Worker {
            started,
            ring,
            injector: Injector::new()?,
            imds: imds.with_extended_credentials(config.extended_credentials()),
            facts,
        })
    };
    classifier.rings().into_iter().zip(facts).map(worker).collect()
}

pub(super) fn refresher(config: &Config, facts: &Facts, issuer: &Arc<Issuer>) -> Refresher {
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

/// Everybody who has metrics to tell, but the agent's own loop, which is asked by the endpoint.
pub(super) fn metrics(
    facts: &Facts,
    of_workers: &[Facts],
    problems: watch::Receiver<Arc<[Problem]>>,
    fetches: &[Arc<Totals>; 2],
    exchanges: &Arc<StsExchanges>,
) -> Metrics {
    let counts = |facts: &Facts| (Arc::clone(&facts.requests), Arc::clone(&facts.health));
    Metrics::default()
        .with(metrics::Workers(of_workers.iter().map(counts).collect()))
        .with(metrics::Records {
            registry: Arc::clone(&facts.registry),
            problems,
        })
        .with(metrics::Credentials {
            profiles: Arc::clone(&facts.credentials),
            identities: Arc::clone(&facts.identity_credentials),
            fetches: fetches.clone(),
        })
        .with(metrics::Exchanges(Arc::clone(exchanges)))
        .with(metrics::Trail {
            audit: facts.audit.clone(),
            trace: facts.trace.clone(),
        })
        .with(facts.guests.clone())
        .with(Arc::clone(&facts.panics))
        .with(metrics::Process::starting())
}

/// Writes down what sources answer.
pub(super) fn assumptions(audit: &Audit) -> Watch {
    let audit = audit.clone();
    Box::new(move |assumption| audit.record(audit::assumption(assumption)))
}

pub(super) fn identity_refresher(config: &Config, facts: &Facts, issuer: &Arc<Issuer>) -> Refresher {
    Refresher::new(
        Kind::InstanceIdentity,
        // No other source can vouch for what an instance is.
        Arc::<Issuer>::clone(issuer),
        Arc::clone(&facts.identity_credentials),
        config.credentials().duration_seconds,
    )
}

pub(super) fn signer(config: &Config, facts: &Facts) -> Result<Signer> {
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
