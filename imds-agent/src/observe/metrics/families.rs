//! Every family of metrics that there may be, as a table.
//!
//! Names follow Prometheus's conventions: `imds_`, base units, and `_total` for counters, which the encoder adds as it adds the
//! unit. No label has a value that a guest chooses.

use imds_ebpf::abi::Reason;
use prometheus_client::{metrics::MetricType, registry::Unit};

use super::sources::ROLES_MAX;
use crate::observe::budget::LIMITS;

/// One row.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Family {
    /// Without the unit and `_total`.
    pub name: &'static str,
    /// What its numbers do.
    pub kind: Kind,
    /// In what they are.
    pub unit: Option<BaseUnit>,
    /// By what they are told apart.
    pub labels: &'static [&'static str],
    /// How many series there may be.
    pub series_max: usize,
    /// What it tells. Neither quotation marks nor backslashes.
    pub help: &'static str,
}

/// What a family's numbers do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// They grow.
    Counter,
    /// They come and go.
    Gauge,
    /// They are counted by size.
    Histogram,
    /// They are 1, and the labels say it all.
    Info,
}

/// In what numbers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BaseUnit {
    /// Never milliseconds.
    Seconds,
    /// Never kilobytes.
    Bytes,
}

impl Family {
    /// The name as expressions use it: with its unit, and `_total` or `_info`.
    pub fn full_name(&self) -> String {
        let unit = match self.unit {
            Some(BaseUnit::Seconds) => "_seconds",
            Some(BaseUnit::Bytes) => "_bytes",
            None => "",
        };
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        format!("{}{unit}{suffix}", self.name)
    }

    pub(super) fn unit(&self) -> Option<&'static Unit> {
        match self.unit {
            Some(BaseUnit::Seconds) => Some(&Unit::Seconds),
            Some(BaseUnit::Bytes) => Some(&Unit::Bytes),
            None => None,
        }
    }

    pub(super) fn metric_type(&self) -> MetricType {
        match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
            Kind::Info => MetricType::Info,
        }
    }
}

/// Writes the rows, and [`FAMILIES`] with all of them.
macro_rules! families {
    ($($row:ident: $kind:ident $name:literal $(in $unit:ident)? $([$($label:literal)+])? max $max:expr, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $row: &Family = &Family {
                name: $name,
                kind: Kind::$kind,
                unit: families!(@unit $($unit)?),
                labels: &[$($($label),+)?],
                series_max: $max,
                help: $help,
            };
        )+

        /// The table.
        pub const FAMILIES: &[&Family] = &[$($row),+];
    };
    (@unit $unit:ident) => { Some(BaseUnit::$unit) };
    (@unit) => { None };
}

families! {
    REQUESTS: Counter "imds_requests" ["version" "method" "status"] max 100,
        "Requests answered. version v2 has or asks for a session token, whatever that is worth; method other is what a guest made up.";
    REQUESTS_REFUSED: Counter "imds_requests_refused" ["reason"] max 15,
        "Requests not answered with what they ask for.";
    REQUESTS_MALFORMED: Counter "imds_requests_malformed" ["status"] max 10,
        "What was no complete request: malformed, too large, or too slow. None of it is in imds_requests_total.";
    REQUESTS_FORWARDED: Counter "imds_requests_forwarded" ["version"] max 2,
        "Requests with X-Forwarded-For: somebody asks through a proxy. Those of version v2 are refused.";
    REQUEST_DURATION: Histogram "imds_request_duration" in Seconds max 18,
        "From the arrival in the classifier of the frame that completes a request to the end of the system call that hands its response, and all others of its batch, to the kernel. Requests that a timer lets be answered are not in it.";
    SESSION_TOKENS: Counter "imds_session_tokens_minted" max 1,
        "Session tokens minted.";
    CREDENTIALS_DELIVERED: Counter "imds_role_credentials_delivered" ["kind"] max 2,
        "Sets of role credentials handed to guests, of roles in instance profiles and of the instance identity role.";
    METADATA_NO_TOKEN: Counter "imds_metadata_no_token" max 1,
        "Requests without a session token that were let in: CloudWatch's MetadataNoToken. imdsctl says whose they are.";
    METADATA_NO_TOKEN_REJECTED: Counter "imds_metadata_no_token_rejected" max 1,
        "Requests refused because their instance requires session tokens: CloudWatch's MetadataNoTokenRejected.";
    TOKENS_UNDELIVERED: Counter "imds_token_responses_undelivered" ["sign"] max 2,
        "Token responses that did not arrive: a router behind the guest said that the hop limit was used up (time-exceeded), or nobody acknowledged them (unacknowledged).";
    SIGHTINGS_LOST: Counter "imds_sightings_lost" max 1,
        "What came too fast for the report of its instance: a request without a session token, whose caller it does not list, or a token response that did not arrive, which it lacks. All of it is in the sums above.";

    FRAMES_PUNTED: Counter "imds_frames_punted" max 1,
        "Frames that the classifier handed to the agent, of all taps since the agent started.";
    FRAMES_HAIRPINNED: Counter "imds_frames_hairpinned" max 1,
        "ARP requests and NDP solicitations that the classifier answered in the kernel, of all taps since the agent started.";
    FRAMES_DROPPED: Counter "imds_frames_dropped" ["number" "reason"] max Reason::ALL.len(),
        "Frames that the classifier dropped, by the numbered reasons of the README, of all taps since the agent started.";
    TAP_FRAMES_PUNTED: Counter "imds_tap_frames_punted" ["tap"] max TAPS_MAX,
        "Only with per_tap: frames handed to the agent since the classifier was attached to the tap.";
    TAP_FRAMES_HAIRPINNED: Counter "imds_tap_frames_hairpinned" ["tap"] max TAPS_MAX,
        "Only with per_tap: frames answered in the kernel since the classifier was attached to the tap.";
    TAP_FRAMES_DROPPED: Counter "imds_tap_frames_dropped" ["tap" "number" "reason"] max TAP_REASONS_MAX,
        "Only with per_tap: frames dropped since the classifier was attached to the tap, for reasons that occurred.";
    CLASSIFIER: Info "imds_classifier" ["hook"] max 1,
        "The kind of hook that the classifier hangs on: tcx or clsact.";
    TAPS_ATTACHED: Gauge "imds_taps_attached" max 1,
        "Taps that have the classifier.";
    TAPS_BOUND: Gauge "imds_taps_bound" max 1,
        "Taps that are an instance's. On the others the address is dark.";
    TAPS_REFUSED: Gauge "imds_taps_refused" max 1,
        "Taps on which the kernel refused something that is tried again.";
    NAMESPACES: Gauge "imds_network_namespaces" ["state"] max 2,
        "Network namespaces besides the agent's own that are selected: served, or refused, which is tried again.";

    WORKERS: Gauge "imds_workers" max 1,
        "Datapath threads.";
    CONNECTIONS: Gauge "imds_connections" max 1,
        "TCP connections of guests, half-open ones included.";
    CONNECTIONS_TURNED_AWAY: Counter "imds_connections_turned_away" ["how"] max 2,
        "Connections past the limit of an interface: idle ones that were reset for others (reset), and SYNs that were dropped for want of room: after a second, for 256 later ones, or at once if they bring data (dropped). Guests repeat them.";
    RING_MALFORMED: Counter "imds_ring_records_malformed" max 1,
        "Records of the ring that were shorter than they said: never, unless classifier and agent disagree.";
    RING_STALE: Counter "imds_ring_frames_stale" max 1,
        "Frames that waited in the ring from before the agent started, and were passed over.";
    FRAMES_DISCARDED: Counter "imds_frames_discarded" ["reason"] max 3,
        "Frames that the classifier handed to the agent and that it did not take: no whole TCP segment (malformed), of a tap that is nobody's any more (not-served), or of one that pauses after a panic (paused).";
    FRAMES_INJECTED: Counter "imds_frames_injected" max 1,
        "Frames to guests that their taps took.";
    FRAMES_LOST: Counter "imds_frames_lost" max 1,
        "Frames to guests that their taps refused: gone, down, without a guest, or with a full queue; or that came while 2 GiB of frames waited behind taps' limits.";

    PANICS: Counter "imds_panics" ["of"] max 2,
        "Panics that were survived: of an interface, which lost its connections, or of a worker, which lost all of them. Please report them.";

    INSTANCES: Gauge "imds_registry_instances" max 1,
        "Instances on record.";
    ROLES: Gauge "imds_registry_roles" max 1,
        "Roles on record.";
    INSTANCE_PROFILES: Gauge "imds_registry_instance_profiles" max 1,
        "Instance profiles on record.";
    REVISION: Gauge "imds_registry_revision" max 1,
        "Grows by one with every change of the records that is in force.";
    LAST_LOAD: Gauge "imds_registry_last_load_timestamp" in Seconds max 1,
        "When the records in force were taken over, since the Unix epoch.";
    PROBLEMS: Gauge "imds_registry_problems" ["severity"] max 2,
        "What is wrong with records now: an error keeps a file's last good version in force, a warning has no effect.";

    SESSIONS: Gauge "imds_role_sessions" ["kind" "role" "state"] max 3 * SESSIONS_MAX,
        "Role sessions that have credentials (ready), that the source refuses (refused), or that have none yet or any more (empty).";
    CREDENTIALS_AGE: Gauge "imds_role_credentials_age" in Seconds ["kind" "role"] max SESSIONS_MAX,
        "Since the oldest set of a role that is served was fetched.";
    CREDENTIALS_REMAINING: Gauge "imds_role_credentials_remaining" in Seconds ["kind" "role"] max SESSIONS_MAX,
        "Until the first set of a role that is served expires.";
    FETCHES: Counter "imds_role_credentials_fetches" ["source" "outcome"] max 9,
        "Answers of the sources of role credentials.";
    STS_EXCHANGES: Counter "imds_sts_exchanges" ["action" "status"] max 30,
        "Requests to the security token service that the agent is, which were read whole. action other is one that it has not.";
    STS_THROTTLED: Counter "imds_sts_throttled" max 1,
        "Requests to that service that were refused because one peer sent too many.";
    AUDIT_WRITTEN: Counter "imds_audit_events_written" max 1,
        "Events in the audit trail.";
    AUDIT_LOST: Counter "imds_audit_events_lost" max 1,
        "Events that are in no audit trail, because the queue or the disk was full.";
    TRACE_LISTENERS: Gauge "imds_trace_listeners" max 1,
        "Operators who watch live requests.";
    TRACE_LOST: Counter "imds_trace_requests_lost" max 1,
        "Live requests that those who watch were too slow for.";

    LIMIT_PACKETS: Gauge "imds_limit_packets_per_second" max 1,
        "Packets of one tap that are served in a second; 0 is no limit.";
    LIMIT_REQUESTS: Gauge "imds_limit_requests_per_second" max 1,
        "Requests of one interface that are answered in a second; 0 is no limit.";
    LIMIT_CONNECTIONS: Gauge "imds_limit_connections_per_interface" max 1,
        "Connections that one interface may have.";
    LIMIT_USER_DATA: Gauge "imds_limit_user_data" in Bytes max 1,
        "The longest user data.";
    LIMIT_TAPS: Gauge "imds_limit_taps" max 1,
        "Taps that a host may have.";
    BUDGET_LEFT_MIN: Gauge "imds_budget_left_min" ["limit"] max LIMITS.len(),
        "The least that any bound tap has left of a limit at this moment: of the packets and the requests of its burst, and of its connections. Absent where there is no limit, and while a worker does not answer.";
    TAPS_AT_LIMIT: Gauge "imds_taps_at_limit" ["limit"] max LIMITS.len(),
        "Bound taps that have less than a sixteenth of a limit left at this moment. Absent where there is no limit, and while a worker does not answer.";
    TAP_BUDGET_LEFT: Gauge "imds_tap_budget_left" ["tap" "limit"] max TAP_LIMITS_MAX,
        "Only with per_tap: what a bound tap has left of a limit at this moment.";
    BUILD: Info "imds_build" ["version" "abi"] max 1,
        "The agent's version, and that of what it shares with the classifier.";
    START_TIME: Gauge "process_start_time" in Seconds max 1,
        "When the agent started, since the Unix epoch.";
}

const TAPS_MAX: usize = imds_ebpf::abi::TAPS_MAX as usize;
const TAP_REASONS_MAX: usize = Reason::ALL.len() * TAPS_MAX;
const TAP_LIMITS_MAX: usize = LIMITS.len() * TAPS_MAX;

/// Each role and what is past the bound, and the instance identity role.
const SESSIONS_MAX: usize = ROLES_MAX + 2;
