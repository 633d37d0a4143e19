use super::*;

fn messages(file: &str, text: &str) -> Vec<String> {
    check(file, text)
        .unwrap()
        .into_iter()
        .map(|finding| finding.message)
        .collect()
}

/// Every rule has a source here that breaks it, and names the word by which its message is known.
#[test]
fn each_rule_can_be_broken() {
    let long = "fn f() {}\n".repeat(LINES_MAX + 1);
    let table: &[(&str, &str, &str)] = &[
        (
            "imds-agent/src/imds/tree.rs",
            "use crate::{http::Request, datapath::Punt};",
            "may not use `datapath`",
        ),
        (
            "imds-agent/src/imds/tree.rs",
            "fn f() { crate::worker::run() }",
            "may not use `worker`",
        ),
        (
            "imds-agent/src/http/mod.rs",
            "use super::imds::Imds;",
            "may not use `imds`",
        ),
        (
            "imds-agent/src/http/parse.rs",
            "use super::super::registry;",
            "may not use `registry`",
        ),
        ("imds-agent/src/extra.rs", "fn f() {}", "is in no table"),
        (
            "imds-agent/src/worker.rs",
            "use smoltcp::wire::Ipv4Packet;",
            "only stack/ may name the crate `smoltcp`",
        ),
        (
            "imds-agent/src/stack/device.rs",
            "fn f() { let now = Instant::now(); }",
            "reads no clock",
        ),
        (
            "imds-agent/src/imds/path.rs",
            "use std::{fmt, fs};",
            "performs no IO",
        ),
        (
            "imds-agent/src/http/mod.rs",
            "fn f() {}",
            "clippy::indexing_slicing",
        ),
        (
            "imds-agent/src/worker.rs",
            "fn f() { unsafe { g() } }",
            "`unsafe` outside",
        ),
        (
            "imds-agent/src/registry/records.rs",
            "async fn f() { tokio::time::sleep(INTERVAL).await }",
            "`tokio::time::sleep` waits by the clock",
        ),
        (
            "imds-agent/src/agent.rs",
            "use tokio::time::{interval, sleep};",
            "`tokio::time::sleep` waits by the clock",
        ),
        (
            "imds-agent/src/bindings.rs",
            "fn f() { inbox.recv_timeout(INTERVAL) }",
            "`recv_timeout` waits by the clock",
        ),
        ("imds-agent/src/stack/utils.rs", "fn f() {}", "says nothing"),
        ("imds-agent/src/worker.rs", &long, "second idea"),
        (
            "xtask/src/ci.rs",
            concat!("const P: &str = \"/ho", "me/me\";"),
            "somebody's own machine",
        ),
    ];
    for (file, text, expected) in table {
        let messages = messages(file, text);
        assert!(
            messages.iter().any(|message| message.contains(expected)),
            "{expected}: {messages:?}"
        );
    }
}

#[test]
fn what_the_tables_allow_is_found_in_order() {
    let table: &[(&str, &str)] = &[
        (
            "imds-agent/src/imds/tree.rs",
            "use crate::{http::Request, registry::Role}; use super::path::Path;",
        ),
        (
            "imds-agent/src/stack/device.rs",
            "use smoltcp::phy::Device; use crate::now::Now;",
        ),
        (
            "imds-agent/src/datapath/sleep.rs",
            "fn f() { unsafe { nix::libc::send() } }",
        ),
        (
            "imds-agent/src/http/parse.rs",
            "#[cfg(test)]\nmod tests { use std::fs; fn f() { Instant::now() } }",
        ),
        (
            "imds-agent/src/stack/tests/seeds.rs",
            "use std::thread; fn f() { thread::spawn(g) }",
        ),
        (
            "imds-agent/src/agent.rs",
            "use crate::{config::Config, worker, datapath::Classifier};",
        ),
    ];
    for (file, text) in table {
        assert_eq!(messages(file, text), Vec::<String>::new(), "{file}");
    }
}

/// Only what refuses to build is on, in the module itself and outside of its tests.
#[test]
fn where_a_guests_bytes_arrive_panics_are_denied() {
    let lints = PANIC_LINTS.join(", ");
    let missing_in = |file: &str, text: &str| {
        let messages = messages(file, text);
        let of_lints = messages.iter().filter(|message| message.contains("clippy::"));
        of_lints.count()
    };
    let missing = |text: &str| missing_in("imds-agent/src/worker.rs", text);
    for kept in [
        format!("#![deny({lints})]"),
        format!("//! Words.\n#![forbid({lints}, reason = \"guests\")]"),
        format!("#![cfg_attr(not(test), deny({lints}))]"),
        format!("#![allow({lints})] #![deny({lints})]"),
        format!("#![deny({lints})] #[expect(clippy::panic, reason = \"one item\")] fn f() {{}}"),
    ] {
        assert_eq!(missing(&kept), 0, "{kept}");
    }
    for broken in [
        String::new(),
        format!("#![allow({lints})]"),
        format!("#![warn({lints})]"),
        format!("#![expect({lints})]"),
        format!("#![cfg_attr(not(test), warn({lints}))]"),
        format!("#![cfg_attr(test, deny({lints}))]"),
        format!("#![deny({lints})] #![allow({lints})]"),
        format!("#[deny({lints})] fn f() {{}}"),
        format!("mod inner {{ #![deny({lints})] }}"),
        format!("// #![deny({lints})]"),
        "#![deny(clippy::all)]".to_owned(),
    ] {
        assert_eq!(missing(&broken), PANIC_LINTS.len(), "{broken}");
    }
    let but_one = format!("#![deny({lints})] #![warn(clippy::indexing_slicing)]");
    assert_eq!(missing(&but_one), 1);

    // What is inside of such a module need say nothing, and may say nothing else.
    for inside in [
        "imds-agent/src/worker/answer.rs",
        "imds-agent/src/stack/device.rs",
        "imds-ebpf/src/abi/mac.rs",
    ] {
        assert_eq!(missing_in(inside, ""), 0, "{inside}");
        assert_eq!(missing_in(inside, "#![allow(clippy::panic)]"), 1, "{inside}");
    }
    assert_eq!(
        missing_in("imds-agent/src/agent.rs", "#![allow(clippy::panic)]"),
        0
    );
}
