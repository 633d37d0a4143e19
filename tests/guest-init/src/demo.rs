//! What an instance does with the service, told so that a person can follow it on the console.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    container,
    metadata::{PATIENCE, Session, put_token, silent},
};

const ROLE_LISTING: &str = "/latest/meta-data/iam/security-credentials/";

/// Asks for everything that a workload asks for.
pub fn show() -> Result<()> {
    let session = Session::open()?;
    say(
        "PUT",
        "/latest/api/token",
        &format!("{} for {} s", shortened(&session.token), session.ttl_seconds),
    );
    let get = |path: &str| session.get(path)?.ok().with_context(|| format!("GET {path}"));

    let instance = "/latest/meta-data/instance-id";
    say("GET", instance, &get(instance)?);
    let role = get(ROLE_LISTING)?;
    say("GET", ROLE_LISTING, &role);
    let path = format!("{ROLE_LISTING}{role}");
    say("GET", &path, "");
    let credentials: Value = serde_json::from_str(&get(&path)?).context("the credentials are not JSON")?;
    for field in ["Code", "Type", "AccessKeyId", "Expiration"] {
        detail(field, text(&credentials, field)?);
    }
    for secret in ["SecretAccessKey", "Token"] {
        detail(secret, &shortened(text(&credentials, secret)?));
    }
    let user_data = "/latest/user-data";
    say("GET", user_data, "");
    for line in get(user_data)?.lines() {
        println!("        {line}");
    }

    println!("  From a container behind a bridge in the guest, one hop further away:");
    container::inside(|| silent(put_token(60).map(drop))).context("the container's token request")?;
    let seconds = PATIENCE.as_secs();
    say(
        "PUT",
        "/latest/api/token",
        &format!("no answer within {seconds} s: its hop limit is 1, and the bridge is a hop"),
    );
    Ok(())
}

fn text<'a>(document: &'a Value, field: &str) -> Result<&'a str> {
    document
        .get(field)
        .and_then(Value::as_str)
        .with_context(|| format!("the credentials have no {field}"))
}

fn say(method: &str, path: &str, answer: &str) {
    println!("  {method} {path}");
    if !answer.is_empty() {
        println!("        {answer}");
    }
}

fn detail(field: &str, value: &str) {
    println!("        {field:<16} {value}");
}

/// Enough of a secret to see that there is one.
fn shortened(secret: &str) -> String {
    let start: String = secret.chars().take(6).collect();
    format!("{start}... ({} characters)", secret.chars().count())
}
