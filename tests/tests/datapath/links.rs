//! Links come and go.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use imds_agent::datapath::{LinkEvent, LinkWatch};
use imds_ebpf::abi::TapIndex;
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
                is_tap,
            };
            // The subscription is there before the first listing.
            let after = Tap::new("after")?;
            let mut first: BTreeMap<TapIndex, LinkEvent> = BTreeMap::new();
            while first.len() < 3 {
                let event = told(&mut watch).await?;
                let LinkEvent::Appeared { index, .. } = event else {
                    bail!("{event:?}")
                };
                ensure!(first.insert(index, event).is_none(), "told twice");
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
            ensure!(told(&mut watch).await? == appeared(again.index(), "again", true));
            Ok(())
        })
    })?;
    Ok(())
}

async fn told(watch: &mut LinkWatch) -> anyhow::Result<LinkEvent> {
    Ok(tokio::time::timeout(PATIENCE, watch.next())
        .await
        .context("nothing was told in time")??)
}
