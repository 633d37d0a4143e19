//! Output: JSON for programs, tables for people.

use std::{
    fmt::Display,
    io::{self, Write as _},
    process,
};

use anyhow::Result;
use serde_json::Value;

use super::{Verdict, exit_code};

/// Rows under a heading, in columns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With a heading.
    pub fn new(heading: &[&str]) -> Self {
        Self {
            rows: vec![heading.iter().map(|text| (*text).to_owned()).collect()],
        }
    }

    /// One more row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Lines with columns as wide as they need; nothing where there is only the heading.
    pub fn lines(&self) -> Vec<String> {
        if self.rows.len() < 2 {
            return Vec::new();
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let cell =
            |row: &[String], column: usize| row.get(column).map(|text| printable(text)).unwrap_or_default();
        let width = |column| {
            self.rows
                .iter()
                .map(|row| cell(row, column).chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = widths
                .iter()
                .enumerate()
                .map(|(column, width)| format!("{:width$}", cell(row, column)));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }

    /// Prints the lines.
    pub fn print(&self) {
        self.lines().into_iter().for_each(line);
    }
}

/// Prints a line. A reader that has gone, as `head` does, wants no more, and there is nobody to tell.
pub fn line(text: impl Display) {
    if let Err(error) = writeln!(io::stdout().lock(), "{text}") {
        if error.kind() != io::ErrorKind::BrokenPipe {
            eprintln!("imdsctl: cannot print: {error}");
        }
        process::exit(exit_code::FAILURE.into());
    }
}

/// Prints JSON for people as well as programs.
pub fn json(value: &Value) {
    line(printable_json(&format!("{value:#}")));
}

/// JSON that means the same: it lets some letters through that a terminal takes for more than they are, and only within texts.
pub fn printable_json(json: &str) -> String {
    let mut printable = String::with_capacity(json.len());
    for letter in json.chars() {
        if letter.is_control() && letter != '\n' {
            printable.push_str(&format!("\\u{:04x}", u32::from(letter)));
        } else {
            printable.push(letter);
        }
    }
    printable
}

/// A field as text, `-` where there is none.
pub fn text(value: &Value, field: &str) -> String {
    match value.get(field) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// What came of a write: for people only what is not as it should be.
pub fn written(answer: &Value, is_json: bool) -> Result<Verdict> {
    if is_json {
        json(answer);
    }
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        let [field, message] = ["field", "message"].map(|name| printable(&text(warning, name)));
        eprintln!("imdsctl: warning: {field} {message}");
    }
    Ok(verdict(answer["state"].as_str()))
}

/// Whether a change is in force.
pub fn verdict(state: Option<&str>) -> Verdict {
    if state == Some("pending") {
        eprintln!("imdsctl: it is written, and not in force yet: `imdsctl status` tells why");
        Verdict::No
    } else {
        Verdict::Yes
    }
}

/// What a record says may not write to the terminal as it likes.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_says_the_same_and_nothing_to_a_terminal() {
        let value = serde_json::json!({ "\u{9b}31m": ["a\nb", "\u{7f}"] });
        let printed = printable_json(&format!("{value:#}"));
        assert!(
            !printed
                .chars()
                .any(|letter| letter.is_control() && letter != '\n')
        );
        assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), value);
    }

    #[test]
    fn columns_are_as_wide_as_they_need() {
        let mut table = Table::new(&["A", "LONGER"]);
        assert!(table.lines().is_empty());
        table.row(vec!["value\u{1b}[2J".to_owned(), "x".to_owned()]);
        table.row(vec!["ü".to_owned()]);
        assert_eq!(table.lines(), ["A          LONGER", "value?[2J  x", "ü"]);
    }
}
