//! What is measured over a whole range rather than as one figure: a picture's lines, before anybody draws them.

use imds_tests::load::Outcome;
use serde::{Deserialize, Serialize};

/// One picture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Picture {
    /// What its file is called, without extension.
    pub name: &'static str,
    /// What it shows.
    pub title: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// What is drawn.
    pub lines: Vec<Line>,
}

/// What an axis shows, and how.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Axis {
    /// What, with its unit.
    pub label: &'static str,
    /// How.
    pub scale: Scale,
}

/// How values are laid out along an axis.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Scale {
    /// From zero on.
    Linear,
    /// Every step of the same length multiplies.
    Logarithmic,
    /// The same, marked where the points are.
    LogarithmicAtPoints,
    /// Values are shares of all exchanges; every step of the same length leaves out a tenth of what the one before it did.
    Nines,
}

/// Some points that belong together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// Whose they are.
    pub of: Of,
    /// Where they are.
    pub points: Vec<Point>,
}

/// A value to the right, and one upwards.
pub type Point = (f64, f64);

/// Whose a line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Of {
    /// The agent.
    Agent,
    /// nginx on the kernel's TCP.
    Nginx,
    /// What the agent should stay within.
    Goal,
}

impl Of {
    /// As legends have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "imds-agent",
            Self::Nginx => "nginx",
            Self::Goal => "goal",
        }
    }
}

/// Further out than this, few exchanges say what the latency is.
const BEYOND: f64 = 10.0;

/// The latency in microseconds that each share of a round's exchanges stayed within, a tenth of a step apart on [`Scale::Nines`].
pub fn distribution(outcome: &Outcome) -> Vec<Point> {
    let exchanges = outcome.latencies.len() as f64;
    (0_u8..=40)
        .map(|tenths| 1.0 - 10_f64.powf(f64::from(tenths) / -10.0))
        .take_while(|share| (1.0 - share) * exchanges >= BEYOND)
        .map(|share| (share, outcome.quantile(share).as_secs_f64() * 1e6))
        .collect()
}

/// Of several rounds' distributions, the median at every share that all of them have.
pub fn median_of(rounds: &[Vec<Point>]) -> Vec<Point> {
    let points = rounds.iter().map(Vec::len).min().unwrap_or(0);
    let at = |index: usize| {
        let mut of_rounds: Vec<_> = rounds
            .iter()
            .filter_map(|round| round.get(index))
            .copied()
            .collect();
        of_rounds.sort_unstable_by(|(_, one), (_, other)| one.total_cmp(other));
        of_rounds.get(of_rounds.len() / 2).copied()
    };
    (0..points).filter_map(at).collect()
}

/// A picture of both sides' distributions.
pub fn latencies(name: &'static str, title: String, sides: [&[Vec<Point>]; 2]) -> Picture {
    let [agent, nginx] = sides.map(median_of);
    let line = |of, points| Line { of, points };
    Picture {
        name,
        title,
        x: Axis {
            label: "share of all exchanges that took no longer",
            scale: Scale::Nines,
        },
        y: Axis {
            label: "latency in µs",
            scale: Scale::Logarithmic,
        },
        lines: vec![line(Of::Agent, agent), line(Of::Nginx, nginx)],
    }
}

impl Picture {
    /// For the file that other programs read.
    pub fn to_json(&self) -> serde_json::Value {
        let lines: serde_json::Map<_, _> = self
            .lines
            .iter()
            .map(|line| (line.of.name().to_owned(), serde_json::json!(line.points)))
            .collect();
        serde_json::json!({
            "name": self.name,
            "title": self.title,
            "x": self.x.label,
            "y": self.y.label,
            "points": lines,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_distribution_ends_where_few_exchanges_are_beyond() {
        let outcome = Outcome {
            latencies: (1..=1000).map(Duration::from_micros).collect(),
            ..Outcome::default()
        };
        let points = distribution(&outcome);
        // 1000 exchanges have ten beyond 99 %, two steps of ten tenths.
        assert_eq!(points.len(), 21);
        let (share, latency) = points[10];
        assert!(
            (share - 0.9).abs() < 1e-9 && (latency - 901.0).abs() < 1.5,
            "{latency}"
        );
    }

    #[test]
    fn the_median_is_taken_at_every_share() {
        let round = |latency: f64| vec![(0.0, latency), (0.5, 2.0 * latency)];
        let mut rounds = vec![round(1.0), round(30.0), round(2.0)];
        assert_eq!(median_of(&rounds), [(0.0, 2.0), (0.5, 4.0)]);
        rounds.push(vec![(0.0, 3.0)]);
        assert_eq!(median_of(&rounds).len(), 1);
    }
}
