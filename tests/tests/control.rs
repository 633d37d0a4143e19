//! The operators' socket, with the real `imdsctl`, the bare bytes, and a guest that sees what comes of it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    agent::{Agent, HostFiles},
    client::{Response, exchange, get, text, token, wait_for},
    control::{ask, imdsctl, imdsctl_json, run},
    host::{ADDRESS, Host, INSTANCE_ID, program, program_called},
    kernel_guest::KernelGuest,
    netns::Namespace,
    records::{self, ACCOUNT, INSTANCE_PROFILE, ROLE},
};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

const ROLES: &str = "meta-data/iam/security-credentials/";

/// What a guest gets at a path below `/latest/`.
fn seen(guest: &KernelGuest, path: &str) -> Result<Response> {
    guest.namespace.enter(|| get(&token()?, path))
}

fn seen_text(guest: &KernelGuest, path: &str) -> Result<String> {
    guest.namespace.enter(|| text(&token()?, path))
}

/// A role's credentials, which may take a moment.
fn credentials(guest: &KernelGuest, role: &str) -> Result<Value> {
    let path = format!("{ROLES}{role}");
    let ask = || seen(guest, &path);
    let (response, _) = wait_for("credentials", ask, |response| response.status != 503)?;
    ensure!(response.status == 200, "{}", response.head);
    Ok(serde_json::from_slice(&response.body)?)
}

/// Asks the socket, which has to answer with the status; the JSON that it answers.
fn json_of(host: &Host, status: u16, method: &str, path: &str, body: &Value) -> Result<Value> {
    let body = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let response = ask(&host.files.socket(), method, path, &[], &body)?;
    ensure!(
        response.status == status,
        "{method} {path}: {} {}",
        response.head,
        response.text()
    );
    Ok(serde_json::from_slice(&response.body)?)
}

fn instance_path(rest: &str) -> String {
    format!("/v1/instances/{INSTANCE_ID}{rest}")
}

#[test]
fn a_role_is_attached_replaced_and_taken_off_a_running_instance() -> Result<()> {
    let (host, guest) = Host::with_guest(|record| drop(record["IamInstanceProfile"].take()))?;
    let ctl = |arguments: &str| run(imdsctl(&host.files)?.args(arguments.split_whitespace()));
    ensure!(seen(&guest, ROLES)?.status == 404);
    for name in ["blue", "green"] {
        ctl(&format!("role create --role-name {name} --account-id {ACCOUNT}"))?;
        ctl(&format!(
            "instance-profile create --instance-profile-name {name}-profile --account-id {ACCOUNT}"
        ))?;
        ctl(&format!(
            "instance-profile add-role --instance-profile-name {name}-profile --role-name {name}"
        ))?;
    }
    let associate =
        format!("associate-iam-instance-profile --instance-id {INSTANCE_ID} --iam-instance-profile");
    let associated = imdsctl_json(&host.files, &format!("{associate} Name=blue-profile"))?;
    let association = &associated["IamInstanceProfileAssociation"];
    assert_eq!(association["State"], "associated");
    // What imdsctl returned for is so when it returns.
    assert_eq!(seen_text(&guest, ROLES)?, "blue");
    assert_eq!(credentials(&guest, "blue")?["Code"], "Success");

    let error = ctl(&format!("{associate} Name=green-profile"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("has an instance profile already"), "{error}");
    let id = association["AssociationId"].as_str().context("no id")?;
    let arn = format!("Arn=arn:aws:iam::{ACCOUNT}:instance-profile/green-profile");
    ctl(&format!(
        "replace-iam-instance-profile-association --association-id {id} --iam-instance-profile {arn}"
    ))?;
    assert_eq!(seen_text(&guest, ROLES)?, "green");
    assert_eq!(seen(&guest, &format!("{ROLES}blue"))?.status, 404);
    let set = credentials(&guest, "green")?;
    let info: Value = serde_json::from_str(&seen_text(&guest, "meta-data/iam/info")?)?;
    assert_eq!(info["InstanceProfileArn"], arn.trim_start_matches("Arn="));

    // What operators are shown of it has no secret in it, unless they ask for that.
    let path = format!("get {INSTANCE_ID} {ROLES}green");
    let shown: Value = serde_json::from_str(&ctl(&path)?)?;
    assert_eq!(shown["AccessKeyId"], set["AccessKeyId"]);
    assert_eq!(
        (&shown["SecretAccessKey"], &shown["Token"]),
        (&json!("(redacted)"), &json!("(redacted)"))
    );
    let whole: Value = serde_json::from_str(&ctl(&format!("{path} --show-secrets"))?)?;
    assert_eq!(whole["SecretAccessKey"], set["SecretAccessKey"]);
    let extended = ctl(&format!(
        "get {INSTANCE_ID} meta-data/iam/security-credentials-extended/green"
    ))?;
    let secret = set["SecretAccessKey"].as_str().context("no secret")?;
    assert!(
        !extended.contains(secret) && extended.contains("(redacted)"),
        "{extended}"
    );
    let status = imdsctl_json(&host.files, "status")?;
    assert_eq!(
        status["credentials"][0]["role"],
        format!("arn:aws:iam::{ACCOUNT}:role/green")
    );
    assert_eq!(status["credentials"][0]["ready"], 1);
    assert!(!status.to_string().contains(secret));

    // A role that is taken out of the profile is gone from the instance too.
    ctl("instance-profile remove-role --instance-profile-name green-profile --role-name green")?;
    assert_eq!(seen(&guest, &format!("{ROLES}green"))?.status, 404);
    ctl("instance-profile add-role --instance-profile-name green-profile --role-name green")?;
    let error = ctl("role delete --role-name green").unwrap_err().to_string();
    assert!(
        error.contains("role green is in use: instance-profiles/green-profile.json names it"),
        "{error}"
    );
    ctl(&format!(
        "disassociate-iam-instance-profile --instance-id {INSTANCE_ID}"
    ))?;
    assert_eq!(seen(&guest, ROLES)?.status, 404);
    assert_eq!(seen(&guest, "meta-data/iam/info")?.status, 404);
    ctl("instance-profile remove-role --instance-profile-name blue-profile --role-name blue")?;
    ctl("instance-profile delete --instance-profile-name blue-profile")?;
    ctl("role delete --role-name blue")?;
    assert!(!ctl("role list")?.contains("blue"));
    Ok(())
}

#[test]
fn metadata_options_are_pending_until_they_are_in_force() -> Result<()> {
    let (host, guest) = Host::with_guest(|_| ())?;
    let untokened = || {
        let ask = || exchange("GET /latest/meta-data/instance-id HTTP/1.1\r\n\r\n");
        guest.namespace.enter(ask).map(|response| response.status)
    };
    assert_eq!(untokened()?, 401);
    let modify = format!("metadata-options modify {INSTANCE_ID}");
    let answer = imdsctl_json(&host.files, &format!("{modify} --http-tokens optional"))?;
    let options = &answer["InstanceMetadataOptions"];
    assert_eq!(
        (&options["State"], &options["HttpTokens"]),
        (&json!("applied"), &json!("optional"))
    );
    assert_eq!(untokened()?, 200);
    // The record was not told its state, and what it did not say it still does not.
    let record = fs::read_to_string(
        host.files
            .state()
            .join("instances")
            .join(format!("{INSTANCE_ID}.json")),
    )?;
    let record: Value = serde_json::from_str(&record)?;
    assert_eq!(
        record["MetadataOptions"],
        json!({ "HttpTokens": "optional", "InstanceMetadataTags": "enabled" })
    );
    // The tap's binding is changed by this one, in the kernel.
    imdsctl_json(
        &host.files,
        &format!("{modify} --http-protocol-ipv6 enabled --http-put-response-hop-limit 2"),
    )?;

    // A record that cannot be put in force is pending for as long as that is so.
    let mut broken = record.clone();
    broken["MetadataOptions"]["HttpTokens"] = "required".into();
    broken["UserData"] = "%".into();
    host.files.put("instances", INSTANCE_ID, &broken)?;
    let path = instance_path("/metadata-options");
    let answer = json_of(&host, 200, "GET", &path, &Value::Null)?;
    assert_eq!(answer["InstanceMetadataOptions"]["State"], "pending");
    assert_eq!(
        answer["InstanceMetadataOptions"]["HttpTokens"], "optional",
        "{answer}"
    );
    assert_eq!(untokened()?, 200);
    let modified = imdsctl(&host.files)?
        .args(modify.split_whitespace())
        .args(["--http-endpoint", "disabled"])
        .output()?;
    let errors = String::from_utf8_lossy(&modified.stderr);
    assert!(errors.contains("UserData"), "{errors}");
    broken["UserData"] = Value::Null;
    host.files.put("instances", INSTANCE_ID, &broken)?;
    let ask = || json_of(&host, 200, "GET", &path, &Value::Null);
    let is_applied = |answer: &Value| answer["InstanceMetadataOptions"]["State"] == "applied";
    wait_for("the mended record", ask, is_applied)?;
    assert_eq!(untokened()?, 401);

    let refused = json_of(&host, 400, "PATCH", &path, &json!({ "HttpTokens": "perhaps" }))?;
    assert_eq!(
        refused["findings"][0]["field"], "MetadataOptions.HttpTokens",
        "{refused}"
    );
    let refused = json_of(&host, 400, "PATCH", &path, &json!({ "HttpToken": "optional" }))?;
    assert!(
        refused["message"]
            .as_str()
            .is_some_and(|text| text.starts_with("HttpToken: is none of")),
        "{refused}"
    );
    Ok(())
}

#[test]
fn user_data_tags_and_notices_change_on_a_running_instance() -> Result<()> {
    let (host, guest) = Host::with_guest(|_| ())?;
    let ctl = |arguments: &str| run(imdsctl(&host.files)?.args(arguments.split_whitespace()));
    let bytes: Vec<u8> = (0..=255).collect();
    let file = host.files.state().join("bytes");
    fs::write(&file, &bytes)?;
    ctl(&format!("user-data put {INSTANCE_ID} {}", file.display()))?;
    assert_eq!(seen(&guest, "user-data")?.body, bytes);
    let printed = imdsctl(&host.files)?
        .args(["user-data", "get", INSTANCE_ID])
        .output()?;
    assert_eq!(printed.stdout, bytes);
    ctl(&format!("user-data delete {INSTANCE_ID}"))?;
    assert_eq!(seen(&guest, "user-data")?.status, 404);

    ctl(&format!("tags create {INSTANCE_ID} team=red stage=test"))?;
    assert_eq!(seen_text(&guest, "meta-data/tags/instance/team")?, "red");
    assert_eq!(
        seen_text(&guest, "meta-data/tags/instance/")?,
        "Name\nteam\nstage"
    );
    ctl(&format!("tags delete {INSTANCE_ID} team"))?;
    assert_eq!(seen_text(&guest, "meta-data/tags/instance/")?, "Name\nstage");

    let action = "meta-data/spot/instance-action";
    ctl(&format!(
        "event set {INSTANCE_ID} spot-interruption --action stop --time 2026-11-21T08:22:00Z"
    ))?;
    assert_eq!(
        seen_text(&guest, action)?,
        r#"{"action":"stop","time":"2026-11-21T08:22:00Z"}"#
    );
    ctl(&format!("event clear {INSTANCE_ID} spot-interruption"))?;
    assert_eq!(seen(&guest, action)?.status, 404);
    ctl(&format!(
        "event schedule {INSTANCE_ID} --at +1s rebalance-recommendation"
    ))?;
    let recommendation = || seen(&guest, "meta-data/events/recommendations/rebalance");
    wait_for("the recommendation", recommendation, |response| {
        response.status == 200
    })?;
    ctl(&format!(
        "event set {INSTANCE_ID} maintenance --code system-reboot --not-before +1d --instance-event-id e-1"
    ))?;
    let scheduled = seen_text(&guest, "meta-data/events/maintenance/scheduled")?;
    assert!(scheduled.contains("\"e-1\""), "{scheduled}");
    ctl(&format!("event set {INSTANCE_ID} auto-scaling Warmed:Stopped"))?;
    assert_eq!(
        seen_text(&guest, "meta-data/autoscaling/target-lifecycle-state")?,
        "Warmed:Stopped"
    );
    let error = ctl(&format!("event set {INSTANCE_ID} auto-scaling Sleeping"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("TargetLifecycleState"), "{error}");
    ctl(&format!("event clear {INSTANCE_ID}"))?;
    assert_eq!(seen_text(&guest, "meta-data/events/maintenance/scheduled")?, "[]");
    Ok(())
}

#[test]
fn an_instance_comes_and_goes_by_imdsctl() -> Result<()> {
    let (host, guest) = Host::with_guest(|_| ())?;
    let ctl = |arguments: &str| run(imdsctl(&host.files)?.args(arguments.split_whitespace()));
    let second = host.add_guest("tap1", records::guest_mac(3), "10.0.0.3/24")?;
    let status = || imdsctl(&host.files)?.arg("status").output().map_err(Into::into);
    let is_told = |output: &Output| {
        String::from_utf8_lossy(&output.stdout).contains("no instance's record names this tap")
    };
    wait_for("the tap that is nobody's", status, is_told)?;
    let record = records::instance("i-2", records::guest_mac(3), "tap1", "10.0.0.3");
    let file = host.files.state().join("record");
    fs::write(&file, record.to_string())?;
    ctl(&format!("instance put --new {}", file.display()))?;
    assert_eq!(seen_text(&second, "meta-data/instance-id")?, "i-2");
    let list = ctl("instance list")?;
    assert!(
        list.contains("i-2") && list.contains(INSTANCE_ID) && !list.contains("not bound"),
        "{list}"
    );
    let error = ctl(&format!("instance put --new {}", file.display()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("instance i-2 exists already"), "{error}");
    // Nobody takes what another has.
    let thief = records::instance("i-3", records::guest_mac(4), "tap0", "10.0.0.4");
    fs::write(&file, thief.to_string())?;
    let error = ctl(&format!("instance put {}", file.display()))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&format!(
            "Tap tap0 is already taken by instances/{INSTANCE_ID}.json"
        )),
        "{error}"
    );
    assert_eq!(ctl("get i-2 meta-data/instance-id")?, "i-2");
    assert_eq!(ctl("get i-2 2021-03-23/meta-data/local-ipv4")?, "10.0.0.3");
    ctl("instance delete i-2")?;
    assert!(
        second.namespace.enter(token).is_err(),
        "a deleted instance is served"
    );
    assert_eq!(seen_text(&guest, "meta-data/instance-id")?, INSTANCE_ID);
    Ok(())
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

    let role = records::role();
    let profile = records::instance_profile();
    let arn = format!("arn:aws:iam::{ACCOUNT}:instance-profile/{INSTANCE_PROFILE}");
    let id = format!("/v1/instances/{INSTANCE_ID}");
    let record = records::instance(INSTANCE_ID, records::guest_mac(2), "tap0", ADDRESS);
    let other = records::instance("i-9", records::guest_mac(9), "tap9", "10.0.0.9");
    let named = |name: &str| json!({ "Name": name });
    let spare = json!({ "InstanceProfileName": "spare", "Arn": format!("arn:aws:iam::{ACCOUNT}:instance-profile/spare") });
    let odd = json!({ "RoleName": "odd", "Arn": format!("arn:aws:iam::{ACCOUNT}:role/path/odd") });
    let nothing = Value::Null;
    let events = json!({ "SpotInterruption": { "Action": "stop", "Time": "2026-11-21T08:22:00Z" } });
    let exchanges: Vec<(u16, &str, &str, String, Value)> = vec![
        (200, "get", "/healthz", "/healthz".into(), nothing.clone()),
        (200, "get", "/readyz", "/readyz".into(), nothing.clone()),
        (
            200,
            "get",
            "/v1/openapi.json",
            "/v1/openapi.json".into(),
            nothing.clone(),
        ),
        (200, "get", "/v1/status", "/v1/status".into(), nothing.clone()),
        (200, "post", "/v1/reload", "/v1/reload".into(), nothing.clone()),
        (
            200,
            "get",
            "/v1/instances",
            "/v1/instances".into(),
            nothing.clone(),
        ),
        (
            400,
            "get",
            "/v1/instances/{id}",
            "/v1/instances/a%20b".into(),
            nothing.clone(),
        ),
        (
            404,
            "get",
            "/v1/instances/{id}",
            "/v1/instances/i-9".into(),
            nothing.clone(),
        ),
        (
            201,
            "put",
            "/v1/instances/{id}",
            "/v1/instances/i-9".into(),
            other.clone(),
        ),
        (
            200,
            "put",
            "/v1/instances/{id}",
            "/v1/instances/i-9".into(),
            other.clone(),
        ),
        (409, "put", "/v1/instances/{id}", "/v1/instances/i-9".into(), {
            let mut thief = other;
            thief["NetworkInterfaces"][0]["MacAddress"] =
                record["NetworkInterfaces"][0]["MacAddress"].clone();
            thief
        }),
        (
            400,
            "put",
            "/v1/instances/{id}",
            "/v1/instances/i-9".into(),
            record.clone(),
        ),
        (
            200,
            "delete",
            "/v1/instances/{id}",
            "/v1/instances/i-9".into(),
            nothing.clone(),
        ),
        (
            404,
            "delete",
            "/v1/instances/{id}",
            "/v1/instances/i-9".into(),
            nothing.clone(),
        ),
        (200, "get", "/v1/instances/{id}", id.clone(), nothing.clone()),
        (
            200,
            "get",
            "/v1/instances/{id}/metadata-options",
            format!("{id}/metadata-options"),
            nothing.clone(),
        ),
        (
            200,
            "patch",
            "/v1/instances/{id}/metadata-options",
            format!("{id}/metadata-options"),
            json!({ "HttpTokens": null }),
        ),
        (
            400,
            "patch",
            "/v1/instances/{id}/metadata-options",
            format!("{id}/metadata-options?wait_seconds=x"),
            json!({}),
        ),
        (
            200,
            "get",
            "/v1/instances/{id}/user-data",
            format!("{id}/user-data"),
            nothing.clone(),
        ),
        (
            200,
            "put",
            "/v1/instances/{id}/user-data",
            format!("{id}/user-data"),
            json!("any bytes"),
        ),
        (
            200,
            "delete",
            "/v1/instances/{id}/user-data",
            format!("{id}/user-data"),
            nothing.clone(),
        ),
        (
            404,
            "get",
            "/v1/instances/{id}/user-data",
            format!("{id}/user-data"),
            nothing.clone(),
        ),
        (
            200,
            "get",
            "/v1/instances/{id}/tags",
            format!("{id}/tags"),
            nothing.clone(),
        ),
        (
            200,
            "put",
            "/v1/instances/{id}/tags",
            format!("{id}/tags"),
            json!({ "Tags": [{ "Key": "a b", "Value": "c" }] }),
        ),
        (
            200,
            "patch",
            "/v1/instances/{id}/tags",
            format!("{id}/tags"),
            json!({ "Tags": [], "RemoveKeys": ["a b"] }),
        ),
        (
            400,
            "patch",
            "/v1/instances/{id}/tags",
            format!("{id}/tags"),
            json!({ "Tags": [{ "Key": "no value" }] }),
        ),
        (
            200,
            "put",
            "/v1/instances/{id}/events",
            format!("{id}/events"),
            events,
        ),
        (
            200,
            "get",
            "/v1/instances/{id}/events",
            format!("{id}/events"),
            nothing.clone(),
        ),
        (
            200,
            "patch",
            "/v1/instances/{id}/events",
            format!("{id}/events"),
            json!({ "SpotInterruption": null }),
        ),
        (
            400,
            "patch",
            "/v1/instances/{id}/events",
            format!("{id}/events"),
            json!({ "Spot": null }),
        ),
        (
            200,
            "get",
            "/v1/instances/{id}/iam-instance-profile",
            format!("{id}/iam-instance-profile"),
            nothing.clone(),
        ),
        (
            409,
            "post",
            "/v1/instances/{id}/iam-instance-profile",
            format!("{id}/iam-instance-profile"),
            named(INSTANCE_PROFILE),
        ),
        (
            200,
            "delete",
            "/v1/instances/{id}/iam-instance-profile",
            format!("{id}/iam-instance-profile"),
            nothing.clone(),
        ),
        (
            404,
            "get",
            "/v1/instances/{id}/iam-instance-profile",
            format!("{id}/iam-instance-profile"),
            nothing.clone(),
        ),
        (
            404,
            "post",
            "/v1/instances/{id}/iam-instance-profile",
            format!("{id}/iam-instance-profile"),
            named("nobody"),
        ),
        (
            200,
            "post",
            "/v1/instances/{id}/iam-instance-profile",
            format!("{id}/iam-instance-profile"),
            named(INSTANCE_PROFILE),
        ),
        (
            200,
            "put",
            "/v1/instances/{id}/iam-instance-profile",
            format!("{id}/iam-instance-profile"),
            json!({ "Arn": arn }),
        ),
        (
            200,
            "get",
            "/v1/instances/{id}/metadata/{path}",
            format!("{id}/metadata/latest/meta-data/"),
            nothing.clone(),
        ),
        (
            404,
            "get",
            "/v1/instances/{id}/metadata/{path}",
            format!("{id}/metadata/latest/nothing"),
            nothing.clone(),
        ),
        (200, "get", "/v1/roles", "/v1/roles".into(), nothing.clone()),
        (201, "put", "/v1/roles/{name}", "/v1/roles/odd".into(), odd),
        (200, "put", "/v1/roles/{name}", format!("/v1/roles/{ROLE}"), role),
        (
            200,
            "get",
            "/v1/roles/{name}",
            format!("/v1/roles/arn:aws:iam::{ACCOUNT}:role%2Fpath%2Fodd"),
            nothing.clone(),
        ),
        (
            409,
            "delete",
            "/v1/roles/{name}",
            format!("/v1/roles/{ROLE}"),
            nothing.clone(),
        ),
        (
            200,
            "get",
            "/v1/instance-profiles",
            "/v1/instance-profiles".into(),
            nothing.clone(),
        ),
        (
            200,
            "get",
            "/v1/instance-profiles/{name}",
            format!("/v1/instance-profiles/{INSTANCE_PROFILE}"),
            nothing.clone(),
        ),
        (
            200,
            "put",
            "/v1/instance-profiles/{name}",
            format!("/v1/instance-profiles/{INSTANCE_PROFILE}"),
            profile,
        ),
        (
            201,
            "put",
            "/v1/instance-profiles/{name}",
            "/v1/instance-profiles/spare".into(),
            spare,
        ),
        (
            200,
            "put",
            "/v1/instance-profiles/{name}/roles/{role}",
            "/v1/instance-profiles/spare/roles/odd".into(),
            nothing.clone(),
        ),
        (
            409,
            "put",
            "/v1/instance-profiles/{name}/roles/{role}",
            format!("/v1/instance-profiles/spare/roles/{ROLE}"),
            nothing.clone(),
        ),
        (
            409,
            "delete",
            "/v1/instance-profiles/{name}",
            "/v1/instance-profiles/spare".into(),
            nothing.clone(),
        ),
        (
            200,
            "delete",
            "/v1/instance-profiles/{name}/roles/{role}",
            "/v1/instance-profiles/spare/roles/odd".into(),
            nothing.clone(),
        ),
        (
            200,
            "delete",
            "/v1/instance-profiles/{name}",
            "/v1/instance-profiles/spare".into(),
            nothing.clone(),
        ),
        (
            200,
            "delete",
            "/v1/roles/{name}",
            "/v1/roles/odd".into(),
            nothing.clone(),
        ),
    ];
    let mut done = Vec::new();
    for (status, method, path, target, body) in exchanges {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let response = ask(&host.files.socket(), &method.to_uppercase(), &target, &[], &body)?;
        assert_eq!(response.status, status, "{method} {target}: {}", response.text());
        check(&description, method, path, &response).with_context(|| format!("{method} {target}"))?;
        if status < 300 {
            done.push((method.to_owned(), path.to_owned()));
        }
    }
    done.sort();
    done.dedup();
    assert_eq!(done, operations, "every operation is done once");

    // Versions: what was seen is what is changed, or nothing is.
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
            record.to_string().as_bytes()
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

#[test]
fn the_peers_user_and_groups_decide_what_it_may() -> Result<()> {
    let config = "control.read_group = \"5000\"\ncontrol.admin_group = \"5001\"";
    let mut host = Host::new(config, |_| ())?;
    let socket = host.files.socket();
    let directory = socket.parent().context("no directory")?;
    // Others than root have to reach socket and program.
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    let program = directory.join("imdsctl");
    fs::copy(program_called("imdsctl")?, &program)?;
    let as_user = |groups: &str, arguments: &str| -> Result<Output> {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=4000", "--regid=4000", groups])
            .arg(&program)
            .arg("--socket")
            .arg(&socket);
        Ok(command.args(arguments.split_whitespace()).output()?)
    };
    let (none, reader, admin) = ("--clear-groups", "--groups=4001,5000", "--groups=5001");
    let tag = format!("tags create {INSTANCE_ID} team=red");
    let user_data = format!("get {INSTANCE_ID} user-data");
    let secrets = format!("get {INSTANCE_ID} meta-data/ --show-secrets");
    let record = format!("instance show {INSTANCE_ID}");
    for (groups, arguments, is_allowed) in [
        (none, "status", false),
        (none, record.as_str(), false),
        (none, tag.as_str(), false),
        (reader, "status", true),
        (reader, record.as_str(), true),
        (reader, tag.as_str(), false),
        (reader, user_data.as_str(), false),
        (reader, secrets.as_str(), false),
        (reader, "reload", false),
        (admin, "status", true),
        (admin, tag.as_str(), true),
        (admin, user_data.as_str(), true),
        (admin, secrets.as_str(), true),
    ] {
        let output = as_user(groups, arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.success(),
            is_allowed,
            "{groups} {arguments}: {errors}"
        );
        assert!(
            is_allowed || errors.contains("control.admin_group") || errors.contains("the admin group"),
            "{errors}"
        );
    }
    let shown =
        |groups: &str| -> Result<Value> { Ok(serde_json::from_slice(&as_user(groups, &record)?.stdout)?) };
    assert!(shown(admin)?.get("UserData").is_some());
    assert!(
        shown(reader)?.get("UserData").is_none(),
        "readers are shown user data"
    );

    // However many connections a stranger holds, others get theirs.
    let hold = "
import socket, sys
held = [socket.socket(socket.AF_UNIX) for _ in range(40)]
for one in held: one.connect(sys.argv[1])
held[-1].settimeout(10)
try:
    held[-1].sendall(b'GET /healthz HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
    answer = held[-1].recv(1)
except OSError:
    answer = b''
print('answered' if answer else 'turned away', flush=True)
sys.stdin.read()
";
    let mut stranger = Command::new("setpriv")
        .args([
            "--reuid=4000",
            "--regid=4000",
            none,
            "/usr/bin/python3",
            "-c",
            hold,
        ])
        .arg(&socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut told = String::new();
    BufReader::new(stranger.stdout.take().context("no output")?).read_line(&mut told)?;
    assert_eq!(told.trim(), "turned away");
    assert!(as_user(reader, "status")?.status.success());
    drop(stranger.stdin.take());
    stranger.wait()?;

    // Who changed something is in the log, and who tried to.
    for status in [403, 200] {
        let line = format!("user 4000: PATCH /v1/instances/{INSTANCE_ID}/tags: {status}");
        host.agent.wait_for_log(&line)?;
    }

    // Without groups nobody but root gets through the file's mode.
    let host = Host::new("", |_| ())?;
    let mode = fs::metadata(host.files.socket())?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    Ok(())
}

/// The configuration of a host, written anew.
fn configure(files: &HostFiles, change: impl FnOnce(String) -> String) -> Result<()> {
    let text = fs::read_to_string(files.config())?;
    Ok(fs::write(files.config(), change(text))?)
}

#[test]
fn configuration_is_reloaded_on_a_signal_and_by_the_socket() -> Result<()> {
    let mut host = Host::new("", |record| record["MetadataOptions"] = json!({}))?;
    let guest = host.guest()?;
    let untokened = || {
        let ask = || exchange("GET /latest/meta-data/instance-id HTTP/1.1\r\n\r\n");
        guest.namespace.enter(ask).map(|response| response.status)
    };
    assert_eq!(untokened()?, 401);
    configure(&host.files, |text| {
        text + "[metadata_options]\nHttpTokens = \"optional\"\n"
    })?;
    kill(host.agent.pid()?, Signal::SIGHUP)?;
    wait_for("tokens are optional", untokened, |status| *status == 200)?;

    // With a mistake in it nothing changes, and the mistake is named.
    configure(&host.files, |text| {
        text.replace("\"optional\"", "\"required\"\nHttpToken = 1")
    })?;
    let refused = json_of(&host, 422, "POST", "/v1/reload", &Value::Null)?;
    assert!(
        refused["message"]
            .as_str()
            .is_some_and(|text| text.contains("metadata_options.HttpToken")),
        "{refused}"
    );
    kill(host.agent.pid()?, Signal::SIGHUP)?;
    host.agent
        .wait_for_log("SIGHUP: the configuration stays as it is")?;
    assert_eq!(untokened()?, 200);

    // What cannot change on a running agent is named, and the rest changes.
    configure(&host.files, |text| {
        let text = text
            .replace("\nHttpToken = 1", "")
            .replace("state_directory = \"", "state_directory = \"/elsewhere");
        format!("user_data_bytes_max = 4\npackets_per_second = 500\nlog_level = \"debug\"\n{text}")
    })?;
    let reloaded = imdsctl_json(&host.files, "reload")?;
    let changed = json!([
        "log_level",
        "packets_per_second",
        "user_data_bytes_max",
        "metadata_options"
    ]);
    assert_eq!(
        (&reloaded["changed"], &reloaded["needsRestart"]),
        (&changed, &json!(["state_directory"]))
    );
    wait_for("tokens are required", untokened, |status| *status == 401)?;
    let status = || imdsctl(&host.files)?.arg("status").output().map_err(Into::into);
    // The record's user data is longer; it goes on being served, and is a problem from now on.
    let is_told = |output: &Output| String::from_utf8_lossy(&output.stdout).contains("more than 4");
    wait_for("the problem", status, is_told)?;
    assert_eq!(seen_text(&guest, "user-data")?, records::USER_DATA);
    let long = ask(
        &host.files.socket(),
        "PUT",
        &instance_path("/user-data"),
        &[],
        b"12345",
    )?;
    assert_eq!(long.status, 400, "{}", long.text());
    assert_eq!(
        ask(
            &host.files.socket(),
            "PUT",
            &instance_path("/user-data"),
            &[],
            b"1234"
        )?
        .status,
        200
    );

    // Taps that are no longer the agent's business are left alone, and taken back.
    let taps = || {
        Ok(imdsctl_json(&host.files, "status")?["taps"]
            .as_array()
            .map_or(0, Vec::len))
    };
    configure(&host.files, |text| format!("taps = [\"other*\"]\n{text}"))?;
    imdsctl_json(&host.files, "reload")?;
    wait_for("no tap", taps, |count| *count == 0)?;
    configure(&host.files, |text| text.replace("other*", "tap?"))?;
    imdsctl_json(&host.files, "reload")?;
    wait_for("the tap", taps, |count| *count == 1)?;
    // Until then the guest's ARP has no answer.
    wait_for(
        "the guest is served",
        || Ok(untokened().unwrap_or(0)),
        |status| *status == 401,
    )?;
    Ok(())
}

/// Runs the agent until it ends by itself.
fn ends(
    namespace: &Namespace,
    files: &HostFiles,
    wrap: &[&str],
    arguments: &str,
) -> Result<(Option<i32>, String)> {
    let program = program()?;
    let mut command = match wrap {
        [] => namespace.command(&program),
        [wrapper, options @ ..] => {
            let mut command = namespace.command(wrapper);
            command.args(options).arg(&program);
            command
        }
    };
    command
        .args(arguments.split_whitespace())
        .arg("--config")
        .arg(files.config());
    let output = command.stdin(Stdio::null()).env_remove("RUST_LOG").output()?;
    let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    Ok((output.status.code(), text.into_owned()))
}

#[test]
fn each_way_to_fail_has_its_code_and_its_sentence() -> Result<()> {
    let host = Host::new("", |_| ())?;
    let namespace = Namespace::new()?;
    let files = || HostFiles::new("");
    let fails = |files: &HostFiles, wrap: &[&str], code: i32, sentence: &str| -> Result<()> {
        let (ended, text) = ends(&namespace, files, wrap, "run")?;
        assert_eq!(ended, Some(code), "{text}");
        let last = text.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("imds-agent: ") && last.contains(sentence),
            "{text}"
        );
        Ok(())
    };

    let unknown = files()?;
    configure(&unknown, |text| text + "tap = \"auto\"\n")?;
    fails(&unknown, &[], 3, "unknown field `tap`")?;

    let plain = files()?;
    let without = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"];
    fails(&plain, &without, 4, "CAP_BPF")?;

    let occupied = files()?;
    let socket = host.files.socket();
    configure(&occupied, |text| {
        text.replace(
            &occupied.socket().display().to_string(),
            &socket.display().to_string(),
        )
    })?;
    fails(&occupied, &[], 5, "is in use by another agent")?;
    // And the one that was there is still there.
    assert_eq!(ask(&socket, "GET", "/healthz", &[], b"")?.status, 200);

    let unreadable = files()?;
    fs::remove_dir_all(unreadable.state())?;
    fs::write(unreadable.state(), "not a directory")?;
    fails(&unreadable, &[], 6, "can be neither read nor made")?;

    let groupless = files()?;
    configure(&groupless, |text| {
        format!("control.read_group = \"nobody-has-this\"\n{text}")
    })?;
    fails(&groupless, &[], 3, "control.read_group: there is no group")?;
    let (ended, text) = ends(&namespace, &groupless, &[], "check")?;
    assert!(ended == Some(1) && text.contains("control.read_group"), "{text}");

    // Before the first run there are no directories, and that is fine.
    let fresh = files()?;
    fs::remove_dir_all(fresh.state())?;
    let (ended, text) = ends(&namespace, &fresh, &[], "check")?;
    assert_eq!(ended, Some(0), "{text}");
    assert!(
        text.contains("roles is not there yet") && text.contains("0 errors"),
        "{text}"
    );
    Ok(())
}

#[test]
fn what_a_killed_agent_left_of_its_socket_is_replaced() -> Result<()> {
    let Host {
        agent,
        files,
        tap: _tap,
        namespace,
    } = Host::new("", |_| ())?;
    agent.kill()?;
    ensure!(files.socket().exists(), "a killed agent leaves its socket");
    let error = run(imdsctl(&files)?.arg("status")).unwrap_err().to_string();
    assert!(error.contains("no agent can be reached at"), "{error}");
    let agent = Agent::start(&program()?, &namespace, &files)?;
    assert_eq!(ask(&files.socket(), "GET", "/readyz", &[], b"")?.status, 200);
    agent.stop()?;
    ensure!(!files.socket().exists(), "a stopped agent leaves its socket");
    Ok(())
}
