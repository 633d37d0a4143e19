//! Links come and go.

use std::{collections::BTreeMap, process::Command};

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
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
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
