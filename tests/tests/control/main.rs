//! The operators' socket, with the real `imdsctl`, the bare bytes, and a guest that sees what comes of it.

mod access;
mod described;
mod process;
mod watched;

use std::{fs, process::Output};

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    client::{Response, exchange, get, text, token, wait_for},
    control::{ask, imdsctl, imdsctl_json, run},
    host::{Host, INSTANCE_ID},
    kernel_guest::KernelGuest,
    records::{self, ACCOUNT},
};
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
    // Another account may have one of the same name.
    ctl("role create --role-name blue --account-id 222222222222")?;
    ctl("instance-profile create --instance-profile-name blue-profile --account-id 222222222222")?;
    let error = ctl(&format!("role create --role-name blue --account-id {ACCOUNT}"));
    ensure!(error.unwrap_err().to_string().contains("exists already"));
    ctl("role delete --role-name arn:aws:iam::222222222222:role/blue")?;
    ctl(
        "instance-profile delete --instance-profile-name arn:aws:iam::222222222222:instance-profile/blue-profile",
    )?;
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
        String::from_utf8_lossy(&output.stdout).contains("no record names it or has the MAC that it shows")
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
