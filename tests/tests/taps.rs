//! Taps come, go and change while the agent runs; and how each finds its instance.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    net::TcpStream,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::{BURST_TOKENS, IMDS_MAC, MacAddr};
use imds_tests::{
    agent::{Agent, HostFiles},
    client::{PATIENCE, get, text, token, wait_for},
    control::{imdsctl_json, run},
    frames::{Arp, BROADCAST, GUEST_MAC},
    host::{ADDRESS, Host, INSTANCE_ID, program},
    kernel_guest::KernelGuest,
    netns::Namespace,
    pace,
    records::{self, guest_mac},
    scrape::Scrape,
    tap::{Tap, bridge},
};

/// What libvirt gives the tap of a guest on one of its bridges.
fn shown(mut mac: MacAddr) -> MacAddr {
    mac.0[0] = 0xfe;
    mac
}

/// A host whose one record names no tap, with a tap in a bridge whose MAC the kernel chose.
fn host_without_named_tap() -> Result<Host> {
    let host = Host::new("", |record| {
        let interface = record["NetworkInterfaces"][0].as_object_mut();
        interface.expect("an interface").remove("Tap");
    })?;
    let port = host.tap.index();
    host.namespace.enter(|| bridge("virbr0", &[port]))?;
    Ok(host)
}

fn expect_served(guest: &KernelGuest) -> Result<()> {
    let id = guest
        .namespace
        .enter(|| text(&token()?, "meta-data/instance-id"))?;
    ensure!(id == INSTANCE_ID, "the guest is told to be {id}");
    Ok(())
}

#[test]
fn a_tap_whose_own_mac_is_made_of_its_guests_needs_no_name_in_the_record() -> Result<()> {
    let mut host = host_without_named_tap()?;
    let mac = guest_mac(2);
    let tap = |name: &str, mac: MacAddr| host.namespace.ip(&format!("link set {name} address {mac}"));
    tap("tap0", shown(mac))?;
    host.agent.wait_for_log(&format!("tap tap0: bound to {mac}"))?;
    let guest = host.guest()?;
    expect_served(&guest)?;

    // Somebody made a second tap that claims to be the same guest's: neither is believed until one is gone.
    let second = Arc::new(host.namespace.enter(|| Tap::new("tap1"))?);
    tap("tap1", shown(mac))?;
    let why = format!("the MACs of several taps point to {mac}: tap0, tap1");
    for name in ["tap0", "tap1"] {
        let line = host.agent.wait_for_log(&format!("tap {name}: bound to nobody"))?;
        // The second one was nobody's under the MAC that it was made with, too.
        let line = if line.contains(&why) {
            line
        } else {
            host.agent.wait_for_log(&why)?
        };
        ensure!(line.contains("WARN"), "{line}");
    }
    drop(second);
    host.agent.wait_for_log(&format!("tap tap0: bound to {mac}"))?;
    expect_served(&guest)?;

    // A twin of the record's MAC makes it ambiguous which of the two the tap is.
    let mut twin = mac;
    twin.0[0] = 0x52;
    let mut record = records::instance("i-twin", twin, "tap9", "10.0.0.9");
    record["NetworkInterfaces"][0]["Tap"].take();
    host.files.put("instances", "twin", &record)?;
    host.agent
        .wait_for_log("tap tap0: bound to nobody: its MAC points to several interfaces")?;
    // What a record says is never ambiguous.
    record["NetworkInterfaces"][0]["Tap"] = "tap0".into();
    host.files.put("instances", "twin", &record)?;
    host.agent.wait_for_log(&format!("tap tap0: bound to {twin}"))?;
    Ok(())
}

#[test]
fn a_multi_queue_tap_in_a_bridge_is_served_on_every_queue() -> Result<()> {
    let host = Host::new("", |record| {
        record["NetworkInterfaces"][0]["Tap"] = "multi0".into();
    })?;
    let tap = Arc::new(host.namespace.enter(|| Tap::with_queues("multi0", 4))?);
    host.namespace.enter(|| bridge("virbr0", &[tap.index()]))?;
    let mut agent = host.agent;
    agent.wait_for_log("tap multi0: bound")?;
    // Each frame leaves by the next of the four queues.
    let guest = KernelGuest::new(tap, guest_mac(2), &format!("{ADDRESS}/24"))?;
    for _ in 0..8 {
        expect_served(&guest)?;
    }
    Ok(())
}

#[test]
fn a_tap_that_goes_is_forgotten_and_its_pins_with_it() -> Result<()> {
    let mut host = Host::new("", |_| ())?;
    // Links where the kernel has them, else notes of who made the queueing discipline.
    let pinned = || -> Result<usize> {
        let count = |name: &str| Ok::<_, anyhow::Error>(fs::read_dir(host.files.pins().join(name))?.count());
        Ok(count("links")? + count("clsact")?)
    };
    let before = pinned()?;
    for round in 0..3 {
        let tap = host.namespace.enter(|| Tap::new("passing"))?;
        host.agent.wait_for_log("tap passing: attached")?;
        ensure!(pinned()? > before, "round {round}: nothing is pinned");
        let index = tap.index();
        drop(tap);
        host.agent.wait_for_log(&format!("tap {index}: detached"))?;
        ensure!(pinned()? == before, "round {round}: pins are left");
    }
    Ok(())
}

/// From before a tap is made until the metadata address on it is the agent's. Prints the figures: no clock of a busy
/// machine is asserted on.
#[test]
fn a_new_tap_is_intercepted_at_once() -> Result<()> {
    const TAPS: usize = 20;
    let host = Host::new("", |record| {
        record["NetworkInterfaces"][0]["MacAddress"] = GUEST_MAC.to_string().into();
        record["NetworkInterfaces"][0]["Tap"] = "new".into();
    })?;
    let request = Arp::default().frame(BROADCAST);
    let mut latencies: Vec<Duration> = (0..TAPS)
        .map(|_| {
            host.namespace.enter(|| {
                let begin = Instant::now();
                let tap = Tap::new("new")?;
                let mut frame = [0; 2048];
                loop {
                    tap.send(&request)?;
                    // The host's own greetings come here too.
                    while let Ok(length) = tap.read(&mut frame) {
                        if length >= 12 && frame[6..12] == IMDS_MAC.0 {
                            return Ok(begin.elapsed());
                        }
                    }
                    ensure!(begin.elapsed() < PATIENCE, "the tap is never intercepted");
                }
            })
        })
        .collect::<Result<_>>()?;
    latencies.sort();
    println!(
        "making a tap to its address being intercepted: median {:?}, most {:?}",
        latencies[TAPS / 2],
        latencies[TAPS - 1]
    );
    Ok(())
}

/// Prints how long an agent takes to serve a thousand taps that are there when it starts; fewer where one takes long.
#[test]
fn a_thousand_taps_are_attached_and_bound_at_start() -> Result<()> {
    const BOUND: &str = ": bound to 06:";
    let taps = pace::work(1000, 100);
    let namespace = Namespace::new()?;
    let files = HostFiles::new("metrics.per_tap = true")?;
    let mut commands = String::new();
    for number in 0..taps {
        let [high, low] = u16::try_from(number)?.to_be_bytes();
        let mac = MacAddr([6, 0, 0, 1, high, low]);
        writeln!(commands, "tuntap add dev tap{number} mode tap")?;
        writeln!(commands, "link set dev tap{number} address {} up", shown(mac))?;
        let mut record = records::instance(&format!("i-{number}"), mac, "", ADDRESS);
        // Half of them are found by name, half by what their MAC shows.
        record["NetworkInterfaces"][0]["Tap"] = match number % 2 {
            0 => format!("tap{number}").into(),
            _ => serde_json::Value::Null,
        };
        files.put("instances", &format!("i-{number}"), &record)?;
    }
    let mut ip = namespace
        .command("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    let mut stdin = ip.stdin.take().context("ip reads commands")?;
    stdin.write_all(commands.as_bytes())?;
    drop(stdin);
    ensure!(ip.wait()?.success(), "ip failed");
    for start in ["first", "next"] {
        let begin = Instant::now();
        let mut agent = Agent::start(&program()?, &namespace, &files)?;
        let took = begin.elapsed();
        let told = |agent: &Agent, what: &str| agent.log.iter().filter(|line| line.contains(what)).count();
        let bound = told(&agent, BOUND);
        // A kernel that clears other namespaces away may be without memory for a map's entry at that moment.
        let refused = told(&agent, "Cannot allocate memory (os error 12); trying again");
        ensure!(
            bound + refused == taps,
            "{bound} taps are bound: {:#?}",
            agent.log
        );
        while told(&agent, BOUND) < taps {
            agent.wait_for_log(BOUND)?;
        }
        println!("the {start} start with {taps} taps to ready: {took:?}, {refused} refused at first");
        // They are read a few at a time, and each of them once.
        let scrape = Scrape::of(&files.metrics())?;
        ensure!(scrape.value("imds_taps_bound", &[]) == Some(taps as f64));
        let left = scrape.sum("imds_tap_budget_left", &[("limit", "packets")]);
        ensure!(left == taps as f64 * BURST_TOKENS as f64, "{left}");
        let status = imdsctl_json(&files, "status")?;
        let measured = status["taps"].as_array().into_iter().flatten();
        ensure!(measured.filter(|tap| tap["framesDropped"] == 0).count() == taps);
        agent.stop()?;
    }
    Ok(())
}

/// As behind Proxmox's `rate=`: what waits for a guest whose limit holds it back is at no other's cost.
#[test]
fn a_guest_with_a_limit_keeps_no_other_from_being_served() -> Result<()> {
    const CONNECTIONS: usize = 40;
    /// More full frames than a socket's default account has room for.
    const WAITING: u64 = 200;
    let host = Host::in_namespace(Namespace::new()?, "", |files, record| {
        record["UserData"] = "QUFB".repeat(16 * 1024 / 3).into();
        let neighbour = records::instance("i-neighbour", guest_mac(3), "tap1", "10.0.0.3");
        files.put("instances", "neighbour", &neighbour)
    })?;
    let guest = host.guest()?;
    let neighbour = host.add_guest("tap1", guest_mac(3), "10.0.0.3/24")?;
    let (token_of_neighbour, id) = neighbour.namespace.enter(|| -> Result<_> {
        let token = token()?;
        let id = text(&token, "meta-data/instance-id")?;
        Ok((token, id))
    })?;
    assert_eq!(id, "i-neighbour");
    let namespace = &host.namespace;
    let streams = guest.namespace.enter(|| -> Result<Vec<_>> {
        let request = format!(
            "GET /latest/user-data HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token: {}\r\n\r\n",
            token()?
        );
        let streams: io::Result<Vec<_>> = (0..CONNECTIONS)
            .map(|_| TcpStream::connect("169.254.169.254:80"))
            .collect();
        let streams = streams?;
        tc(
            namespace,
            "qdisc add dev tap0 root tbf rate 256kbit burst 10k limit 2mb",
        )?;
        streams
            .iter()
            .try_for_each(|mut stream| stream.write_all(request.as_bytes()))?;
        Ok(streams)
    })?;
    let queue = || -> Result<u64> {
        let shown: serde_json::Value =
            serde_json::from_str(&tc(namespace, "-s -j qdisc show dev tap0 root")?)?;
        shown[0]["qlen"].as_u64().with_context(|| shown.to_string())
    };
    wait_for("frames that wait", queue, |frames| *frames > WAITING)?;

    neighbour.namespace.enter(|| -> Result<()> {
        for _ in 0..100 {
            ensure!(text(&token_of_neighbour, "meta-data/instance-id")? == "i-neighbour");
        }
        Ok(())
    })?;
    host.wait_for_metric("imds_frames_lost_total", &[], 0.0)?;
    drop(streams);
    Ok(())
}

fn tc(namespace: &Namespace, words: &str) -> Result<String> {
    run(namespace.command("tc").args(words.split_whitespace()))
}

#[test]
fn an_agent_in_another_namespace_serves_the_taps_there_from_the_same_records() -> Result<()> {
    let (host, guest) = Host::with_guest(|_| ())?;
    let tenant = Namespace::new()?;
    let files = HostFiles::new("")?;
    let config = fs::read_to_string(files.config())?;
    let own_state = format!("{:?}", files.state());
    let config = config.replace(&own_state, &format!("{:?}", host.files.state()));
    fs::write(files.config(), config)?;
    let record = records::instance("i-tenant", guest_mac(3), "jailed0", ADDRESS);
    host.files.put("instances", "tenant", &record)?;
    let tap = Arc::new(tenant.enter(|| Tap::new("jailed0"))?);
    let _agent = Agent::start(&program()?, &tenant, &files)?;
    let jailed = KernelGuest::new(tap, guest_mac(3), &format!("{ADDRESS}/24"))?;
    let token_and_id = || -> Result<(String, String)> {
        let token = token()?;
        let id = text(&token, "meta-data/instance-id")?;
        Ok((token, id))
    };
    let (of_tenant, id) = jailed.namespace.enter(token_and_id)?;
    assert_eq!(id, "i-tenant");
    expect_served(&guest)?;
    // Both agents have the same keys, and a token is still its own instance's only.
    let response = guest
        .namespace
        .enter(|| get(&of_tenant, "meta-data/instance-id"))?;
    assert_eq!(response.status, 401);
    Ok(())
}
