//! Namespaces with several names, and names that change: it is the same taps, and nothing comes off them.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use imds_tests::{frames::GUEST_MAC, host::ADDRESS, leaks::Leaks, netns::Namespace, records};

use crate::host::{Host, told};

/// A host that serves the namespaces whose names end in "-1", one of them, and what gets through the bridge in there.
fn serving() -> Result<(Host, Namespace, Leaks)> {
    let host = Host::new("packets_per_second = 0\ntaps = [\"guest\"]")?;
    let config = host.files.config();
    fs::write(&config, fs::read_to_string(&config)?.replace("/*\"]", "/*-1\"]"))?;
    let namespace = host.named("fc-1")?;
    let leaks = namespace.enter(Leaks::new)?;
    let record = records::instance("i-1", GUEST_MAC, "fc-1/guest", ADDRESS);
    host.files.put("instances", "i-1", &record)?;
    Ok((host, namespace, leaks))
}

fn ensure_nothing_came_off(log: &[String]) -> Result<()> {
    let came_off = log.iter().any(|line| line.contains("detached"));
    ensure!(!came_off, "{log:#?}");
    Ok(())
}

#[test]
fn nothing_comes_off_when_a_namespace_is_named_otherwise() -> Result<()> {
    let (host, namespace, leaks) = serving()?;
    let mut agent = host.start()?;
    agent.logged("tap fc-1/guest: bound to")?;
    let pinned = host.pinned()?;

    // It keeps the name that it goes by, also where another would be the first.
    host.names.give("a-1", &namespace)?;
    let _marker = host.named("marker-1")?;
    agent.wait_for_log("network namespace marker-1: in sight")?;
    leaks.send().context("with a second name")?;
    ensure_nothing_came_off(&agent.log)?;
    let status = told(&host.files, "GET", "/v1/status")?;
    ensure!(status["taps"][0]["name"] == "fc-1/guest", "{status:#}");
    ensure!(status["taps"][0]["instanceId"] == "i-1", "{status:#}");

    // The same directory.
    let directory = host.names.directory();
    let base = directory.file_name().and_then(|name| name.to_str());
    let again = directory.join("..").join(base.context("a name")?);
    let config = host.files.config();
    let text = fs::read_to_string(&config)?;
    let otherwise = text.replace(&directory.display().to_string(), &again.display().to_string());
    fs::write(config, otherwise)?;
    let reloaded = told(&host.files, "POST", "/v1/reload")?;
    ensure!(reloaded["changed"][0] == "network_namespaces", "{reloaded}");
    leaks.send().context("in a directory that is spelled otherwise")?;

    // Its other name is left: the binding follows that.
    host.names.take("fc-1")?;
    agent.wait_for_log("tap a-1/guest: bound to nobody")?;
    leaks.send().context("with its other name")?;
    let record = records::instance("i-1", GUEST_MAC, "a-1/guest", ADDRESS);
    host.files.put("instances", "i-1", &record)?;
    agent.wait_for_log("tap a-1/guest: bound to 52:")?;
    leaks.send().context("bound by its other name")?;
    ensure!(host.pinned()? == pinned, "they are not the same pins");
    let (_, log) = agent.stop()?;
    ensure_nothing_came_off(&log)
}

#[test]
fn nothing_comes_off_at_a_start_that_one_of_the_names_selects() -> Result<()> {
    let (host, namespace, leaks) = serving()?;
    host.names.give("unselected", &namespace)?;
    let mut agent = host.start()?;
    agent.logged("tap fc-1/guest: bound to")?;
    agent.stop()?;
    let mut agent = host.start()?;
    agent.logged("tap fc-1/guest: bound to")?;
    let is_attached = agent.log.iter().any(|line| line.contains(": attached"));
    ensure!(!is_attached, "it was attached anew: {:#?}", agent.log);
    leaks.send().context("after a start")?;
    agent.stop()?;
    Ok(())
}
