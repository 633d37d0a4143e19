//! The classifier's life across agents and taps.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use imds_agent::datapath::{Classifier, Counters, Hook, LoadError, pins::PinsError};
use imds_ebpf::abi::{ABI_VERSION, Reason, TapIndex};
use imds_tests::{
    frames::{GUEST_MAC, Ipv4, tcp},
    kernel::in_namespaces,
    tap::{Tap, bridge},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::{BINDING, hooks, only_ring, punted};

#[test]
fn next_agent_goes_on_where_the_last_one_died() -> anyhow::Result<()> {
    for &hook in hooks() {
        in_namespaces(|bpffs| restart(&bpffs.join("imds"), hook).with_context(|| format!("{hook:?}")))?;
    }
    Ok(())
}

fn restart(root: &Path, hook: Hook) -> anyhow::Result<()> {
    let (guest, other, neighbour) = (Tap::new("guest")?, Tap::new("other")?, Tap::new("neighbour")?);
    bridge("bridge", &[guest.index(), other.index(), neighbour.index()])?;
    let request = Ipv4::default().frame(&tcp(80, 0));

    let mut classifier = Classifier::load_on(root, hook)?;
    classifier.attach(guest.index())?;
    classifier.attach(guest.index()).context("again")?;
    classifier.bind(guest.index(), BINDING)?;
    classifier.attach(other.index())?;
    guest.send(&request)?;
    other.send(&request)?;
    ensure!(matches!(
        Classifier::load_on(root, hook),
        Err(LoadError::Pins(PinsError::InUse { .. }))
    ));
    drop(classifier);

    // No agent is there; nothing falls through to the network.
    guest.send(&request)?;

    let other_index = other.index();
    drop(other);
    let mut classifier = Classifier::load_on(root, hook)?;
    ensure!(classifier.attached().eq([guest.index()]), "{classifier:?}");
    ensure!(classifier.binding(guest.index())? == Some(BINDING));
    ensure!(
        classifier.counters(other_index).is_err(),
        "the gone tap still counts"
    );
    let mut ring = only_ring(&mut classifier)?;
    guest.send(&request)?;
    ensure!(classifier.counters(guest.index())?.punted == 3);
    // On a busy machine the first two may have become too old to be answered.
    let fresh = punted(&mut ring)[&guest.index()];
    ensure!(
        fresh >= 1 && fresh + ring.stale() == 3,
        "{fresh} fresh, {} stale",
        ring.stale()
    );

    classifier.unbind(guest.index())?;
    guest.send(&request)?;
    ensure!(
        classifier
            .counters(guest.index())?
            .dropped_for(Reason::TapUnbound)
            == 1
    );

    classifier.detach_all()?;
    ensure!(!root.exists(), "pins are left");
    // Now, and only now, the guest's frames for the address go where its others go.
    let last = Ipv4::default().frame(&tcp(80, 1));
    guest.send(&last)?;
    let seen = neighbour.receive(|frame| frame[6..12] == GUEST_MAC.0)?;
    ensure!(seen == last, "a frame fell through: {seen:02x?}");
    Ok(())
}

#[test]
fn index_that_another_tap_took_over_starts_anew() -> anyhow::Result<()> {
    for &hook in hooks() {
        in_namespaces(|bpffs| reuse(&bpffs.join("imds"), hook).with_context(|| format!("{hook:?}")))?;
    }
    Ok(())
}

fn reuse(root: &Path, hook: Hook) -> anyhow::Result<()> {
    const INDEX: TapIndex = TapIndex(77);
    let request = Ipv4::default().frame(&tcp(80, 0));
    let mut classifier = Classifier::load_on(root, hook)?;
    let take = |classifier: &mut Classifier, name| -> anyhow::Result<()> {
        let tap = Tap::with_index(name, INDEX)?;
        classifier.attach(INDEX)?;
        ensure!(
            classifier.binding(INDEX)?.is_none(),
            "the last tap's MAC is bound"
        );
        ensure!(
            classifier.counters(INDEX)? == Counters::default(),
            "the last tap's counters"
        );
        tap.send(&request)?;
        ensure!(
            classifier.counters(INDEX)?.dropped_for(Reason::TapUnbound) == 1,
            "the classifier is not on it"
        );
        classifier.bind(INDEX, BINDING)?;
        Ok(())
    };
    take(&mut classifier, "first")?;
    take(&mut classifier, "second")?;
    drop(classifier);

    let tap = Tap::with_index("third", INDEX)?;
    let mut classifier = Classifier::load_on(root, hook)?;
    ensure!(
        classifier.attached().count() == 0,
        "adopted a link of another device"
    );
    drop(tap);
    take(&mut classifier, "fourth")?;
    classifier.detach(INDEX).context("of a tap that is gone")?;
    classifier.detach(INDEX).context("twice")?;
    ensure!(matches!(classifier.attach(TapIndex(4242)), Err(error) if error.to_string().contains("4242")));
    Ok(classifier.detach_all()?)
}

#[test]
fn tap_operations_without_a_binding_or_an_object_of_their_own_are_told() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let root = bpffs.join("imds");
        let mut classifier = Classifier::load(&root)?;
        classifier.unbind(TapIndex(5))?;
        ensure!(classifier.binding(TapIndex(5))?.is_none());
        let error = classifier.counters(TapIndex(5)).unwrap_err();
        ensure!(error.to_string().contains("index 5"), "{error}");
        ensure!(classifier.rings().len() == 1 && classifier.rings().is_empty());
        drop(classifier);

        // Another layout under the same name, and another version's maps, are replaced and removed.
        let (maps, alien) = (root.join(format!("v{ABI_VERSION}")), root.join("v0"));
        fs::create_dir(&alien)?;
        fs::rename(maps.join("TAPS"), alien.join("TAPS"))?;
        fs::rename(maps.join("COUNTERS"), maps.join("TAPS"))?;
        let mut classifier = Classifier::load(&root)?;
        classifier.bind(TapIndex(5), BINDING)?;
        ensure!(!alien.exists(), "another version's maps are left");
        Ok(classifier.detach_all()?)
    })?;
    Ok(())
}

/// In a mount namespace of its own, so that the machine's `/sys/fs/bpf` stays as it is.
#[test]
fn bpf_file_system_is_mounted_at_the_usual_place_only() -> anyhow::Result<()> {
    in_namespaces(|bpffs| {
        let usual = Path::new("/sys/fs/bpf");
        while statfs(usual)?.filesystem_type() == BPF_FS_MAGIC {
            umount2(usual, MntFlags::MNT_DETACH)?;
        }
        let root = usual.join("imds-agent");
        let classifier = Classifier::load(&root)?;
        ensure!(
            statfs(usual)?.filesystem_type() == BPF_FS_MAGIC
                && root.join(format!("v{ABI_VERSION}/TAPS")).exists()
        );
        classifier.detach_all()?;
        ensure!(!root.exists());

        umount2(bpffs, MntFlags::MNT_DETACH)?;
        let error = Classifier::load(&bpffs.join("imds")).unwrap_err();
        ensure!(error.to_string().contains("mount -t bpf"), "{error}");
        mount(Some("bpf"), bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)?;
        Ok(())
    })?;
    Ok(())
}
