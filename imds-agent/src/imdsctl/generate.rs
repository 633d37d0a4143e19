//! Completions and man pages, for packages.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;

/// The shells of hosts.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Writes completions for [`SHELLS`] and man pages for every command below `directory`.
pub fn write(mut command: Command, directory: &Path) -> Result<()> {
    let completions = directory.join("completions");
    let man = directory.join("man");
    for made in [&completions, &man] {
        fs::create_dir_all(made).with_context(|| format!("cannot make {}", made.display()))?;
    }
    let name = command.get_name().to_owned();
    // Pages about help on help are none.
    let documented = command.clone().disable_help_subcommand(true);
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut command, &name, &completions)
            .with_context(|| format!("cannot write completions to {}", completions.display()))?;
    }
    clap_mangen::generate_to(documented, &man)
        .with_context(|| format!("cannot write man pages to {}", man.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::imdsctl::Arguments;

    #[test]
    fn every_command_has_its_page_and_its_completions() {
        let command = Arguments::command();
        command.clone().debug_assert();
        let directory = tempfile::tempdir().unwrap();
        write(command.clone(), directory.path()).unwrap();
        let text = |file: &str| fs::read_to_string(directory.path().join(file)).unwrap();
        for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            assert!(text(&format!("man/imdsctl-{name}.1")).contains(".TH"), "{name}");
            assert!(text("completions/imdsctl.bash").contains(name), "{name}");
        }
        assert!(!directory.path().join("man/imdsctl-event-help.1").exists());
        assert!(text("completions/_imdsctl").starts_with("#compdef imdsctl"));
    }
}
