//! What guests do: `imdsctl trace`, `imdsctl instance tokenless`, and whose session tokens do not arrive.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::Value;

use super::{
    Verdict,
    client::{Client, encoded, path},
    print::{self, Table, printable, text},
};

/// `imdsctl trace`
#[derive(Args, Debug)]
pub struct Trace {
    /// Only requests of this instance.
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
}

/// Prints requests as guests make them, until it is interrupted or nobody reads.
pub fn trace(trace: &Trace, client: &Client, is_json: bool) -> Result<Verdict> {
    let path = match &trace.instance {
        Some(instance) => format!("/v1/trace?instance={}", encoded(instance)),
        None => "/v1/trace".to_owned(),
    };
    let mut out = io::stdout().lock();
    let followed = client.follow(&path, |line| {
        if is_json {
            out.write_all(line)?;
            return Ok(out.flush()?);
        }
        let told: Value = serde_json::from_slice(line).context("the agent's answer is not JSON")?;
        Ok(writeln!(out, "{}", printable(&sentence(&told)))?)
    });
    match followed {
        // Who reads, as `head` does, has enough.
        Err(error)
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) =>
        {
            Ok(Verdict::Yes)
        }
        followed => followed.map(|()| Verdict::Yes),
    }
}

/// One request, or how many were missed.
fn sentence(told: &Value) -> String {
    if let Some(lost) = told.get("lost") {
        return format!("({lost} requests were missed here)");
    }
    let mut words: Vec<String> = ["time", "instance", "method", "path", "status", "version"]
        .map(|field| text(told, field))
        .into();
    if let Some(seconds) = told["latency_seconds"].as_f64() {
        words.push(format!("{:.0} us", seconds * 1e6));
    }
    if let Some(refusal) = told["refusal"].as_str() {
        words.push(format!("refused: {refusal}"));
    }
    if let Some(agent) = told["user_agent"].as_str() {
        words.push(format!("{agent:?}"));
    }
    words.join(" ")
}

/// Prints who asks without a session token; no is for anybody who does.
pub fn tokenless(instance: &str, client: &Client, is_json: bool) -> Result<Verdict> {
    let report = client.get_json(&path(&["instances", instance, "tokenless"]))?;
    let count = |field: &str| report[field].as_u64().unwrap_or_default();
    let (admitted, rejected) = (count("MetadataNoToken"), count("MetadataNoTokenRejected"));
    let verdict = if admitted + rejected == 0 {
        Verdict::Yes
    } else {
        Verdict::No
    };
    if is_json {
        print::json(&report);
        return Ok(verdict);
    }
    print::line(format_args!(
        "{instance}: without a session token {admitted} requests were answered and {rejected} refused since the agent started"
    ));
    if admitted > 0 {
        print::line("If tokens were required now, the callers below would be refused.");
    }
    let mut table = Table::new(&[
        "PATH",
        "USER AGENT",
        "COUNT",
        "REFUSED",
        "LAST SEEN",
        "PORT",
        "INTERFACE",
    ]);
    for caller in report["Callers"].as_array().into_iter().flatten() {
        table.row(
            [
                "Path",
                "UserAgent",
                "Count",
                "Rejected",
                "LastSeen",
                "SourcePort",
                "Interface",
            ]
            .map(|field| text(caller, field))
            .into(),
        );
    }
    table.print();
    if count("Unlisted") > 0 {
        print::line(format_args!("and {} more requests of others", count("Unlisted")));
    }
    Ok(verdict)
}

/// Says on standard error if session tokens of the instance do not arrive, and what would help.
pub fn warn_undelivered(instance: &str, client: &Client) -> Result<()> {
    let report = client.get_json(&path(&["instances", instance, "hop-limit"]))?;
    if !report["Last"].is_null() {
        eprintln!("imdsctl: {instance}: {}", remedy(&report));
    }
    Ok(())
}

/// Says on standard error which limits the instance's guest is at.
pub fn warn_at_limit(instance: &str, client: &Client) -> Result<()> {
    let observed = client.get_json(&path(&["instances", instance, "observed"]))?;
    for tap in observed["Taps"].as_array().into_iter().flatten() {
        for limit in tap["Limits"].as_array().into_iter().flatten() {
            if limit["IsReached"] == true {
                eprintln!(
                    "imdsctl: {instance}: at its limit on {}: {} of {} {} are left, and what is over it is refused",
                    text(tap, "Tap"),
                    limit["Left"],
                    limit["Of"],
                    text(limit, "Limit")
                );
            }
        }
    }
    Ok(())
}

/// What is known of session tokens that did not arrive, and what would help.
pub fn remedy(report: &Value) -> String {
    let last = &report["Last"];
    let router = match last["Router"].as_str() {
        Some(router) => format!(", the last at router {router}"),
        None => String::new(),
    };
    format!(
        "{} session tokens expired on their way behind the guest{router}, {} were not acknowledged; the last was for {} with hop \
         limit {}: what is behind a router or a container bridge of the guest needs one more for each (imdsctl \
         metadata-options modify --http-put-response-hop-limit)",
        report["TimeExceeded"],
        report["Unacknowledged"],
        text(last, "Remote"),
        last["HopLimit"]
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_one_line() {
        let told = json!({
            "time": "2026-11-21T08:22:00Z", "instance": "i-1", "mac": "06:00:00:00:00:01", "method": "GET",
            "path": "/latest/meta-data/", "status": 401, "version": "v1", "refusal": "no_token",
            "latency_seconds": 0.000_321, "user_agent": "curl/8.5", "peer_port": 40000,
        });
        assert_eq!(
            sentence(&told),
            "2026-11-21T08:22:00Z i-1 GET /latest/meta-data/ 401 v1 321 us refused: no_token \"curl/8.5\""
        );
        assert_eq!(sentence(&json!({ "lost": 17 })), "(17 requests were missed here)");
    }

    #[test]
    fn the_remedy_names_the_limit_and_the_router() {
        let report = json!({
            "InstanceId": "i-1", "TimeExceeded": 2, "Unacknowledged": 1,
            "Last": { "At": "2026-11-21T08:22:00Z", "HopLimit": 1, "Remote": "172.17.0.2", "Router": "10.0.0.2" },
        });
        let told = remedy(&report);
        assert!(
            told.starts_with("2 session tokens expired") && told.contains("router 10.0.0.2, 1 were"),
            "{told}"
        );
        assert!(told.contains("for 172.17.0.2 with hop limit 1:"), "{told}");
    }
}
