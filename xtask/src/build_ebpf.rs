//! Builds the classifier for the kernel: `target/bpf/imds-ebpf.o`, which the agent embeds.
//!
//! Three things are needed: a compiler that takes unstable options, the source of its core library (there is no ready-made
//! one for the BPF target), and `bpf-linker`. See `docs/architecture.md`, section 4, for what is built.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail, ensure};

/// Where the object lies, from the workspace's root.
pub const OBJECT: &str = "target/bpf/imds-ebpf.o";

/// Where `cargo xtask setup` puts the linker, from the workspace's root.
pub const LINKER: &str = "target/tools/bin/bpf-linker";

/// Cargo's own directory of this build: apart from the agent's, because compiler and target differ.
const BUILD_DIR: &str = "target/bpf-build";

const TARGET: &str = "bpfel-unknown-none";

/// What builds for the BPF target on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Toolchain {
    /// The compiler, its cargo and its library's source.
    pub compiler: Compiler,
    /// `bpf-linker`.
    pub linker: PathBuf,
}

/// A compiler that has the source of its core library.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Compiler {
    /// Rustup's nightly with the `rust-src` component.
    RustupNightly {
        /// Its sysroot.
        sysroot: PathBuf,
    },
    /// A distribution's packages, where cargo, rustc and the library's source are one matching set (Debian: `cargo-web`,
    /// `rustc-web`, `rust-web-src`, or the same without `-web`). Unstable options are unlocked by `RUSTC_BOOTSTRAP`.
    Distribution {
        /// `cargo`
        cargo: PathBuf,
        /// `rustc`
        rustc: PathBuf,
    },
}

/// A part of the toolchain that is not there, and the ways to get it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    /// What is not there.
    pub what: &'static str,
    /// How to get it.
    pub remedy: &'static str,
}

/// No compiler with the source of its core library.
pub const MISSING_COMPILER: Missing = Missing {
    what: "a Rust compiler with the source of its core library",
    remedy: "`rustup toolchain install nightly --component rust-src`, or on Debian `apt install rustc-web cargo-web \
             rust-web-src`",
};

/// No linker.
pub const MISSING_LINKER: Missing = Missing {
    what: "bpf-linker",
    remedy: "`cargo xtask setup`, or `cargo install bpf-linker`",
};

impl Toolchain {
    /// Finds the toolchain, or tells everything that is missing.
    pub fn find(workspace: &Path) -> Result<Self, Vec<Missing>> {
        match (Compiler::find(), find_linker(workspace)) {
            (Some(compiler), Some(linker)) => Ok(Self { compiler, linker }),
            (compiler, linker) => Err([
                compiler.is_none().then_some(MISSING_COMPILER),
                linker.is_none().then_some(MISSING_LINKER),
            ]
            .into_iter()
            .flatten()
            .collect()),
        }
    }

    /// The build's cargo, up to its arguments.
    fn cargo(&self) -> Command {
        let mut command = match &self.compiler {
            Compiler::RustupNightly { .. } => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
            Compiler::Distribution { cargo, .. } => Command::new(cargo),
        };
        scrub_cargo_environment(&mut command);
        if let Compiler::Distribution { rustc, .. } = &self.compiler {
            command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }
}

impl Compiler {
    /// Rustup's nightly when it has the source, else the distribution's.
    pub fn find() -> Option<Self> {
        Self::rustup_nightly().or_else(Self::distribution)
    }

    fn rustup_nightly() -> Option<Self> {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "rustc", "--print", "sysroot"]);
        let sysroot = PathBuf::from(first_line(&mut command)?);
        has_library_source(&sysroot).then_some(Self::RustupNightly { sysroot })
    }

    fn distribution() -> Option<Self> {
        let (cargo, rustc) = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"));
        let version = first_line(Command::new(&rustc).arg("--version"))?;
        let sysroot = PathBuf::from(first_line(Command::new(&rustc).args(["--print", "sysroot"]))?);
        let is_usable = cargo.exists() && is_recent(&version) && has_library_source(&sysroot);
        is_usable.then_some(Self::Distribution { cargo, rustc })
    }
}

/// Whether `rustc --version` says that it is no older than the workspace asks for.
fn is_recent(version: &str) -> bool {
    let minor = version
        .strip_prefix("rustc 1.")
        .and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    minor
        >= env!("CARGO_PKG_RUST_VERSION")
            .strip_prefix("1.")
            .and_then(|minor| minor.parse().ok())
}

/// Where `-Zbuild-std` looks. Distributions put a link there to wherever they keep the source.
fn has_library_source(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .exists()
}

fn first_line(command: &mut Command) -> Option<String> {
    scrub_cargo_environment(command);
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}

/// Setup's own linker first, so that every machine builds with the same one.
fn find_linker(workspace: &Path) -> Option<PathBuf> {
    let on_path = env::var_os("PATH").unwrap_or_default();
    let candidates = env::split_paths(&on_path).map(|directory| directory.join("bpf-linker"));
    [workspace.join(LINKER)]
        .into_iter()
        .chain(candidates)
        .find(|path| path.is_file())
}

/// Xtask itself runs under a cargo, which leaves its toolchain, flags and package in the environment.
fn scrub_cargo_environment(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_the_outer_cargo) {
            command.env_remove(name);
        }
    }
}

/// All but how to reach registries, which holds for any cargo.
fn is_of_the_outer_cargo(name: &str) -> bool {
    const KEPT: [&str; 5] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
    ];
    const SCRUBBED: [&str; 3] = ["CARGO", "RUSTC", "RUSTFLAGS"];
    let starts_with = |prefix: &&str| name.starts_with(*prefix);
    name == "RUSTUP_TOOLCHAIN" || (SCRUBBED.iter().any(starts_with) && !KEPT.iter().any(starts_with))
}

/// Builds the classifier and puts the object into place, all at once. Returns the object's path.
pub fn run(workspace: &Path) -> anyhow::Result<PathBuf> {
    let toolchain = Toolchain::find(workspace).map_err(|missing| {
        let lines = missing
            .iter()
            .map(|Missing { what, remedy }| format!("\n- {what}: {remedy}"));
        anyhow::anyhow!(
            "the classifier cannot be built; missing are:{}",
            lines.collect::<String>()
        )
    })?;
    let built = build(&toolchain, workspace)?;
    let object = workspace.join(OBJECT);
    install(&built, &object).with_context(|| format!("cannot put the object at {}", object.display()))?;
    Ok(object)
}

fn build(toolchain: &Toolchain, workspace: &Path) -> anyhow::Result<PathBuf> {
    let build_dir = workspace.join(BUILD_DIR);
    // The linker joins all crates into one function, and derives BTF from full debug information.
    let flags = [
        format!("-Clinker={}", toolchain.linker.display()),
        "-Clink-arg=--btf".to_owned(),
        format!("--remap-path-prefix={}=.", workspace.display()),
    ];
    let mut command = toolchain.cargo();
    command
        .current_dir(workspace)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "--package",
            "imds-ebpf",
            "--bin",
            "imds-ebpf",
        ])
        .args([
            "--features",
            "kernel",
            "-Zbuild-std=core",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&build_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort");
    let status = command
        .status()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    ensure!(status.success(), "the classifier does not build ({status})");
    let built = build_dir.join(TARGET).join("release/imds-ebpf");
    if !built.is_file() {
        bail!("the build left no object at {}", built.display());
    }
    Ok(built)
}

/// An unchanged object keeps its file, so that the agent is not built again for nothing.
fn install(built: &Path, object: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(built)?;
    if fs::read(object).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    fs::create_dir_all(object.parent().context("no directory")?)?;
    let complete = built.with_extension("complete");
    fs::write(&complete, bytes)?;
    fs::rename(&complete, object)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_of_the_outer_cargo_is_told_from_the_machine_s() {
        let outer = [
            "CARGO",
            "CARGO_PKG_NAME",
            "CARGO_TARGET_DIR",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ];
        let machine = [
            "CARGO_HOME",
            "CARGO_HTTP_PROXY",
            "CARGO_REGISTRIES_CRATES_IO_INDEX",
            "RUSTUP_HOME",
            "PATH",
        ];
        assert!(outer.into_iter().all(is_of_the_outer_cargo));
        assert!(!machine.into_iter().any(is_of_the_outer_cargo));
    }

    #[test]
    fn compiler_older_than_the_workspace_is_passed_over() {
        assert!(is_recent(
            "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"
        ));
        assert!(is_recent("rustc 1.95.0"));
        assert!(!is_recent("rustc 1.63.0"));
        assert!(!is_recent("something else"));
    }

    #[test]
    fn unchanged_object_keeps_its_file() -> anyhow::Result<()> {
        let directory = env::temp_dir().join(format!("xtask-install-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let (built, object) = (directory.join("built"), directory.join("bpf/object.o"));
        fs::write(&built, "one")?;
        install(&built, &object)?;
        let first = fs::metadata(&object)?.modified()?;
        install(&built, &object)?;
        assert_eq!(fs::metadata(&object)?.modified()?, first);
        fs::write(&built, "two")?;
        install(&built, &object)?;
        assert_eq!(fs::read(&object)?, b"two");
        fs::remove_dir_all(&directory)?;
        Ok(())
    }
}
