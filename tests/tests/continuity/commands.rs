//! What an operator and a hypervisor do to taps besides the agent: `imds-agent attach`, `imds-agent detach`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use imds_agent::datapath::{Classifier, Hook, Namespaces, detach};
use imds_ebpf::abi::{ABI_VERSION, Reason};
use imds_tests::{
    agent::{Agent, HostFiles},
    client::wait_for,
    frames::GUEST_MAC,
    host::{ADDRESS, INSTANCE_ID, program},
    kernel::in_namespaces,
    leaks::Leaks,
    netns::Namespace,
    records,
    tap::Tap,
};

use crate::{counters, has_tcx};

/// A host whose guest has a record, without an agent yet.
struct Host {
    leaks: Leaks,
    files: HostFiles,
    namespace: Namespace,
}

impl Host {
    fn new() -> Result<Self> {
        let namespace = Namespace::new()?;
        let leaks = namespace.enter(Leaks::new)?;
        let files = HostFiles::new("taps = [\"guest*\"]")?;
        let record = records::instance(INSTANCE_ID, GUEST_MAC, "guest", ADDRESS);
        files.put("instances", INSTANCE_ID, &record)?;
        Ok(Self {
            leaks,
            files,
            namespace,
        })
    }

    fn start(&self) -> Result<Agent> {
        Agent::start(&program()?, &self.namespace, &self.files)
    }

    /// Runs a command that must succeed, and returns what it says.
    fn run(&self, words: &[&str]) -> Result<String> {
        self.files.run(self.namespace.command(program()?), words)
    }

    /// Runs a command that must fail, and returns what it says.
    fn refused(&self, words: &[&str]) -> Result<String> {
        let (_, said) = self.files.refusal(self.namespace.command(program()?), words)?;
        Ok(said)
    }

    fn listing(&self) -> Result<String> {
        let devices = ["guest", "neighbour", "bridge"];
        self.namespace
            .enter(|| listing(&devices, self.files.pins()).context("cannot list what is there"))
    }
}

/// Everything of ours and others that hangs on devices of the calling thread's network namespace, and what is pinned.
fn listing(devices: &[&str], pins: &Path) -> Result<String> {
    let tc = |words: &str| -> Result<String> {
        let output = std::process::Command::new("tc")
            .args(words.split_whitespace())
            .output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let mut listing = tc("qdisc show")?;
    for device in devices {
        for (hook, attach_type) in [
            ("ingress", TcAttachType::Ingress),
            ("egress", TcAttachType::Egress),
        ] {
            let filters = tc(&format!("filter show dev {device} {hook}"))?;
            let programs = if has_tcx() {
                SchedClassifier::query_tcx(device, attach_type)?.1.len()
            } else {
                0
            };
            listing += &format!("{device} {hook}: {programs} TCX programs\n{filters}");
        }
    }
    if pins.exists() {
        listing += &format!("{} is there\n", pins.display());
    }
    Ok(listing)
}

#[test]
fn detach_all_leaves_the_host_as_it_was() -> Result<()> {
    let host = Host::new()?;
    let before = host.listing()?;
    let agent = host.start()?;
    ensure!(host.listing()? != before, "an agent cannot be seen");
    let said = host.refused(&["detach", "--all"])?;
    ensure!(said.contains("in use by another agent"), "{said}");
    host.leaks.send()?;
    agent.kill()?;

    // Another version's pins, a tap that is none of the agent's business any more, a configuration that says nonsense.
    let (newer, older) = (
        host.files.pins().join(format!("v{ABI_VERSION}")),
        host.files.pins().join("v1"),
    );
    fs::rename(&newer, &older).or_else(|_| fs::create_dir(&older))?;
    let config = fs::read_to_string(host.files.config())?.replace("guest*", "nobody*");
    fs::write(host.files.config(), format!("{config}\nnonsense = true\n"))?;
    let said = host.run(&["detach", "--all"])?;
    ensure!(said.contains("nonsense"), "{said}");
    let after = host.listing()?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    ensure!(host.leaks.falls_through()?);
    host.run(&["detach", "--all"]).context("again")?;
    Ok(())
}

/// The whole kernel's: whether it hurries while programs come and go.
const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// As somebody leaves it who is killed while programs come on taps.
struct LeftTurned(PathBuf);

impl LeftTurned {
    fn on(host: &Host) -> Result<Self> {
        let note = host.files.pins().join("expedited");
        fs::create_dir_all(&note)?;
        let left = Self(note);
        fs::write(SWITCH, "1")?;
        Ok(left)
    }

    /// Other tests' agents turn it as well, for moments.
    fn wait_until_turned_back(&self) -> Result<()> {
        let value = || Ok(fs::read_to_string(SWITCH)?);
        wait_for("the kernel's switch", value, |value| value.trim() == "0")?;
        ensure!(!self.0.exists(), "the note is still there");
        Ok(())
    }
}

impl Drop for LeftTurned {
    fn drop(&mut self) {
        if self.0.exists() {
            let _ = fs::write(SWITCH, "0");
        }
    }
}

#[test]
fn what_a_killed_agent_had_the_kernel_do_ends_with_the_next_and_with_detach() -> Result<()> {
    let host = Host::new()?;
    let left = LeftTurned::on(&host)?;
    let agent = host.start()?;
    left.wait_until_turned_back()?;
    agent.kill()?;
    let left = LeftTurned::on(&host)?;
    host.run(&["detach", "--all"])?;
    left.wait_until_turned_back()?;
    ensure!(!host.files.pins().exists());
    Ok(())
}

/// What hangs in clsact beside ours stays, and so does a clsact that was there before.
#[test]
fn detach_all_leaves_others_filters() -> Result<()> {
    in_namespaces(|bpffs| {
        let devices = ["plain", "shared", "before"];
        let taps = devices.map(Tap::new).into_iter().collect::<Result<Vec<_>>>()?;
        let tc = |words: &str| -> Result<()> {
            let status = std::process::Command::new("tc")
                .args(words.split(' ').map(|word| word.replace('_', " ")))
                .status()?;
            ensure!(status.success(), "tc {words}");
            Ok(())
        };
        tc("qdisc add dev before clsact")?;
        let root = bpffs.join("imds");
        let before = listing(&devices, &root)?;
        let mut classifier = Classifier::load_on(&root, Hook::Clsact)?;
        for tap in &taps {
            classifier.attach(tap.index())?;
        }
        drop(classifier);
        // Somebody else moves in, on one of ours.
        tc("filter add dev shared ingress protocol ip prio 7 bpf bytecode 1,6_0_0_0")?;
        detach::all(&root, &Namespaces::default())?;
        let after = listing(&devices, &root)?;
        ensure!(after.contains("pref 7 bpf"), "another's filter is gone:\n{after}");
        tc("qdisc del dev shared clsact")?;
        let after = listing(&devices, &root)?;
        ensure!(after == before, "before:\n{before}\nafter:\n{after}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn tap_that_is_attached_early_is_dark_until_it_is_served() -> Result<()> {
    let host = Host::new()?;
    ensure!(host.leaks.falls_through()?);
    // One that the configuration does not select is left alone.
    host.run(&["attach", "guest", "neighbour"])?;
    ensure!(!host.leaks.falls_through()?, "it is not dark");
    let dropped = counters(&host.files, host.leaks.tap())?.dropped;
    ensure!(dropped.into_iter().eq([(Reason::TapUnbound, 1)]));
    ensure!(host.refused(&["attach", "guest9"])?.contains("guest9"));

    let agent = host.start()?;
    let sent = host.leaks.send()?;
    ensure!(counters(&host.files, host.leaks.tap())?.punted > 0, "{sent:?}");
    let late = host.namespace.enter(|| Tap::new("guest9"))?;
    host.run(&["attach", "guest9"])?;
    ensure!(counters(&host.files, late.index()).is_ok());

    agent.stop()?;
    host.run(&["detach", "guest"])?;
    ensure!(host.leaks.falls_through()?, "the classifier is still there");
    let listing = host.listing()?;
    let is_off = listing.contains("guest ingress: 0 TCX") && !listing.contains("imds_outbound");
    ensure!(is_off, "{listing}");
    host.run(&["detach", "--all"])?;
    Ok(())
}

/// Something that is no link is pinned where a tap's link should be.
#[test]
fn bad_tap_is_told_and_tried_again_and_costs_nobody_else_anything() -> Result<()> {
    if !has_tcx() {
        println!("skipped: this kernel has no links to pin");
        return Ok(());
    }
    let host = Host::new()?;
    host.start()?.stop()?;
    let bad = host.namespace.enter(|| Tap::new("guest9"))?;
    let pin = host.files.pins().join("links").join(bad.index().to_string());
    fs::rename(host.files.pins().join(format!("v{ABI_VERSION}/BUCKETS")), &pin)?;
    let mut agent = host.start()?;
    let told = agent.log.iter().find(|line| line.contains("guest9"));
    let told = told.context("nothing is said of it")?;
    ensure!(
        told.contains("ERROR") && told.contains(&pin.display().to_string()) && told.contains("trying again"),
        "{told}"
    );
    host.leaks.send()?;
    ensure!(
        counters(&host.files, host.leaks.tap())?.punted > 0,
        "nobody is served"
    );
    fs::remove_file(&pin)?;
    agent.wait_for_log("tap guest9: the kernel no longer refuses")?;
    ensure!(counters(&host.files, bad.index()).is_ok());
    Ok(())
}
