//! What a row of the contract is here, and what is found about it.

use std::{borrow::Cow, fmt};

use serde::Serialize;

use super::{
    client::{ExchangeError, Reply},
    subject::Subject,
};

/// Where a row of the wire contract comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Mark {
    /// The documentation of AWS.
    D,
    /// A capture made on EC2.
    C,
    /// The source of a client or a server.
    S,
    /// An issue thread.
    T,
    /// Our decision where no source exists: another server may well decide otherwise.
    I,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// One row of the contract, or one of several checks of the same row, which differ by a letter.
#[derive(Clone, Debug)]
pub struct Check {
    /// `B.2/19a`: section, row, letter.
    pub id: &'static str,
    /// Where the row comes from.
    pub mark: Mark,
    /// The contract in short.
    pub words: Cow<'static, str>,
    /// What is sent to find out.
    pub probe: &'static str,
    pub(super) effort: Effort,
    pub(super) run: Run,
}

/// How long a check takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effort {
    Quick,
    /// Many seconds: only when asked for.
    Slow,
}

pub(super) type Outcome = Result<Finding, ExchangeError>;

#[derive(Clone, Copy, Debug)]
pub(super) enum Run {
    Probe(fn(&Subject) -> Outcome),
    /// Nothing that an instance can see tells: with the reason.
    Unseen(&'static str),
}

/// What was found about one check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase", tag = "verdict")]
pub enum Finding {
    /// The server does as the row says.
    Pass {
        /// What was seen.
        seen: String,
    },
    /// It does otherwise.
    Fail {
        /// What the row asks for.
        expected: String,
        /// What was seen instead.
        seen: String,
    },
    /// It could not be found out.
    Skip {
        /// Why.
        reason: String,
    },
}

impl Finding {
    pub(super) fn skip(reason: impl Into<String>) -> Finding {
        Self::Skip {
            reason: reason.into(),
        }
    }
}

impl Check {
    pub(super) const fn new(
        id: &'static str,
        mark: Mark,
        words: &'static str,
        probe: &'static str,
        run: fn(&Subject) -> Outcome,
    ) -> Self {
        Self {
            id,
            mark,
            words: Cow::Borrowed(words),
            probe,
            effort: Effort::Quick,
            run: Run::Probe(run),
        }
    }

    /// The check that takes long.
    pub(super) const fn slow(mut self) -> Self {
        self.effort = Effort::Slow;
        self
    }

    /// The check in other words.
    pub(super) fn in_words(mut self, words: String) -> Self {
        self.words = Cow::Owned(words);
        self
    }

    pub(super) const fn unseen(
        id: &'static str,
        mark: Mark,
        words: &'static str,
        reason: &'static str,
    ) -> Self {
        Self {
            id,
            mark,
            words: Cow::Borrowed(words),
            probe: "not probed",
            effort: Effort::Quick,
            run: Run::Unseen(reason),
        }
    }

    /// `B.2` of `B.2/19a`.
    pub fn section(&self) -> &'static str {
        self.id.split_once('/').map_or(self.id, |(section, _)| section)
    }

    /// Whether the reader who asks for `wanted` means this check: a section, a row, or the check itself.
    pub fn is_part_of(&self, wanted: &str) -> bool {
        let is_digit = |letter: char| letter.is_ascii_digit();
        // Row 1 is not row 19.
        self.id
            .strip_prefix(wanted)
            .is_some_and(|rest| !(wanted.ends_with(is_digit) && rest.starts_with(is_digit)))
    }

    pub(super) fn run(&self, subject: &Subject) -> Finding {
        match self.run {
            Run::Unseen(reason) => Finding::skip(reason),
            Run::Probe(run) => run(subject).unwrap_or_else(|error| Finding::Fail {
                expected: self.words.clone().into_owned(),
                seen: error.to_string(),
            }),
        }
    }
}

/// How many differences of one check are told.
const DIFFERENCES_TOLD_MAX: usize = 4;

/// Collects what one check saw and where that differs from what it expects. Nothing of a body is ever told, only names
/// of listings, sizes and header fields.
#[derive(Default)]
pub(super) struct Judge {
    seen: Vec<String>,
    differences: Vec<(String, String)>,
}

impl Judge {
    /// Notes what to say about a pass.
    pub(super) fn saw(&mut self, what: impl Into<String>) {
        self.seen.push(what.into());
    }

    /// Asks that `is_so`.
    pub(super) fn require(&mut self, is_so: bool, expected: impl Into<String>, seen: impl Into<String>) {
        if !is_so {
            self.differences.push((expected.into(), seen.into()));
        }
    }

    /// Asks for one of these statuses in the reply to `what`. Returns whether it is.
    pub(super) fn status(&mut self, what: &str, reply: &Reply, allowed: &[u16]) -> bool {
        let is_so = allowed.contains(&reply.status);
        let words: Vec<String> = allowed.iter().map(u16::to_string).collect();
        self.require(
            is_so,
            format!("{what}: {}", words.join(" or ")),
            format!("{what}: {}", reply.summary()),
        );
        self.saw(format!("{what}: {}", reply.status));
        is_so
    }

    /// Asks for this header field.
    pub(super) fn header(&mut self, what: &str, reply: &Reply, name: &str, value: &str) {
        let found = reply.header(name);
        self.require(
            found == Some(value),
            format!("{what}: {name}: {value}"),
            format!(
                "{what}: {name}: {}",
                found.map_or_else(|| "missing".to_owned(), shortened)
            ),
        );
    }

    /// Asks that there is no such header field.
    pub(super) fn no_header(&mut self, what: &str, reply: &Reply, name: &str) {
        self.require(
            reply.header(name).is_none(),
            format!("{what}: no {name}"),
            format!(
                "{what}: {name}: {}",
                shortened(reply.header(name).unwrap_or_default())
            ),
        );
    }

    /// Asks for the empty text of a refusal.
    pub(super) fn empty_plain(&mut self, what: &str, reply: &Reply) {
        self.header(what, reply, "Content-Length", "0");
        self.header(what, reply, "Content-Type", "text/plain");
        self.require(
            reply.body.is_empty(),
            format!("{what}: no body"),
            format!("{what}: {} bytes", reply.body.len()),
        );
    }

    /// Asks for two equal bodies. Where the statuses differ, that is told already.
    pub(super) fn same_body(&mut self, what: &str, one: &Reply, other: &Reply) {
        if one.status != other.status {
            return;
        }
        self.require(
            one.body == other.body,
            format!("{what}: the same body, {} bytes", other.body.len()),
            format!("{what}: another one, {}", one.summary()),
        );
    }

    pub(super) fn finding(self) -> Finding {
        if self.differences.is_empty() {
            return Finding::Pass {
                seen: told(self.seen),
            };
        }
        let (expected, seen) = self.differences.into_iter().unzip();
        Finding::Fail {
            expected: told(expected),
            seen: told(seen),
        }
    }
}

/// The first few of `parts`, and how many more there are.
pub(super) fn told(mut parts: Vec<String>) -> String {
    let more = parts.len().saturating_sub(DIFFERENCES_TOLD_MAX);
    parts.truncate(DIFFERENCES_TOLD_MAX);
    if more > 0 {
        parts.push(format!("and {more} more"));
    }
    parts.join("; ")
}

pub(super) fn shortened(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short + "…"
    } else {
        short
    }
}
