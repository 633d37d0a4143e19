//! Hosts that cannot run the classifier: one sentence says what is missing and what helps, the exit code says whose it is,
//! and nothing was made, mounted or given away.

use std::{fs, os::unix::fs::MetadataExt as _, process::Command, thread};

use anyhow::{Context as _, Result};
use imds_tests::{agent::HostFiles, host::program, netns::Namespace, tap::Tap};
use nix::{errno::Errno, libc, sys::utsname::uname};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// As in `docs/control.md`.
const PERMISSION: i32 = 4;
const KERNEL: i32 = 7;

/// A host on which nothing runs yet.
struct Stage {
    files: HostFiles,
    namespace: Namespace,
}

/// System calls that are refused.
struct Refused {
    call: libc::c_long,
    /// Of these first arguments only, where there are any.
    first: Option<libc::c_int>,
    errno: Errno,
}

const fn bpf(errno: Errno) -> Refused {
    Refused {
        call: libc::SYS_bpf,
        first: None,
        errno,
    }
}

impl Stage {
    fn new() -> Result<Self> {
        Ok(Self {
            // Root that stays root: whatever is missing is not what another user lacks.
            files: HostFiles::of_user("", "")?,
            namespace: Namespace::new()?,
        })
    }

    /// The agent, started by the command `wrap`.
    fn command(&self, wrap: &[&str], words: &[&str]) -> Result<Command> {
        // An agent that is not refused serves until somebody stops it.
        let mut command = self.namespace.command("timeout");
        command.arg("60").args(wrap).arg(program()?).args(words);
        command.arg("--config").arg(self.files.config());
        Ok(command)
    }

    /// Runs what has to end with `code`, a line that contains `sentence`, and no other trace.
    fn expect(&self, mut command: Command, code: i32, sentence: &str) -> Result<()> {
        let before = self.traces()?;
        let output = command.env_remove("RUST_LOG").output()?;
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(code), "{said}");
        let is_one = said.starts_with("imds-agent: ") && said.lines().count() == 1;
        assert!(is_one && said.contains(sentence), "{said}");
        assert_eq!(self.traces()?, before, "{said}");
        Ok(())
    }

    /// The same for `imds-agent run`, with these calls refused to it.
    fn expect_without(&self, refused: &Refused, wrap: &[&str], code: i32, sentence: &str) -> Result<()> {
        let command = self.command(wrap, &["run"])?;
        // A filter is its thread's, and what that starts inherits it.
        thread::scope(|scope| {
            let filtered = scope.spawn(|| {
                seccompiler::apply_filter(&refused.filter()?)?;
                self.expect(command, code, sentence)
            });
            filtered
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// All that is there of the agent's.
    fn traces(&self) -> Result<Vec<String>> {
        let mut traces = vec![format!("pins: {}", self.files.pins().exists())];
        let mut directories = vec![
            self.files
                .config()
                .parent()
                .context("it is in a directory")?
                .to_owned(),
        ];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                let now = fs::metadata(&path)?;
                let (mode, owner, changed) = (now.mode(), now.uid(), now.modified()?);
                traces.push(format!("{}: {mode:o} {owner} {changed:?}", path.display()));
                if path.is_dir() {
                    directories.push(path);
                }
            }
        }
        traces.sort();
        Ok(traces)
    }
}

impl Refused {
    fn filter(&self) -> Result<BpfProgram> {
        let rules = self.first.map(|first| {
            let is = SeccompCmpOp::Eq;
            let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, is, first as u64)?;
            SeccompRule::new(vec![condition])
        });
        let filter = SeccompFilter::new(
            [(self.call, rules.transpose()?.into_iter().collect())].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(self.errno as u32),
            std::env::consts::ARCH.try_into()?,
        )?;
        Ok(filter.try_into()?)
    }
}

/// On a kernel that is too old as it is. On others as one that says it is.
#[test]
fn a_kernel_that_is_too_old_is_refused() -> Result<()> {
    let name = uname()?;
    let release = name.release().to_string_lossy();
    let is_debians = name.version().to_string_lossy().contains("Debian");
    if is_debians && !release.starts_with("5.10.") {
        eprintln!("skipped: Debian's kernels tell their version in a second place, where nothing changes it");
        return Ok(());
    }
    let (wrap, named): (&[&str], &str) = if release.starts_with("5.10.") {
        (&[], &release)
    } else {
        (&["setarch", "--uname-2.6"], "2.6.")
    };
    let stage = Stage::new()?;
    let sentence = format!("this host runs Linux {named}");
    for words in [&["run"][..], &["attach", "tap0"]] {
        stage.expect(stage.command(wrap, words)?, KERNEL, &sentence)?;
        let remedy = "the classifier needs 5.11 or later: boot a newer kernel\n";
        stage.expect(stage.command(wrap, words)?, KERNEL, remedy)?;
    }
    Ok(())
}

#[test]
fn a_missing_capability_is_named_before_anything_is_made() -> Result<()> {
    let stage = Stage::new()?;
    let wrap = ["setpriv", "--inh-caps=-bpf", "--bounding-set=-bpf"];
    let remedy = "CAP_BPF is missing: start the agent as root";
    stage.expect(stage.command(&wrap, &["run"])?, PERMISSION, remedy)
}

#[test]
fn a_kernel_without_bpf_is_refused_with_the_option_that_it_lacks() -> Result<()> {
    let stage = Stage::new()?;
    let shown = fs::read_to_string("/proc/filesystems")?;
    let hidden: String = shown
        .lines()
        .filter(|line| !line.ends_with("\tbpf"))
        .map(|line| format!("{line}\n"))
        .collect();
    let file = tempfile::NamedTempFile::new()?;
    fs::write(&file, hidden)?;
    let bind = format!(
        "mount --bind {} /proc/filesystems && exec \"$0\" \"$@\"",
        file.path().display()
    );
    let wrap = ["unshare", "--mount", "sh", "-c", &bind];
    let sentence = "this kernel has no bpf(2): boot one that is built with CONFIG_BPF_SYSCALL";
    stage.expect_without(&bpf(Errno::ENOSYS), &wrap, KERNEL, sentence)
}

#[test]
fn a_kernel_without_packet_sockets_is_refused_with_the_option_that_it_lacks() -> Result<()> {
    let refused = Refused {
        call: libc::SYS_socket,
        first: Some(libc::AF_PACKET),
        errno: Errno::EAFNOSUPPORT,
    };
    let sentence = "this kernel has no packet sockets: boot one that is built with CONFIG_PACKET";
    Stage::new()?.expect_without(&refused, &[], KERNEL, sentence)
}

#[test]
fn a_filter_that_forbids_bpf_is_named() -> Result<()> {
    let stage = Stage::new()?;
    for errno in [Errno::EPERM, Errno::ENOSYS] {
        let sentence = "a system call filter is on it, as on those of containers; allow it bpf(2)";
        stage.expect_without(&bpf(errno), &[], PERMISSION, sentence)?;
    }
    Ok(())
}

#[test]
fn a_user_namespace_is_named() -> Result<()> {
    let stage = Stage::new()?;
    let wrap = ["unshare", "--user", "--map-root-user"];
    let sentence = "it is in a user namespace, as those of rootless containers; run the agent outside";
    stage.expect(stage.command(&wrap, &["run"])?, PERMISSION, sentence)
}

/// What `imds-agent attach` makes it makes for an agent that will run here, too.
#[test]
fn early_attachment_is_refused_alike() -> Result<()> {
    let stage = Stage::new()?;
    let _tap = stage.namespace.enter(|| Tap::new("tap0"))?;
    let wrap = ["unshare", "--user", "--map-root-user"];
    let sentence = "it is in a user namespace";
    stage.expect(stage.command(&wrap, &["attach", "tap0"])?, PERMISSION, sentence)
}
