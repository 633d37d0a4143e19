//! `cargo xtask dist`: the Debian package.
//!
//! `[package.metadata.deb]` of the agent says what is in it and where; `dist/` has what is only there for it. Here is made
//! what follows from the code: the default configuration, man pages, completions.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    host_command::{self, cargo, target, workspace},
    prepare, setup,
};

/// The programs in the package.
const PROGRAMS: [&str; 2] = ["imds-agent", "imdsctl"];

/// The line of the example that differs in the package, and what it says there: the package makes the user.
const USER: (&str, &str) = ("\nuser = \"\"\n", "\nuser = \"imds-agent\"\n");

/// Builds the programs, and the package of them.
pub fn run(is_debug: bool) -> Result<()> {
    let agent = prepare::product("cargo xtask dist", is_debug)?;
    let package = package(agent.parent().context("a program is in a directory")?)?;
    println!("built {}", package.display());
    Ok(())
}

/// Makes the package of the programs in `programs`.
pub fn package(programs: &Path) -> Result<PathBuf> {
    let cargo_deb = setup::cargo_deb()?;
    let files = target().join("dist/files");
    match fs::remove_dir_all(&files) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => fs::create_dir_all(files.join("bin"))?,
    }
    for name in PROGRAMS {
        let program = programs.join(name);
        host_command::run(Command::new(&program).arg("generate").arg(&files))?;
        let packaged = files.join("bin").join(name);
        host_command::run(Command::new("strip").arg("-o").arg(&packaged).arg(&program))?;
    }
    let example = fs::read_to_string(workspace().join("docs/examples/config.toml"))?;
    fs::create_dir(files.join("etc"))?;
    fs::write(files.join("etc/config.toml"), configuration(&example)?)?;
    let package = target().join("dist/imds-agent.deb");
    let mut command = Command::new(cargo_deb);
    command
        .current_dir(workspace())
        .env("CARGO", cargo().get_program())
        .args([
            "--package",
            "imds-agent",
            "--no-build",
            "--no-strip",
            "--no-dbgsym",
        ])
        .args(["--fast", "--quiet", "--locked"])
        .arg("--output")
        .arg(&package);
    // Debian's own way for all its tools.
    if let (Ok(name), Ok(address)) = (env::var("DEBFULLNAME"), env::var("DEBEMAIL")) {
        command.arg("--maintainer").arg(format!("{name} <{address}>"));
    }
    host_command::run(&mut command)?;
    Ok(package)
}

/// The default configuration: the example, which shows every field, with the package's own user.
fn configuration(example: &str) -> Result<String> {
    let (theirs, ours) = USER;
    ensure!(
        example.matches(theirs).count() == 1,
        "docs/examples/config.toml has no line {:?}",
        theirs.trim()
    );
    Ok(example.replace(theirs, ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They link to each other, and to the examples, as they lie in the workspace.
    #[test]
    fn the_packages_documents_lie_as_here_and_are_where_they_are_said_to_be() {
        const PLACE: &str = "usr/share/doc/imds-agent/";
        let read = |name: &str| fs::read_to_string(workspace().join(name)).unwrap();
        let manifest = read("imds-agent/Cargo.toml");
        for (asset, directory) in [("../README.md", ""), ("../docs/**/*", "docs/")] {
            let row = format!("[{asset:?}, \"{PLACE}{directory}\", \"644\"]");
            assert!(manifest.contains(&row), "{row}");
        }
        let mut said = 0;
        for directory in ["docs", "dist/systemd"] {
            for entry in fs::read_dir(workspace().join(directory)).unwrap() {
                let Ok(text) = fs::read_to_string(entry.unwrap().path()) else {
                    continue;
                };
                for place in text.split(PLACE).skip(1) {
                    let is_end = |letter: char| letter.is_whitespace() || "`)".contains(letter);
                    let file = place.split(is_end).next().unwrap_or_default();
                    assert!(workspace().join(file).exists(), "{directory}: {PLACE}{file}");
                    said += 1;
                }
            }
        }
        assert!(said > 3, "{said}");
    }

    #[test]
    fn the_changelog_begins_with_this_version() {
        let changelog = fs::read_to_string(workspace().join("dist/debian/changelog")).unwrap();
        let first = format!("imds-agent ({}-1) ", env!("CARGO_PKG_VERSION"));
        assert!(changelog.starts_with(&first), "{first:?} is to be told");
    }
}
