//! T1: one agent, and taps in network namespaces that come and go while it runs, all of them called the same, with the same
//! index, and with the same MAC in their guests, as Firecracker's clones have them.

mod commands;
mod host;
mod life;
mod names;

use std::{fs, net::TcpStream, os::unix::fs::symlink, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::Reason;
use imds_tests::{
    client::{text, token, wait_for},
    control::imdsctl,
    host::ADDRESS,
    kernel_guest::KernelGuest,
    netns::Namespace,
    records::{self, guest_mac},
    scrape::Scrape,
    tap::Tap,
};
use serde_json::{Value, json};

use self::host::{Host, INDEX, Machine, told};

#[test]
fn clones_are_each_their_own_instance() -> Result<()> {
    let host = Host::new("workers = 2")?;
    let names = ["fc-1", "fc-2", "fc-3"];
    let clones: Vec<_> = names
        .iter()
        .map(|name| host.machine(name))
        .collect::<Result<_>>()?;
    for name in names {
        host.put(&format!("i-{name}"), &format!("{name}/tap0"))?;
    }
    // One in the agent's own namespace, with the same name, index and MAC.
    host.put("i-own", "tap0")?;
    let tap = host.namespace.enter(|| Tap::with_index("tap0", INDEX))?;
    let own = KernelGuest::new(Arc::new(tap), guest_mac(2), &format!("{ADDRESS}/24"))?;
    let mut agent = host.start()?;
    for name in names {
        agent.logged(&format!("tap {name}/tap0: bound to {}", guest_mac(2)))?;
    }
    let tokens: Vec<_> = clones.iter().map(Machine::token).collect::<Result<_>>()?;
    let token_of_own = own.namespace.enter(token)?;
    for (number, clone) in clones.iter().enumerate() {
        for (owner, token) in tokens.iter().enumerate() {
            let expected = if owner == number { 200 } else { 401 };
            ensure!(
                clone.status(token)? == expected,
                "{number} with the token of {owner}"
            );
        }
        ensure!(clone.status(&token_of_own)? == 401);
        ensure!(clone.instance_id(&tokens[number])? == format!("i-{}", names[number]));
    }
    let id = own
        .namespace
        .enter(|| text(&token_of_own, "meta-data/instance-id"))?;
    ensure!(id == "i-own", "{id}");

    // Operators see which is which.
    let status = told(&host.files, "GET", "/v1/status")?;
    let owner = |name: &str| {
        let taps = status["taps"].as_array().into_iter().flatten();
        let mut taps = taps.filter(|tap| tap["name"] == name);
        taps.next().map(|tap| tap["instanceId"].clone())
    };
    for (tap, id) in [
        ("tap0", "i-own"),
        ("fc-1/tap0", "i-fc-1"),
        ("fc-3/tap0", "i-fc-3"),
    ] {
        ensure!(owner(tap) == Some(id.into()), "{tap}: {status:#}");
    }
    let list = told(&host.files, "GET", "/v1/instances")?;
    let instances = list["instances"].as_array().context("a list")?;
    ensure!(instances.len() == 4);
    for instance in instances {
        ensure!(instance["interfaces"][0]["bound"] == true, "{list:#}");
    }
    Ok(())
}

#[test]
fn taps_have_limits_and_counters_of_their_own() -> Result<()> {
    let host = Host::new("packets_per_second = 1\nmetrics.per_tap = true")?;
    let (one, two) = (host.machine("one")?, host.machine("two")?);
    host.put("i-one", "one/tap0")?;
    host.put("i-two", "two/tap0")?;
    let _agent = host.start()?;
    let token_of_two = two.token()?;
    // It spends all that it has, and the other does not notice.
    let address = "169.254.169.254:80".parse()?;
    let spent = || {
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(1)).is_ok();
        one.guest
            .namespace
            .enter(|| (0..64).filter(|_| connect()).count());
        Ok(host.counters(one.tap()?)?.dropped_for(Reason::RateLimited))
    };
    wait_for("the limit", spent, |dropped| *dropped > 0)?;
    ensure!(two.instance_id(&token_of_two)? == "i-two");
    ensure!(host.counters(two.tap()?)?.dropped_total() == 0);
    ensure!(host.counters(two.tap()?)?.punted > 0);
    let scrape = Scrape::of(&host.files.metrics())?;
    let labels = [("tap", "one/tap0"), ("number", "18"), ("reason", "rate-limited")];
    let told = scrape.value("imds_tap_frames_dropped_total", &labels);
    ensure!(told.is_some_and(|dropped| dropped > 0.0), "{told:?}");
    Ok(())
}

/// A tap that goes from one namespace to another is who the record for it is there, and never who has its index.
#[test]
fn tap_that_moves_is_who_it_is_where_it_is() -> Result<()> {
    let host = Host::new("")?;
    let (one, abroad) = (host.machine("fc-1")?, host.named("fc-2")?);
    host.put("i-1", "fc-1/tap0")?;
    host.put("i-2", "fc-2/tap0")?;
    let mut agent = host.start()?;
    let token = one.token()?;
    let departed = one.tap()?;
    one.namespace
        .ip(&format!("link set tap0 netns {}", abroad.path()))?;
    agent.wait_for_log("tap fc-2/tap0: bound to")?;
    abroad.ip("link set tap0 up")?;
    wait_for(
        "what it left",
        || host.counted(),
        |taps| !taps.contains(&departed),
    )?;
    let (id, _) = wait_for(
        "itself",
        || Ok(one.token().and_then(|token| one.instance_id(&token)).ok()),
        Option::is_some,
    )?;
    ensure!(id.as_deref() == Some("i-2"), "{id:?}");
    ensure!(one.status(&token)? == 401);

    // Its heir has its name and index.
    let heir = Machine::in_namespace(one.namespace)?;
    agent.wait_for_log("tap fc-1/tap0: bound to")?;
    ensure!(heir.instance_id(&token)? == "i-1");
    Ok(())
}

/// libvirt's convention is kept to by nobody in there, and shows nothing: clones have each other's MACs.
#[test]
fn nobody_is_told_by_a_taps_own_mac() -> Result<()> {
    let host = Host::new("")?;
    let mut record = records::instance("i-1", guest_mac(2), "tap0", ADDRESS);
    let interface = record["NetworkInterfaces"][0].as_object_mut().context("one")?;
    interface.remove("Tap");
    host.files.put("instances", "i-1", &record)?;
    let clone = host.machine("fc-1")?;
    let mut shown = guest_mac(2);
    shown.0[0] = 0xfe;
    clone.namespace.ip(&format!("link set tap0 address {shown}"))?;
    let mut agent = host.start()?;
    agent.logged("tap fc-1/tap0: bound to nobody")?;
    ensure!(!clone.is_answered());
    Ok(())
}

#[test]
fn what_is_no_network_namespace_costs_nobody_anything() -> Result<()> {
    let host = Host::new("")?;
    let directory = host.names.directory();
    fs::write(directory.join("a-file"), "")?;
    symlink("/proc/self/ns/net", directory.join("a-link"))?;
    let other = Namespace::named(Path::new("/proc/self/ns/uts"))?;
    host.names.give("another-kind", &other)?;
    // Of two names the first.
    let machine = host.machine("fc-1")?;
    host.names.give("fc-2", &machine.namespace)?;
    host.put("i-1", "fc-1/tap0")?;
    let mut agent = host.start()?;
    agent.logged("network namespace another-kind: not served: it cannot be entered")?;
    agent.logged("tap fc-1/tap0: bound to")?;
    ensure!(machine.instance_id(&machine.token()?)? == "i-1");
    let status = told(&host.files, "GET", "/v1/status")?;
    let [refused, served] = [0, 1].map(|number| &status["networkNamespaces"][number]);
    let why = refused["reason"].as_str().unwrap_or_default();
    ensure!(
        refused["name"] == "another-kind" && why.contains("it cannot be entered"),
        "{status:#}"
    );
    ensure!(*served == json!({"name": "fc-1", "served": true}), "{status:#}");
    ensure!(status["networkNamespaces"][2] == Value::Null, "{status:#}");
    let output = imdsctl(&host.files)?.arg("status").output()?;
    let shown = String::from_utf8(output.stdout)?;
    let shows = |name: &str| shown.lines().any(|line| line.starts_with(name));
    ensure!(
        output.status.code() == Some(3) && shows("another-kind ") && !shows("fc-1 "),
        "{shown}"
    );
    let scrape = Scrape::of(&host.files.metrics())?;
    for state in ["served", "refused"] {
        let told = scrape.value("imds_network_namespaces", &[("state", state)]);
        ensure!(told == Some(1.0), "{state}: {told:?}");
    }
    let told = ["a-file", "a-link", "fc-2"].map(|name| format!("network namespace {name}:"));
    let told = |line: &String| told.iter().any(|told| line.contains(told));
    ensure!(!agent.log.iter().any(told), "{:#?}", agent.log);

    host.names.take("fc-1")?;
    agent.wait_for_log("tap fc-2/tap0: bound to nobody")?;
    ensure!(!machine.is_answered());
    Ok(())
}
