//! Namespaces that come and go, and agents that do.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::Reason;
use imds_tests::{client::wait_for, frames::GUEST_MAC, host::ADDRESS, leaks::Leaks, records};

use crate::host::{Host, Machine, has_tcx, tap_in, told};

#[test]
fn namespaces_come_and_go_while_the_agent_runs() -> Result<()> {
    let host = Host::new("")?;
    for name in ["fc-1", "fc-2"] {
        host.put(&format!("i-{name}"), &format!("{name}/tap0"))?;
    }
    let mut agent = host.start()?;
    for round in 0..3 {
        // A tap that lives as long as its namespace, and one that is plugged into a machine.
        let namespace = host.named("fc-1")?;
        namespace.ip("tuntap add mode tap name spare")?;
        let clone = Machine::in_namespace(namespace)?;
        agent.wait_for_log("tap fc-1/tap0: bound to")?;
        agent.logged("tap fc-1/spare: bound to nobody")?;
        let token = clone.token()?;
        ensure!(clone.instance_id(&token)? == "i-fc-1", "round {round}");
        ensure!(host.counted()?.contains(&clone.tap()?));

        let other = host.machine("fc-2")?;
        agent.wait_for_log("tap fc-2/tap0: bound to")?;
        ensure!(other.status(&token)? == 401, "round {round}");

        // Their devices and the namespaces themselves are the kernel's to clear away, once nobody has hold of them.
        for name in ["fc-1", "fc-2"] {
            host.names.take(name)?;
            agent.wait_for_log(&format!("network namespace {name}: out of sight"))?;
        }
        drop((clone, other));
        wait_for("pins", || host.pinned(), BTreeSet::is_empty)?;
        wait_for("counters", || host.counted(), BTreeSet::is_empty)?;
        agent.log.clear();
    }
    Ok(())
}

#[test]
fn killed_agent_leaves_a_dark_address_and_the_next_one_goes_on() -> Result<()> {
    let host = Host::new("")?;
    let clones = [host.machine("fc-1")?, host.machine("fc-2")?];
    host.put("i-1", "fc-1/tap0")?;
    host.put("i-2", "fc-2/tap0")?;
    let agent = host.start()?;
    let tokens = [clones[0].token()?, clones[1].token()?];
    let before = host.counters(clones[1].tap()?)?;
    agent.kill()?;
    ensure!(!clones[1].is_answered(), "without an agent it is answered");
    let pinned = host.pinned()?;
    let programs = || clones[1].programs();
    let earlier = programs()?;

    let mut agent = host.start()?;
    ensure!(host.pinned()? == pinned, "they are not the same pins");
    let attached = agent.log.iter().any(|line| line.contains("/tap0: attached"));
    ensure!(!attached, "it was attached anew: {:#?}", agent.log);
    ensure!(clones[0].instance_id(&tokens[0])? == "i-1");
    ensure!(clones[1].instance_id(&tokens[1])? == "i-2");
    ensure!(clones[0].status(&tokens[1])? == 401);
    let after = host.counters(clones[1].tap()?)?;
    ensure!(after.punted > before.punted, "{before} then {after}");
    // The programs are its own before long, in the same links.
    if let Some(earlier) = earlier {
        wait_for("programs", programs, |programs| *programs != Some(earlier))?;
        ensure!(host.pinned()? == pinned, "they are not the same pins");
        ensure!(clones[0].instance_id(&tokens[0])? == "i-1");
    }

    // One that goes while no agent is there is cleared away by the next.
    agent.kill()?;
    let [one, two] = clones;
    host.names.take("fc-1")?;
    let gone = one.tap()?;
    drop(one);
    agent = host.start()?;
    wait_for("counters", || host.counted(), |taps| !taps.contains(&gone))?;
    wait_for(
        "pins",
        || host.pinned(),
        |pins| !pins.iter().any(|pin| pin.starts_with(&gone.to_string())),
    )?;
    ensure!(two.instance_id(&tokens[1])? == "i-2");
    agent.stop()?;
    Ok(())
}

/// What of the whole table of frames gets through a bridge in another namespace, whatever becomes of the agent.
#[test]
fn nothing_leaks_into_the_network_of_another_namespace() -> Result<()> {
    let host = Host::new("packets_per_second = 0\ntaps = [\"guest\"]")?;
    let namespace = host.named("fc-1")?;
    let leaks = namespace.enter(Leaks::new)?;
    let mut record = records::instance("i-1", GUEST_MAC, "fc-1/guest", ADDRESS);
    record["MetadataOptions"]["HttpProtocolIpv6"] = "enabled".into();
    host.files.put("instances", "i-1", &record)?;
    ensure!(
        leaks.falls_through()?,
        "without a classifier nothing reaches the far side"
    );

    let mut agent = host.start()?;
    agent.logged("tap fc-1/guest: bound to")?;
    let sent = leaks.send().context("while it runs")?;
    let counted = host.counters(tap_in(&namespace, leaks.tap())?)?;
    ensure!(
        counted.punted + counted.dropped_for(Reason::RingFull) == sent.punted,
        "{counted}"
    );
    ensure!(counted.hairpinned == sent.hairpinned, "{counted}");
    ensure!(
        counted.dropped_for(Reason::InboundForged) == sent.dropped[&Reason::InboundForged],
        "{counted}"
    );
    agent.stop()?;
    leaks.send().context("stopped")?;
    let agent = host.start()?;
    agent.kill()?;
    leaks.send().context("killed")?;

    // Somebody takes the name away from a machine that runs, with an agent and without.
    let mut agent = host.start()?;
    agent.logged("network namespace fc-1: in sight")?;
    host.names.take("fc-1")?;
    agent.wait_for_log("network namespace fc-1: out of sight")?;
    leaks.send().context("out of sight")?;
    agent.stop()?;
    let mut agent = host.start()?;
    leaks.send().context("out of sight of the next agent")?;
    host.names.give("fc-1", &namespace)?;
    agent.wait_for_log("tap fc-1/guest: bound to")?;
    leaks.send().context("in sight again")?;

    // An operator says that it is none of the agent's business any more.
    let files = &host.files;
    let text = fs::read_to_string(files.config())?;
    let without = [
        text.replace("/*\"]", "/other-*\"]"),
        text.replace("network_namespaces", "# network_namespaces"),
    ];
    for without in &without {
        fs::write(files.config(), without)?;
        let reloaded = told(files, "POST", "/v1/reload")?;
        ensure!(reloaded["changed"][0] == "network_namespaces", "{reloaded}");
        ensure!(leaks.falls_through()?, "the classifier is still there: {without}");
        ensure!(host.pinned()?.is_empty(), "{without}");
        fs::write(files.config(), &text)?;
        told(files, "POST", "/v1/reload")?;
        agent.wait_for_log("tap fc-1/guest: bound to")?;
        leaks.send().context("selected again")?;
    }
    agent.stop()?;

    // The same over a restart. Where there are filters instead of links nobody gets to them then.
    if has_tcx()? {
        for without in &without {
            fs::write(files.config(), without)?;
            host.start()?.stop()?;
            ensure!(leaks.falls_through()?, "the classifier is still there: {without}");
            ensure!(host.pinned()?.is_empty(), "{without}");
            fs::write(files.config(), &text)?;
            let mut agent = host.start()?;
            agent.logged("tap fc-1/guest: bound to")?;
            agent.stop()?;
            leaks.send().context("selected again over a restart")?;
        }
    }

    host.run(&["detach", "--all"])?;
    ensure!(leaks.falls_through()?, "the classifier is still there");
    ensure!(!host.files.pins().exists(), "something is left");
    Ok(())
}
