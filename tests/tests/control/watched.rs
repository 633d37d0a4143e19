//! What guests do, as operators see it.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result};
use imds_tests::{
    client::{exchange, wait_for},
    control::{imdsctl, imdsctl_json},
    host::{Host, INSTANCE_ID},
};
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
    assert_eq!(guest.namespace.enter(|| exchange(request))?.status, 200);
    let output = || {
        let output = tokenless()?;
        Ok((output.status.code(), String::from_utf8(output.stdout)?))
    };
    let ((_, text), _) = wait_for("the caller", output, |(code, _)| *code == Some(3))?;
    assert!(text.contains("1 requests were answered and 0 refused"), "{text}");
    assert!(
        text.contains("/latest/meta-data/instance-id  old/1.0     1      0"),
        "{text}"
    );
    assert_eq!(
        imdsctl_json(&host.files, "status")?["undeliveredTokens"],
        json!([])
    );
    Ok(())
}
