//! Completions and man pages, for packages.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use clap::{Command, ValueEnum as _};
use clap_complete::Shell;

/// Writes completions for every shell that is known and man pages for every command below `directory`.
pub fn write(mut command: Command, directory: &Path) -> Result<()> {
    let completions = directory.join("completions");
    let man = directory.join("man");
    for made in [&completions, &man] {
        fs::create_dir_all(made).with_context(|| format!("cannot make {}", made.display()))?;
    }
    let name = command.get_name().to_owned();
    for shell in Shell::value_variants() {
        clap_complete::generate_to(*shell, &mut command, &name, &completions)
            .with_context(|| format!("cannot write completions to {}", completions.display()))?;
    }
    clap_mangen::generate_to(command, &man)
        .with_context(|| format!("cannot write man pages to {}", man.display()))?;
    Ok(())
}
