//! The guests' kernel and their initramfs.
//!
//! The test guest lives in its own: a static init of ours, the modules of a virtio network and of a container's bridge,
//! a busybox for the shell. A stock Debian's has the modules of its disk and network, and hands over to it.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::host_command::{ask, cargo, run, target, workspace};

/// What init is compiled for.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What the test guest needs and its kernel does not have built in. What these depend on is found.
const MODULES: &[&str] = &["virtio_pci", "virtio_net", "bridge", "veth"];

/// What a Debian on a disk needs before it has its own modules. ext4 asks for its checksum by an alias.
const DEBIAN_MODULES: &[&str] = &["virtio_pci", "virtio_net", "virtio_blk", "crc32c_generic", "ext4"];

/// Builds `target/guest/vmlinuz`, `target/guest/initramfs.cpio` and `target/guest/debian-initramfs.cpio`, where the tests
/// look for them.
pub fn build() -> Result<()> {
    let guest = target().join("guest");
    let boot = guest.join("kernel/boot");
    let kernel = only_entry(&boot, "vmlinuz-")?;
    fs::copy(&kernel, guest.join("vmlinuz")).context("cannot copy the guest's kernel")?;
    let init = fs::read(build_init()?).context("cannot read the guest's init")?;
    let kernel = guest.join("kernel");
    write_initramfs(&kernel, "initramfs.cpio", MODULES, |image| {
        image.add("init", 0o100_755, &init)?;
        image.add("bin/imds", 0o120_777, b"/init")
    })?;
    write_initramfs(&kernel, "debian-initramfs.cpio", DEBIAN_MODULES, |image| {
        for (name, mode, file) in [
            ("init", 0o100_755, "init"),
            ("imds-report", 0o100_755, "report.py"),
            ("imds-report.service", 0o100_644, "report.service"),
            ("operator.cfg", 0o100_644, "operator.cfg"),
        ] {
            let file = workspace().join("tests/clients/guest").join(file);
            let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            image.add(name, mode, &content)?;
        }
        Ok(())
    })
}

/// The test guest's init.
pub fn build_init() -> Result<PathBuf> {
    run(cargo()
        .env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-C target-feature=+crt-static",
        )
        .args([
            "build",
            "--quiet",
            "--package",
            "imds-guest-init",
            "--profile",
            "guest-init",
            "--target",
            TRIPLE,
        ]))?;
    Ok(target().join(TRIPLE).join("guest-init/imds-guest-init"))
}

/// Writes `target/guest/<file>` with what every initramfs has, the modules `wanted` of the unpacked package `kernel`, and
/// what `add_own` adds.
pub fn write_initramfs(
    kernel: &Path,
    file: &str,
    wanted: &[&str],
    add_own: impl FnOnce(&mut Image) -> Result<()>,
) -> Result<()> {
    let guest = target().join("guest");
    let new = guest.join(format!("{file}.new"));
    let mut image = Image::create(&new)?;
    for directory in ["bin", "dev", "modules", "proc", "sys", "sysroot"] {
        image.add(directory, 0o040_755, &[])?;
    }
    add_own(&mut image)?;
    image.add(
        "bin/busybox",
        0o100_755,
        &fs::read(guest.join("busybox/bin/busybox"))?,
    )?;
    for (place, module) in modules(kernel, wanted)?.iter().enumerate() {
        let name = module
            .file_name()
            .and_then(|name| name.to_str())
            .context("a module without a name")?;
        let name = format!("modules/{place:02}-{}", name.trim_end_matches(".xz"));
        image.add(&name, 0o100_644, &read_module(module)?)?;
    }
    image.finish()?;
    // In one step, so that a guest which boots meanwhile gets the old image or the new one.
    fs::rename(&new, guest.join(file))?;
    Ok(())
}

/// The modules' files, each after those that it depends on.
fn modules(kernel: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    let merged = kernel.join("usr/lib");
    if merged.join("modules").exists() && !kernel.join("lib").exists() {
        // Debian 13 packs them below /usr; depmod is of the host's release and may not look there.
        symlink("usr/lib", kernel.join("lib")).context("cannot link the kernel's modules")?;
    }
    let versions = kernel.join("lib/modules");
    let version = only_entry(&versions, "")?;
    let name = version.file_name().unwrap_or_default();
    ask(Command::new("depmod").arg("--basedir").arg(kernel).arg(name))?;
    let dependencies =
        fs::read_to_string(version.join("modules.dep")).context("depmod wrote no modules.dep")?;
    let built_in =
        fs::read_to_string(version.join("modules.builtin")).context("the kernel lists no built-ins")?;

    let mut ordered: Vec<PathBuf> = Vec::new();
    for module in wanted {
        let is_it = |path: &str| path.rsplit('/').next().is_some_and(|file| stem(file) == *module);
        if built_in.lines().any(is_it) {
            continue;
        }
        let line = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| is_it(path));
        let (path, needs) = line.with_context(|| format!("the guest's kernel has no module {module}"))?;
        // depmod lists what is needed in the order of unloading.
        for file in needs
            .split_ascii_whitespace()
            .rev()
            .chain([path])
            .map(|path| version.join(path))
        {
            if !ordered.contains(&file) {
                ordered.push(file);
            }
        }
    }
    Ok(ordered)
}

/// A module's name in the kernel, from its file's.
fn stem(file: &str) -> String {
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .context("cannot start xz")?;
    Ok(output.stdout)
}

/// The one entry of `directory` whose name starts with `prefix`.
pub fn only_entry(directory: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
        })
        .with_context(|| format!("{} has no {prefix}*", directory.display()))
}

/// A cpio archive in the kernel's "newc" form (Documentation/driver-api/early-userspace/buffer-format.rst).
pub struct Image {
    file: BufWriter<File>,
    entries: u32,
}

impl Image {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            file: BufWriter::new(file),
            entries: 0,
        })
    }

    /// Adds an entry; a directory's comes before what is in it.
    pub fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let header = cpio::newc::Builder::new(name)
            .ino(self.entries)
            .mode(mode)
            .nlink(1);
        let mut entry = header.write(&mut self.file, u32::try_from(content.len())?);
        entry.write_all(content)?;
        entry.finish()?;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        cpio::newc::trailer(self.file)?.flush()?;
        Ok(())
    }
}
