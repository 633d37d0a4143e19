//! What guests do, as operators see it.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result};
use imds_tests::{
    client::{exchange, exchange_from, wait_for},
    control::{imdsctl, imdsctl_json},
    frames::{Ipv4, tcp},
    host::{Host, INSTANCE_ID},
    records,
};
use jiff::Timestamp;
use serde_json::{Value, json};

#[test]
fn requests_are_traced_as_they_come() -> Result<()> {
    let (host, guest) =
        Host::with_guest(|record| record["MetadataOptions"] = json!({ "HttpTokens": "optional" }))?;
    let mut imdsctl_trace = imdsctl(&host.files)?
        .args(["trace", "--json", "--instance", INSTANCE_ID])
        .stdout(Stdio::piped())
        .spawn()?;
    let told = BufReader::new(imdsctl_trace.stdout.take().context("no output")?);
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        told.lines()
            .map_while(Result::ok)
            .try_for_each(|line| sender.send(line))
    });
    // It listens from some moment on.
    let request = "GET /latest/meta-data/instance-id?x=y HTTP/1.1\r\nUser-Agent: old/1.0\r\n\r\n";
    let ask = || {
        let response = guest.namespace.enter(|| exchange(request))?;
        assert_eq!(response.status, 200);
        Ok(lines.try_recv().ok())
    };
    let (line, _) = wait_for("a traced request", ask, Option::is_some)?;
    let traced: Value = serde_json::from_str(&line.context("a line")?)?;
    let fields =
        ["instance", "method", "path", "status", "version", "user_agent"].map(|field| &traced[field]);
    assert_eq!(
        fields.map(Value::to_string).join(" "),
        format!("\"{INSTANCE_ID}\" \"GET\" \"/latest/meta-data/instance-id\" 200 \"v1\" \"old/1.0\"")
    );
    // An agent that ends, ends it.
    host.agent.stop()?;
    let ended = imdsctl_trace.wait()?;
    assert!(ended.code().is_some(), "{ended}");
    drop(lines);
    let _ = reader.join();
    Ok(())
}

#[test]
fn callers_without_tokens_are_told() -> Result<()> {
    let (host, guest) =
        Host::with_guest(|record| record["MetadataOptions"] = json!({ "HttpTokens": "optional" }))?;
    let tokenless = || {
        imdsctl(&host.files)?
            .args(["instance", "tokenless", INSTANCE_ID])
            .output()
            .map_err(anyhow::Error::from)
    };
    let before = tokenless()?;
    assert_eq!(before.status.code(), Some(0), "{before:?}");
    let request = "GET /latest/meta-data/instance-id HTTP/1.1\r\nUser-Agent: old/1.0\r\n\r\n";
    let asked_at = Timestamp::now();
    let (response, source_port) = guest.namespace.enter(|| exchange_from(request))?;
    assert_eq!(response.status, 200);
    let answered_at = Timestamp::now();
    let output = || {
        let output = tokenless()?;
        Ok((output.status.code(), String::from_utf8(output.stdout)?))
    };
    let ((_, text), _) = wait_for("the caller", output, |(code, _)| *code == Some(3))?;
    assert!(text.contains("1 requests were answered and 0 refused"), "{text}");
    let mut rows = text.lines().skip_while(|line| !line.starts_with("PATH"));
    let titles = rows.next().context("no table")?;
    let [last_seen, port, interface] = ["LAST SEEN", "PORT", "INTERFACE"].map(|title| titles.find(title));
    let row = rows.next().context("no caller")?;
    assert!(
        row.starts_with("/latest/meta-data/instance-id  old/1.0     1      0 "),
        "{text}"
    );
    let cell = |start: Option<usize>| row.get(start?..)?.split_whitespace().next();
    assert_eq!(cell(port), Some(source_port.to_string().as_str()), "{text}");
    let mac = records::guest_mac(2).to_string();
    assert_eq!(cell(interface), Some(mac.as_str()), "{text}");
    let last_seen: Timestamp = cell(last_seen).context("no time")?.parse()?;
    assert!((asked_at..=answered_at).contains(&last_seen), "{text}");
    assert_eq!(
        imdsctl_json(&host.files, "status")?["undeliveredTokens"],
        json!([])
    );
    Ok(())
}

#[test]
fn top_shows_the_requests_of_a_guest() -> Result<()> {
    let (host, guest) = Host::with_guest(|_| ())?;
    let mut top = imdsctl(&host.files)?
        .args(["top", "--once", "--json"])
        .stdout(Stdio::piped())
        .spawn()?;
    // It watches from some moment on, and for a time: there is something to see whenever that is.
    while top.try_wait()?.is_none() {
        let request = "GET /latest/meta-data/instance-id HTTP/1.1\r\n\r\n";
        assert_eq!(guest.namespace.enter(|| exchange(request))?.status, 401);
        // From another MAC than its own.
        host.tap.send(&Ipv4::default().frame(&tcp(80, 0)))?;
    }
    let output = top.wait_with_output()?;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let frame: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(frame["summary"]["ready"], true, "{frame}");
    let row = &frame["interfaces"][0];
    assert_eq!(row["instanceId"], INSTANCE_ID, "{frame}");
    let number = |field: &str| row[field].as_f64().unwrap_or_default();
    assert!(number("requestsPerSecond") > 0.0, "{frame}");
    assert_eq!(number("refusedPerSecond"), number("requestsPerSecond"), "{frame}");
    assert!(number("connections") >= 1.0, "{frame}");
    assert!(
        number("latencyMaxSeconds") >= number("latencyMeanSeconds"),
        "{frame}"
    );
    assert!(number("droppedPerSecond") > 1.0, "{frame}");
    let limits: Vec<_> = row["limits"].as_array().context("limits")?.iter().collect();
    assert_eq!(limits.len(), 3, "{frame}");
    // It asked for all that it may, of one of them.
    assert!(
        limits
            .iter()
            .any(|limit| limit["left"].as_u64() < limit["of"].as_u64()),
        "{frame}"
    );
    assert_eq!(row["credentials"], "ready", "{frame}");
    assert!(number("credentialsRemainingSeconds") > 3000.0, "{frame}");
    // Without a terminal there is no live view.
    let live = imdsctl(&host.files)?.arg("top").stdin(Stdio::null()).output()?;
    assert_eq!(live.status.code(), Some(1), "{live:?}");
    assert!(String::from_utf8(live.stderr)?.contains("--once"));
    Ok(())
}
