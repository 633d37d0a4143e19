//! What was measured, as a table for people and as JSON.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Several measurements of one figure.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
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

    fn to_json(self) -> serde_json::Value {
        serde_json::json!({ "least": self.least, "median": self.median, "most": self.most })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, median, most] = [self.least, self.median, self.most].map(rounded);
        f.write_str(&median)?;
        if least != most {
            write!(f, " ({least} to {most})")?;
        }
        Ok(())
    }
}

/// As a measured value is told: to three digits, or whole.
fn rounded(value: f64) -> String {
    let digits = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    grouped(&format!("{value:.digits$}"))
}

/// As a value is told that is round by itself.
pub fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    grouped(text.trim_end_matches('0').trim_end_matches('.'))
}

/// With a comma at every thousand.
fn grouped(text: &str) -> String {
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.char_indices() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What goals are known by; of what is told beside them, the goal that it is told for.
    pub id: &'static str,
    /// What was measured.
    pub figure: String,
    /// In which unit.
    pub unit: &'static str,
    /// The agent's.
    pub ours: Spread,
    /// Somebody else's in the same run.
    pub peer: Option<Spread>,
    /// What it should be.
    pub goal: Goal,
}

/// The table's head.
pub const HEAD: &str = "| | figure | unit | imds-agent | peer | ours to the peer's | goal | |\n|---|---|---|---|---|---|---|---|";

impl Row {
    /// Whether it is one of the goals' own, which are told first.
    pub fn is_of_goal(&self) -> bool {
        !matches!(self.goal, Goal::Reported) || self.id == "P12"
    }

    fn ratio(&self) -> Option<f64> {
        let ratio = self.ours.median / self.peer?.median;
        // Nothing to nothing has none.
        ratio.is_finite().then_some(ratio)
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

    fn goal_text(&self) -> Option<String> {
        match self.goal {
            Goal::RatioAtLeast(least) => Some(format!("≥ {} ×", number(least))),
            Goal::RatioAtMost(most) => Some(format!("≤ {} ×", number(most))),
            Goal::MoreByAtMost(most) => Some(format!("≤ + {}", number(most))),
            Goal::AtMost(most) => Some(format!("≤ {}", number(most))),
            Goal::Reported => None,
        }
    }

    /// For the file that other programs read.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "id": self.id,
            "figure": self.figure,
            "unit": self.unit,
            "imds-agent": self.ours.to_json(),
            "peer": self.peer.map(Spread::to_json),
            "ratio": self.ratio(),
            "goal": self.goal_text(),
            "met": self.is_met(),
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            figure,
            unit,
            ours,
            ..
        } = self;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        let peer = or_dash(self.peer.map(|peer| peer.to_string()));
        let ratio = or_dash(self.ratio().map(|ratio| format!("{ratio:.2}")));
        let goal = or_dash(self.goal_text());
        let verdict = match self.is_met() {
            Some(true) => "met",
            Some(false) => "not met",
            None => "",
        };
        write!(
            f,
            "| {id} | {figure} | {unit} | {ours} | {peer} | {ratio} | {goal} | {verdict} |"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_as_precisely_as_they_are_read() {
        assert_eq!(
            Spread::of([365_336.4, 211_421.0, 366_826.0]).to_string(),
            "365,336 (211,421 to 366,826)"
        );
        assert_eq!(Spread::of([2.704]).to_string(), "2.70");
        assert_eq!(Spread::of([31.14, 31.14]).to_string(), "31.1");
        assert_eq!(rounded(999.6), "1,000");
        assert_eq!(
            [0.4, 59.0625, 1.0, 4096.0].map(number),
            ["0.4", "59.062", "1", "4,096"]
        );
    }

    #[test]
    fn a_goal_is_met_by_what_it_speaks_of() {
        let row = |ours, peer, goal| Row {
            id: "P0",
            figure: "what is tested".to_owned(),
            unit: "µs",
            ours: Spread::of([ours]),
            peer: Some(Spread::of([peer])),
            goal,
        };
        assert_eq!(row(17.0, 10.0, Goal::RatioAtLeast(1.7)).is_met(), Some(true));
        assert_eq!(row(5.0, 10.0, Goal::RatioAtMost(0.4)).is_met(), Some(false));
        assert_eq!(row(36.0, 31.0, Goal::MoreByAtMost(5.0)).is_met(), Some(true));
        assert_eq!(row(6.0, 1.0, Goal::AtMost(5.0)).is_met(), Some(false));
        assert_eq!(row(6.0, 1.0, Goal::Reported).is_met(), None);
        assert_eq!(
            row(5.0, 10.0, Goal::RatioAtMost(0.4)).to_string(),
            "| P0 | what is tested | µs | 5.00 | 10.0 | 0.50 | ≤ 0.4 × | not met |"
        );
    }
}
