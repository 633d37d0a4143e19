//! A real guest on a real tap: one boot, many assertions, because the boot is what costs.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use imds_tests::{
    host,
    records::{ROLE, USER_DATA},
    vm_host::{INSTANCE_ID, VmHost},
};

/// Twenty times of what a boot and its steps take under emulation on two busy cores.
const LIMIT: Duration = Duration::from_secs(120);

const ID: &str = "/latest/meta-data/instance-id";
const USER: &str = "/latest/user-data";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
const NOWHERE: &str = "/latest/meta-data/nowhere";

#[test]
fn a_guest_is_served_through_its_tap_with_all_offloads_on() -> Result<()> {
    let host = VmHost::new(&host::program()?, |_| ())?;
    let (get_id, get_user, get_roles) = (format!("get={ID}"), format!("get={USER}"), format!("get={ROLES}"));
    let (get_nowhere, get_id_v1) = (format!("get={NOWHERE}"), format!("get-v1={USER}"));
    let steps = [
        &*get_id,
        &get_user,
        &get_roles,
        &get_nowhere,
        &get_id_v1,
        "demo",
        "big-request",
        "keep-alive=50",
        "at-once=16",
        "other-port=81",
        "container-token=refused",
    ];
    let console = host.boot("served", &steps, LIMIT)?.wait()?;
    for step in steps {
        assert_eq!(console.step(step), Some("ok"), "{step}: {:#?}", console.lines);
    }
    assert_eq!(console.answer(ID), Some(&*format!("200 {INSTANCE_ID:?}")));
    assert_eq!(console.answer(ROLES), Some(&*format!("200 {ROLE:?}")));
    assert!(
        console
            .answer(NOWHERE)
            .is_some_and(|answer| answer.starts_with("404 ")),
        "{:?}",
        console.answer(NOWHERE)
    );
    // The second one of the same path asks without a token, and the record requires one.
    let with_and_without = [format!("200 {USER_DATA:?}"), "401 \"\"".to_owned()];
    let prefix = format!("got {USER}: ");
    let answers: Vec<_> = console
        .lines
        .iter()
        .filter_map(|line| line.strip_prefix(&prefix))
        .collect();
    assert_eq!(answers, with_and_without);
    Ok(())
}

#[test]
fn a_container_gets_its_token_at_hop_limit_two_and_needs_none_where_they_are_optional() -> Result<()> {
    let host = VmHost::new(&host::program()?, |record| {
        record["MetadataOptions"]["HttpTokens"] = "optional".into();
        record["MetadataOptions"]["HttpPutResponseHopLimit"] = 2.into();
    })?;
    let steps = ["container-v1", "container-token=given"];
    let console = host.boot("hop-limit-two", &steps, LIMIT)?.wait()?;
    for step in steps {
        assert_eq!(console.step(step), Some("ok"), "{step}: {:#?}", console.lines);
    }
    Ok(())
}

#[test]
fn at_hop_limit_one_a_container_gets_answers_without_a_token_but_no_token() -> Result<()> {
    let host = VmHost::new(&host::program()?, |record| {
        record["MetadataOptions"]["HttpTokens"] = "optional".into();
    })?;
    let steps = ["container-v1", "container-token=refused"];
    let console = host.boot("hop-limit-one", &steps, LIMIT)?.wait()?;
    for step in steps {
        assert_eq!(console.step(step), Some("ok"), "{step}: {:#?}", console.lines);
    }
    Ok(())
}

#[test]
fn a_guest_that_does_not_end_in_time_is_ended_and_leaves_console_and_capture() -> Result<()> {
    let host = VmHost::new(&host::program()?, |_| ())?;
    let error = host
        .boot("cut-short", &["demo"], Duration::from_millis(1))?
        .wait()
        .unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains("did not end within 1ms"), "{message}");
    for kind in ["console: ", "capture: "] {
        let file = message
            .split_once(kind)
            .and_then(|(_, rest)| rest.split([',', ':']).next())
            .map(Path::new);
        let file = file
            .filter(|file| file.exists())
            .with_context(|| message.clone())?;
        // This one was meant to fail.
        fs::remove_file(file)?;
    }
    Ok(())
}
