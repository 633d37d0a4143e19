//! A queueing discipline `ingress` in the place of clsact, as a limit on what a guest sends brings along.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use imds_agent::datapath::{Classifier, Direction, Hook, Namespaces, attach, filters};
use imds_tests::{control::run, kernel::in_namespaces, leaks::Leaks};

use crate::BINDING;

/// Runs `tc`. Words are what blanks separate, and underlines are blanks within them.
pub fn tc(line: &str) -> Result<String> {
    let words = line.split_whitespace().map(|word| word.replace('_', " "));
    run(Command::new("tc").args(words))
}

/// Both of the classifier's hooks would be one: it guards the address, serves nobody, and says why, until the other is gone.
#[test]
fn tap_with_an_ingress_qdisc_is_dark_and_told() -> Result<()> {
    in_namespaces(|bpffs| with_ingress(&bpffs.join("imds")))?;
    Ok(())
}

fn with_ingress(root: &Path) -> Result<()> {
    let leaks = Leaks::new()?;
    let tap = leaks.tap();
    tc("qdisc add dev guest ingress")?;
    // As good as a limit: it matches nothing.
    tc("filter add dev guest parent ffff: protocol all prio 50 bpf bytecode 1,6_0_0_0")?;
    let names = ["guest".to_owned()];
    let ensure_on = || {
        attach::ensure_on(
            root,
            &names,
            &Namespaces::default(),
            Hook::Clsact,
            Duration::from_millis(100),
        )
    };
    let early = ensure_on().expect_err("the classifier is on one hook only");
    ensure!(
        format!("{:#}", anyhow::Error::from(early)).contains("ingress"),
        "it is not told why"
    );
    for round in ["before an agent", "attached", "taken over", "taken over again"] {
        ensure!(!leaks.falls_through()?, "{round}: the tap leaks");
        let mut classifier = Classifier::load_on(root, Hook::Clsact)?;
        ensure!(
            !leaks.falls_through()?,
            "{round}: the tap leaks once it is taken over"
        );
        for _ in 0..2 {
            let error = classifier
                .attach(tap)
                .expect_err("there is nothing for what the guest is sent");
            let said = format!("{:#}", anyhow::Error::from(error));
            ensure!(
                said.contains("tap guest") && said.contains("tc qdisc del dev guest ingress"),
                "{said}"
            );
        }
        ensure!(
            classifier.is_attached(tap),
            "it is on no list of what to take off"
        );
        ensure!(filters::is_on(tap, Direction::Outbound)? && !filters::is_on(tap, Direction::Inbound)?);
        // Whoever binds it all the same serves it, and leaks nothing.
        classifier.bind(tap, BINDING.with_packets_per_second(0))?;
        let before = classifier.counters(tap)?;
        let sent = leaks.send_as_guest().context(round)?;
        let counted = classifier.counters(tap)?;
        ensure!(
            counted.punted - before.punted == sent.punted
                && counted.hairpinned - before.hairpinned == sent.hairpinned,
            "{round}: {before} and then {counted}"
        );
        classifier.unbind(tap)?;
    }
    ensure_on().expect_err("the classifier is on one hook only");

    let mut classifier = Classifier::load_on(root, Hook::Clsact)?;
    classifier.detach(tap)?;
    ensure!(leaks.falls_through()?, "the classifier is still there");
    let qdiscs = tc("qdisc show dev guest")?;
    ensure!(qdiscs.contains("qdisc ingress ffff:"), "{qdiscs}");
    let limits = tc("filter show dev guest parent ffff:")?;
    ensure!(
        limits.contains("pref 50") && !limits.contains("direct-action"),
        "{limits}"
    );

    classifier.attach(tap).expect_err("it is still there");
    tc("qdisc del dev guest ingress")?;
    classifier.attach(tap)?;
    classifier.bind(tap, BINDING.with_packets_per_second(0))?;
    leaks.send()?;

    // In the other order it is the limit that has to stay away, and a detach takes the clsact along.
    let refused = tc("qdisc add dev guest handle ffff: ingress").expect_err("clsact made room");
    ensure!(refused.to_string().contains("Exclusivity"), "{refused}");
    leaks.send()?;
    classifier.detach(tap)?;
    tc("qdisc add dev guest ingress")?;
    Ok(())
}

/// A clsact that an agent brought, and somebody else replaced, is not the agent's to take off.
#[test]
fn ingress_qdisc_that_took_the_place_of_the_agents_clsact_stays() -> Result<()> {
    in_namespaces(|bpffs| {
        let leaks = Leaks::new()?;
        let mut classifier = Classifier::load_on(&bpffs.join("imds"), Hook::Clsact)?;
        classifier.attach(leaks.tap())?;
        tc("qdisc del dev guest clsact")?;
        tc("qdisc add dev guest ingress")?;
        classifier.detach(leaks.tap())?;
        let qdiscs = tc("qdisc show dev guest")?;
        ensure!(qdiscs.contains("qdisc ingress ffff:"), "{qdiscs}");
        Ok(())
    })?;
    Ok(())
}
