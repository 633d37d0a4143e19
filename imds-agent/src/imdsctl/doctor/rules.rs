//! What can be wrong between a guest and the service, whatever its software is, as a table.

use super::{
    client::{Outcome, endpoint_command, modify, tokens_command},
    facts::Facts,
};

/// One thing that can be wrong.
pub(super) struct Rule {
    /// As `--json` calls it.
    pub(super) id: &'static str,
    /// Where the rule comes from.
    pub(super) source: &'static str,
    pub(super) look: fn(&Facts) -> Vec<Symptom>,
}

/// Something that is wrong, or should be known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Symptom {
    pub(super) outcome: Outcome,
    pub(super) why: String,
    pub(super) fix: Option<String>,
}

/// All of it.
pub(super) const RULES: &[Rule] = &[
    Rule {
        id: "not-in-force",
        source: "docs/control.md",
        look: not_in_force,
    },
    Rule {
        id: "binding",
        source: "docs/instance-records.md",
        look: not_bound,
    },
    Rule {
        id: "mac",
        source: "docs/instance-records.md",
        look: other_mac,
    },
    Rule {
        id: "endpoint",
        source: "docs/wire-contract.md, HttpEndpoint",
        look: endpoint,
    },
    Rule {
        id: "frames",
        source: "imds-ebpf/src/abi.rs, Reason",
        look: frames,
    },
    Rule {
        id: "tokenless",
        source: "docs/wire-contract.md, HttpTokens",
        look: tokenless,
    },
    Rule {
        id: "hop-limit",
        source: "docs/wire-contract.md, HttpPutResponseHopLimit",
        look: hop_limit,
    },
    Rule {
        id: "role",
        source: "docs/credentials.md",
        look: role,
    },
    Rule {
        id: "public-keys",
        source: "docs/instance-records.md",
        look: public_keys,
    },
];

/// A reason for which frames are dropped, and what it means.
struct Drop {
    reason: &'static str,
    outcome: Outcome,
    why: &'static str,
    fix: &'static str,
}

/// The reasons that have a meaning to operators. What is not here is told with its name alone.
const DROPS: &[Drop] = &[
    Drop {
        reason: "source-mac-forged",
        outcome: Outcome::Blocked,
        why: "the guest sends with another MAC than the record's, and is not answered",
        fix: "the guest's MAC into NetworkInterfaces.MacAddress, or the record's into the guest",
    },
    Drop {
        reason: "tap-unbound",
        outcome: Outcome::Notice,
        why: "the guest asked before its tap was bound",
        fix: "the record before the machine is started",
    },
    Drop {
        reason: "vlan-tagged",
        outcome: Outcome::Blocked,
        why: "the guest sends to the address inside a VLAN tag, where nobody answers",
        fix: "a route in the guest for 169.254.169.254 on the untagged interface",
    },
    Drop {
        reason: "ipv6-disabled",
        outcome: Outcome::Notice,
        why: "the guest asks at the IPv6 address, and HttpProtocolIpv6 is disabled",
        fix: "imdsctl metadata-options modify INSTANCE --http-protocol-ipv6 enabled",
    },
    Drop {
        reason: "rate-limited",
        outcome: Outcome::Blocked,
        why: "the guest asks more often than it may, and loses frames",
        fix: "less of it in the guest, or a higher packets_per_second in the agent's configuration",
    },
    Drop {
        reason: "ring-full",
        outcome: Outcome::Blocked,
        why: "the agent could not take frames as fast as they came",
        fix: "imdsctl status: whether the workers are well",
    },
    Drop {
        reason: "address-claimed",
        outcome: Outcome::Notice,
        why: "software in the guest claims the metadata address for itself",
        fix: "no 169.254.169.254 on any interface of the guest",
    },
    Drop {
        reason: "frame-too-long",
        outcome: Outcome::Notice,
        why: "the guest sends frames longer than any window offers",
        fix: "an MTU of 1500 or less for the address in the guest",
    },
    Drop {
        reason: "inbound-forged",
        outcome: Outcome::Notice,
        why: "somebody on the guest's network claims to be the metadata address",
        fix: "the network searched for whoever has 169.254.169.254",
    },
];

impl Symptom {
    fn new(outcome: Outcome, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            outcome,
            why: why.into(),
            fix: Some(fix.into()),
        }
    }
}

fn not_in_force(facts: &Facts) -> Vec<Symptom> {
    if facts.is_applied {
        return Vec::new();
    }
    let why = match facts.errors.first() {
        Some(error) => format!("the record as it stands is not in force; wrong with the records is {error}"),
        None => "the record as it stands is not in force yet".to_owned(),
    };
    vec![Symptom::new(
        Outcome::Blocked,
        why,
        "imdsctl status; imds-agent check",
    )]
}

fn not_bound(facts: &Facts) -> Vec<Symptom> {
    if facts.interfaces.is_empty() {
        let fix = "NetworkInterfaces with a MacAddress and a Tap in the record";
        return vec![Symptom::new(
            Outcome::Blocked,
            "the record has no network interface",
            fix,
        )];
    }
    let is_served = facts.interfaces.iter().any(|interface| interface.is_bound);
    // Software asks through the interface of its default route, which is the first.
    let outcome = |index: usize| {
        if index == 0 || !is_served {
            Outcome::Blocked
        } else {
            Outcome::Notice
        }
    };
    let dark = facts.interfaces.iter().enumerate();
    let dark = dark.filter(|(_, interface)| !interface.is_bound);
    let told = dark.map(|(index, interface)| {
        let mac = &interface.mac;
        let (why, fix) = match (&interface.tap, &interface.why_not) {
            (Some(tap), Some(why)) => (
                format!("{mac}: nobody is served at {tap}: {why}"),
                format!("MacAddress and Tap of {mac} in the record"),
            ),
            (Some(tap), None) => (
                format!("{mac}: the agent has no tap {tap}: the machine does not run, or taps in the configuration leaves it out"),
                match tap.split_once('/') {
                    Some((namespace, tap)) => format!("ip -n {namespace} link show {tap}; network_namespaces and taps in /etc/imds-agent/config.toml"),
                    None => format!("ip link show {tap}; taps in /etc/imds-agent/config.toml"),
                },
            ),
            (None, _) => (
                format!("{mac}: the record names no tap, and none with a MAC that tells the guest's is there"),
                format!("Tap for {mac} in the record"),
            ),
        };
        Symptom::new(outcome(index), why, fix)
    });
    told.collect()
}

fn other_mac(facts: &Facts) -> Vec<Symptom> {
    let Some(machine) = &facts.machine.interfaces else {
        return Vec::new();
    };
    if facts.interfaces.is_empty() {
        // `not_bound` says so.
        return Vec::new();
    }
    let mut symptoms = Vec::new();
    for recorded in &facts.interfaces {
        let mac = &recorded.mac;
        if machine.iter().any(|interface| interface.mac == *mac) {
            continue;
        }
        let same_tap = machine
            .iter()
            .find(|interface| interface.tap.is_some() && interface.tap == recorded.tap);
        let why = match same_tap {
            Some(interface) => format!(
                "the record has {mac} at {}, but the machine's interface there is {}",
                recorded.tap.as_deref().unwrap_or_default(),
                interface.mac
            ),
            None => format!("the record has {mac}, which no interface of the machine has"),
        };
        let fix = "the machine's MAC into NetworkInterfaces.MacAddress; imdsctl libvirt import writes it from libvirt";
        symptoms.push(Symptom::new(Outcome::Blocked, why, fix));
    }
    let unknown = machine.iter().filter(|interface| {
        !facts
            .interfaces
            .iter()
            .any(|recorded| recorded.mac == interface.mac)
    });
    if symptoms.is_empty() {
        symptoms.extend(unknown.map(|interface| {
            let why = format!(
                "the machine's interface {} is not in the record: nobody answers there",
                interface.mac
            );
            Symptom::new(
                Outcome::Notice,
                why,
                "the interface in NetworkInterfaces, if software asks through it",
            )
        }));
    }
    symptoms
}

fn endpoint(facts: &Facts) -> Vec<Symptom> {
    if facts.options.http_endpoint {
        return Vec::new();
    }
    let why = "HttpEndpoint is disabled: every request is refused";
    vec![Symptom::new(Outcome::Blocked, why, endpoint_command(facts))]
}

fn frames(facts: &Facts) -> Vec<Symptom> {
    let told = facts.dropped.iter().map(|(reason, count)| {
        let known = DROPS.iter().find(|drop| drop.reason == reason);
        let Some(drop) = known else {
            let why = format!("{count} frames dropped as {reason}");
            return Symptom {
                outcome: Outcome::Notice,
                why,
                fix: None,
            };
        };
        let instance = facts.instance.as_deref().unwrap_or("INSTANCE");
        let why = format!("{} ({count} frames dropped as {reason})", drop.why);
        Symptom::new(drop.outcome, why, drop.fix.replace("INSTANCE", instance))
    });
    told.collect()
}

fn tokenless(facts: &Facts) -> Vec<Symptom> {
    let rejected = facts.tokenless.rejected;
    if rejected == 0 || !facts.options.http_tokens_required {
        return Vec::new();
    }
    let last = match &facts.tokenless.last {
        Some(last) => format!(", the last of {last}"),
        None => String::new(),
    };
    let why = format!("{rejected} requests were refused because they have no token{last}");
    let fix = format!("software that uses session tokens; or {}", tokens_command(facts));
    vec![Symptom::new(Outcome::Notice, why, fix)]
}

/// EC2 takes no higher one.
const HOP_LIMIT_MAX: u64 = 64;

fn hop_limit(facts: &Facts) -> Vec<Symptom> {
    let undelivered = &facts.undelivered;
    let limit = facts.options.hop_limit;
    let count = undelivered.time_exceeded + undelivered.unacknowledged;
    let fix = |higher: u64| {
        let higher = higher.min(HOP_LIMIT_MAX);
        modify(facts, &format!("--http-put-response-hop-limit {higher}"))
    };
    if let Some((remote, of_then)) = &undelivered.last {
        // It has been raised since.
        if limit > *of_then {
            return Vec::new();
        }
        let outcome = if undelivered.time_exceeded > 0 {
            Outcome::Blocked
        } else {
            Outcome::Notice
        };
        let why = format!(
            "{count} session tokens did not arrive, the last for {remote}: their hop limit of {of_then} is used up at a \
             router or container bridge in the guest"
        );
        return vec![Symptom::new(outcome, why, fix(of_then.saturating_add(1)))];
    }
    if limit > 1 || !facts.options.http_endpoint {
        return Vec::new();
    }
    let why = "the hop limit is 1: software in containers behind a bridge gets no session token";
    vec![Symptom::new(Outcome::Notice, why, fix(2))]
}

fn role(facts: &Facts) -> Vec<Symptom> {
    let Some(profile) = &facts.instance_profile else {
        return Vec::new();
    };
    let Some(role) = &facts.role else {
        let why = format!("instance profile {profile} has no role, or is not on record");
        let name = profile.rsplit('/').next().unwrap_or(profile);
        let fix =
            format!("imdsctl instance-profile add-role --instance-profile-name {name} --role-name ROLE");
        return vec![Symptom::new(Outcome::Blocked, why, fix)];
    };
    let (arn, why) = (&role.arn, role.why.trim());
    match role.state.as_str() {
        "ready" => Vec::new(),
        "refused" => {
            let why = format!("role {arn} has no credentials: {why}");
            let fix = "the trust policy and the source of the role's credentials, see docs/credentials.md";
            vec![Symptom::new(Outcome::Blocked, why, fix)]
        }
        _ => {
            let why = format!("role {arn} has no credentials yet");
            vec![Symptom::new(Outcome::Blocked, why, "imdsctl status, in a moment")]
        }
    }
}

fn public_keys(facts: &Facts) -> Vec<Symptom> {
    if facts.found.public_keys {
        return Vec::new();
    }
    let why = "the record has no public keys: nobody can log in by one that the metadata give";
    vec![Symptom::new(Outcome::Notice, why, "PublicKeys in the record")]
}

/// The reasons that [`DROPS`] explains.
#[cfg(test)]
pub(super) fn explained() -> impl Iterator<Item = &'static str> {
    DROPS.iter().map(|drop| drop.reason)
}
