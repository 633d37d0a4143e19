//! T2: programs of T1, run in guests on other kernels than the host's.
//!
//! A guest gets the test programs as they were built for the host, the agent, and the host's own tools that they start,
//! with their libraries; `tests/guest-init` runs them one after the other. Nothing of the guest's network is used: what
//! the tests need they make in namespaces, as on the host.

mod taken;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};
use imds_tests::{
    netns::Namespace,
    qemu::{Guest, GuestOptions, Software},
};

use self::taken::{REFUSAL, SKIPPED};
pub use self::taken::{TAKEN, left};
use super::{
    Outcome, RUNG_LIMIT,
    wanted::{Program, Wanted},
};
use crate::{
    guest_image::{build_init, only_entry, write_initramfs},
    host_command::{ask, run, target},
    kernels::{KERNELS, Kernel, Part},
};

/// What the kernel does not have built in. nf_tables asks for its checksum by an alias.
const MODULES: &[&str] = &[
    "tun",
    "veth",
    "bridge",
    "sch_ingress",
    "sch_tbf",
    "cls_bpf",
    "crc32c_generic",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "openvswitch",
];

/// The programs that the tests start, beside those of [`BUSYBOX`].
const TOOLS: &[&str] = &[
    "curl", "ip", "mount", "nft", "nsenter", "setarch", "setpriv", "tc", "tcpdump", "timeout", "unshare",
];

/// Those that need be no more than what busybox has.
const BUSYBOX: &[&str] = &["cat", "sh"];

/// Who the users are that tools turn themselves into.
const USERS: &[&str] = &["/etc/passwd", "/etc/group"];

/// Runs what is taken on every kernel, each in a guest of its own, at the same time.
pub fn run_all(programs: &BTreeMap<String, Program>, wanted: &Wanted) -> Result<Outcome> {
    let mut all = Outcome::default();
    all.skipped = left(wanted)?;
    if programs.is_empty() {
        return Ok(all);
    }
    let own = tempfile::tempdir_in(target())?;
    let files = Files::new(own.path())?;
    let began = Instant::now();
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let guests: Vec<_> = KERNELS
            .iter()
            .map(|kernel| scope.spawn(|| run_on(kernel, files.clone(), own.path(), programs, wanted)))
            .collect();
        guests
            .into_iter()
            .map(|guest| guest.join().expect("no panic"))
            .collect()
    });
    outcomes.into_iter().for_each(|outcome| all.add(outcome));
    all.took = began.elapsed();
    Ok(all)
}

/// Boots a guest on `kernel` and follows the tests in it. Its lines begin with the kernel's version.
fn run_on(
    kernel: &Kernel,
    mut files: Files,
    stripped: &Path,
    programs: &BTreeMap<String, Program>,
    wanted: &Wanted,
) -> Outcome {
    let mut outcome = Outcome::default();
    let is_refusal = |test: &String| test == REFUSAL;
    let programs: Vec<_> = match kernel.part {
        Part::Supported => programs.iter().collect(),
        Part::Refused => programs
            .iter()
            .filter(|(_, program)| program.tests.iter().any(is_refusal))
            .collect(),
    };
    if programs.is_empty() {
        return outcome;
    }
    if !kernel.is_there() {
        let reason = format!("all on {}, which Debian's mirror has not", kernel.version);
        outcome.skipped.push(reason);
        return outcome;
    }
    let mut run = || -> Result<()> {
        for (name, program) in &programs {
            files.add_stripped(name, &program.executable, stripped)?;
        }
        let filter = match kernel.part {
            Part::Supported => wanted.path(),
            Part::Refused => Some(REFUSAL),
        };
        let plan = plan(programs.iter().map(|(name, _)| name.as_str()), filter);
        files.0.insert("tests/plan".to_owned(), plan.into_bytes().into());
        let options = GuestOptions {
            name: format!("kernel-{}", kernel.version),
            interface: None,
            software: Software::Tests {
                kernel: only_entry(&kernel.directory().join("boot"), "vmlinuz-")?,
                initramfs: files.write_initramfs(kernel)?,
                parameters: kernel.parameters.iter().map(ToString::to_string).collect(),
            },
            limit: RUNG_LIMIT,
        };
        Guest::boot(&Namespace::new()?, &options)?.wait_showing(|line| {
            if outcome.take(line) {
                println!("{}: {line}", kernel.version);
            }
        })?;
        Ok(())
    };
    if let Err(error) = run() {
        outcome.trouble = Some(format!("{error:#}"));
    }
    for told in outcome.skipped.iter_mut().chain(&mut outcome.left_out) {
        told.push_str(&format!(" (on {})", kernel.version));
    }
    outcome
}

/// What goes into a guest, by its path there.
#[derive(Clone, Default)]
struct Files(BTreeMap<String, Arc<[u8]>>);

impl Files {
    /// What every guest has.
    fn new(stripped: &Path) -> Result<Self> {
        let mut files = Self::default();
        files.add("init", &build_init()?)?;
        for program in ["imds-agent", "imdsctl"] {
            files.add_stripped(program, &target().join("debug").join(program), stripped)?;
        }
        for tool in TOOLS {
            let path = ask(Command::new("sh").args(["-c", "command -v \"$0\"", tool]))?;
            files.add_program(&format!("usr/bin/{tool}"), Path::new(path.trim()))?;
        }
        for users in USERS {
            files.add(users, Path::new(users))?;
        }
        Ok(files)
    }

    /// Three quarters of such a file are for debuggers.
    fn add_stripped(&mut self, name: &str, program: &Path, stripped: &Path) -> Result<()> {
        let small = stripped.join(name);
        if !small.exists() {
            // In one step: another kernel's guest may want the same.
            let new = tempfile::NamedTempFile::new_in(stripped)?;
            run(Command::new("strip").arg("-o").arg(new.path()).arg(program))?;
            new.persist(&small)?;
        }
        self.add_program(&format!("tests/{name}"), &small)
    }

    fn add(&mut self, name: &str, file: &Path) -> Result<()> {
        let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        self.0
            .insert(name.trim_start_matches('/').to_owned(), content.into());
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
        let modules = match kernel.part {
            Part::Supported => MODULES,
            Part::Refused => &["tun"],
        };
        write_initramfs(&kernel.directory(), &file, modules, |image| {
            // The first is the root, which is there.
            for directory in directories.into_iter().skip(1) {
                image.add(&directory.to_string_lossy(), 0o040_755, &[])?;
            }
            for (name, content) in &self.0 {
                image.add(name, 0o100_755, content)?;
            }
            for name in BUSYBOX {
                image.add(&format!("bin/{name}"), 0o120_777, b"busybox")?;
            }
            Ok(())
        })?;
        Ok(target().join("guest").join(file))
    }
}

/// What the guest runs, see `tests/guest-init/src/test_programs.rs`.
fn plan<'a>(programs: impl Iterator<Item = &'a str>, filter: Option<&str>) -> String {
    let skips = SKIPPED.iter().flat_map(|(test, _)| ["--skip", test]);
    let arguments: Vec<_> = ["--test-threads=1", "--format=pretty", "--show-output"]
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
