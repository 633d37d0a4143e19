//! `imdsctl doctor`: what the software of one guest will make of the service, what is in its way, and what helps.
//!
//! Read in this order: [`machine`](mod@machine) and [`facts`] (what is known), [`client`] with [`cloud_init`] (what each kind of software
//! makes of that), [`rules`] (what can be wrong whatever the software is), then [`diagnose`]. All of these are pure.

pub mod client;
mod cloud_init;
pub mod facts;
pub mod machine;
mod rules;

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, builder::PossibleValuesParser};
use serde_json::{Value, json};

use self::{
    client::{CLIENTS, Outcome, Version},
    facts::{Answers, Facts, Image},
    machine::{Machine, Smbios},
};
use super::{
    Verdict,
    client::{Client, Refused, path},
    instance::read,
    print,
    virsh::virsh,
};

/// Whose troubles decide how `imdsctl` ends where nobody says: those of nearly all Linux guests, and of nearly all of Windows.
const LINUX: [&str; 2] = ["cloud-init", "cloud-init-22"];
const WINDOWS: [&str; 1] = ["cloudbase-init"];

/// `imdsctl doctor`
#[derive(Args, Debug)]
pub struct Arguments {
    /// The instance's id; with --domain or --xml it is found by the machine's MACs.
    #[arg(required_unless_present_any = ["domain", "xml"])]
    instance: Option<String>,
    /// The machine is this domain of libvirt's, by name or UUID.
    #[arg(long, value_name = "NAME", group = "machine")]
    domain: Option<String>,
    /// The libvirtd to ask, as for virsh.
    #[arg(long, value_name = "URI", default_value = "qemu:///system")]
    connect: String,
    /// The machine is as this domain XML says; "-" for standard input.
    #[arg(long, value_name = "FILE", group = "machine")]
    xml: Option<PathBuf>,
    /// What the guest sees in SMBIOS: uuid=..,serial=..,manufacturer=..,product=..,asset=..,bios-vendor=..
    #[arg(long, value_name = "PAIRS", value_parser = Smbios::parse)]
    smbios: Option<Smbios>,
    /// The arguments of the guest's kernel.
    #[arg(long, value_name = "ARGUMENTS")]
    kernel_arguments: Option<String>,
    /// The image has `datasource_list: [Ec2]`.
    #[arg(long)]
    image_names_ec2: bool,
    /// The image has `strict_id: true` for Ec2.
    #[arg(long)]
    strict_id: bool,
    /// What the guest has, and has to work [default: both of cloud-init, or cloudbase-init if libvirt says Windows].
    #[arg(long = "client", value_name = "CLIENT", value_parser = PossibleValuesParser::new(CLIENTS.iter().map(|client| client.id)))]
    clients: Vec<String>,
}

/// What a finding is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// The service, as any software of the guest finds it.
    Service,
    /// One kind of software.
    Client,
}

/// One thing that was found out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What it is about.
    pub subject: Subject,
    /// The name of the client or of the rule.
    pub id: &'static str,
    /// How it ends.
    pub outcome: Outcome,
    /// How metadata are asked for, if they are.
    pub version: Option<Version>,
    /// Why, in a sentence.
    pub why: String,
    /// What helps.
    pub fix: Option<String>,
    /// Where the rule comes from.
    pub source: &'static str,
}

/// Finds everything out: first what is wrong whatever the software is, then what each kind of software will do.
pub fn diagnose(facts: &Facts) -> Vec<Finding> {
    if facts.instance.is_none() {
        return vec![Finding {
            subject: Subject::Service,
            id: "record",
            outcome: Outcome::Blocked,
            version: None,
            why: "no instance's record has a MAC of this machine: nobody answers it".to_owned(),
            fix: Some("imdsctl libvirt import, or imdsctl instance put FILE".to_owned()),
            source: "docs/instance-records.md",
        }];
    }
    let symptoms = rules::RULES.iter().flat_map(|rule| {
        (rule.look)(facts).into_iter().map(|symptom| Finding {
            subject: Subject::Service,
            id: rule.id,
            outcome: symptom.outcome,
            version: None,
            why: symptom.why,
            fix: symptom.fix,
            source: rule.source,
        })
    });
    let clients = CLIENTS.iter().map(|client| {
        let forecast = client.forecast(facts);
        Finding {
            subject: Subject::Client,
            id: client.id,
            outcome: forecast.outcome,
            version: forecast.version,
            why: forecast.why,
            fix: forecast.fix,
            source: client.source,
        }
    });
    symptoms.chain(clients).collect()
}

/// Runs the command. It is so if nothing is in the way of what the guest has.
pub fn run(arguments: Arguments, client: &Client, is_json: bool) -> Result<Verdict> {
    let machine = machine(&arguments)?;
    let image = Image {
        names_ec2: arguments.image_names_ec2,
        is_strict: arguments.strict_id,
    };
    let expected: Vec<&str> = match (&arguments.clients, machine.is_windows) {
        (named, _) if !named.is_empty() => named.iter().map(String::as_str).collect(),
        (_, true) => WINDOWS.to_vec(),
        (_, false) => LINUX.to_vec(),
    };
    let facts = match arguments.instance {
        Some(instance) => ask(client, &instance, machine, image)?,
        None => match instance_of(client, &machine)? {
            Some(instance) => ask(client, &instance, machine, image)?,
            None => Facts {
                machine,
                image,
                ..Facts::default()
            },
        },
    };
    let findings = diagnose(&facts);
    let counts = |finding: &&Finding| finding.subject == Subject::Service || expected.contains(&finding.id);
    let is_blocked = findings
        .iter()
        .filter(counts)
        .any(|finding| finding.outcome == Outcome::Blocked);
    if is_json {
        print::json(&as_json(&facts, &findings, &expected, is_blocked));
    } else {
        for line in as_text(&facts, &findings, &expected, is_blocked) {
            print::line(line);
        }
    }
    Ok(if is_blocked { Verdict::No } else { Verdict::Yes })
}

fn machine(arguments: &Arguments) -> Result<Machine> {
    let xml = match (&arguments.domain, &arguments.xml) {
        (Some(domain), _) => Some(virsh(&arguments.connect, &["dumpxml", "--", domain])?),
        (None, Some(file)) => Some(String::from_utf8(read(file)?).context("the domain is no UTF-8")?),
        (None, None) => None,
    };
    let mut machine = match xml {
        Some(xml) => Machine::of_domain(&xml)?,
        None => Machine::default(),
    };
    if let Some(smbios) = &arguments.smbios {
        machine.smbios = Some(smbios.clone());
    }
    if let Some(kernel_arguments) = &arguments.kernel_arguments {
        machine.kernel_arguments = Some(kernel_arguments.clone());
    }
    Ok(machine)
}

/// The instance in force that has one of the machine's MACs.
fn instance_of(client: &Client, machine: &Machine) -> Result<Option<String>> {
    let answer = client.get_json("/v1/instances")?;
    let macs: BTreeSet<&str> = machine
        .interfaces
        .iter()
        .flatten()
        .map(|interface| interface.mac.as_str())
        .collect();
    let has_mac = |instance: &&Value| {
        let interfaces = instance["interfaces"].as_array().into_iter().flatten();
        interfaces
            .filter_map(|interface| interface["macAddress"].as_str())
            .any(|mac| macs.contains(mac))
    };
    let mut instances = answer["instances"].as_array().into_iter().flatten();
    let found = instances.find(has_mac);
    Ok(found.and_then(|instance| Some(instance["instanceId"].as_str()?.to_owned())))
}

fn ask(client: &Client, instance: &str, machine: Machine, image: Image) -> Result<Facts> {
    let about = |part: &[&str]| path(&[&["instances", instance], part].concat());
    let in_force = |part: &str| match client.get_json(&about(&[part])) {
        // There is a record, which is not in force: that is a finding.
        Err(error)
            if error
                .downcast_ref()
                .is_some_and(|Refused { status, .. }| *status == 404) =>
        {
            Ok(Value::Null)
        }
        other => other,
    };
    let answers = Answers {
        record: client.get_json(&about(&[]))?,
        options: client.get_json(&about(&["metadata-options"]))?,
        observed: in_force("observed")?,
        tokenless: in_force("tokenless")?,
        hop_limit: in_force("hop-limit")?,
        status: client.get_json("/v1/status")?,
    };
    Ok(Facts::read(instance, &answers, machine, image))
}

fn as_json(facts: &Facts, findings: &[Finding], expected: &[&str], is_blocked: bool) -> Value {
    let of = |subject: Subject| -> Value {
        let of_subject = findings.iter().filter(|finding| finding.subject == subject);
        let told = of_subject.map(|finding| {
            let mut value = json!({
                "id": finding.id,
                "outcome": finding.outcome.as_str(),
                "version": finding.version.map(Version::as_str),
                "why": finding.why,
                "fix": finding.fix,
                "source": finding.source,
            });
            if subject == Subject::Client {
                value["expected"] = expected.contains(&finding.id).into();
            }
            value
        });
        told.collect()
    };
    json!({
        "instanceId": facts.instance,
        "blocked": is_blocked,
        "service": of(Subject::Service),
        "clients": of(Subject::Client),
    })
}

fn as_text(facts: &Facts, findings: &[Finding], expected: &[&str], is_blocked: bool) -> Vec<String> {
    let instance = facts.instance.as_deref().unwrap_or("no instance");
    let verdict = if is_blocked {
        "something is in the way"
    } else {
        "nothing is in the way"
    };
    let mut lines = vec![format!("{instance}: {verdict}")];
    for (subject, heading) in [(Subject::Service, "SERVICE"), (Subject::Client, "CLIENT")] {
        let mut of_subject: Vec<&Finding> = findings
            .iter()
            .filter(|finding| finding.subject == subject)
            .collect();
        if of_subject.is_empty() {
            continue;
        }
        if subject == Subject::Service {
            // What blocks comes first.
            of_subject.sort_by_key(|finding| std::cmp::Reverse(finding.outcome));
        }
        let mut table = print::Table::new(&[heading, "OUTCOME", "ASKS BY", "WHY, AND WHAT HELPS"]);
        for finding in of_subject {
            let version = finding.version.map_or("-", Version::as_str);
            let mark = if subject == Subject::Client && !expected.contains(&finding.id) {
                " (not counted)"
            } else {
                ""
            };
            let outcome = format!("{}{mark}", finding.outcome.as_str());
            table.row(vec![
                finding.id.to_owned(),
                outcome,
                version.to_owned(),
                finding.why.clone(),
            ]);
            if let Some(fix) = &finding.fix {
                table.row(vec![
                    String::new(),
                    String::new(),
                    String::new(),
                    format!("fix: {fix}"),
                ]);
            }
        }
        lines.push(String::new());
        lines.extend(table.lines());
    }
    lines
}

#[cfg(test)]
mod tests;
