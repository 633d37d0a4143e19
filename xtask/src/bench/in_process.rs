//! P5 and P6: what has benchmarks of its own, run and read here.

use anyhow::{Context as _, Result, bail};

use super::table::{Goal, Row, Spread};
use crate::host_command::cargo;

/// P5: one exchange in process.
pub fn exchange() -> Result<Row> {
    let text = output("imds-agent", "exchange")?;
    let line = text
        .lines()
        .find(|line| line.contains("tokened_get"))
        .context("the benchmark `exchange` says nothing of tokened_get")?;
    // divan: name and fastest, then slowest, median, mean, samples, iterations.
    let columns: Vec<_> = line.split('│').collect();
    let [fastest, slowest, median, ..] = columns[..] else {
        bail!("not a line of divan's: {line}");
    };
    Ok(Row {
        id: "P5",
        figure: "an exchange in process: SYN, ACK, GET with a token, FIN, ACK".to_owned(),
        unit: "µs",
        ours: Spread {
            least: microseconds(fastest)?,
            median: microseconds(median)?,
            most: microseconds(slowest)?,
        },
        peer: None,
        goal: Goal::AtMost(2.2),
    })
}

/// P6: the classifier beside an empty one.
pub fn classifier() -> Result<Vec<Row>> {
    let text = output("imds-tests", "classifier")?;
    let mut rows = Vec::new();
    for line in text.lines() {
        let Some((name, figures)) = line
            .strip_prefix("classifier: ")
            .and_then(|line| line.split_once(": "))
        else {
            continue;
        };
        let figures: Vec<f64> = figures
            .split_whitespace()
            .filter_map(|figure| figure.parse().ok())
            .collect();
        let [ours, empty] = figures[..] else {
            bail!("not a line of the benchmark's: {line}");
        };
        let allowed = if name.ends_with("punted") { 80.0 } else { 5.0 };
        rows.push(Row {
            id: "P6",
            figure: format!("a frame in the classifier: {name} (peer: an empty classifier)"),
            unit: "ns",
            ours: Spread::of([ours]),
            peer: Some(Spread::of([empty])),
            goal: Goal::MoreByAtMost(allowed),
        });
    }
    Ok(rows)
}

fn output(package: &str, bench: &str) -> Result<String> {
    let output = cargo()
        .args(["bench", "--quiet", "--package", package, "--bench", bench])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!(
            "cargo bench --package {package} --bench {bench}: {}",
            output.status
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// divan's `1.689 µs`, at the end of a column.
fn microseconds(column: &str) -> Result<f64> {
    let mut words = column.split_whitespace().rev();
    let (unit, number) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let number: f64 = number.parse().with_context(|| format!("{column:?} is no time"))?;
    Ok(match unit {
        "ns" => number / 1e3,
        "µs" => number,
        "ms" => number * 1e3,
        _ => bail!("{column:?} is no time"),
    })
}
