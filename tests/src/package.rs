//! The Debian package, as it was built and as an upgrade of itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

use crate::{control::run, qemu};

/// Puts both into `directory`, for a machine: `old.deb`, and `new.deb`, which has a higher version.
pub fn put_into(directory: &Path) -> Result<()> {
    let package = built()?;
    fs::copy(&package, directory.join("old.deb"))?;
    let tree = directory.join("tree");
    run(Command::new("dpkg-deb")
        .arg("--raw-extract")
        .arg(&package)
        .arg(&tree))?;
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control)?;
    let version = text
        .lines()
        .find(|line| line.starts_with("Version: "))
        .unwrap_or_default();
    fs::write(&control, text.replace(version, "Version: 99.0-1"))?;
    run(Command::new("dpkg-deb")
        .args(["-Znone", "--build"])
        .arg(&tree)
        .arg(directory.join("new.deb")))?;
    Ok(fs::remove_dir_all(&tree)?)
}

fn built() -> Result<PathBuf> {
    let package = qemu::target().join("dist/imds-agent.deb");
    ensure!(
        package.exists(),
        "there is no package: `cargo xtask dist --debug` makes it"
    );
    Ok(package)
}
