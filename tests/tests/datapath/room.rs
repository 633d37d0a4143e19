//! More taps than the classifier's maps have room for.

use std::{io, path::Path};

use anyhow::{Context, ensure};
use aya::maps::{HashMap, Map, MapData, MapError};
use imds_agent::datapath::{Classifier, Hook, program::TapOperationError};
use imds_ebpf::abi::ABI_VERSION;
use imds_tests::{
    host::Host,
    kernel::in_namespaces,
    leaks::Leaks,
    records::{self, guest_mac},
    tap::Tap,
};

use crate::{BINDING, hooks};

#[test]
fn tap_that_the_maps_have_no_room_for_is_dark_until_they_have() -> anyhow::Result<()> {
    for &hook in hooks() {
        in_namespaces(|bpffs| without_room(&bpffs.join("imds"), hook).with_context(|| format!("{hook:?}")))?;
    }
    Ok(())
}

fn without_room(root: &Path, hook: Hook) -> anyhow::Result<()> {
    let (leaks, other) = (Leaks::new()?, Tap::new("other")?);
    let (tap, gone) = (leaks.tap(), other.index());
    let mut classifier = Classifier::load_on(root, hook)?;
    classifier.attach(gone)?;
    fill(root)?;

    let error = classifier.attach(tap).unwrap_err();
    ensure!(matches!(error.source, TapOperationError::Full), "{error:?}");
    // Sees to it that nothing falls through.
    leaks.send()?;
    drop(classifier);
    leaks.send()?;
    let mut classifier = Classifier::load_on(root, hook)?;
    ensure!(classifier.is_attached(tap) && classifier.attach(tap).is_err());
    leaks.send()?;
    let counted = classifier.counters(tap)?;
    ensure!(
        counted.dropped_total() > 0 && counted.punted + counted.hairpinned == 0,
        "{counted}"
    );

    // The room of a tap that is gone is the next one's.
    drop(other);
    classifier.detach(gone)?;
    classifier.attach(tap)?;
    classifier.bind(tap, BINDING)?;
    let sent = leaks.send()?;
    let counted = classifier.counters(tap)?;
    ensure!(counted.punted == sent.punted && sent.punted > 0, "{counted}");
    Ok(classifier.detach_all()?)
}

#[test]
fn agent_tells_of_a_tap_without_room_and_serves_it_when_another_one_goes() -> anyhow::Result<()> {
    let mut host = Host::new("", |_| {})?;
    let mut buckets = fill(host.files.pins())?;
    let mac = guest_mac(9);
    let record = records::instance("i-late", mac, "late0", "10.0.0.9");
    host.files.put("instances", "late", &record)?;
    host.agent.wait_for_log("registry revision 2")?;
    let late = host.namespace.enter(|| Tap::new("late0"))?;
    let told = host.agent.wait_for_log("room for 16384 taps")?;
    ensure!(told.contains("ERROR") && told.contains("late0"), "{told}");

    let stranger = buckets.keys().next().context("no bucket")??;
    buckets.remove(&stranger)?;
    host.agent.wait_for_log(&format!("tap late0: bound to {mac}"))?;
    host.agent
        .wait_for_log("tap late0: the kernel no longer refuses")?;
    drop(late);
    Ok(())
}

/// Leaves no room in the map of buckets, with those of interfaces that no host ever has.
fn fill(pins: &Path) -> anyhow::Result<HashMap<MapData, u64, u64>> {
    let map = MapData::from_pin(pins.join(format!("v{ABI_VERSION}/BUCKETS")))?;
    let mut buckets: HashMap<_, u64, u64> = Map::HashMap(map).try_into()?;
    let mut strangers = (0..=u64::MAX).rev();
    let full = strangers.find_map(|stranger| buckets.insert(stranger, 0, 0).err());
    let is_full = matches!(&full, Some(MapError::SyscallError(error))
        if error.io_error.kind() == io::ErrorKind::ArgumentListTooLong);
    ensure!(is_full, "{full:?}");
    Ok(buckets)
}
