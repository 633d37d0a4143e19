//! What is wrong with the registry's files, in words for an operator.

use std::{
    fmt::{self, Write as _},
    path::PathBuf,
};

/// One thing wrong in one file, or with one directory. Stands until the file is mended.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Problem {
    /// What it costs.
    pub severity: Severity,
    /// The file.
    pub file: PathBuf,
    /// What is wrong.
    pub finding: Finding,
}

/// What a problem costs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// The newest version of the file is not in force: the last good one, if there was one, goes on serving.
    Error,
    /// The file is in force; something in it has no effect.
    Warning,
}

/// What is wrong, and where in the file.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Finding {
    /// Line and column, from 1, where the JSON reader noticed it.
    pub place: Option<(usize, usize)>,
    /// `NetworkInterfaces[0].MacAddress`, or empty for the file as a whole.
    pub field: String,
    /// One sentence without a full stop.
    pub message: String,
}

impl Finding {
    /// A finding about the file as a whole.
    pub fn whole(message: impl Into<String>) -> Self {
        Self::field("", message)
    }

    /// A finding about one field.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            place: None,
            field: field.into(),
            message: message.into(),
        }
    }
}

/// On one line, whatever file names and records are made of: both may be a tenant's words.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.file.display().to_string();
        if let Some((row, column)) = self.finding.place {
            write!(line, ":{row}:{column}")?;
        }
        if !self.finding.field.is_empty() {
            write!(line, ": {}", self.finding.field)?;
        }
        write!(line, ": {}", self.finding.message)?;
        f.write_str(&line.replace(char::is_control, "\u{fffd}"))
    }
}

/// For a document without a file: `NetworkInterfaces[0].Tap: is another interface's of this instance`.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(&self.message)?,
            field => write!(f, "{field}: {}", self.message)?,
        }
        match self.place {
            Some((line, column)) => write!(f, " (line {line}, column {column})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_of_harmless_text() {
        let problem = Problem {
            severity: Severity::Error,
            file: "instances/a\nERROR b.json".into(),
            finding: Finding::field("Tags", "unknown variant `\u{1b}[2J\u{9b}2J`"),
        };
        assert_eq!(
            problem.to_string(),
            "instances/a\u{fffd}ERROR b.json: Tags: unknown variant `\u{fffd}[2J\u{fffd}2J`"
        );
    }
}
