//! What the socket answers, held against its description.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    client::Response,
    control::{ask, head_of},
    host::{ADDRESS, Host, INSTANCE_ID},
    records,
};
use serde_json::{Value, json};

use super::json_of;

/// Status, method, path, what stands for the names in braces, and a body: JSON, or the name of one of [`bodies`].
const EXCHANGES: &str = r#"
200 get /healthz
200 get /readyz
200 get /v1/openapi.json
200 get /v1/status
200 post /v1/reload
200 get /v1/instances
400 get /v1/instances/{id} a%20b
404 get /v1/instances/{id} i-9
201 put /v1/instances/{id} i-9 $other
200 put /v1/instances/{id} i-9 $other
409 put /v1/instances/{id} i-9 $thief
400 put /v1/instances/{id} i-9 $record
400 put /v1/instances/{id} i-9?wait_seconds=61 $other
200 delete /v1/instances/{id} i-9
404 delete /v1/instances/{id} i-9
200 get /v1/instances/{id} @
200 get /v1/instances/{id}/metadata-options @
200 patch /v1/instances/{id}/metadata-options @ {"HttpTokens":null}
400 patch /v1/instances/{id}/metadata-options @ {"HttpTokens":7}
404 patch /v1/instances/{id}/metadata-options i-9 {}
200 get /v1/instances/{id}/user-data @
200 put /v1/instances/{id}/user-data @ any bytes
200 delete /v1/instances/{id}/user-data @
404 get /v1/instances/{id}/user-data @
200 get /v1/instances/{id}/tags @
200 put /v1/instances/{id}/tags @ {"Tags":[{"Key":"a b","Value":"c"}]}
200 patch /v1/instances/{id}/tags @ {"Tags":[],"RemoveKeys":["a b"]}
400 patch /v1/instances/{id}/tags @ {"Tags":[{"Key":"no value"}]}
200 put /v1/instances/{id}/events @ {"SpotInterruption":{"Action":"stop","Time":"2026-11-21T08:22:00Z"}}
200 get /v1/instances/{id}/events @
200 patch /v1/instances/{id}/events @ {"SpotInterruption":null}
400 patch /v1/instances/{id}/events @ {"Spot":null}
200 get /v1/instances/{id}/iam-instance-profile @
409 post /v1/instances/{id}/iam-instance-profile @ {"Name":"web-server-profile"}
200 delete /v1/instances/{id}/iam-instance-profile @
404 get /v1/instances/{id}/iam-instance-profile @
404 post /v1/instances/{id}/iam-instance-profile @ {"Name":"nobody"}
400 post /v1/instances/{id}/iam-instance-profile @ {"Name":"web-server-profile","Arn":"arn"}
200 post /v1/instances/{id}/iam-instance-profile @ {"Name":"web-server-profile"}
200 put /v1/instances/{id}/iam-instance-profile @ {"Arn":"arn:aws:iam::123456789012:instance-profile/web-server-profile"}
200 get /v1/instances/{id}/metadata/{path} @ latest/meta-data/
404 get /v1/instances/{id}/metadata/{path} @ latest/nothing
200 get /v1/instances/{id}/observed @
404 get /v1/instances/{id}/observed i-9
200 get /v1/instances/{id}/tokenless @
404 get /v1/instances/{id}/tokenless i-9
200 get /v1/instances/{id}/hop-limit @
404 get /v1/instances/{id}/hop-limit i-9
200 get /v1/roles
201 put /v1/roles/{name} odd {"RoleName":"odd","Arn":"arn:aws:iam::123456789012:role/path/odd"}
200 put /v1/roles/{name} web-server $role
200 get /v1/roles/{name} arn:aws:iam::123456789012:role%2Fpath%2Fodd
409 delete /v1/roles/{name} web-server
200 get /v1/instance-profiles
200 get /v1/instance-profiles/{name} web-server-profile
200 put /v1/instance-profiles/{name} web-server-profile $profile
201 put /v1/instance-profiles/{name} spare {"InstanceProfileName":"spare","Arn":"arn:aws:iam::123456789012:instance-profile/spare"}
200 put /v1/instance-profiles/{name}/roles/{role} spare odd
409 put /v1/instance-profiles/{name}/roles/{role} spare web-server
409 delete /v1/instance-profiles/{name} spare
200 delete /v1/instance-profiles/{name}/roles/{role} spare odd
200 delete /v1/instance-profiles/{name} spare
200 delete /v1/roles/{name} odd
"#;

/// One line of them.
struct Exchange<'a> {
    status: u16,
    method: &'a str,
    path: &'a str,
    target: String,
    body: Vec<u8>,
}

impl<'a> Exchange<'a> {
    fn parse(line: &'a str, bodies: &HashMap<&str, Vec<u8>>) -> Result<Self> {
        let mut words = line.split(' ');
        let mut word = || words.next().context("a word is missing");
        let (status, method, path) = (word()?.parse()?, word()?, word()?);
        let mut target = path.to_owned();
        while let (Some(begin), Some(end)) = (target.find('{'), target.find('}')) {
            let value = word()?.replace('@', INSTANCE_ID);
            target.replace_range(begin..=end, &value);
        }
        let body: Vec<&str> = words.collect();
        let body = body.join(" ");
        let body = bodies
            .get(body.as_str())
            .cloned()
            .unwrap_or_else(|| body.into_bytes());
        Ok(Self {
            status,
            method,
            path,
            target,
            body,
        })
    }
}

/// The longer bodies.
fn bodies() -> HashMap<&'static str, Vec<u8>> {
    let record = records::instance(INSTANCE_ID, records::guest_mac(2), "tap0", ADDRESS);
    let other = records::instance("i-9", records::guest_mac(9), "tap9", "10.0.0.9");
    let mut thief = other.clone();
    thief["NetworkInterfaces"][0]["MacAddress"] = records::guest_mac(2).to_string().into();
    let bodies = [
        ("$record", record),
        ("$other", other),
        ("$thief", thief),
        ("$role", records::role()),
        ("$profile", records::instance_profile()),
    ];
    bodies
        .map(|(name, body)| (name, body.to_string().into_bytes()))
        .into()
}

/// Every operation of the description is done for real, and everything that is answered is as the description says.
#[test]
fn answers_are_as_the_description_says() -> Result<()> {
    let host = Host::new("", |_| ())?;
    let description = json_of(&host, 200, "GET", "/v1/openapi.json", &Value::Null)?;
    let mut operations = operations(&description)?;
    let routes = imds_agent::control::routes::ROUTES.iter();
    let mut routes: Vec<_> = routes
        .map(|route| (route.method.to_owned(), route.path.replace("{*", "{")))
        .collect();
    routes.sort();
    operations.sort();
    assert_eq!(routes, operations, "routes and description");

    let bodies = bodies();
    let mut done = Vec::new();
    for line in EXCHANGES.lines().filter(|line| !line.is_empty()) {
        let exchange = Exchange::parse(line, &bodies).with_context(|| line.to_owned())?;
        let Exchange {
            status,
            method,
            path,
            target,
            body,
        } = exchange;
        let response = ask(&host.files.socket(), &method.to_uppercase(), &target, &[], &body)?;
        assert_eq!(response.status, status, "{line}: {}", response.text());
        check(&description, method, path, &response).with_context(|| line.to_owned())?;
        if status < 300 {
            done.push((method.to_owned(), path.to_owned()));
        }
    }
    // This answer does not end by itself.
    let followed = head_of(&host.files.socket(), "/v1/trace")?;
    check(&description, "get", "/v1/trace", &followed)?;
    done.push(("get".to_owned(), "/v1/trace".to_owned()));
    done.sort();
    done.dedup();
    assert_eq!(done, operations, "every operation is done once");

    // Versions: what was seen is what is changed, or nothing is.
    let id = format!("/v1/instances/{INSTANCE_ID}");
    let tag = ask(&host.files.socket(), "GET", &id, &[], b"")?;
    let tag = format!("If-Match: {}", tag.field("ETag").context("no ETag")?);
    let tags = |field: &str| {
        let body = br#"{"Tags":[{"Key":"a","Value":"b"}]}"#;
        ask(
            &host.files.socket(),
            "PATCH",
            &format!("{id}/tags"),
            &[field],
            body,
        )
    };
    assert_eq!(tags(&tag)?.status, 200);
    let late = tags(&tag)?;
    assert_eq!(late.status, 412);
    check(&description, "patch", "/v1/instances/{id}/tags", &late)?;
    assert_eq!(
        ask(
            &host.files.socket(),
            "PUT",
            &id,
            &["If-None-Match: *"],
            &bodies["$record"]
        )?
        .status,
        412
    );
    // What is no path or no method is told in the same form.
    let long = vec![b' '; 5 << 20];
    for (method, path, body, status) in [
        ("GET", "/v2", &[][..], 404),
        ("POST", "/v1/status", &[], 405),
        ("GET", "/v1/instances/%FF", &[], 400),
        ("GET", "/v1/trace?instance=a%20b", &[], 400),
        ("PUT", "/v1/instances/i-9", &long, 413),
    ] {
        let response = ask(&host.files.socket(), method, path, &[], body)?;
        assert_eq!(response.status, status);
        let refusal: Value = serde_json::from_slice(&response.body)?;
        valid(&description, "#/components/schemas/Error", &refusal)?;
    }
    Ok(())
}

/// Method and path of every operation of the description.
fn operations(description: &Value) -> Result<Vec<(String, String)>> {
    let mut operations = Vec::new();
    for (path, item) in description["paths"].as_object().context("no paths")? {
        let methods = item
            .as_object()
            .context("no operations")?
            .keys()
            .filter(|key| *key != "parameters");
        operations.extend(methods.map(|method| (method.clone(), path.clone())));
    }
    Ok(operations)
}

/// Holds a response against what the description says of this operation with this status.
fn check(description: &Value, method: &str, path: &str, response: &Response) -> Result<()> {
    let responses = &description["paths"][path][method]["responses"];
    let mut said = &responses[response.status.to_string()];
    if let Some(reference) = said["$ref"].as_str() {
        said = description
            .pointer(reference.trim_start_matches('#'))
            .context("a dangling reference")?;
    }
    let kind = response.field("Content-Type").context("no Content-Type")?;
    let content = &said["content"][kind];
    ensure!(content.is_object(), "{} {kind} is not described", response.status);
    for header in said["headers"]
        .as_object()
        .into_iter()
        .flat_map(|headers| headers.keys())
    {
        ensure!(response.field(header).is_some(), "no {header}");
    }
    match content["schema"]["$ref"].as_str() {
        Some(schema) => valid(description, schema, &serde_json::from_slice(&response.body)?),
        None => Ok(()),
    }
}

fn valid(description: &Value, schema: &str, value: &Value) -> Result<()> {
    let schema = json!({ "$ref": schema, "components": description["components"] });
    let errors: Vec<String> = jsonschema::validator_for(&schema)?
        .iter_errors(value)
        .map(|error| error.to_string())
        .collect();
    ensure!(errors.is_empty(), "{value} is not as described: {errors:?}");
    Ok(())
}
