//! What the machine needs, found or installed.
//!
//! The host gets Debian packages of tools and nothing that runs by itself: the guest's kernel, its busybox and the
//! nginx of the benchmark are only unpacked under `target/`. A check of everything costs a few milliseconds, because
//! `demo` and `test` do it each time.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    apt::{self, unpack},
    debian_roots::ROOTS,
    host_command::{cargo, run_shown, target},
    kernels::KERNELS,
};

/// The version that reads the bitcode of LLVM 22, which is what the compilers below write.
const BPF_LINKER: &str = "0.13.0";

/// What makes the package.
const CARGO_DEB: &str = "3.8.0";

/// Where Debian puts LLVM 22.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// A Debian package, and the program by which another system shows that it has the same.
type Package = (&'static str, Option<&'static str>);

/// What everything needs.
const PACKAGES: &[Package] = &[
    // To build bpf-linker, and to link anything at all.
    ("llvm-22-dev", None),
    ("libpolly-22-dev", None),
    ("libzstd-dev", None),
    ("zlib1g-dev", None),
    ("gcc", Some("gcc")),
    ("g++", Some("g++")),
    // Taps, namespaces, captures and guests.
    ("qemu-system-x86", Some("qemu-system-x86_64")),
    ("iproute2", Some("ip")),
    ("kmod", Some("depmod")),
    ("nftables", Some("nft")),
    ("tcpdump", Some("tcpdump")),
    ("xz-utils", Some("xz")),
    ("mmdebstrap", Some("mmdebstrap")),
    ("e2fsprogs", Some("mke2fs")),
    // The clients that the tests let loose on the service.
    ("ca-certificates", None),
    ("curl", Some("curl")),
    ("wget", Some("wget")),
    ("openssl", Some("openssl")),
    ("python3", Some("python3")),
    ("python3-venv", None),
];

/// What only the tests want: Debian's libvirtd without the package that makes services of it.
const TEST_PACKAGES: &[Package] = &[
    ("libvirt-daemon", Some("libvirtd")),
    ("libvirt-daemon-driver-qemu", None),
    ("libvirt-clients", Some("virsh")),
];

/// The compiler for the classifier, where rustup has no nightly with its sources.
const COMPILER_PACKAGES: &[Package] = &[("rustc-web", None), ("cargo-web", None), ("rust-web-src", None)];

/// Debian packages that are unpacked instead of installed, and where to. The kernel's name changes with every update:
/// it is found through the package that depends on the newest.
const UNPACKED: &[(&str, &str)] = &[
    ("linux-image-cloud-amd64", "guest/kernel"),
    ("busybox-static", "guest/busybox"),
    ("nginx", "nginx"),
];

/// The same, for the tests alone: what lets a program see a clock of the test's.
const UNPACKED_FOR_TESTS: &[(&str, &str)] = &[("libfaketime", "faketime")];

/// The clients that come from Python's package index.
const PYTHON_CLIENTS: &str = "awscli boto3 cloudbase-init moto[server]";

/// The clients that come from npm, where it is installed.
const NODE_CLIENTS: &str = "@aws-sdk/credential-providers @aws-sdk/ec2-metadata-service";

/// Something that is missing, and the way to it.
struct Item {
    what: String,
    install: Box<dyn Fn() -> Result<()>>,
}

/// How much is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// What it takes to build the product and to show it.
    Product,
    /// Also the clients and the Debian roots that the tests run.
    Tests,
}

/// Installs what is missing, or with `check_only` says what is and fails.
pub fn run(extent: Extent, check_only: bool) -> Result<()> {
    let missing = missing(extent)?;
    if missing.is_empty() {
        if check_only {
            println!("nothing is missing");
        }
        return Ok(());
    }
    if check_only {
        bail!(
            "missing:\n{}\n`cargo xtask setup` installs what is missing",
            list(&missing)
        );
    }
    ensure!(
        is_debian(),
        "this is not Debian, so please provide:\n{}",
        list(&missing)
    );
    let remedy = "run it as root, or `sudo -E env PATH=\"$PATH\" cargo xtask setup`";
    ensure!(
        is_root(),
        "setup has to install:\n{}\nwhich needs root: {remedy}",
        list(&missing)
    );
    for item in &missing {
        println!("setup: {}", item.what);
        (item.install)()?;
    }
    Ok(())
}

/// Refuses to go on without root, which every tap, namespace and BPF program needs.
pub fn need_root(what: &str) -> Result<()> {
    ensure!(
        is_root(),
        "{what} needs root for taps, network namespaces and BPF: run it as root, or `sudo -E env PATH=\"$PATH\" {what}`"
    );
    Ok(())
}

fn missing(extent: Extent) -> Result<Vec<Item>> {
    let mut missing = Vec::new();
    let packages = missing_packages(extent)?;
    if !packages.is_empty() {
        missing.push(Item {
            what: format!("packages, by their Debian names: {}", packages.join(" ")),
            install: Box::new(move || install_packages(&packages)),
        });
    }
    if !is_debian() && !rustup_has_nightly_sources() {
        missing.push(Item {
            what: "a nightly with its sources: `rustup toolchain install nightly --component rust-src`"
                .to_owned(),
            install: Box::new(|| Ok(())),
        });
    }
    if !is_tool_there("bpf-linker", BPF_LINKER) {
        missing.push(Item {
            what: format!(
                "bpf-linker {BPF_LINKER} in target/tools, built against LLVM 22 (takes a minute or two)"
            ),
            install: Box::new(install_bpf_linker),
        });
    }
    let for_tests = match extent {
        Extent::Product => &[],
        Extent::Tests => UNPACKED_FOR_TESTS,
    };
    for (package, directory) in UNPACKED.iter().chain(for_tests) {
        let directory = target().join(directory);
        if !stamp(&directory).exists() {
            missing.push(Item {
                what: format!(
                    "Debian's {package}, unpacked in {} and not installed",
                    directory.display()
                ),
                install: Box::new(move || unpack(package, &directory)),
            });
        }
    }
    if !bpffs_is_mounted()? {
        missing.push(Item {
            what: "the BPF file system at /sys/fs/bpf".to_owned(),
            install: Box::new(|| run_shown(Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]))),
        });
    }
    if extent == Extent::Tests {
        missing.extend(missing_clients());
    }
    Ok(missing)
}

/// What only the tests want.
fn missing_clients() -> Vec<Item> {
    let mut missing = Vec::new();
    for root in ROOTS {
        if !is_stamped(&root.directory(), &root.contents()) {
            missing.push(Item {
                what: format!(
                    "{}, in {} (takes a minute or two)",
                    root.purpose(),
                    root.directory().display()
                ),
                install: Box::new(move || {
                    root.install()?;
                    Ok(fs::write(stamp(&root.directory()), root.contents())?)
                }),
            });
        }
    }
    for kernel in KERNELS {
        if !stamp(&kernel.directory()).exists() {
            missing.push(Item {
                what: format!(
                    "{}, unpacked in {} and not installed",
                    kernel.purpose(),
                    kernel.directory().display()
                ),
                install: Box::new(|| kernel.install()),
            });
        }
    }
    if !is_stamped(&venv(), PYTHON_CLIENTS) {
        missing.push(Item {
            what: format!(
                "{PYTHON_CLIENTS}, in a Python environment in {}",
                venv().display()
            ),
            install: Box::new(install_python_clients),
        });
    }
    if is_on_path("npm") && !is_stamped(&node(), NODE_CLIENTS) {
        missing.push(Item {
            what: format!("{NODE_CLIENTS} in {}", node().display()),
            install: Box::new(install_node_clients),
        });
    }
    missing
}

/// One question to dpkg for all packages; on other systems, a look along PATH.
fn missing_packages(extent: Extent) -> Result<Vec<&'static str>> {
    let for_tests = if extent == Extent::Tests {
        TEST_PACKAGES
    } else {
        &[]
    };
    if !is_debian() {
        let missing = PACKAGES
            .iter()
            .chain(for_tests)
            .filter(|(_, program)| program.is_some_and(|program| !is_on_path(program)));
        return Ok(missing.map(|(package, _)| *package).collect());
    }
    let compiler = if rustup_has_nightly_sources() {
        &[]
    } else {
        COMPILER_PACKAGES
    };
    let wanted: Vec<_> = PACKAGES
        .iter()
        .chain(compiler)
        .chain(for_tests)
        .map(|(package, _)| *package)
        .collect();
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(&wanted)
        .output()
        .context("cannot start dpkg-query")?;
    let known = String::from_utf8_lossy(&output.stdout);
    let is_installed = |package: &str| known.lines().any(|line| line == format!("{package} installed"));
    Ok(wanted
        .into_iter()
        .filter(|package| !is_installed(package))
        .collect())
}

fn install_packages(packages: &[&str]) -> Result<()> {
    apt::know(packages)?;
    run_shown(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages),
    )
}

/// Installs a program from the registry in `target/tools`, unless it is there.
pub fn install_tool(name: &str, version: &str) -> Result<()> {
    if is_tool_there(name, version) {
        return Ok(());
    }
    println!("setup: {name} {version} in target/tools");
    run_shown(
        cargo()
            .args(["install", name, "--version", version, "--locked", "--root"])
            .arg(target().join("tools")),
    )
}

/// Provides cargo-deb in `target/tools`, and returns it.
pub fn cargo_deb() -> Result<PathBuf> {
    install_tool("cargo-deb", CARGO_DEB)?;
    Ok(target().join("tools/bin/cargo-deb"))
}

fn is_tool_there(name: &str, version: &str) -> bool {
    let crates = fs::read_to_string(target().join("tools/.crates.toml")).unwrap_or_default();
    crates.contains(&format!("\"{name} {version} ")) && target().join("tools/bin").join(name).exists()
}

fn install_bpf_linker() -> Result<()> {
    run_shown(
        cargo()
            .env("LLVM_PREFIX", LLVM_PREFIX)
            .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"])
            .args(["--no-default-features", "--features", "llvm-22", "--root"])
            .arg(target().join("tools")),
    )
}

fn venv() -> PathBuf {
    target().join("venv")
}

fn install_python_clients() -> Result<()> {
    // Debian's own interpreter: the one that python3-venv belongs to.
    let python = if is_debian() {
        "/usr/bin/python3"
    } else {
        "python3"
    };
    run_shown(Command::new(python).args(["-m", "venv", "--clear"]).arg(venv()))?;
    let pip = venv().join("bin/pip");
    run_shown(
        Command::new(pip)
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .args(PYTHON_CLIENTS.split(' ')),
    )?;
    fs::write(stamp(&venv()), PYTHON_CLIENTS)?;
    Ok(())
}

fn node() -> PathBuf {
    target().join("node")
}

fn install_node_clients() -> Result<()> {
    fs::create_dir_all(node()).context("cannot make the directory of npm's packages")?;
    run_shown(
        Command::new("npm")
            .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
            .arg(node())
            .args(NODE_CLIENTS.split(' ')),
    )?;
    fs::write(stamp(&node()), NODE_CLIENTS)?;
    Ok(())
}

fn bpffs_is_mounted() -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf")))
}

/// Whether some nightly of rustup's brings the sources of `core`, which a build for the BPF target needs.
fn rustup_has_nightly_sources() -> bool {
    let rustup = env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let Some(rustup) = rustup.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".rustup"))) else {
        return false;
    };
    let toolchains = fs::read_dir(rustup.join("toolchains"))
        .into_iter()
        .flatten()
        .flatten();
    toolchains
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"nightly"))
        .any(|entry| entry.path().join("lib/rustlib/src/rust/library/core").exists())
}

/// Written into a directory when all of it is there.
pub fn stamp(directory: &Path) -> PathBuf {
    directory.join(".complete")
}

/// Whether `directory` is complete and was made of the same `contents` as would be made now.
fn is_stamped(directory: &Path, contents: &str) -> bool {
    fs::read_to_string(stamp(directory)).is_ok_and(|stamped| stamped == contents)
}

fn list(items: &[Item]) -> String {
    items
        .iter()
        .map(|item| format!("  - {}", item.what))
        .collect::<Vec<_>>()
        .join("\n")
}

fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && is_on_path("apt-get")
}

fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(program).exists())
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
