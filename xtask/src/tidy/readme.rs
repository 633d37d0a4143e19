//! What the README says about the tree and its commands has to be so.

use clap::CommandFactory as _;

use imds_ebpf::abi::Reason;

use super::Finding;
use crate::Arguments;

/// First parts of paths that the README may speak of.
const OURS: &[&str] = &["imds-agent/", "imds-ebpf/", "tests/", "xtask/", "docs/", "dist/"];

/// The two commands that a newcomer needs.
const FIRST_COMMANDS: &[&str] = &["cargo xtask demo", "cargo xtask test"];

/// Checks the README's `text`; `exists` tells about a path from the workspace's root.
pub fn check(text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |line, message| {
        findings.push(Finding {
            file: "README.md".to_owned(),
            line,
            message,
        });
    };
    for command in FIRST_COMMANDS {
        if !text.contains(command) {
            find(1, format!("`{command}` is not mentioned"));
        }
    }
    for reason in Reason::ALL {
        let row = format!("| {} | `{}` |", reason as u32, reason.name());
        if !text.contains(&row) {
            find(1, format!("the drop reason `{}` has no row {row}", reason.name()));
        }
    }
    let commands = Arguments::command();
    let is_command = |name: &str| commands.find_subcommand(name).is_some() || name == "help";
    for (at, line) in text.lines().enumerate() {
        for name in line
            .split("cargo xtask ")
            .skip(1)
            .map(first_word)
            .filter(|name| !name.is_empty())
        {
            if !is_command(name) {
                find(at + 1, format!("there is no `cargo xtask {name}`"));
            }
        }
        let words = line.split(|letter: char| !(letter.is_ascii_alphanumeric() || "/._-".contains(letter)));
        let paths = words.map(|word| word.trim_end_matches('.'));
        for path in paths.filter(|path| OURS.iter().any(|ours| path.starts_with(ours))) {
            if !exists(path) {
                find(at + 1, format!("there is no {path}"));
            }
        }
    }
    findings
}

/// The command's name at the start of `text`; nothing where a placeholder or other text stands.
fn first_word(text: &str) -> &str {
    let end = text
        .find(|letter: char| !(letter.is_ascii_lowercase() || letter == '-'))
        .unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> String {
        let rows =
            Reason::ALL.map(|reason| format!("| {} | `{}` | a reason |\n", reason as u32, reason.name()));
        let commands = "`cargo xtask demo`, `cargo xtask test [filter]`, `cargo xtask <command>`";
        format!("{commands}; see `docs/design/a.md`.\n{}", rows.concat())
    }

    fn messages(text: &str) -> Vec<String> {
        check(text, |path| path == "docs/design/a.md")
            .into_iter()
            .map(|finding| finding.message)
            .collect()
    }

    #[test]
    fn a_true_readme_passes() {
        assert_eq!(messages(&good()), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_so_is_found() {
        assert_eq!(messages("").len(), 2 + Reason::ALL.len());
        assert_eq!(
            messages(&format!("{} cargo xtask dance", good())),
            ["there is no `cargo xtask dance`"]
        );
        assert_eq!(
            messages(&format!("{} (imds-agent/src/gone.rs).", good())),
            ["there is no imds-agent/src/gone.rs"]
        );
    }
}
