//! Alert rules and dashboard in `dist/`, held against what a running agent tells.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use imds_tests::{host::Host, scrape::Scrape};
use promql_parser::{
    label::MatchOp,
    parser::{self, Expr, VectorSelector},
    util::{ExprVisitor, walk_expr},
};

/// Metrics that Prometheus makes itself.
const OF_PROMETHEUS: &[&str] = &["up"];

/// Labels that Prometheus adds to what it scrapes.
const LABELS_OF_PROMETHEUS: &[&str] = &["instance", "job"];

/// Every selector of an expression.
#[derive(Default)]
struct Selectors(Vec<VectorSelector>);

impl ExprVisitor for Selectors {
    type Error = ();

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, ()> {
        match expression {
            Expr::VectorSelector(selector) => self.0.push(selector.clone()),
            Expr::MatrixSelector(selector) => self.0.push(selector.vs.clone()),
            _ => {}
        }
        Ok(true)
    }
}

/// What is wrong with a PromQL expression, by what a running agent tells.
fn faults(expression: &str, scrape: &Scrape) -> Vec<String> {
    let parsed = match parser::parse(expression) {
        Ok(parsed) => parsed,
        Err(error) => return vec![error],
    };
    let mut selectors = Selectors::default();
    assert_eq!(walk_expr(&mut selectors, &parsed), Ok(true));
    let mut faults = Vec::new();
    let names = scrape.names();
    for selector in selectors.0 {
        let name = selector.name.unwrap_or_default();
        if OF_PROMETHEUS.contains(&name.as_str()) {
            continue;
        }
        if !names.contains(&name) {
            faults.push(format!("the agent tells no {name}"));
            continue;
        }
        for matcher in selector.matchers.matchers {
            if LABELS_OF_PROMETHEUS.contains(&matcher.name.as_str()) {
                continue;
            }
            let of_name = scrape.series.keys().filter(|series| series.name == name);
            let values = of_name.filter_map(|series| series.labels.get(&matcher.name));
            // Every value that is spoken of has to be one that there is.
            let spoken_of: Vec<&str> = match &matcher.op {
                MatchOp::Equal => vec![matcher.value.as_str()],
                MatchOp::Re(_) => matcher.value.split('|').collect(),
                MatchOp::NotEqual | MatchOp::NotRe(_) => Vec::new(),
            };
            let values: Vec<_> = values.map(String::as_str).collect();
            for value in spoken_of {
                if !values.contains(&value) {
                    faults.push(format!("no series of {name} has {}={value:?}", matcher.name));
                }
            }
        }
    }
    faults
}

fn dist(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../dist")
        .join(path)
}

/// Every string at a key called `expr`, however deep.
fn expressions(value: &serde_json::Value, all: &mut Vec<String>) {
    match value {
        serde_json::Value::Array(items) => items.iter().for_each(|item| expressions(item, all)),
        serde_json::Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    serde_json::Value::String(text) if name == "expr" => all.push(text.clone()),
                    _ => expressions(field, all),
                }
            }
        }
        _ => {}
    }
}

#[test]
fn rules_and_dashboard_ask_for_what_there_is() -> Result<()> {
    let host = Host::new("", |_| ())?;
    let issuer = [("source", "issuer"), ("outcome", "supplied")];
    let scrape = host.wait_for_metric("imds_role_credentials_fetches_total", &issuer, 2.0)?;

    let path = dist("prometheus/imds-agent.rules.yml");
    let text = fs::read_to_string(&path)?;
    let documents = yaml_rust2::YamlLoader::load_from_str(&text)?;
    let groups = documents[0]["groups"].as_vec().context("groups")?;
    let rules: Vec<_> = groups
        .iter()
        .flat_map(|group| group["rules"].as_vec().into_iter().flatten())
        .collect();
    assert!(rules.len() > 10, "{}", rules.len());
    for rule in rules {
        let name = rule["alert"].as_str().context("an alert")?;
        let expression = rule["expr"].as_str().context("an expression")?;
        assert_eq!(faults(expression, &scrape), [""; 0], "{name}");
        assert!(
            matches!(rule["labels"]["severity"].as_str(), Some("page" | "ticket")),
            "{name}"
        );
        for annotation in ["summary", "description"] {
            assert!(
                rule["annotations"][annotation].as_str().is_some(),
                "{name}: {annotation}"
            );
        }
    }
    match Command::new("promtool")
        .args(["check", "rules"])
        .arg(&path)
        .output()
    {
        Ok(output) => assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(_) => eprintln!("there is no promtool to check the rules with"),
    }

    let text = fs::read_to_string(dist("grafana/imds-agent.json"))?;
    let dashboard: serde_json::Value = serde_json::from_str(&text)?;
    let mut all = Vec::new();
    expressions(&dashboard, &mut all);
    assert!(all.len() > 20, "{}", all.len());
    for expression in all {
        let plain = expression.replace("$__rate_interval", "5m");
        assert_eq!(faults(&plain, &scrape), [""; 0], "{expression}");
    }

    // What is not so is found.
    for (expression, fault) in [
        ("imds_request_total", "the agent tells no imds_request_total"),
        (
            "imds_frames_dropped_total{reason=\"ring-fool\"}",
            "no series of imds_frames_dropped_total has reason=\"ring-fool\"",
        ),
        (
            "rate(imds_taps_bound{state=~\"a\"}[5m])",
            "no series of imds_taps_bound has state=\"a\"",
        ),
    ] {
        assert_eq!(faults(expression, &scrape), [fault]);
    }
    assert_eq!(faults("sum(imds_taps_bound", &scrape).len(), 1);
    Ok(())
}
