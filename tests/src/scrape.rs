//! Metrics as a scraper gets and reads them.
//!
//! Read first: the OpenMetrics specification 1.0.0, "Text format". What it forbids is an error here: samples without a family, a family
//! or a series that comes twice, families that are mixed, counters without `_total`, a text without its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

/// What may stand behind the name of a family, by its type.
const SUFFIXES: &[(&str, &[&str])] = &[
    ("counter", &["_total"]),
    ("gauge", &[""]),
    ("histogram", &["_bucket", "_count", "_sum"]),
    ("info", &["_info"]),
];

/// Names and labels of one series.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Series {
    /// With suffix.
    pub name: String,
    /// Values by label.
    pub labels: BTreeMap<String, String>,
}

/// One scrape.
#[derive(Clone, Default, Debug)]
pub struct Scrape {
    /// The type of each family.
    pub families: BTreeMap<String, String>,
    /// The value of each series.
    pub series: BTreeMap<Series, f64>,
    /// As it came.
    pub text: String,
}

/// Sends a request to the Unix socket at `path` and reads the response: its head and its body.
pub fn ask(path: &Path, request: &str) -> Result<(String, String)> {
    let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    exchange(stream, request)
}

/// The same on a connection that is there.
pub fn exchange(mut stream: impl Read + Write, request: &str) -> Result<(String, String)> {
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (head, body) = response
        .split_once("\r\n\r\n")
        .context("a response without an end of its head")?;
    Ok((head.to_owned(), body.to_owned()))
}

impl Scrape {
    /// Scrapes the agent at the Unix socket at `path`.
    pub fn of(path: &Path) -> Result<Self> {
        let (head, body) = ask(path, "GET /metrics")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        ensure!(
            head.to_ascii_lowercase()
                .contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{head}"
        );
        Self::parse(&body)
    }

    /// Reads a whole text.
    pub fn parse(text: &str) -> Result<Self> {
        let mut scrape = Self {
            text: text.to_owned(),
            ..Self::default()
        };
        let lines = text.strip_suffix("# EOF\n").context("a text without its end")?;
        let mut current = String::new();
        let mut helped = BTreeSet::new();
        for line in lines.lines() {
            let read = if let Some(meta) = line.strip_prefix("# ") {
                scrape.read_meta(meta, &mut current, &mut helped)
            } else {
                scrape.read_sample(line, &current)
            };
            read.with_context(|| format!("in the line {line:?}"))?;
        }
        scrape.check_histograms()?;
        Ok(scrape)
    }

    /// The value of the series with exactly these labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let series = Series {
            name: name.to_owned(),
            labels: labels.iter().map(owned).collect(),
        };
        self.series.get(&series).copied()
    }

    /// The sum of the series that have these labels among theirs.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |series: &Series| {
            series.name == name
                && labels
                    .iter()
                    .all(|(label, value)| series.labels.get(*label).is_some_and(|is| is == value))
        };
        self.series
            .iter()
            .filter(|(series, _)| has(series))
            .fold(0.0, |sum, (_, value)| sum + value)
    }

    /// Every name that an expression may use.
    pub fn names(&self) -> BTreeSet<String> {
        let with_suffixes = self.families.iter().flat_map(|(name, kind)| {
            let suffixes = SUFFIXES.iter().find(|(is, _)| is == kind);
            let suffixes = suffixes.map_or(&[][..], |(_, suffixes)| *suffixes);
            suffixes.iter().map(move |suffix| format!("{name}{suffix}"))
        });
        with_suffixes.collect()
    }

    fn read_meta(&mut self, meta: &str, current: &mut String, helped: &mut BTreeSet<String>) -> Result<()> {
        let mut words = meta.splitn(3, ' ');
        let mut word = || words.next().context("too few words");
        let (keyword, name, text) = (word()?, word()?, word()?);
        match keyword {
            "HELP" => {
                ensure!(helped.insert(name.to_owned()), "the family comes twice");
                ensure!(!text.contains(['"', '\\']), "the help is not escaped");
                name.clone_into(current);
            }
            "TYPE" => {
                ensure!(name == current, "the family has no help");
                ensure!(SUFFIXES.iter().any(|(kind, _)| *kind == text), "no such type");
                ensure!(
                    self.families.insert(name.to_owned(), text.to_owned()).is_none(),
                    "the family comes twice"
                );
            }
            "UNIT" => ensure!(
                name == current && name.ends_with(&format!("_{text}")),
                "not its unit"
            ),
            _ => bail!("an unknown keyword"),
        }
        Ok(())
    }

    fn read_sample(&mut self, line: &str, current: &str) -> Result<()> {
        let name_end = line
            .find(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_' || letter == ':'))
            .context("a name and nothing else")?;
        let (name, rest) = line.split_at(name_end);
        let kind = self.families.get(current).context("a sample before its family")?;
        let suffix = name.strip_prefix(current).context("a sample of another family")?;
        let (_, suffixes) = SUFFIXES.iter().find(|(is, _)| is == kind).context("its type")?;
        ensure!(suffixes.contains(&suffix), "not the suffix of its type");
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => read_labels(rest)?,
            None => (BTreeMap::new(), rest),
        };
        let value: f64 = value.strip_prefix(' ').context("no value")?.parse()?;
        if kind != "gauge" {
            ensure!(value >= 0.0, "it cannot be negative");
        }
        let series = Series {
            name: name.to_owned(),
            labels,
        };
        ensure!(
            self.series.insert(series, value).is_none(),
            "the series comes twice"
        );
        Ok(())
    }

    fn check_histograms(&self) -> Result<()> {
        for (family, _) in self.families.iter().filter(|(_, kind)| *kind == "histogram") {
            let bucket = format!("{family}_bucket");
            let mut buckets: Vec<(f64, f64)> = self
                .series
                .iter()
                .filter(|(series, _)| series.name == bucket)
                .map(|(series, count)| Ok((series.labels.get("le").context("no bound")?.parse()?, *count)))
                .collect::<Result<_>>()?;
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            ensure!(buckets.is_sorted_by_key(|(_, count)| *count), "{family} shrinks");
            let (bound, all) = *buckets.last().context("no bucket")?;
            ensure!(bound.is_infinite(), "{family} has an end");
            ensure!(
                self.value(&format!("{family}_count"), &[]) == Some(all),
                "{family} does not add up"
            );
        }
        Ok(())
    }
}

/// Labels up to the closing brace, and what follows it.
fn read_labels(mut rest: &str) -> Result<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        let (label, after) = rest.split_once("=\"").context("a label without a value")?;
        let mut value = String::new();
        let mut letters = after.char_indices();
        let end = loop {
            match letters.next().context("a value without an end")? {
                (at, '"') => break at,
                (_, '\\') => match letters.next().context("an escape without an end")?.1 {
                    'n' => value.push('\n'),
                    letter => value.push(letter),
                },
                (_, letter) => value.push(letter),
            }
        };
        ensure!(
            labels.insert(label.to_owned(), value).is_none(),
            "the label comes twice"
        );
        let after = &after[end + 1..];
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None => return Ok((labels, after.strip_prefix('}').context("no closing brace")?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_text_is_read() {
        let text = "# HELP a_x some\n# TYPE a_x counter\na_x_total{r=\"q\\\"1\",s=\"\"} 3\n# HELP b_seconds b\n# TYPE b_seconds gauge\n\
            # UNIT b_seconds seconds\nb_seconds 0.5\n# EOF\n";
        let scrape = Scrape::parse(text).unwrap();
        assert_eq!(scrape.value("a_x_total", &[("r", "q\"1"), ("s", "")]), Some(3.0));
        assert_eq!(scrape.sum("a_x_total", &[("s", "")]), 3.0);
        assert_eq!(scrape.value("b_seconds", &[]), Some(0.5));
        assert!(scrape.names().contains("a_x_total"));
    }

    #[test]
    fn what_is_forbidden_is_refused() {
        let head = "# HELP a x\n# TYPE a counter\n";
        for text in [
            "",
            "a_total 1\n# EOF\n",
            &format!("{head}a 1\n# EOF\n"),
            &format!("{head}a_total 1\na_total 1\n# EOF\n"),
            &format!("{head}a_total -1\n# EOF\n"),
            &format!("{head}{head}# EOF\n"),
            &format!("{head}b_total 1\n# EOF\n"),
            &format!("{head}a_total{{r=\"x}} 1\n# EOF\n"),
            "# HELP h x\n# TYPE h histogram\nh_sum 1\nh_count 2\nh_bucket{le=\"1.0\"} 1\nh_bucket{le=\"+Inf\"} 1\n# EOF\n",
        ] {
            assert!(Scrape::parse(text).is_err(), "{text}");
        }
    }
}
