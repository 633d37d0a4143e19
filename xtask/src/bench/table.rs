//! What was measured, as a table for people and as JSON.

use std::fmt;

/// Several measurements of one figure.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The least.
    pub least: f64,
    /// The middle one.
    pub median: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of these values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self {
            least: at(0),
            median: at(values.len() / 2),
            most: at(values.len().saturating_sub(1)),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.median >= 1000.0 { 0 } else { 1 };
        write!(f, "{:.digits$}", self.median)?;
        if (self.most - self.least).abs() > f64::EPSILON {
            write!(f, " ({:.digits$} to {:.digits$})", self.least, self.most)?;
        }
        Ok(())
    }
}

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// Ours over the peer's.
    RatioAtLeast(f64),
    /// Ours over the peer's.
    RatioAtMost(f64),
    /// Ours less the peer's.
    MoreByAtMost(f64),
    /// Ours.
    AtMost(f64),
    /// Whatever it is.
    Reported,
}

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    /// What goals are known by.
    pub id: &'static str,
    /// What was measured, and in which unit.
    pub figure: String,
    /// The agent's.
    pub ours: Spread,
    /// Somebody else's in the same run.
    pub peer: Option<Spread>,
    /// What it should be.
    pub goal: Goal,
}

/// The table's head.
pub const HEAD: &str =
    "| | figure | imds-agent | peer | ours to the peer's | goal | |\n|---|---|---|---|---|---|---|";

impl Row {
    fn ratio(&self) -> Option<f64> {
        Some(self.ours.median / self.peer?.median)
    }

    fn is_met(&self) -> Option<bool> {
        match self.goal {
            Goal::RatioAtLeast(least) => Some(self.ratio()? >= least),
            Goal::RatioAtMost(most) => Some(self.ratio()? <= most),
            Goal::MoreByAtMost(most) => Some(self.ours.median - self.peer?.median <= most),
            Goal::AtMost(most) => Some(self.ours.median <= most),
            Goal::Reported => None,
        }
    }

    /// For the file that other programs read.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "id": self.id,
            "figure": self.figure,
            "imds-agent": self.ours.median,
            "peer": self.peer.map(|peer| peer.median),
            "ratio": self.ratio(),
            "met": self.is_met(),
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, figure, ours, .. } = self;
        let peer = self.peer.map_or_else(|| "–".to_owned(), |peer| peer.to_string());
        let ratio = self
            .ratio()
            .map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
        let goal = match self.goal {
            Goal::RatioAtLeast(least) => format!("≥ {least} ×"),
            Goal::RatioAtMost(most) => format!("≤ {most} ×"),
            Goal::MoreByAtMost(most) => format!("≤ + {most}"),
            Goal::AtMost(most) => format!("≤ {most}"),
            Goal::Reported => "–".to_owned(),
        };
        let verdict = match self.is_met() {
            Some(true) => "met",
            Some(false) => "not met",
            None => "",
        };
        write!(
            f,
            "| {id} | {figure} | {ours} | {peer} | {ratio} | {goal} | {verdict} |"
        )
    }
}
