//! The rules of the code that no compiler checks, as tables, and the check of every source against them.
//!
//! The first two tables are section 4 of `docs/architecture.md` in a form that a machine can read. A change of
//! design changes that document first, then these.

mod paths;
mod readme;
mod timers;

use std::{fs, path::Path as FilePath};

use anyhow::{Context as _, Result, ensure};

use self::paths::{Path, paths};
use crate::host_command::workspace;

/// Rooms of the agent, and which others each may use.
const ROOMS: &[(&str, &str)] = &[
    (
        "agent",
        "bindings config control identity_files identity_signer keys observe privilege reload service_manager worker datapath stack http imds registry credentials sts now",
    ),
    ("bin", "imdsctl"),
    ("bindings", "registry"),
    ("config", "control glob imds observe registry credentials sts"),
    (
        "control",
        "observe worker imds registry credentials unix_socket now",
    ),
    (
        "exit_code",
        "config control datapath observe privilege registry unix_socket",
    ),
    (
        "worker",
        "observe privilege datapath stack http imds registry credentials now",
    ),
    (
        "observe",
        "datapath http imds privilege registry credentials stack sts unix_socket now",
    ),
    ("datapath", ""),
    ("stack", "http now"),
    ("http", "now"),
    ("identity_files", "imds keys"),
    ("identity_signer", "identity_files imds privilege registry"),
    ("imds", "http registry credentials now"),
    ("privilege", ""),
    ("imdsctl", "config control imds registry sources"),
    ("registry", ""),
    ("sources", "registry"),
    ("reload", "config control"),
    ("credentials", "glob keys registry now"),
    ("service_manager", ""),
    ("sts", "keys registry credentials"),
    ("glob", ""),
    ("keys", ""),
    ("now", ""),
    ("unix_socket", ""),
];

/// Outside crates that only some files of the agent may name, by the paths under `imds-agent/src` that may.
const CRATES: &[(&str, &[&str])] = &[
    ("aya", &["datapath/"]),
    // The host's identity, and what it may ask for with it.
    ("aws_config", &["credentials/sts"]),
    ("aws_runtime", &["credentials/sts"]),
    ("aws_sdk_sts", &["credentials/sts"]),
    ("aws_smithy_http_client", &["credentials/sts"]),
    ("axum", &["control/"]),
    (
        "hyper",
        &["sts/", "observe/metrics/endpoint.rs", "imdsctl/client.rs"],
    ),
    (
        "hyper_util",
        &["sts/", "observe/metrics/endpoint.rs", "imdsctl/client.rs"],
    ),
    ("prometheus_client", &["observe/metrics"]),
    ("rustls", &["sts/tls.rs"]),
    ("tokio_rustls", &["sts/listener.rs"]),
    ("rcgen", &["sts/tls.rs"]),
    ("caps", &["privilege", "exit_code.rs"]),
    ("landlock", &["privilege/sandbox"]),
    ("seccompiler", &["privilege/sandbox"]),
    // Besides the datapath: privileges are given up, a file is opened without waiting for a pipe, a program is ended with its children,
    // users and groups have names.
    ("libc", &["datapath/", "privilege/", "registry/directory"]),
    (
        "nix",
        &[
            "datapath/",
            "registry/directory",
            "credentials/process",
            "privilege",
            "control/",
            "observe/audit",
            "exit_code.rs",
            // Records are written as whoever the agent runs as.
            "imdsctl/guests.rs",
            "main.rs",
        ],
    ),
    ("ratatui", &["imdsctl/top/"]),
    ("roxmltree", &["sources/libvirt", "imdsctl/doctor/machine.rs"]),
    ("rtnetlink", &["datapath/"]),
    ("smoltcp", &["stack/"]),
    ("httparse", &["http/"]),
    ("hmac", &["imds/", "credentials/capsule.rs", "sts/sigv4.rs"]),
    ("subtle", &["imds/", "sts/sigv4.rs"]),
    ("inotify", &["registry/"]),
    ("toml", &["config.rs", "config/reference.rs"]),
    ("clap", &["main.rs", "imdsctl/"]),
    ("aws_lc_rs", &["imds/identity", "identity_files.rs", "sts/tls.rs"]),
    ("cms", &["imds/identity"]),
    ("dsa", &["imds/identity"]),
    ("x509_cert", &["imds/identity", "imdsctl/"]),
];

/// The rooms that are pure: bytes, time and randomness come in, bytes go out.
const SANS_IO: &[&str] = &["stack", "http", "imds"];

/// What a pure room never names.
const IO: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
    "Zoned::now",
    "getrandom",
    "rand::random",
    "rand::rng",
    "thread::park",
    "thread::scope",
    "thread::sleep",
    "thread::spawn",
    "tokio",
];

/// Where a guest's bytes arrive, and the lints that keep them from causing a panic.
const GUEST_FACING: &[&str] = &[
    "imds-agent/src/http/mod.rs",
    "imds-agent/src/imds/mod.rs",
    "imds-agent/src/stack/mod.rs",
    "imds-ebpf/src/classify.rs",
];
const PANIC_LINTS: &[&str] = &[
    "clippy::expect_used",
    "clippy::indexing_slicing",
    "clippy::panic",
    "clippy::unwrap_used",
];

/// Where `unsafe` may stand, and why there.
const UNSAFE: &[(&str, &str)] = &[
    (
        "imds-agent/src/datapath/",
        "the edge to the kernel: system calls and shared memory",
    ),
    (
        "imds-agent/src/privilege/",
        "the handler of a signal, and the environment of a process with one thread",
    ),
    (
        "imds-ebpf/src/main.rs",
        "the edge to the kernel: maps and entry points",
    ),
    (
        "imds-ebpf/src/skb.rs",
        "the edge to the kernel: the frame's bytes",
    ),
    (
        "imds-ebpf/src/punt.rs",
        "the edge to the kernel: the ring's records",
    ),
    (
        "tests/src/kernel.rs",
        "BPF_PROG_TEST_RUN is a system call without a safe wrapper",
    ),
    ("tests/src/tap.rs", "the tun driver is set up by ioctl"),
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["common", "helper", "helpers", "misc", "util", "utils"];

/// Past this many lines before its tests, a file holds a second idea.
const LINES_MAX: usize = 500;

/// Directories whose sources are checked.
const SOURCES: &[&str] = &["imds-agent", "imds-ebpf", "tests", "xtask"];

/// What somebody's own machine leaves in a text.
const MACHINE_PATHS: &[&str] = &[
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
];

/// A broken rule.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Finding {
    file: String,
    line: usize,
    message: String,
}

/// Checks everything, and fails when a rule is broken.
pub fn run() -> Result<()> {
    let root = workspace();
    let mut findings = Vec::new();
    for file in SOURCES
        .iter()
        .map(|directory| files(&root.join(directory)))
        .collect::<Result<Vec<_>>>()?
        .concat()
    {
        let name = file.strip_prefix(&root)?.to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {name}"))?;
        findings.extend(check(&name, &text)?);
    }
    let readme = fs::read_to_string(root.join("README.md")).unwrap_or_default();
    findings.extend(readme::check(&readme, |path| root.join(path).exists()));
    for Finding { file, line, message } in &findings {
        println!("{file}:{line}: {message}");
    }
    ensure!(findings.is_empty(), "tidy: {} rules are broken", findings.len());
    println!("tidy: all rules are kept");
    Ok(())
}

/// Checks one source, named from the workspace's root.
fn check(file: &str, text: &str) -> Result<Vec<Finding>> {
    let named = paths(text).with_context(|| format!("cannot read {file} as Rust"))?;
    let mut findings = Vec::new();
    let mut find = |line: usize, message: String| {
        let finding = Finding {
            file: file.to_owned(),
            line,
            message,
        };
        // A path in a `use` tree may break a rule once for every leaf.
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    };
    check_name(file, &mut find);
    check_text(file, text, &mut find);
    check_guest_facing(file, &named, &mut find);
    if let Some(inside) = file.strip_prefix("imds-agent/src/") {
        timers::check(inside, &named, &mut find);
    }
    for path in &named {
        check_unsafe(file, path, &mut find);
        if let Some(inside) = file.strip_prefix("imds-agent/src/") {
            check_rooms(inside, path, &mut find);
            check_crates(inside, path, &mut find);
            check_sans_io(inside, path, &mut find);
        }
    }
    Ok(findings)
}

fn check_name(file: &str, find: &mut impl FnMut(usize, String)) {
    for part in file.trim_end_matches(".rs").split('/') {
        if EMPTY_NAMES.contains(&part) {
            find(
                1,
                format!("`{part}` says nothing about what is inside: name it for its subject"),
            );
        }
    }
}

fn check_text(file: &str, text: &str, find: &mut impl FnMut(usize, String)) {
    let is_all_tests = file.ends_with("tests.rs") || file.starts_with("tests/tests/");
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    if lines > LINES_MAX && !is_all_tests {
        find(
            lines,
            format!(
                "{lines} lines before the tests, more than {LINES_MAX}: look for the second idea in here"
            ),
        );
    }
    for (at, line) in text.lines().enumerate() {
        if let Some(path) = MACHINE_PATHS.iter().find(|path| line.contains(**path)) {
            find(at + 1, format!("`{path}` is a path of somebody's own machine"));
        }
    }
}

fn check_guest_facing(file: &str, named: &[Path], find: &mut impl FnMut(usize, String)) {
    if !GUEST_FACING.contains(&file) {
        return;
    }
    for lint in PANIC_LINTS {
        if !named.iter().any(|path| path.contains(lint)) {
            find(
                1,
                format!("a guest's bytes arrive here, so the lint {lint} has to be on"),
            );
        }
    }
}

fn check_unsafe(file: &str, path: &Path, find: &mut impl FnMut(usize, String)) {
    let is_allowed = UNSAFE.iter().any(|(place, _)| file.starts_with(place));
    if path.contains("unsafe") && !is_allowed {
        find(
            path.line,
            "`unsafe` outside the kernel's edge (`UNSAFE` in xtask/src/tidy.rs)".to_owned(),
        );
    }
}

fn check_rooms(inside: &str, path: &Path, find: &mut impl FnMut(usize, String)) {
    let room = room(inside);
    // The crate's two roots belong to no room.
    if matches!(room, "lib" | "main") {
        return;
    }
    let Some((_, may_use)) = ROOMS.iter().find(|(name, _)| *name == room) else {
        find(
            1,
            format!("`{room}` is in no table: it needs a place in the architecture, then in `ROOMS`"),
        );
        return;
    };
    if let Some(used) = used_room(inside, path)
        && used != room
        && !may_use.split(' ').any(|room| room == used)
    {
        find(
            path.line,
            format!("`{room}` may not use `{used}` (architecture, section 4)"),
        );
    }
}

fn check_crates(inside: &str, path: &Path, find: &mut impl FnMut(usize, String)) {
    let [first, _, ..] = path.segments.as_slice() else {
        return;
    };
    let restricted = CRATES.iter().find(|(name, _)| name == first);
    if let Some((name, places)) = restricted
        && !places.iter().any(|place| inside.starts_with(place))
    {
        find(
            path.line,
            format!(
                "only {} may name the crate `{name}` (architecture, section 4)",
                places.join(", ")
            ),
        );
    }
}

fn check_sans_io(inside: &str, path: &Path, find: &mut impl FnMut(usize, String)) {
    // What only tests are made of may do as it likes.
    if !SANS_IO.contains(&room(inside)) || inside.ends_with("tests.rs") || inside.contains("/tests/") {
        return;
    }
    if let Some(io) = IO.iter().find(|io| path.contains(io)) {
        find(
            path.line,
            format!(
                "`{io}`: `{}` performs no IO and reads no clock, they come in as arguments",
                room(inside)
            ),
        );
    }
}

/// The room of a file under `imds-agent/src`.
fn room(inside: &str) -> &str {
    inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
}

/// The room that `path` leads to, when it starts at the crate's root or climbs up to it.
fn used_room<'a>(inside: &str, path: &'a Path) -> Option<&'a str> {
    let depth = inside.trim_end_matches("/mod.rs").split('/').count();
    let supers = path
        .segments
        .iter()
        .take_while(|segment| *segment == "super")
        .count();
    let from_root = if path.segments.first().is_some_and(|first| first == "crate") {
        path.segments.get(1)
    } else if supers == depth {
        path.segments.get(supers)
    } else {
        None
    };
    from_root.map(String::as_str)
}

/// All Rust sources under `directory`.
fn files(directory: &FilePath) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
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
}
