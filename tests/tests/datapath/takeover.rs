//! What an agent finds that another version left, or something worse.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, lchown},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use imds_agent::datapath::{Classifier, Direction, Hook, Namespaces, attach, detach, filters};
use imds_ebpf::abi::ABI_VERSION;
use imds_tests::{
    kernel::in_namespaces,
    leaks::{Leaks, Tally},
    tap::{PATIENCE, Tap},
};

use crate::{BINDING, hooks};

/// Sends the whole table over and over on another thread while `work` is done, and at least once.
fn while_sending<T>(leaks: &Leaks, work: impl FnOnce() -> Result<T>) -> Result<(T, Tally)> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<Tally> {
            let mut sent = Tally::default();
            loop {
                let is_last = is_over.load(Ordering::Relaxed);
                sent.add(&leaks.send()?);
                if is_last {
                    return Ok(sent);
                }
            }
        });
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        let sent = sender.join().expect("the sender does not panic")?;
        Ok((done?, sent))
    })
}

/// Gives what is pinned below `root` to another version, as an older agent would have left it.
fn age(root: &Path) -> Result<()> {
    let (newer, older) = (root.join(format!("v{ABI_VERSION}")), root.join("v1"));
    fs::create_dir(&older)?;
    for map in fs::read_dir(&newer)? {
        let name = map?.file_name();
        fs::rename(newer.join(&name), older.join(&name))?;
    }
    Ok(fs::remove_dir(newer)?)
}

#[test]
fn older_version_is_replaced_without_a_leak_and_leaves_nothing() -> Result<()> {
    for &hook in hooks() {
        in_namespaces(|bpffs| upgrade(&bpffs.join("imds"), hook).with_context(|| format!("{hook:?}")))?;
    }
    Ok(())
}

fn upgrade(root: &Path, hook: Hook) -> Result<()> {
    let (leaks, other) = (Leaks::new()?, Tap::new("other")?);
    let (tap, unlimited) = (leaks.tap(), BINDING.with_packets_per_second(0));
    let mut classifier = Classifier::load_on(root, hook)?;
    classifier.attach(tap)?;
    classifier.attach(other.index())?;
    classifier.bind(tap, unlimited)?;
    drop(classifier);
    age(root)?;

    let (classifier, sent) = while_sending(&leaks, || {
        let mut classifier = Classifier::load_on(root, hook)?;
        ensure!(
            classifier.attached().eq([tap, other.index()]),
            "not all taps of the older version are adopted: {classifier:?}"
        );
        ensure!(
            classifier.binding(tap)?.is_none(),
            "another version's binding is believed"
        );
        classifier.attach(tap)?;
        classifier.bind(tap, unlimited)?;
        classifier.detach(other.index())?;
        Ok(classifier)
    })?;
    let counted = classifier.counters(tap)?;
    ensure!(counted.punted > 0 && counted.punted + counted.dropped_total() < sent.total());
    ensure!(!root.join("v1").exists(), "the older version's maps are left");
    for direction in [Direction::Outbound, Direction::Inbound] {
        ensure!(!filters::is_on(other.index(), direction)?, "a filter is left");
    }

    drop(classifier);
    age(root)?;
    detach::all(root, &Namespaces::default())?;
    ensure!(!root.exists() && filters::taps()?.is_empty(), "something is left");
    ensure!(leaks.falls_through()?, "the classifier is still there");
    Ok(())
}

#[test]
fn restart_counts_every_frame() -> Result<()> {
    for &hook in hooks() {
        in_namespaces(|bpffs| restart(&bpffs.join("imds"), hook).with_context(|| format!("{hook:?}")))?;
    }
    Ok(())
}

fn restart(root: &Path, hook: Hook) -> Result<()> {
    let leaks = Leaks::new()?;
    let tap = leaks.tap();
    let mut classifier = Classifier::load_on(root, hook)?;
    classifier.attach(tap)?;
    classifier.bind(tap, BINDING.with_packets_per_second(0))?;
    let (classifier, sent) = while_sending(&leaks, || {
        for _ in 0..3 {
            drop(classifier);
            classifier = Classifier::load_on(root, hook)?;
            // Nobody is there to empty the ring.
            for mut ring in classifier.rings() {
                while ring.next().is_some() {}
            }
            classifier.attach(tap)?;
        }
        Ok(classifier)
    })?;
    let counted = classifier.counters(tap)?;
    let total = counted.punted + counted.hairpinned + counted.dropped_total();
    ensure!(total == sent.total(), "{} sent, {counted}", sent.total());
    ensure!(counted.hairpinned == sent.hairpinned, "{counted}");
    Ok(())
}

#[test]
fn tap_that_cannot_be_taken_over_costs_nobody_else_anything() -> Result<()> {
    if !hooks().contains(&Hook::Tcx) {
        // Only a link is pinned, and only TCX has one.
        return Ok(());
    }
    in_namespaces(|bpffs| {
        let root = bpffs.join("imds");
        let (leaks, bad) = (Leaks::new()?, Tap::new("bad")?);
        let mut classifier = Classifier::load_on(&root, Hook::Tcx)?;
        classifier.attach(leaks.tap())?;
        classifier.bind(leaks.tap(), BINDING)?;
        drop(classifier);
        // Something else is pinned where its link should be.
        let pin = root.join("links").join(bad.index().to_string());
        fs::rename(root.join(format!("v{ABI_VERSION}/BUCKETS")), &pin)?;

        let mut classifier = Classifier::load_on(&root, Hook::Tcx)?;
        ensure!(classifier.binding(leaks.tap())? == Some(BINDING));
        classifier.attach(leaks.tap())?;
        let sent = leaks.send()?;
        ensure!(classifier.counters(leaks.tap())?.punted == sent.punted);
        let error = anyhow::Error::from(classifier.attach(bad.index()).unwrap_err());
        let told = format!("{error:#}");
        ensure!(
            told.contains("tap bad") && told.contains(pin.to_str().context("a path")?),
            "{told}"
        );
        // The agent that does not want the tap gets rid of it, and the one that does once the pin is gone.
        ensure!(classifier.attached().any(|tap| tap == bad.index()));
        classifier.detach(bad.index())?;
        ensure!(!pin.exists());
        classifier.attach(bad.index())?;
        Ok(())
    })?;
    Ok(())
}

#[test]
fn tap_is_attached_before_there_is_an_agent() -> Result<()> {
    for &hook in hooks() {
        in_namespaces(|bpffs| early(&bpffs.join("imds"), hook).with_context(|| format!("{hook:?}")))?;
    }
    Ok(())
}

/// Whom the pins belong to.
const OWNER: u32 = 4711;

fn give(path: &Path, owner: u32) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), owner)?;
        }
    }
    Ok(lchown(path, Some(owner), Some(owner))?)
}

fn early(root: &Path, hook: Hook) -> Result<()> {
    let (leaks, other) = (Leaks::new()?, Tap::new("other")?);
    let mut classifier = Classifier::load_on(root, hook)?;
    classifier.attach(other.index())?;
    classifier.bind(other.index(), BINDING)?;
    drop(classifier);
    // The agent is a user of its own.
    give(root, OWNER)?;

    // All at once, as when a host starts its guests.
    let ensure_on = |names: &[&str], agent_max| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        attach::ensure_on(root, &names, &Namespaces::default(), hook, agent_max)
    };
    thread::scope(|scope| {
        let calls = [["guest"], ["neighbour"], ["guest"], ["neighbour"]]
            .map(|names| scope.spawn(move || ensure_on(&names, PATIENCE)));
        calls
            .into_iter()
            .try_for_each(|call| call.join().expect("no panic"))
    })?;
    ensure_on(&["guest", "neighbour"], PATIENCE).context("again")?;
    ensure!(!leaks.falls_through()?, "the tap is not dark");
    for direction in [Direction::Outbound, Direction::Inbound] {
        let is_filter = filters::is_on(leaks.tap(), direction)?;
        ensure!(is_filter == (hook == Hook::Clsact));
    }
    for pin in fs::read_dir(root.join("links"))?.chain(fs::read_dir(root.join("clsact"))?) {
        let pin = pin?;
        ensure!(
            pin.metadata()?.uid() == OWNER,
            "the agent cannot use {:?}",
            pin.path()
        );
    }

    let mut classifier = Classifier::load_on(root, hook)?;
    ensure!(classifier.attached().count() == 3, "{classifier:?}");
    ensure!(classifier.binding(leaks.tap())?.is_none(), "somebody is bound");
    ensure!(
        classifier.binding(other.index())? == Some(BINDING),
        "a tap that was attached before lost its binding"
    );
    ensure!(
        classifier.counters(leaks.tap())?.dropped_total() == 1,
        "it is not counted from the start"
    );
    classifier.bind(leaks.tap(), BINDING)?;
    // An agent that runs and does not attach.
    let third = Tap::new("third")?;
    let error = ensure_on(&["third"], Duration::from_millis(100)).unwrap_err();
    ensure!(error.to_string().contains("tap third"), "{error}");
    classifier.attach(third.index())?;
    ensure_on(&["third"], PATIENCE)?;
    for (name, why) in [
        ("nobody", "no network device \"nobody\""),
        ("bridge", "\"bridge\" is no tap"),
    ] {
        let error = ensure_on(&[name], PATIENCE).unwrap_err();
        ensure!(error.to_string().contains(why), "{error}");
    }

    drop(classifier);
    detach::these(root, &["guest".to_owned()], &Namespaces::default())?;
    ensure!(leaks.falls_through()?, "the classifier is still there");
    let classifier = Classifier::load_on(root, hook)?;
    ensure!(!classifier.attached().any(|tap| tap == leaks.tap()));
    ensure!(classifier.binding(leaks.tap())?.is_none() && classifier.counters(leaks.tap()).is_err());
    ensure!(classifier.attached().count() == 3);
    classifier.detach_all()?;
    ensure!(filters::taps()?.is_empty() && !root.exists());
    Ok(())
}
