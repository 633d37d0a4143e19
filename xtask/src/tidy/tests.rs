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
            "imds-agent/src/datapath/inject.rs",
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
