//! Debian's packages through the host's apt: known, fetched, and unpacked instead of installed.
//!
//! A package of another release than the host's comes through lists of its own, so that the host's stay as they are.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    debian_roots::mirror,
    host_command::{self, ask, run_shown, target},
    setup::stamp,
};

/// What vouches for every release.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One set of package lists.
struct Apt {
    options: Vec<String>,
}

/// Updates the host's lists unless they know all `packages`.
pub fn know(packages: &[&str]) -> Result<()> {
    Apt::of_host().know(packages)
}

/// Fetches the newest version of a package of the host's release and unpacks it in `directory`.
pub fn unpack(package: &str, directory: &Path) -> Result<()> {
    Apt::of_host().unpack(package, directory)
}

/// The same from another release.
pub fn unpack_from(release: &str, package: &str, directory: &Path) -> Result<()> {
    let lists = tempfile::tempdir_in(target()).context("cannot make a directory for the package lists")?;
    Apt::of_release(release, lists.path())?.unpack(package, directory)
}

impl Apt {
    fn of_host() -> Self {
        Self { options: Vec::new() }
    }

    /// With its files in `lists`. What is installed on the host does not count.
    fn of_release(release: &str, lists: &Path) -> Result<Self> {
        let mirror = mirror()?.context("the host's apt has no mirror of Debian")?;
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing: it is Debian's package debian-archive-keyring"
        );
        for place in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(lists.join(place)).context("cannot make apt's directories")?;
        }
        let sources = lists.join("debian.sources");
        fs::write(
            &sources,
            format!(
                "Types: deb\nURIs: {mirror}\nSuites: {release}\nComponents: main\nArchitectures: amd64\nSigned-By: {KEYRING}\n"
            ),
        )
        .with_context(|| format!("cannot write {}", sources.display()))?;
        let places: [(&str, PathBuf); 5] = [
            ("Dir::State", lists.join("state")),
            ("Dir::State::status", "/dev/null".into()),
            ("Dir::Cache", lists.join("cache")),
            ("Dir::Etc::sourcelist", sources),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
        ];
        Ok(Self {
            options: places
                .into_iter()
                .map(|(name, path)| format!("--option={name}={}", path.display()))
                .collect(),
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }

    fn know(&self, packages: &[&str]) -> Result<()> {
        let is_known = |package: &&str| ask(self.command("apt-cache").args(["show", package])).is_ok();
        if packages.iter().all(is_known) {
            return Ok(());
        }
        self.update()
    }

    fn update(&self) -> Result<()> {
        run_shown(self.command("apt-get").args(["update", "--quiet"]))
    }

    /// The stamp is written last, so that a fetch that was interrupted is done again.
    fn unpack(&self, package: &str, directory: &Path) -> Result<()> {
        self.know(&[package])?;
        let package = self.newest_kernel_behind(package)?;
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot clear {}", directory.display()));
            }
            _ => fs::create_dir_all(directory)?,
        }
        // The lists may be older than the archive, which keeps only the newest of each package.
        let fetch = || {
            run_shown(
                self.command("apt-get")
                    .current_dir(directory)
                    .args(["download", &package]),
            )
        };
        if fetch().is_err() {
            self.update()?;
            fetch()?;
        }
        let deb = fs::read_dir(directory)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download left no package in {}", directory.display()))?;
        host_command::run(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(directory))?;
        fs::remove_file(&deb)?;
        fs::write(
            stamp(directory),
            deb.file_name().unwrap_or_default().as_encoded_bytes(),
        )?;
        Ok(())
    }

    /// The kernel that a package without content stands for; any other package is itself.
    fn newest_kernel_behind(&self, package: &str) -> Result<String> {
        let dependencies = ask(self.command("apt-cache").args(["depends", package]))?;
        let kernel = dependencies
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
        Ok(kernel.map_or_else(|| package.to_owned(), |rest| format!("linux-image-{rest}")))
    }
}
