//! What became of tests, from the lines that libtest prints.

use std::time::Duration;

/// What became of one rung.
#[derive(Clone, Default, Debug)]
pub struct Outcome {
    /// How many tests passed.
    pub passed: u32,
    /// How many failed.
    pub failed: u32,
    /// What was not run, with the reason.
    pub skipped: Vec<String>,
    /// What passed and says that it left something out, with the reason.
    pub left_out: Vec<String>,
    /// From the first test's begin to the last one's end.
    pub took: Duration,
    /// What went wrong besides failed tests: a build, a hang.
    pub trouble: Option<String>,
    /// Whose output is being read, among that of the tests that passed.
    reading: Option<String>,
}

impl Outcome {
    /// Of what could not be run to its end.
    pub fn of_trouble(error: &anyhow::Error) -> Self {
        Self {
            trouble: Some(format!("{error:#}")),
            ..Self::default()
        }
    }

    /// Takes account of one line of libtest's, and says whether it is to be shown: of what passed tests printed, only the
    /// reasons count.
    pub fn take(&mut self, line: &str) -> bool {
        if line == "successes:" {
            self.reading = Some(String::new());
        } else if line == "failures:" || line.starts_with("test result: ") {
            self.reading = None;
        }
        if let Some(test) = &mut self.reading {
            let named = line
                .strip_prefix("---- ")
                .and_then(|rest| rest.strip_suffix(" stdout ----"));
            if let Some(named) = named {
                *test = named.to_owned();
            } else if let Some(reason) = line.strip_prefix("skipped: ") {
                self.left_out.push(format!("{test}: {reason}"));
            }
            return false;
        }
        self.count(line);
        true
    }

    fn count(&mut self, line: &str) {
        if let Some((name, reason)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... ignored"))
        {
            self.skipped.push(format!("{name}{reason}"));
        }
        // test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
        let Some(counts) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.1.split("; ") {
            match count.split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                _ => {}
            }
        }
    }

    /// Adds what became of others at the same time.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.left_out.extend(other.left_out);
        self.took = self.took.max(other.took);
        let troubles: Vec<_> = self.trouble.take().into_iter().chain(other.trouble).collect();
        self.trouble = (!troubles.is_empty()).then(|| troubles.join("\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_add_up_and_skipped_tests_keep_their_reason() {
        let mut outcome = Outcome::default();
        for line in [
            "test a::b ... ok",
            "test c ... ignored, needs another kernel",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            assert!(outcome.take(line));
        }
        assert_eq!((outcome.passed, outcome.failed), (7, 2));
        assert_eq!(outcome.skipped, ["c, needs another kernel"]);
    }

    #[test]
    fn of_what_passed_tests_print_only_what_they_left_out_is_kept() {
        let mut outcome = Outcome::default();
        let lines = [
            ("test a ... ok", true),
            ("", true),
            ("successes:", false),
            ("", false),
            ("---- a stdout ----", false),
            ("a figure of the test's", false),
            ("skipped: needs root", false),
            ("---- b stdout ----", false),
            ("skipped: no npm", false),
            ("", false),
            ("successes:", false),
            ("    a", false),
            ("", false),
            ("failures:", true),
            ("---- c stdout ----", true),
            ("skipped: but failed", true),
            (
                "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
                true,
            ),
        ];
        for (line, is_shown) in lines {
            assert_eq!(outcome.take(line), is_shown, "{line}");
        }
        assert_eq!(outcome.left_out, ["a: needs root", "b: no npm"]);
        assert_eq!((outcome.passed, outcome.failed), (2, 1));
    }
}
