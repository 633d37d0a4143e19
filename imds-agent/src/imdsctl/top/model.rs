//! What `imdsctl top` knows: requests of the last seconds by interface, and how the agent says its taps are. Pure: lines of the
//! agent's answers and the time come in, rows go out.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Rates and latencies are those of so many seconds.
const WINDOW_SECONDS: u64 = 5;
const WINDOW: Duration = Duration::from_secs(WINDOW_SECONDS);

/// What rows are ordered by, the most first; their instances where it is the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Sort {
    /// Requests a second.
    #[default]
    Requests,
    /// The longest latency.
    Latency,
    /// Refused requests a second.
    Refused,
    /// Frames dropped a second.
    Drops,
    /// The scarcest limit, by its share that is left.
    Left,
    /// Connections with requests.
    Connections,
    /// The credentials that expire first.
    Expiry,
    /// The instance's id, ascending.
    Instance,
}

/// One interface.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Whose it is.
    pub instance_id: Option<String>,
    /// The MAC that is served on it.
    pub mac_address: Option<String>,
    /// The tap; nothing for one that is gone, or not told yet.
    pub tap: Option<String>,
    /// Why the tap is bound to nobody, or what the kernel refuses.
    pub reason: Option<String>,
    /// Requests a second, of the last seconds.
    pub requests_per_second: f64,
    /// How many of them were refused.
    pub refused_per_second: f64,
    /// Frames that the classifier dropped a second.
    pub dropped_per_second: f64,
    /// Connections that had requests in the last seconds.
    pub connections: usize,
    /// What is left of its limits.
    pub limits: Vec<Limit>,
    /// How the credentials of its instance's role are, if it has one.
    pub credentials: Option<String>,
    /// Until they expire.
    pub credentials_remaining_seconds: Option<u64>,
    /// From a request's last frame to its response, on average.
    pub latency_mean_seconds: Option<f64>,
    /// The longest.
    pub latency_max_seconds: Option<f64>,
}

/// What is left of one limit, as the agent tells it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// Of packets, requests or connections.
    pub limit: String,
    /// So much.
    pub left: u64,
    /// Of so much.
    pub of: u64,
    /// It is next to nothing.
    pub is_reached: bool,
}

/// The agent as a whole.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Whether the agent says that all taps are told and dealt with.
    pub ready: bool,
    /// Instances in force.
    pub instances: u64,
    /// Sessions of roles that have credentials.
    pub credentials_ready: u64,
    /// Those that wait for their first ones.
    pub credentials_pending: u64,
    /// Those that their source refuses.
    pub credentials_refused: u64,
    /// Requests that came too fast to be told, since the start.
    pub lost_requests: u64,
}

/// All that is known.
#[derive(Debug)]
pub struct Model {
    started: Instant,
    /// By instance and MAC.
    interfaces: BTreeMap<(Option<String>, String), Recent>,
    taps: Vec<Row>,
    /// What each tap had dropped, the latest at the end.
    dropped: HashMap<String, VecDeque<(Instant, u64)>>,
    summary: Summary,
}

/// The last seconds of one interface, the latest at the end.
#[derive(Default, Debug)]
struct Recent {
    seconds: VecDeque<(u64, Second)>,
}

#[derive(Default, Debug)]
struct Second {
    requests: u64,
    refused: u64,
    ports: BTreeSet<u64>,
    timed: u64,
    latency_sum: f64,
    latency_max: f64,
}

impl Model {
    /// Knows nothing yet.
    pub fn new(now: Instant) -> Self {
        Self {
            started: now,
            interfaces: BTreeMap::new(),
            taps: Vec::new(),
            dropped: HashMap::new(),
            summary: Summary::default(),
        }
    }

    /// One line of `/v1/trace`: a request, or how many were missed.
    pub fn handle_request(&mut self, now: Instant, told: &Value) {
        if let Some(lost) = told["lost"].as_u64() {
            self.summary.lost_requests += lost;
            return;
        }
        let Some(mac) = told["mac"].as_str() else { return };
        let second = self.second(now);
        let interface = (said(told, "instance"), mac.to_owned());
        let recent = self.interfaces.entry(interface).or_default();
        if recent.seconds.back().is_none_or(|(is, _)| *is != second) {
            recent.seconds.push_back((second, Second::default()));
            recent.forget(second);
        }
        let Some((_, counts)) = recent.seconds.back_mut() else {
            return;
        };
        counts.requests += 1;
        counts.refused += u64::from(!told["refusal"].is_null());
        counts.ports.extend(told["peer_port"].as_u64());
        if let Some(latency) = told["latency_seconds"].as_f64() {
            counts.timed += 1;
            counts.latency_sum += latency;
            counts.latency_max = counts.latency_max.max(latency);
        }
    }

    /// The answer of `/v1/status`.
    pub fn handle_status(&mut self, now: Instant, status: &Value) {
        let list = |field: &str| status[field].as_array().map_or(&[][..], Vec::as_slice);
        let taps = list("taps").iter().map(|tap| Row {
            instance_id: said(tap, "instanceId"),
            mac_address: said(tap, "macAddress"),
            tap: said(tap, "name"),
            reason: said(tap, "reason"),
            dropped_per_second: self.drops(now, tap),
            limits: Vec::deserialize(&tap["limits"]).unwrap_or_default(),
            credentials: said(&tap["credentials"], "state"),
            credentials_remaining_seconds: tap["credentials"]["remainingSeconds"].as_u64(),
            ..Row::default()
        });
        self.taps = taps.collect();
        let is_old = |at: &Instant| now.duration_since(*at) > WINDOW;
        self.dropped
            .retain(|_, told| told.back().is_some_and(|(at, _)| !is_old(at)));
        let sessions = |field: &str| {
            let roles = list("credentials").iter();
            roles.filter_map(|role| role[field].as_u64()).sum()
        };
        self.summary = Summary {
            ready: status["ready"] == true,
            instances: status["instances"].as_u64().unwrap_or_default(),
            credentials_ready: sessions("ready"),
            credentials_pending: sessions("pending"),
            credentials_refused: sessions("refused"),
            lost_requests: self.summary.lost_requests,
        };
        let second = self.second(now);
        self.interfaces.retain(|_, recent| {
            recent.forget(second);
            !recent.seconds.is_empty()
        });
    }

    /// The agent as a whole.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Every tap, and every interface that had requests in the last seconds.
    pub fn rows(&self, now: Instant, sort: Sort) -> Vec<Row> {
        let of = |row: &Row| Some((row.instance_id.clone(), row.mac_address.clone()?));
        let told: HashSet<_> = self.taps.iter().filter_map(of).collect();
        let untold = self.interfaces.keys().filter(|of| !told.contains(of));
        let untold = untold.map(|(instance, mac)| Row {
            instance_id: instance.clone(),
            mac_address: Some(mac.clone()),
            ..Row::default()
        });
        let mut rows: Vec<Row> = self.taps.iter().cloned().chain(untold).collect();
        for row in &mut rows {
            let recent = of(row).and_then(|of| self.interfaces.get(&of));
            if let Some(recent) = recent {
                self.count(row, recent, now);
            }
        }
        let most = |row: &Row| match sort {
            Sort::Requests => row.requests_per_second,
            Sort::Latency => row.latency_max_seconds.unwrap_or_default(),
            Sort::Refused => row.refused_per_second,
            Sort::Drops => row.dropped_per_second,
            Sort::Left => -row.scarcest().map_or(1.0, Limit::share),
            Sort::Connections => row.connections as f64,
            Sort::Expiry => {
                let remaining = row.credentials_remaining_seconds;
                -remaining.map_or(f64::INFINITY, |seconds| seconds as f64)
            }
            Sort::Instance => 0.0,
        };
        rows.sort_by(|one, other| {
            let name = |row: &Row| {
                (
                    Reverse(row.instance_id.is_some()),
                    row.instance_id.clone(),
                    row.tap.clone(),
                )
            };
            most(other)
                .total_cmp(&most(one))
                .then_with(|| name(one).cmp(&name(other)))
        });
        rows
    }

    fn count(&self, row: &mut Row, recent: &Recent, now: Instant) {
        let first = self.second(now).saturating_sub(WINDOW_SECONDS - 1);
        let seconds = || {
            recent
                .seconds
                .iter()
                .filter(|(is, _)| *is >= first)
                .map(|(_, second)| second)
        };
        // The last second is not over yet, and a new model has not seen all of them.
        let since = Duration::from_secs(first);
        let seen = now
            .duration_since(self.started)
            .saturating_sub(since)
            .as_secs_f64()
            .max(0.1);
        row.requests_per_second = seconds().map(|second| second.requests).sum::<u64>() as f64 / seen;
        row.refused_per_second = seconds().map(|second| second.refused).sum::<u64>() as f64 / seen;
        row.connections = seconds()
            .flat_map(|second| &second.ports)
            .collect::<BTreeSet<_>>()
            .len();
        let timed: u64 = seconds().map(|second| second.timed).sum();
        if timed > 0 {
            let sum: f64 = seconds().map(|second| second.latency_sum).sum();
            row.latency_mean_seconds = Some(sum / timed as f64);
            row.latency_max_seconds = seconds().map(|second| second.latency_max).reduce(f64::max);
        }
    }

    /// Frames that a tap drops a second, by how many it had dropped in the agent's last answers.
    fn drops(&mut self, now: Instant, tap: &Value) -> f64 {
        let (Some(name), Some(dropped)) = (said(tap, "name"), tap["framesDropped"].as_u64()) else {
            return 0.0;
        };
        let told = self.dropped.entry(name).or_default();
        // Less than before: another device has the name, and counted from nothing.
        if told.back().is_some_and(|(_, before)| *before > dropped) {
            told.clear();
        }
        told.push_back((now, dropped));
        while told
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > WINDOW)
        {
            told.pop_front();
        }
        match told.front() {
            Some((at, before)) if *at < now => {
                (dropped - before) as f64 / now.duration_since(*at).as_secs_f64()
            }
            _ => 0.0,
        }
    }

    fn second(&self, now: Instant) -> u64 {
        now.duration_since(self.started).as_secs()
    }
}

impl Row {
    /// The limit of which the smallest share is left.
    pub fn scarcest(&self) -> Option<&Limit> {
        let limits = self.limits.iter();
        limits.min_by(|one, other| one.share().total_cmp(&other.share()))
    }
}

impl Limit {
    /// The share that is left, at most one.
    pub fn share(&self) -> f64 {
        self.left as f64 / self.of.max(1) as f64
    }
}

impl Recent {
    fn forget(&mut self, second: u64) {
        while let Some((is, _)) = self.seconds.front()
            && *is + WINDOW_SECONDS <= second
        {
            self.seconds.pop_front();
        }
    }
}

impl Sort {
    /// The one after, and after the last the first.
    pub fn next(self) -> Self {
        let all = Self::value_variants();
        let at = all.iter().position(|sort| *sort == self).unwrap_or_default();
        all[(at + 1) % all.len()]
    }
}

fn said(value: &Value, field: &str) -> Option<String> {
    value[field].as_str().map(str::to_owned)
}
