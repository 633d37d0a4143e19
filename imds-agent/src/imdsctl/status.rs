//! `imdsctl status` and `imdsctl reload`: the agent as a whole.

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    Verdict,
    client::{Client, Expect, Method},
    print::{self, Table, text},
    watched,
};

/// Prints how the agent is; no is for one that needs an operator.
pub fn status(client: &Client, is_json: bool) -> Result<Verdict> {
    let status = client.get_json("/v1/status")?;
    let list = |field: &str| status[field].as_array().cloned().unwrap_or_default();
    let errors = list("problems")
        .iter()
        .filter(|problem| problem["severity"] == "error")
        .count();
    let refused = list("refusedKernelOperations").len();
    let mut namespaces = list("networkNamespaces");
    namespaces.retain(|namespace| namespace["served"] == false);
    let is_well = status["ready"] == true && errors + refused + namespaces.len() == 0;
    let verdict = if is_well { Verdict::Yes } else { Verdict::No };
    if is_json {
        print::json(&status);
        return Ok(verdict);
    }
    let ready = if status["ready"] == true {
        "ready"
    } else {
        "NOT ready"
    };
    print::line(format_args!(
        "imds-agent {}, {ready}, up {} s, {} instances, registry revision {}",
        text(&status, "version"),
        status["uptimeSeconds"],
        status["instances"],
        status["registryRevision"]
    ));
    let mut taps = Table::new(&["TAP", "INDEX", "MAC", "INSTANCE", "DROPPED", "LEFT", "WHY NOT"]);
    for tap in list("taps") {
        let [name, index, mac, instance, dropped, reason] = [
            "name",
            "index",
            "macAddress",
            "instanceId",
            "framesDropped",
            "reason",
        ]
        .map(|field| text(&tap, field));
        taps.row(vec![
            name,
            index,
            mac,
            instance,
            dropped,
            left(&tap["limits"]),
            reason,
        ]);
    }
    section(&taps);
    let mut unserved = Table::new(&["NETWORK NAMESPACE", "WHY IT IS NOT SERVED"]);
    for namespace in namespaces {
        unserved.row(["name", "reason"].map(|field| text(&namespace, field)).into());
    }
    section(&unserved);
    let mut roles = Table::new(&[
        "ROLE",
        "READY",
        "PENDING",
        "REFUSED",
        "FIRST EXPIRES",
        "WHY REFUSED",
    ]);
    for role in list("credentials") {
        let mut row: Vec<String> = ["role", "ready", "pending", "refused", "earliestExpiration"]
            .map(|field| text(&role, field))
            .into();
        row.push(text(role.get("failure").unwrap_or(&Value::Null), "code"));
        roles.row(row);
    }
    section(&roles);
    for report in list("undeliveredTokens") {
        print::line(format_args!(
            "\n{}: {}",
            text(&report, "InstanceId"),
            watched::remedy(&report)
        ));
    }
    let mut problems = Table::new(&["PROBLEM", "FILE", "FIELD", "WHAT"]);
    for problem in list("problems") {
        problems.row(
            ["severity", "file", "field", "message"]
                .map(|field| text(&problem, field))
                .into(),
        );
    }
    section(&problems);
    Ok(verdict)
}

/// Has the agent read its configuration again.
pub fn reload(client: &Client, is_json: bool) -> Result<Verdict> {
    let reloaded = client.send_json(Method::POST, "/v1/reload", &Expect::Anything, &json!({}))?;
    if is_json {
        print::json(&reloaded);
    } else {
        print::line(format_args!("changed: {}", names(&reloaded["changed"])));
        print::line(format_args!(
            "in force only after a restart: {}",
            names(&reloaded["needsRestart"])
        ));
    }
    Ok(Verdict::Yes)
}

/// What a tap has left of its limits.
fn left(limits: &Value) -> String {
    let limits = limits.as_array().into_iter().flatten();
    let left = limits.map(|limit| {
        let (left, of) = (&limit["left"], &limit["of"]);
        format!("{left}/{of} {}", text(limit, "limit"))
    });
    let left: Vec<_> = left.collect();
    if left.is_empty() {
        "-".to_owned()
    } else {
        left.join(", ")
    }
}

fn section(table: &Table) {
    if !table.lines().is_empty() {
        print::line("");
        table.print();
    }
}

fn names(list: &Value) -> String {
    let names: Vec<&str> = list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    }
}
