//! T2: programs of T1, run in guests on other kernels than the host's.
//!
//! A guest gets the test programs as they were built for the host, the agent, and the host's own tools that they start,
//! with their libraries; `tests/guest-init` runs them one after the other. Nothing of the guest's network is used: what
//! the tests need they make in namespaces, as on the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};
use imds_tests::{
    netns::Namespace,
    qemu::{Guest, GuestOptions, Software},
};
use serde_json::Value;

use super::{Outcome, RUNG_LIMIT, test_files};
use crate::{
    guest_image::{build_init, only_entry, write_initramfs},
    host_command::{ask, cargo, run, target},
    kernels::{KERNELS, Kernel},
};

/// The test files that a kernel has a part in. All their tests run, but for a few.
const TAKEN: &[&str] = &[
    "classifier",
    "datapath",
    "interfaces",
    "live",
    "noticed",
    "request_rate",
    "service",
];

/// The few, and why.
const SKIPPED: &[(&str, &str)] = &[
    (
        "a_guests_identity_document_is_signed_by_its_host",
        "no kernel has a part in it",
    ),
    ("curl_wget_and_urllib_get_right_answers", "needs Python"),
    (
        "two_hundred_requests_at_once_are_all_answered",
        "clients this slow are idle for so long that others get their room",
    ),
];

/// The other files, and why an emulated processor is not kept busy with them.
const LEFT: &[(&str, &str)] = &[
    ("alerts", "no kernel has a part in it"),
    ("audit", "its subject is the agent's own files"),
    ("aws_config", "an SDK is the same client on every kernel"),
    ("ceph", "needs a Debian root"),
    ("clients", "needs Python, moto and a Debian root"),
    ("cloud_init", "needs a Debian root"),
    ("conformance", "the wire contract, which no kernel has a part in"),
    ("credentials", "needs Python and moto"),
    (
        "continuity",
        "its clients go by the clock of a real processor, and its commands by tools of the host",
    ),
    ("control", "its subject is the operators' socket"),
    ("doctor", "needs a Debian root"),
    ("golden", "no kernel has a part in it"),
    ("hostile", "it is held off by the agent's own stack"),
    ("metrics", "counts what the tests that are taken see happen"),
    ("package", "needs a Debian root"),
    (
        "privilege",
        "its users and tools are the host's; every other agent in these tests is confined as well",
    ),
    ("rotation", "needs Python and moto"),
    ("sources", "needs a libvirtd"),
    ("sts", "needs Python and moto"),
    ("taps", "its measurements are of a real processor"),
    ("upkeep", "no kernel has a part in it"),
];

/// What the kernel does not have built in. nf_tables asks for its checksum by an alias.
const MODULES: &[&str] = &[
    "tun",
    "veth",
    "bridge",
    "sch_ingress",
    "cls_bpf",
    "crc32c_generic",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
];

/// The programs that the tests start.
const TOOLS: &[&str] = &["curl", "ip", "nft", "nsenter", "tcpdump"];

/// Who the users are that tools turn themselves into.
const USERS: &[&str] = &["/etc/passwd", "/etc/group"];

/// Runs what is taken on every kernel, each in a guest of its own, at the same time.
pub fn run_all(filter: Option<&str>) -> Result<Outcome> {
    let programs = build(filter)?;
    if programs.is_empty() {
        return Ok(Outcome::default());
    }
    let files = Files::new(&programs, filter)?;
    let began = Instant::now();
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let guests: Vec<_> = KERNELS
            .iter()
            .map(|kernel| scope.spawn(|| run_on(kernel, &files)))
            .collect();
        guests
            .into_iter()
            .map(|guest| guest.join().expect("no panic"))
            .collect()
    });
    let mut all = Outcome {
        ignored: if filter.is_none() { left()? } else { Vec::new() },
        took: began.elapsed(),
        ..Outcome::default()
    };
    let mut troubles = Vec::new();
    for outcome in outcomes {
        all.passed += outcome.passed;
        all.failed += outcome.failed;
        all.ignored.extend(outcome.ignored);
        troubles.extend(outcome.trouble);
    }
    all.trouble = (!troubles.is_empty()).then(|| troubles.join("\n"));
    Ok(all)
}

/// The tests of T1 that are not taken, with the reason.
fn left() -> Result<Vec<String>> {
    let mut left: Vec<_> = SKIPPED
        .iter()
        .map(|(test, reason)| format!("{test}, {reason}"))
        .collect();
    for file in test_files()? {
        if file.starts_with("guest") || TAKEN.contains(&&*file) {
            continue;
        }
        let reason = LEFT.iter().find(|(left, _)| *left == file);
        let reason = reason.map_or("nobody has said whether a kernel has a part in it", |(_, why)| {
            why
        });
        left.push(format!("all of {file}, {reason}"));
    }
    Ok(left)
}

/// The test programs that Cargo built and that have a test for `filter`, by their names.
fn build(filter: Option<&str>) -> Result<BTreeMap<String, PathBuf>> {
    let mut command = cargo();
    command.args(["test", "--quiet", "--no-run", "--package", "imds-tests"]);
    for name in TAKEN {
        command.args(["--test", name]);
    }
    let messages = ask(command.args(["--message-format", "json-render-diagnostics"]))?;
    let mut programs = BTreeMap::new();
    for message in messages.lines() {
        let message: Value = serde_json::from_str(message).context("Cargo's messages are JSON")?;
        let name = message["target"]["name"].as_str();
        let (Some(name), Some(executable)) = (name, message["executable"].as_str()) else {
            continue;
        };
        let tests = ask(Command::new(executable)
            .args(["--list", "--format=terse"])
            .args(filter))?;
        if !tests.is_empty() {
            programs.insert(name.to_owned(), executable.into());
        }
    }
    Ok(programs)
}

/// Boots a guest on `kernel` and follows the tests in it. Its lines begin with the kernel's version.
fn run_on(kernel: &Kernel, files: &Files) -> Outcome {
    let mut outcome = Outcome::default();
    let mut run = || -> Result<()> {
        let options = GuestOptions {
            name: format!("kernel-{}", kernel.version),
            interface: None,
            software: Software::Tests {
                kernel: only_entry(&kernel.directory().join("boot"), "vmlinuz-")?,
                initramfs: files.write_initramfs(kernel)?,
            },
            limit: RUNG_LIMIT,
        };
        Guest::boot(&Namespace::new()?, &options)?.wait_showing(|line| {
            println!("{}: {line}", kernel.version);
            outcome.count(line);
        })?;
        Ok(())
    };
    if let Err(error) = run() {
        outcome.trouble = Some(format!("{error:#}"));
    }
    for test in &mut outcome.ignored {
        test.push_str(&format!(" (on {})", kernel.version));
    }
    outcome
}

/// What goes into every guest, by its path there.
#[derive(Default)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    fn new(programs: &BTreeMap<String, PathBuf>, filter: Option<&str>) -> Result<Self> {
        let mut files = Self::default();
        files.add("init", &build_init()?)?;
        let stripped = tempfile::tempdir_in(target())?;
        let agent = BTreeMap::from([("imds-agent".to_owned(), target().join("debug/imds-agent"))]);
        for (name, program) in programs.iter().chain(&agent) {
            // Three quarters of such a file are for debuggers.
            let small = stripped.path().join(name);
            run(Command::new("strip").arg("-o").arg(&small).arg(program))?;
            files.add_program(&format!("tests/{name}"), &small)?;
        }
        for tool in TOOLS {
            let path = ask(Command::new("sh").args(["-c", "command -v \"$0\"", tool]))?;
            files.add_program(&format!("usr/bin/{tool}"), Path::new(path.trim()))?;
        }
        for users in USERS {
            files.add(users, Path::new(users))?;
        }
        let plan = plan(programs.keys().map(String::as_str), filter);
        files.0.insert("tests/plan".to_owned(), plan.into_bytes());
        Ok(files)
    }

    fn add(&mut self, name: &str, file: &Path) -> Result<()> {
        let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        self.0.insert(name.trim_start_matches('/').to_owned(), content);
        Ok(())
    }

    /// With the libraries that it is linked to.
    fn add_program(&mut self, name: &str, file: &Path) -> Result<()> {
        self.add(name, file)?;
        let libraries = ask(Command::new("ldd").arg(file))?;
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            self.add(library, Path::new(library))?;
        }
        Ok(())
    }

    /// Beside what only this kernel needs.
    fn write_initramfs(&self, kernel: &Kernel) -> Result<PathBuf> {
        let file = format!("tests-{}.cpio", kernel.version);
        let directories = self.0.keys().flat_map(|name| Path::new(name).ancestors().skip(1));
        let directories: BTreeSet<_> = directories.chain([Path::new("tmp")]).collect();
        write_initramfs(&kernel.directory(), &file, MODULES, |image| {
            // The first is the root, which is there.
            for directory in directories.into_iter().skip(1) {
                image.add(&directory.to_string_lossy(), 0o040_755, &[])?;
            }
            for (name, content) in &self.0 {
                image.add(name, 0o100_755, content)?;
            }
            image.add("bin/sh", 0o120_777, b"busybox")
        })?;
        Ok(target().join("guest").join(file))
    }
}

/// What the guest runs, see `tests/guest-init/src/test_programs.rs`.
fn plan<'a>(programs: impl Iterator<Item = &'a str>, filter: Option<&str>) -> String {
    let skips = SKIPPED.iter().flat_map(|(test, _)| ["--skip", test]);
    let arguments: Vec<_> = ["--test-threads=1", "--format=pretty"]
        .into_iter()
        .chain(skips)
        .chain(filter)
        .collect();
    let arguments = arguments.join(" ");
    programs.map(|name| format!("{name} {arguments}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_name_test_files_that_are_there_and_each_once() {
        let files = test_files().unwrap();
        let left = LEFT.iter().map(|(file, _)| file);
        let mut named = BTreeSet::new();
        for file in TAKEN.iter().chain(left) {
            assert!(files.iter().any(|there| there == file), "there is no {file}");
            assert!(named.insert(file), "{file} is named twice");
        }
    }

    #[test]
    fn what_is_not_taken_is_told_with_its_reason() {
        let left = left().unwrap();
        for told in [
            "all of sts, needs Python and moto",
            "curl_wget_and_urllib_get_right_answers, needs Python",
        ] {
            assert!(left.iter().any(|line| line == told), "{left:?}");
        }
        assert!(
            !left
                .iter()
                .any(|line| line.contains("datapath") || line.contains("all of guest")),
            "{left:?}"
        );
    }

    #[test]
    fn guest_runs_each_program_with_the_filter_and_without_what_is_skipped() {
        let plan = plan(["one", "two"].into_iter(), Some("hop"));
        assert_eq!(plan.lines().count(), 2);
        for line in plan.lines() {
            assert!(line.ends_with(" hop"), "{line}");
            for (test, _) in SKIPPED {
                assert!(line.contains(&format!(" --skip {test} ")), "{line}");
            }
        }
    }
}
