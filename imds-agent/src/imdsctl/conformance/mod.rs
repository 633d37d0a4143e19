//! `imdsctl conformance URL`: grades any EC2-style metadata endpoint by the wire contract, row by row.
//!
//! Read first: the wire contract in `docs/`. Every check is a row of data with the contract's own number, so that a
//! finding leads to its source. A row that is marked I is this project's decision where no source exists: another
//! server that decides otherwise gets a note and no failure, unless it is asked for strictly.
//!
//! The grader knows the contract and nothing of the service beside it: it speaks raw HTTP from outside.

mod checks;
mod client;
mod crawl;
mod finding;
mod report;
mod subject;

use std::{
    io::Write as _,
    net::{SocketAddr, ToSocketAddrs as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use self::{
    client::Client,
    finding::Effort,
    subject::{Subject, Version1},
};
pub use self::{
    finding::{Check, Finding, Mark},
    report::{Counts, Report, Row},
};
use super::Verdict;

/// EC2 drops what is over 1024 packets a second, and so may others.
const PACKETS_PER_SECOND: u32 = 900;

/// A run without the slow checks begins no further check after this long.
const QUICK_RUN_MAX: Duration = Duration::from_secs(50);

/// The check that still means something where the endpoint is disabled.
const DISABLED_ROW: &str = "B.2/28";

/// Grade a metadata endpoint by EC2's wire contract, row by row.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// The endpoint: http://169.254.169.254 inside a guest, http://127.0.0.1:5000 for a mock
    #[arg(value_name = "URL", required_unless_present = "list")]
    pub url: Option<String>,
    /// Only this section, row or check (B.2, B.2/19, 3/crawl-resolves); may be repeated
    #[arg(long, value_name = "SECTION")]
    pub only: Vec<String>,
    /// Count a deviation from our own decisions (mark I) as a failure
    #[arg(long)]
    pub strict: bool,
    /// Also the checks that wait for timeouts, up to a minute more
    #[arg(long)]
    pub slow: bool,
    /// Packets to send in a second; 0 is no limit. EC2 drops what is over 1024
    #[arg(long, value_name = "NUMBER", default_value_t = PACKETS_PER_SECOND)]
    pub packets_per_second: u32,
    /// Only print the checks
    #[arg(long)]
    pub list: bool,
}

/// Grades and prints: yes only if nothing binding failed.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the subcommands of imdsctl own their arguments"
)]
pub fn run(arguments: Arguments, with_json: bool) -> Result<Verdict> {
    let mut out = std::io::stdout().lock();
    let Some(url) = arguments.url.as_deref().filter(|_| !arguments.list) else {
        for check in chosen(&arguments.only)? {
            writeln!(
                out,
                "{}\t{}\t{}\t{}",
                check.id, check.mark, check.words, check.probe
            )?;
        }
        return Ok(Verdict::Yes);
    };
    let report = grade(url, &arguments)?;
    if with_json {
        writeln!(out, "{}", report.to_json()?)?;
    } else {
        writeln!(out, "{report}")?;
    }
    let is_good = report.counts().failed == 0;
    Ok(if is_good { Verdict::Yes } else { Verdict::No })
}

/// Grades the endpoint at `url`; what to print is ignored.
pub fn grade(url: &str, arguments: &Arguments) -> Result<Report> {
    let checks = chosen(&arguments.only)?;
    let (address, host) = endpoint(url)?;
    let rate = Some(arguments.packets_per_second).filter(|rate| *rate > 0);
    let client = Client::new(address, host, rate);
    let subject = Subject::discover(&client).with_context(|| format!("{client} does not answer"))?;
    let began = Instant::now();
    let rows = checks.iter().map(|check| {
        let finding = match why_not(check, &subject, began.elapsed(), arguments.slow) {
            Some(reason) => Finding::skip(reason),
            None => check.run(&subject),
        };
        Row::new(check, finding, arguments.strict)
    });
    Ok(Report {
        endpoint: client.to_string(),
        rows: rows.collect(),
        instance: described(&subject),
        is_strict: arguments.strict,
    })
}

/// The checks that `only` names, or all.
fn chosen(only: &[String]) -> Result<Vec<Check>> {
    let mut checks = checks::all();
    for wanted in only {
        ensure!(
            checks.iter().any(|check| check.is_part_of(wanted)),
            "no check is called {wanted}: see --list"
        );
    }
    checks.retain(|check| only.is_empty() || only.iter().any(|wanted| check.is_part_of(wanted)));
    Ok(checks)
}

/// Where `url` leads, and what it calls the server.
fn endpoint(url: &str) -> Result<(SocketAddr, String)> {
    let rest = url
        .strip_prefix("http://")
        .with_context(|| format!("{url:?} does not begin with http://"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !path.is_empty() {
        bail!("{url:?} has a path: the checks need the root of the server");
    }
    let has_port = host
        .rsplit_once(':')
        .is_some_and(|(name, port)| !name.is_empty() && !port.ends_with(']') && port.parse::<u16>().is_ok());
    let with_port = if has_port {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let mut addresses = with_port
        .to_socket_addrs()
        .with_context(|| format!("{host:?} is no host"))?;
    let address = addresses
        .next()
        .with_context(|| format!("{host:?} has no address"))?;
    Ok((address, host.to_owned()))
}

fn why_not(check: &Check, subject: &Subject, elapsed: Duration, with_slow: bool) -> Option<&'static str> {
    if subject.facts.version1 == Version1::Disabled && check.id != DISABLED_ROW {
        return Some("the endpoint is disabled");
    }
    if check.effort == Effort::Slow && !with_slow {
        return Some("slow: asked for with --slow");
    }
    if elapsed > QUICK_RUN_MAX && !with_slow {
        return Some("the run took too long: ask for this section alone with --only");
    }
    None
}

fn described(subject: &Subject) -> Vec<String> {
    let facts = &subject.facts;
    let tokens = match (facts.version1, facts.has_tokens) {
        (Version1::Disabled, _) => "endpoint disabled",
        (Version1::Refused, true) => "IMDSv2 required",
        (Version1::Refused, false) => "everything refused",
        (Version1::Answered, true) => "IMDSv2 optional",
        (Version1::Answered, false) => "IMDSv1 only",
    };
    let role = facts
        .role
        .as_ref()
        .map_or("no role".to_owned(), |role| format!("role {role}"));
    let user_data = if facts.has_user_data {
        "user data"
    } else {
        "no user data"
    };
    vec![
        tokens.to_owned(),
        role,
        user_data.to_owned(),
        format!("{} versions", facts.versions.len()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (url, expected) in [
            ("http://169.254.169.254", Some("169.254.169.254:80")),
            ("http://169.254.169.254/", Some("169.254.169.254:80")),
            ("http://127.0.0.1:5000", Some("127.0.0.1:5000")),
            ("http://[fd00:ec2::254]", Some("[fd00:ec2::254]:80")),
            ("http://[::1]:8080/", Some("[::1]:8080")),
            ("https://127.0.0.1", None),
            ("127.0.0.1", None),
            ("http://127.0.0.1/latest", None),
        ] {
            let found = endpoint(url).ok().map(|(address, _)| address.to_string());
            assert_eq!(found.as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn parts() {
        let only = |wanted: &str| -> Vec<&str> {
            chosen(&[wanted.to_owned()])
                .map_or(Vec::new(), |checks| checks.iter().map(|check| check.id).collect())
        };
        assert_eq!(only("B.2/19"), ["B.2/19a", "B.2/19b"]);
        assert_eq!(only("B.2/19a"), ["B.2/19a"]);
        assert!(
            only("B.1/1")
                .iter()
                .all(|id| id.starts_with("B.1/1") && id.len() == 6)
        );
        assert!(only("B.2").len() > 15);
        assert!(only("B/").len() > 3 && only("B/").iter().all(|id| id.starts_with("B/")));
        assert_eq!(only("B.5/1"), ["B.5/1"]);
        assert_eq!(only("C"), Vec::<&str>::new());
    }
}
