//! T1: one agent, and taps in network namespaces that come and go while it runs, all of them called the same, with the same
//! index, and with the same MAC in their guests, as Firecracker's clones have them.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpStream,
    os::unix::fs::{MetadataExt as _, symlink},
    path::Path,
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{Map, MapData, PerCpuHashMap},
    programs::{SchedClassifier, TcAttachType},
    util::KernelVersion,
};
use imds_agent::datapath::Counters;
use imds_ebpf::abi::{ABI_VERSION, NamespaceNumber, Reason, TapCounters, TapIndex};
use imds_tests::{
    agent::{Agent, HostFiles},
    client::{get, text, token, wait_for},
    control::ask,
    frames::GUEST_MAC,
    host::{ADDRESS, program},
    kernel_guest::KernelGuest,
    leaks::Leaks,
    netns::{Names, Namespace},
    records::{self, guest_mac},
    scrape::Scrape,
    tap::Tap,
};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

/// Every tap's index, in whichever namespace.
const INDEX: TapIndex = TapIndex(77);

/// A host whose agent serves the namespaces that have names.
struct Host {
    files: HostFiles,
    names: Names,
    namespace: Namespace,
}

/// A machine with a network namespace of its own, as the jailer makes them.
struct Machine {
    guest: KernelGuest,
    namespace: Namespace,
}

impl Host {
    fn new(extra: &str) -> Result<Self> {
        let names = Names::new()?;
        let files = HostFiles::new(&config(&names, "*", extra))?;
        Ok(Self {
            files,
            names,
            namespace: Namespace::new()?,
        })
    }

    fn start(&self) -> Result<Agent> {
        Agent::start(&program()?, &self.namespace, &self.files)
    }

    /// Writes the record of an instance whose interface has every clone's MAC.
    fn put(&self, id: &str, tap: &str) -> Result<()> {
        let record = records::instance(id, guest_mac(2), tap, ADDRESS);
        self.files.put("instances", id, &record)
    }

    /// A namespace with this name.
    fn named(&self, name: &str) -> Result<Namespace> {
        let namespace = Namespace::new()?;
        self.names.give(name, &namespace)?;
        Ok(namespace)
    }

    /// A machine in a namespace of this name.
    fn machine(&self, name: &str) -> Result<Machine> {
        Machine::in_namespace(self.named(name)?)
    }

    fn imds_agent(&self, words: &[&str]) -> Result<Output> {
        let mut command = self.namespace.command(program()?);
        command.args(words).arg("--config").arg(self.files.config());
        Ok(command.output()?)
    }

    /// Runs a command that must succeed.
    fn run(&self, words: &[&str]) -> Result<()> {
        let output = self.imds_agent(words)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words:?}: {said}");
        Ok(())
    }

    /// Runs a command that must fail, and returns what it says.
    fn refused(&self, words: &[&str]) -> Result<String> {
        let output = self.imds_agent(words)?;
        ensure!(!output.status.success(), "{words:?} works");
        Ok(String::from_utf8(output.stderr)?)
    }

    /// What is pinned of links, and of clsact queueing disciplines that are the agent's.
    fn pinned(&self) -> Result<BTreeSet<String>> {
        let mut pinned = BTreeSet::new();
        for kind in ["links", "clsact"] {
            for entry in fs::read_dir(self.files.pins().join(kind))? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                pinned.insert(name);
            }
        }
        Ok(pinned)
    }

    /// Every tap that is counted on.
    fn counted(&self) -> Result<BTreeSet<TapIndex>> {
        let map = self.counter_map()?;
        let keys = map.keys().map(|key| key.map(TapIndex));
        Ok(keys.collect::<Result<_, _>>()?)
    }

    fn counters(&self, tap: TapIndex) -> Result<Counters> {
        Ok(Counters::sum(&self.counter_map()?.get(&tap.0, 0)?))
    }

    fn counter_map(&self) -> Result<PerCpuHashMap<MapData, u64, TapCounters>> {
        let pin = self.files.pins().join(format!("v{ABI_VERSION}/COUNTERS"));
        Ok(Map::PerCpuHashMap(MapData::from_pin(pin)?).try_into()?)
    }
}

/// What the control socket answers.
fn told(files: &HostFiles, method: &str, path: &str) -> Result<Value> {
    let response = ask(&files.socket(), method, path, &[], b"")?;
    ensure!(response.status == 200, "{path}: {}", response.head);
    Ok(serde_json::from_slice(&response.body)?)
}

fn config(names: &Names, pattern: &str, extra: &str) -> String {
    let directory = names.directory().display();
    format!("network_namespaces = [\"{directory}/{pattern}\"]\n{extra}")
}

impl Machine {
    fn in_namespace(namespace: Namespace) -> Result<Self> {
        let tap = namespace.enter(|| Tap::with_index("tap0", INDEX))?;
        let guest = KernelGuest::new(Arc::new(tap), guest_mac(2), &format!("{ADDRESS}/24"))?;
        Ok(Self { guest, namespace })
    }

    fn token(&self) -> Result<String> {
        self.guest.namespace.enter(token)
    }

    fn instance_id(&self, token: &str) -> Result<String> {
        self.guest
            .namespace
            .enter(|| text(token, "meta-data/instance-id"))
    }

    fn status(&self, token: &str) -> Result<u16> {
        let response = self.guest.namespace.enter(|| get(token, "meta-data/instance-id"));
        Ok(response?.status)
    }

    /// Whether it is answered at all: with a SYN that nobody takes it waits.
    fn is_answered(&self) -> bool {
        let address = "169.254.169.254:80".parse().expect("an address");
        let timeout = Duration::from_millis(300);
        let guest = &self.guest.namespace;
        guest.enter(|| TcpStream::connect_timeout(&address, timeout).is_ok())
    }

    /// The programs on its tap, where the kernel says that.
    fn programs(&self) -> Result<Option<[u32; 2]>> {
        if !has_tcx()? {
            return Ok(None);
        }
        self.namespace.enter(|| {
            let id = |hook| -> Result<u32> {
                let (_, programs) = SchedClassifier::query_tcx("tap0", hook)?;
                Ok(programs.first().context("a program")?.id())
            };
            Ok(Some([id(TcAttachType::Ingress)?, id(TcAttachType::Egress)?]))
        })
    }

    /// As the classifier keys it.
    fn tap(&self) -> Result<TapIndex> {
        tap_in(&self.namespace, INDEX)
    }
}

fn has_tcx() -> Result<bool> {
    Ok(KernelVersion::current()? >= KernelVersion::new(6, 6, 0))
}

/// A device of a namespace as the classifier keys it.
fn tap_in(namespace: &Namespace, index: TapIndex) -> Result<TapIndex> {
    let number = fs::metadata(namespace.path())?.ino().try_into()?;
    Ok(TapIndex::within(NamespaceNumber(number), index.ifindex()))
}

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
    fs::write(files.config(), text.replace("/*\"]", "/other-*\"]"))?;
    let reloaded = told(files, "POST", "/v1/reload")?;
    ensure!(reloaded["changed"][0] == "network_namespaces", "{reloaded}");
    ensure!(leaks.falls_through()?, "the classifier is still there");
    ensure!(host.pinned()?.is_empty());
    fs::write(files.config(), &text)?;
    told(files, "POST", "/v1/reload")?;
    agent.wait_for_log("tap fc-1/guest: bound to")?;
    leaks.send().context("selected again")?;
    agent.stop()?;

    // The same over a restart. Where there are filters instead of links nobody gets to them then.
    if has_tcx()? {
        let without = [
            text.replace("/*\"]", "/other-*\"]"),
            text.replace("network_namespaces", "# network_namespaces"),
        ];
        for without in without {
            fs::write(files.config(), &without)?;
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

#[test]
fn attach_and_detach_name_taps_in_namespaces() -> Result<()> {
    let host = Host::new("")?;
    let namespace = host.named("fc-1")?;
    let leaks = namespace.enter(Leaks::new)?;
    let record = records::instance("i-1", GUEST_MAC, "fc-1/guest", ADDRESS);
    host.files.put("instances", "i-1", &record)?;
    let said = host.refused(&["attach", "fc-2/guest"])?;
    ensure!(said.contains("no network namespace \"fc-2\""), "{said}");
    let said = host.refused(&["attach", "fc-1/nothing"])?;
    ensure!(said.contains("no network device \"nothing\""), "{said}");
    let said = host.refused(&["attach", "fc-1/bridge"])?;
    ensure!(said.contains("\"fc-1/bridge\" is no tap"), "{said}");

    host.run(&["attach", "fc-1/guest"])?;
    ensure!(!leaks.falls_through()?, "it is not attached");
    host.run(&["attach", "fc-1/guest"])?;
    host.run(&["detach", "fc-1/guest"])?;
    ensure!(leaks.falls_through()?, "it is still attached");

    // What was attached beforehand the agent takes over, and a running one attaches by itself.
    host.run(&["attach", "fc-1/guest"])?;
    let pinned = host.pinned()?;
    let agent = host.start()?;
    let is_there = |pins: &BTreeSet<String>| pinned.is_subset(pins);
    ensure!(is_there(&host.pinned()?), "{pinned:?}");
    host.run(&["attach", "fc-1/neighbour", "fc-1/guest"])?;
    agent.stop()?;
    ensure!(!leaks.falls_through()?);
    host.run(&["detach", "--all"])?;
    ensure!(leaks.falls_through()?, "it is still attached");
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
    let told = ["a-file", "a-link", "fc-2"].map(|name| format!("network namespace {name}:"));
    let told = |line: &String| told.iter().any(|told| line.contains(told));
    ensure!(!agent.log.iter().any(told), "{:#?}", agent.log);

    host.names.take("fc-1")?;
    agent.wait_for_log("tap fc-2/tap0: bound to nobody")?;
    ensure!(!machine.is_answered());
    Ok(())
}

#[test]
fn what_it_takes_is_said_in_one_sentence() -> Result<()> {
    let host = Host::new("")?;
    let without = |words: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = host.namespace.command("setpriv");
        command
            .args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"])
            .arg(program()?)
            .args(words)
            .arg("--config")
            .arg(host.files.config());
        let output = command.output()?;
        Ok((output.status.code(), String::from_utf8(output.stderr)?))
    };
    let (code, said) = without(&["run"])?;
    ensure!(
        said.starts_with("imds-agent: CAP_SYS_ADMIN is missing, which `network_namespaces`")
            && said.lines().count() == 1,
        "{said}"
    );
    ensure!(code == Some(4), "{code:?}");

    // An operator's commands as well, but for what is not elsewhere; and what is pinned comes off in any case.
    let namespace = host.named("fc-1")?;
    let leaks = namespace.enter(Leaks::new)?;
    let (code, said) = without(&["attach", "fc-1/guest"])?;
    ensure!(code == Some(4) && said.contains("takes CAP_SYS_ADMIN"), "{said}");
    host.run(&["attach", "fc-1/guest"])?;
    ensure!(!leaks.falls_through()?);
    if has_tcx()? {
        let (code, said) = without(&["detach", "--all"])?;
        ensure!(code == Some(0), "{said}");
        ensure!(leaks.falls_through()?, "the classifier is still there");
    }
    Ok(())
}

/// `docs/hypervisors.md` has it, with the jailer as the command.
#[test]
fn the_script_for_namespaces_makes_an_instance() -> Result<()> {
    const SCRIPT: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/examples/hypervisors/netns.sh"
    );
    let _names = Names::new()?;
    // `ip netns` has its directory in here, and the machine keeps its own.
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    let files = HostFiles::new("network_namespaces = [\"fc-*\"]")?;
    let namespace = Namespace::new()?;
    let mut agent = Agent::start(&program()?, &namespace, &files)?;
    let programs = program()?;
    let programs = programs.parent().context("a directory")?.display().to_string();
    let mut script = namespace
        .command("sh")
        .args([SCRIPT, "fc-1", "cat"])
        .env("PATH", format!("{programs}:{}", std::env::var("PATH")?))
        .env("IMDS_STATE", files.state())
        .env("IMDS_CONFIG", files.config())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    agent.wait_for_log("tap fc-1/tap0: bound to")?;
    let there = Namespace::named(Path::new("/run/netns/fc-1"))?;
    let tap = Arc::new(there.enter(|| Tap::new("tap0"))?);
    let guest = KernelGuest::new(tap, "06:00:ac:10:00:02".parse()?, "10.0.0.2/24")?;
    let id = guest
        .namespace
        .enter(|| text(&token()?, "meta-data/instance-id"))?;
    ensure!(id == "i-fc-1", "{id}");
    drop((guest, there));
    // The machine ends, and nothing of it is left.
    drop(script.stdin.take());
    ensure!(script.wait()?.success());
    agent.wait_for_log("network namespace fc-1: out of sight")?;
    let links = || Ok(fs::read_dir(files.pins().join("links"))?.count());
    wait_for("pins", links, |links| *links == 0)?;
    ensure!(fs::read_dir(files.state().join("instances"))?.count() == 0);
    ensure!(fs::read_dir("/run/netns")?.count() == 0);
    Ok(())
}
