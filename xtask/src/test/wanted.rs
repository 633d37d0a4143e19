//! Which of the tests are wanted, by the word that was given: a file of the integration tests, or a part of tests' paths.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::test_files;
use crate::host_command::{ask, cargo};

/// The tests that are wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// All of them.
    All,
    /// Those of one file of the integration tests.
    File(String),
    /// Those whose path contains this.
    Path(String),
}

impl Wanted {
    /// What `filter` means.
    pub fn new(filter: Option<&str>) -> Result<Self> {
        Ok(match filter {
            None => Self::All,
            Some(word) if test_files()?.iter().any(|file| file == word) => Self::File(word.to_owned()),
            Some(word) => Self::Path(word.to_owned()),
        })
    }

    /// Whether tests of this file of the integration tests may be among them.
    pub fn may_be_in(&self, file: &str) -> bool {
        !matches!(self, Self::File(wanted) if wanted != file)
    }

    /// Whether all tests of this file are among them, whatever they are called.
    pub fn names_file(&self, file: &str) -> bool {
        self.may_be_in(file) && self.path().is_none()
    }

    /// Whether they are all in a file of the integration tests.
    pub fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// What libtest is to filter by.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Path(path) => Some(path),
            Self::All | Self::File(_) => None,
        }
    }

    /// For who asked for what is not there.
    pub fn describe(&self) -> String {
        match self {
            Self::All => "there is no test".to_owned(),
            Self::File(file) => format!("no test of tests/tests/{file} belongs to this"),
            Self::Path(path) => {
                format!("neither a file in tests/tests is called {path:?} nor has a test's path this in it")
            }
        }
    }
}

/// A test program that Cargo built.
#[derive(Debug)]
pub struct Program {
    /// The file.
    pub executable: PathBuf,
    /// The paths of the tests in it that are wanted, as libtest lists them.
    pub tests: Vec<String>,
}

/// Builds the test programs that `selection`, in Cargo's words, selects. Those with a wanted test come by their names.
pub fn programs(selection: &[String], wanted: &Wanted) -> Result<BTreeMap<String, Program>> {
    let mut command = cargo();
    command.args(["test", "--quiet", "--no-run"]).args(selection);
    let messages = ask(command.args(["--message-format", "json-render-diagnostics"]))?;
    let mut programs = BTreeMap::new();
    for message in messages.lines() {
        let message: Value = serde_json::from_str(message).context("Cargo's messages are JSON")?;
        let name = message["target"]["name"].as_str();
        let (Some(name), Some(executable), Some(true)) = (
            name,
            message["executable"].as_str(),
            message["profile"]["test"].as_bool(),
        ) else {
            continue;
        };
        let listed = ask(Command::new(executable)
            .args(["--list", "--format=terse"])
            .args(wanted.path()))?;
        let tests: Vec<_> = listed
            .lines()
            .filter_map(|line| Some(line.strip_suffix(": test")?.to_owned()))
            .collect();
        if tests.is_empty() {
            continue;
        }
        // A library and a program of one name are told apart as Cargo does it.
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        let name = if kind == "bin" {
            format!("{name} ({kind})")
        } else {
            name.to_owned()
        };
        let program = Program {
            executable: executable.into(),
            tests,
        };
        programs.insert(name, program);
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_a_file_where_there_is_one_and_else_a_part_of_paths() {
        let wanted = |word| Wanted::new(Some(word)).unwrap();
        assert_eq!(wanted("taps"), Wanted::File("taps".to_owned()));
        assert!(wanted("taps").may_be_in("taps") && !wanted("taps").may_be_in("sts"));
        assert_eq!((wanted("taps").path(), wanted("hop").path()), (None, Some("hop")));
        assert!(wanted("hop").may_be_in("taps") && !wanted("hop").names_file("taps"));
        assert_eq!(Wanted::new(None).unwrap(), Wanted::All);
    }
}
