//! The findings, for people and for programs.

use std::{borrow::Cow, fmt};

use serde::Serialize;

use super::finding::{Check, Finding, Mark};

/// The ids of the categories are longer and simply stand out.
const ID_WIDTH: usize = 18;

/// What one run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `http://169.254.169.254`
    pub endpoint: String,
    /// What the checks adapted to, in words: whether tokens are required, which role, how many versions.
    pub instance: Vec<String>,
    /// Whether our own decisions bind too.
    pub is_strict: bool,
    /// Every check, in the contract's order.
    pub rows: Vec<Row>,
}

/// One check and its finding.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `B.2/19a`
    pub id: &'static str,
    /// Where the row comes from.
    pub mark: Mark,
    /// The contract in short.
    pub words: Cow<'static, str>,
    /// What was sent.
    pub probe: &'static str,
    /// Whether a failure counts.
    pub is_binding: bool,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
}

/// How many rows ended how.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Counts {
    /// Rows that the server keeps.
    pub passed: usize,
    /// Binding rows that it breaks.
    pub failed: usize,
    /// Rows that are our decision and that it decides otherwise.
    pub noted: usize,
    /// Rows that could not be found out.
    pub skipped: usize,
}

impl Report {
    /// How many rows ended how.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for row in &self.rows {
            match row.verdict() {
                "pass" => counts.passed += 1,
                "FAIL" => counts.failed += 1,
                "note" => counts.noted += 1,
                _ => counts.skipped += 1,
            }
        }
        counts
    }

    /// The report as JSON, with the counts.
    pub fn to_json(&self) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            report: &'a Report,
            counts: Counts,
        }
        serde_json::to_string_pretty(&Whole {
            report: self,
            counts: self.counts(),
        })
    }
}

impl Row {
    pub(super) fn new(check: &Check, finding: Finding, is_strict: bool) -> Self {
        Self {
            id: check.id,
            mark: check.mark,
            words: check.words.clone(),
            probe: check.probe,
            is_binding: is_strict || check.mark != Mark::I,
            finding,
        }
    }

    fn verdict(&self) -> &'static str {
        match &self.finding {
            Finding::Pass { .. } => "pass",
            Finding::Fail { .. } if self.is_binding => "FAIL",
            Finding::Fail { .. } => "note",
            Finding::Skip { .. } => "skip",
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.endpoint, self.instance.join(", "))?;
        let mut section = "";
        for row in &self.rows {
            let of_row = row.id.split('/').next().unwrap_or_default();
            if of_row != section {
                section = of_row;
                writeln!(f, "\n{section}  {}", section_words(section))?;
            }
            writeln!(
                f,
                "  {}  {:ID_WIDTH$}  {}  {}",
                row.verdict(),
                row.id,
                row.mark,
                row.words
            )?;
            match &row.finding {
                Finding::Pass { .. } => {}
                Finding::Fail { expected, seen } => {
                    writeln!(f, "        expected  {expected}\n        seen      {seen}")?;
                }
                Finding::Skip { reason } => writeln!(f, "        {reason}")?,
            }
        }
        let counts = self.counts();
        write!(
            f,
            "\n{} rows: {} passed, {} failed, {} notes (our decisions), {} skipped",
            self.rows.len(),
            counts.passed,
            counts.failed,
            counts.noted,
            counts.skipped
        )
    }
}

fn section_words(section: &str) -> &'static str {
    match section {
        "0" => "decisions of this project",
        "B" => "header sets",
        "B.1" => "roots, versions, listings",
        "B.2" => "the token endpoint",
        "B.3" => "access",
        "B.4" => "error bodies",
        "B.5" => "documents",
        "B.6" => "connections",
        _ => "the tree",
    }
}
