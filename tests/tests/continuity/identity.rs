//! Who a guest is over the life of its tap: never another, and where that is not known, nobody, with a reason.

use std::{net::TcpStream, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::{MacAddr, Reason, TapIndex};
use imds_tests::{
    agent::{Agent, HostFiles},
    client::{get, text, token, wait_for},
    frames::{Ipv4, eth, tcp},
    host::program,
    kernel_guest::KernelGuest,
    netns::Namespace,
    records::{self, guest_mac},
    tap::Tap,
};
use nix::net::if_::if_nametoindex;

use crate::counters;

const ONE: &str = "i-00000000000000001";
const TWO: &str = "i-00000000000000002";

const INDEX: TapIndex = TapIndex(77);

/// A host with records of two instances, and with taps as the test makes them.
struct Host {
    agent: Agent,
    files: HostFiles,
    namespace: Namespace,
}

impl Host {
    /// Instance one is on `tap1`, two on `tap2`.
    fn new() -> Result<Self> {
        let (namespace, files) = (Namespace::new()?, HostFiles::new("")?);
        put(&files, ONE, guest_mac(1), "tap1")?;
        put(&files, TWO, guest_mac(2), "tap2")?;
        let agent = Agent::start(&program()?, &namespace, &files)?;
        Ok(Self {
            agent,
            files,
            namespace,
        })
    }

    fn tap(&self, name: &str) -> Result<Arc<Tap>> {
        Ok(Arc::new(self.namespace.enter(|| Tap::new(name))?))
    }

    /// A guest with this MAC and the same address as all others on a new tap.
    fn guest(&mut self, tap: &str, mac: MacAddr) -> Result<KernelGuest> {
        let guest = KernelGuest::new(self.tap(tap)?, mac, "10.0.0.2/24")?;
        self.agent.wait_for_log(&format!("tap {tap}: bound to"))?;
        Ok(guest)
    }

    fn dropped(&self, tap: TapIndex, reason: Reason) -> Result<u64> {
        Ok(counters(&self.files, tap)?.dropped_for(reason))
    }
}

fn put(files: &HostFiles, id: &str, mac: MacAddr, tap: &str) -> Result<()> {
    files.put("instances", id, &records::instance(id, mac, tap, "10.0.0.2"))
}

fn instance_id(guest: &KernelGuest) -> Result<String> {
    guest.namespace.enter(|| text(&token()?, "meta-data/instance-id"))
}

/// Whether the guest is answered at all: with a SYN that nobody takes it waits.
fn is_answered(guest: &KernelGuest) -> bool {
    let address = "169.254.169.254:80".parse().expect("an address");
    let timeout = Duration::from_millis(300);
    guest
        .namespace
        .enter(|| TcpStream::connect_timeout(&address, timeout).is_ok())
}

#[test]
fn forged_addresses_and_tokens_of_others_get_nothing_of_theirs() -> Result<()> {
    let mut host = Host::new()?;
    let one = host.guest("tap1", guest_mac(1))?;
    let tap = host.tap("tap2")?;
    host.agent.wait_for_log("tap tap2: bound to")?;
    // The second guest says in every frame that it is the first.
    let before = host.dropped(tap.index(), Reason::SourceMacForged)?;
    let forger = KernelGuest::new(Arc::clone(&tap), guest_mac(1), "10.0.0.2/24")?;
    ensure!(!is_answered(&forger), "a forged MAC is answered");
    ensure!(
        host.dropped(tap.index(), Reason::SourceMacForged)? > before,
        "it is not counted"
    );
    drop(forger);
    // With its own MAC it is itself, whatever address it takes, and the first one's token is worth nothing.
    let two = KernelGuest::new(tap, guest_mac(2), "10.0.0.2/24")?;
    let stolen = one.namespace.enter(token)?;
    ensure!(instance_id(&two)? == TWO);
    let response = two.namespace.enter(|| get(&stolen, "meta-data/instance-id"))?;
    ensure!(response.status == 401, "{}", response.head);
    ensure!(one.namespace.enter(|| text(&stolen, "meta-data/instance-id"))? == ONE);
    Ok(())
}

#[test]
fn tap_without_a_record_gets_nothing_and_says_why() -> Result<()> {
    let mut host = Host::new()?;
    let tap = host.tap("tap9")?;
    let guest = KernelGuest::new(Arc::clone(&tap), guest_mac(9), "10.0.0.2/24")?;
    host.agent.wait_for_log("tap tap9: bound to nobody")?;
    ensure!(!is_answered(&guest), "it is answered");
    ensure!(
        host.dropped(tap.index(), Reason::TapUnbound)? > 0,
        "it is not counted"
    );
    let (_, log) = host.agent.stop()?;
    let counted = log.iter().find(|line| line.contains("counted: tap tap9"));
    ensure!(
        counted.is_some_and(|line| line.contains("tap-unbound")),
        "{log:#?}"
    );
    Ok(())
}

/// The guest stays who its MAC says, and only where a record has it; so a name that is another's gives it nothing.
#[test]
fn renamed_tap_is_never_the_one_whose_name_it_takes() -> Result<()> {
    let mut host = Host::new()?;
    let one = host.guest("tap1", guest_mac(1))?;
    let token_of_one = one.namespace.enter(token)?;
    let rename = |host: &Host, from: &str, to: &str| {
        host.namespace.ip(&format!("link set {from} down"))?;
        host.namespace.ip(&format!("link set {from} name {to}"))?;
        host.namespace.ip(&format!("link set {to} up"))
    };
    rename(&host, "tap1", "spare")?;
    host.agent.wait_for_log("tap spare: bound to nobody")?;
    ensure!(!is_answered(&one), "a tap of no record's is answered");
    rename(&host, "spare", "tap2")?;
    host.agent.wait_for_log("tap tap2: bound to")?;
    ensure!(!is_answered(&one), "it is answered as another");
    rename(&host, "tap2", "tap1")?;
    host.agent.wait_for_log("tap tap1: bound to")?;
    let is_one = || text(&token_of_one, "meta-data/instance-id");
    ensure!(one.namespace.enter(is_one)? == ONE);
    Ok(())
}

#[test]
fn tap_that_is_made_again_is_who_its_name_says_then() -> Result<()> {
    let mut host = Host::new()?;
    let make = |host: &Host, name: &str| -> Result<Arc<Tap>> {
        // The child of another test may hold a copy of the last one for a moment.
        let tap = || Ok(host.namespace.enter(|| Tap::with_index(name, INDEX)).ok());
        let (tap, _) = wait_for("the index", tap, Option::is_some)?;
        Ok(Arc::new(tap.context("waited for")?))
    };
    let with_guest = |tap, mac| KernelGuest::new(tap, mac, "10.0.0.2/24");

    let first = with_guest(make(&host, "tap1")?, guest_mac(1))?;
    host.agent.wait_for_log("tap tap1: bound to")?;
    let token_of_one = first.namespace.enter(token)?;
    drop(first);
    host.agent.wait_for_log("tap 77: detached")?;

    // The same name and index: the same instance, and its token is good.
    let again = with_guest(make(&host, "tap1")?, guest_mac(1))?;
    host.agent.wait_for_log("tap tap1: bound to")?;
    let is_one = || text(&token_of_one, "meta-data/instance-id");
    ensure!(again.namespace.enter(is_one)? == ONE);
    drop(again);
    host.agent.wait_for_log("tap 77: detached")?;

    // The same index under another name.
    let other = with_guest(make(&host, "tap2")?, guest_mac(2))?;
    host.agent.wait_for_log("tap tap2: bound to")?;
    ensure!(instance_id(&other)? == TWO);
    let response = other
        .namespace
        .enter(|| get(&token_of_one, "meta-data/instance-id"))?;
    ensure!(response.status == 401, "{}", response.head);
    Ok(())
}

#[test]
fn mac_that_moves_to_another_tap_is_served_there_alone() -> Result<()> {
    let mut host = Host::new()?;
    let old = host.guest("tap1", guest_mac(1))?;
    let token_of_one = old.namespace.enter(token)?;
    let spare = host.guest("spare", guest_mac(1))?;
    ensure!(!is_answered(&spare), "its MAC is bound elsewhere");
    put(&host.files, ONE, guest_mac(1), "spare")?;
    host.agent.wait_for_log("tap tap1: bound to nobody")?;
    host.agent.wait_for_log("tap spare: bound to")?;
    ensure!(!is_answered(&old), "the MAC is still served on its old tap");
    let is_one = || text(&token_of_one, "meta-data/instance-id");
    ensure!(spare.namespace.enter(is_one)? == ONE);
    Ok(())
}

/// A tap that goes to another network namespace takes a TCX link along, and its index: on the host that is another's from then
/// on. No agent sees it.
#[test]
fn tap_that_emigrates_is_not_taken_for_its_successor() -> Result<()> {
    let mut host = Host::new()?;
    let abroad = Namespace::new()?;
    let emigrant = host.namespace.enter(|| Tap::with_index("tap1", INDEX))?;
    host.agent.wait_for_log("tap tap1: bound to")?;
    let Host {
        agent,
        files,
        namespace,
    } = host;
    agent.stop()?;
    namespace.ip(&format!("link set tap1 netns {}", abroad.path()))?;
    ensure!(
        abroad.enter(|| if_nametoindex("tap1"))? == INDEX.ifindex(),
        "it has another index there"
    );
    let heir = Arc::new(namespace.enter(|| Tap::with_index("tap2", INDEX))?);

    let _agent = Agent::start(&program()?, &namespace, &files)?;
    let two = KernelGuest::new(heir, guest_mac(2), "10.0.0.2/24")?;
    ensure!(is_answered(&two), "the classifier is not on it");
    ensure!(instance_id(&two)? == TWO);
    drop(emigrant);
    Ok(())
}

/// The agent is told of links a moment late. Here it is held up, while the tap that it is told of goes and another gets its
/// index, on which a guest says that it is the first one.
#[test]
fn late_news_of_a_tap_bind_nobody_to_its_successor() -> Result<()> {
    let mut host = Host::new()?;
    host.agent.pause()?;
    drop(host.namespace.enter(|| Tap::with_index("tap1", INDEX))?);
    let make = || Ok(host.namespace.enter(|| Tap::with_index("tap2", INDEX)).ok());
    let (tap, _) = wait_for("the index", make, Option::is_some)?;
    let tap = tap.context("waited for")?;
    host.agent.resume()?;
    host.agent.wait_for_log("tap tap2: bound to")?;
    let was_bound = host
        .agent
        .log
        .iter()
        .any(|line| line.contains("tap tap1: bound to"));
    ensure!(!was_bound, "{:#?}", host.agent.log);
    let request = Ipv4::default().packet(&tcp(80, 0));
    tap.send(&eth(guest_mac(2), guest_mac(1), &[], 0x0800, &request))?;
    ensure!(host.dropped(INDEX, Reason::SourceMacForged)? == 1);
    Ok(())
}
