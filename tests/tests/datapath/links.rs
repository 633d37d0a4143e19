//! Links come and go.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io::{Seek as _, Write as _},
    os::unix::ffi::OsStrExt as _,
    process::Command,
};

use anyhow::{Context, bail, ensure};
use imds_agent::datapath::{LinkEvent, LinkWatch};
use imds_ebpf::abi::{MacAddr, TapIndex};
use imds_tests::{
    kernel::in_namespaces,
    tap::{PATIENCE, Tap, bridge},
};

#[test]
fn links_are_told_as_they_come_and_go() -> anyhow::Result<()> {
    in_namespaces(|_| {
        block_on(async {
            let before = Tap::new("before")?;
            let mut watch = LinkWatch::new()?;
            let appeared = |index, name: &str, is_tap| LinkEvent::Appeared {
                index,
                name: name.to_owned(),
                mac: None,
                is_tap,
            };
            // The subscription is there before the first listing.
            let after = Tap::new("after")?;
            let mut first: BTreeMap<TapIndex, LinkEvent> = BTreeMap::new();
            while first.len() < 3 {
                let event = told(&mut watch).await?;
                let LinkEvent::Appeared {
                    index, mac, is_tap, ..
                } = event
                else {
                    bail!("{event:?}")
                };
                ensure!(mac.is_some() == is_tap, "{event:?}");
                ensure!(first.insert(index, without_mac(event)).is_none(), "told twice");
            }
            ensure!(first.remove(&TapIndex(1)) == Some(appeared(TapIndex(1), "lo", false)));
            ensure!(first.remove(&before.index()) == Some(appeared(before.index(), "before", true)));
            ensure!(first.remove(&after.index()) == Some(appeared(after.index(), "after", true)));
            ensure!(told(&mut watch).await? == LinkEvent::Listed);

            bridge("bridge", &[before.index()])?;
            let LinkEvent::Appeared {
                name, is_tap: false, ..
            } = told(&mut watch).await?
            else {
                bail!("the bridge is not told");
            };
            ensure!(name == "bridge");
            let index = after.index();
            drop(after);
            ensure!(told(&mut watch).await? == LinkEvent::Gone { index });
            let again = Tap::with_index("again", index)?;
            let event = without_mac(told(&mut watch).await?);
            ensure!(event == appeared(again.index(), "again", true));

            // A port of a bridge, so that the bridge tells of it too.
            let mac = MacAddr([0xfe, 0x54, 0, 0xaa, 0xbb, 1]);
            let address = mac.to_string();
            let set = ["link", "set", "before", "address", &address];
            ensure!(Command::new("ip").args(set).status()?.success());
            let event = told(&mut watch).await?;
            ensure!(
                event
                    == LinkEvent::Appeared {
                        index: before.index(),
                        name: "before".to_owned(),
                        mac: Some(mac),
                        is_tap: true,
                    },
                "{event:?}"
            );
            Ok(())
        })
    })?;
    Ok(())
}

/// So many changes of one tap that the kernel cannot keep what it has to tell: everything is listed once more, nothing older is told after
/// that, and what comes later is told as ever.
#[test]
fn lost_notifications_are_made_up_for() -> anyhow::Result<()> {
    const CHANGES: u32 = 20_000;
    let mac = |number: u32| {
        let [_, b, c, d] = number.to_be_bytes();
        MacAddr([0xfe, 0x54, 0, b, c, d])
    };
    in_namespaces(|_| {
        block_on(async {
            let tap = Tap::new("tap0")?;
            let mut watch = LinkWatch::new()?;
            while told(&mut watch).await? != LinkEvent::Listed {}
            let mut batch = tempfile::tempfile()?;
            for number in 0..CHANGES {
                writeln!(batch, "link set tap0 address {}", mac(number))?;
            }
            batch.rewind()?;
            let mut ip = Command::new("ip");
            ensure!(ip.args(["-batch", "-"]).stdin(batch).status()?.success());

            let mut last = None;
            let mut later: Option<Tap> = None;
            loop {
                match told(&mut watch).await? {
                    LinkEvent::Listed => later = Some(Tap::new("later")?),
                    LinkEvent::Appeared { index, mac, .. } if index == tap.index() => last = mac,
                    LinkEvent::Appeared { index, .. }
                        if later.as_ref().is_some_and(|tap| index == tap.index()) =>
                    {
                        break;
                    }
                    LinkEvent::Appeared { .. } => {}
                    event => bail!("{event:?}"),
                }
            }
            ensure!(last == Some(mac(CHANGES - 1)), "{last:?} is told last");
            Ok(())
        })
    })?;
    Ok(())
}

/// Anybody on the host may give a tap an alias, or one more name, and neither has to be text.
#[test]
fn tap_with_an_alias_that_is_no_text_is_told() -> anyhow::Result<()> {
    let no_text = OsStr::from_bytes(b"no-text-\xff");
    let ip = |words: &[&str]| -> anyhow::Result<()> {
        ensure!(Command::new("ip").args(words).arg(no_text).status()?.success());
        Ok(())
    };
    in_namespaces(|_| {
        block_on(async {
            let before = Tap::new("before")?;
            ip(&["link", "set", "before", "alias"])?;
            ip(&["link", "property", "add", "dev", "before", "altname"])?;
            let mut watch = LinkWatch::new()?;
            let mut is_told = false;
            loop {
                match told(&mut watch).await? {
                    LinkEvent::Listed => break,
                    LinkEvent::Appeared { index, is_tap, .. } => is_told |= is_tap && index == before.index(),
                    event => bail!("{event:?}"),
                }
            }
            ensure!(is_told, "it is not listed");
            // Notifications say it as well.
            let address = "fe:54:00:aa:bb:01";
            let set = ["link", "set", "before", "address", address];
            ensure!(Command::new("ip").args(set).status()?.success());
            let event = told(&mut watch).await?;
            let LinkEvent::Appeared { mac: Some(mac), .. } = event else {
                bail!("{event:?}")
            };
            ensure!(mac.to_string() == address);
            Ok(())
        })
    })?;
    Ok(())
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build()?.block_on(work)
}

/// The kernel chooses those.
fn without_mac(mut event: LinkEvent) -> LinkEvent {
    if let LinkEvent::Appeared { mac, .. } = &mut event {
        *mac = None;
    }
    event
}

async fn told(watch: &mut LinkWatch) -> anyhow::Result<LinkEvent> {
    Ok(tokio::time::timeout(PATIENCE, watch.next())
        .await
        .context("nothing was told in time")??)
}
