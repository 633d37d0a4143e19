//! B.5: what the role, its credentials and the instance profile look like.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{no_role, shapes::time};
use crate::imdsctl::conformance::{
    client::Reply,
    finding::{Check, Finding, Judge, Mark::*, Outcome},
    subject::Subject,
};

const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

const EXTENDED: &str = "/latest/meta-data/iam/security-credentials-extended/";

/// The keys of role credentials in the order of EC2.
const CREDENTIAL_KEYS: [&str; 7] = [
    "Code",
    "LastUpdated",
    "Type",
    "AccessKeyId",
    "SecretAccessKey",
    "Token",
    "Expiration",
];

pub(super) const CHECKS: [Check; 13] = [
    Check::new(
        "B.5/1",
        S,
        "the role list is one line, without a newline: botocore uses it verbatim",
        "GET iam/security-credentials/",
        role_list,
    ),
    Check::new(
        "B.5/2a",
        S,
        "credentials have what the SDKs need, `Code` is Success",
        "GET …/<role>",
        credentials,
    ),
    Check::new(
        "B.5/2b",
        C,
        "their keys come in EC2's order",
        "GET …/<role>",
        credential_order,
    ),
    Check::new(
        "B.5/2c",
        C,
        "they are written `\"Key\" : value`, one a line",
        "GET …/<role>",
        credential_layout,
    ),
    Check::new(
        "B.5/2d",
        S,
        "their times are YYYY-MM-DDTHH:MM:SSZ, which botocore insists on",
        "GET …/<role>",
        credential_times,
    ),
    Check::new(
        "B.5/2e",
        D,
        "they expire in five minutes or later",
        "GET …/<role>",
        expiration,
    ),
    Check::new(
        "B.5/2f",
        I,
        "and in fifteen minutes or later: botocore warns below ten",
        "GET …/<role>",
        headroom,
    ),
    Check::new(
        "B.5/3",
        C,
        "`iam/info` has Code, LastUpdated, InstanceProfileArn, InstanceProfileId",
        "GET iam/info",
        iam_info,
    ),
    Check::new(
        "B.5/4",
        D,
        "a role that cannot be assumed: 200 with Code and Message",
        "GET …/<role>",
        refused_role,
    ),
    Check::new(
        "B.5/5",
        D,
        "without an instance profile `iam/` is neither listed nor served",
        "GET meta-data/, iam/, iam/info",
        no_profile,
    ),
    Check::new(
        "B.5/6",
        D,
        "the id of the instance profile is no role",
        "GET …/<InstanceProfileId>",
        profile_id,
    ),
    Check::new(
        "B.5/7",
        S,
        "`security-credentials-extended/` adds AccountId, or is a clean 404",
        "GET iam/security-credentials-extended/",
        extended,
    ),
    Check::new(
        "B.5/8",
        D,
        "`identity-credentials/ec2/security-credentials/ec2-instance` is shaped like role credentials",
        "GET it",
        instance_credentials,
    ),
];

fn role_list(subject: &Subject) -> Outcome {
    if subject.facts.role.is_none() {
        return Ok(no_role());
    }
    let reply = subject.get(ROLES)?;
    let mut judge = Judge::default();
    judge.status("GET", &reply, &[200]);
    judge.require(
        !reply.body.contains(&b'\n'),
        "one name, no newline",
        format!("{} lines", reply.lines().len()),
    );
    Ok(judge.finding())
}

/// The credentials of the instance's role, or why there is nothing to grade.
fn granted(
    subject: &Subject,
) -> Result<Result<Reply, Finding>, crate::imdsctl::conformance::client::ExchangeError> {
    let Some(role) = &subject.facts.role else {
        return Ok(Err(no_role()));
    };
    let reply = subject.get(&format!("{ROLES}{role}"))?;
    if reply.status == 200 && code(&reply).is_some_and(|code| code != "Success") {
        return Ok(Err(Finding::skip("the role cannot be assumed (see B.5/4)")));
    }
    Ok(Ok(reply))
}

/// Grades the credentials with `grade`, if there are any.
fn on_granted(subject: &Subject, grade: impl FnOnce(&mut Judge, &Reply)) -> Outcome {
    let reply = match granted(subject)? {
        Ok(reply) => reply,
        Err(skip) => return Ok(skip),
    };
    let mut judge = Judge::default();
    if judge.status("GET", &reply, &[200]) {
        grade(&mut judge, &reply);
    }
    Ok(judge.finding())
}

fn credentials(subject: &Subject) -> Outcome {
    on_granted(subject, |judge, reply| {
        judge.require(
            code(reply).as_deref() == Some("Success"),
            "Code: Success",
            "no such Code",
        );
        for key in ["AccessKeyId", "SecretAccessKey", "Token", "Expiration"] {
            let is_there = text(reply, key).is_some_and(|value| !value.is_empty());
            judge.require(is_there, format!("{key}: a text"), format!("{key}: none"));
        }
    })
}

fn credential_order(subject: &Subject) -> Outcome {
    on_granted(subject, |judge, reply| {
        require_keys(judge, reply, &CREDENTIAL_KEYS);
    })
}

fn credential_layout(subject: &Subject) -> Outcome {
    on_granted(subject, require_layout)
}

fn credential_times(subject: &Subject) -> Outcome {
    on_granted(subject, |judge, reply| {
        let mut times = Vec::new();
        for key in ["LastUpdated", "Expiration"] {
            // A key that is missing is the business of B.5/2a and B.5/2b.
            let Some(value) = text(reply, key) else { continue };
            judge.require(
                time(&value).is_some(),
                format!("{key}: YYYY-MM-DDTHH:MM:SSZ"),
                format!("{key}: {value}"),
            );
            times.extend(time(&value));
        }
        judge.require(times.is_sorted(), "LastUpdated before Expiration", "after it");
    })
}

fn expiration(subject: &Subject) -> Outcome {
    on_granted(subject, |judge, reply| {
        require_headroom(judge, reply, SignedDuration::from_mins(5));
    })
}

fn headroom(subject: &Subject) -> Outcome {
    on_granted(subject, |judge, reply| {
        require_headroom(judge, reply, SignedDuration::from_mins(15));
    })
}

fn require_headroom(judge: &mut Judge, reply: &Reply, least: SignedDuration) {
    // A time in another format is the business of B.5/2d.
    let Some(expiration) = text(reply, "Expiration").and_then(|text| text.parse::<Timestamp>().ok()) else {
        judge.require(false, "an Expiration", "none that can be read");
        return;
    };
    let left = expiration.duration_since(Timestamp::now());
    let words = format!("{} minutes left", left.as_mins());
    judge.require(
        left >= least,
        format!("{} minutes left, or more", least.as_mins()),
        words.clone(),
    );
    judge.saw(words);
}

fn iam_info(subject: &Subject) -> Outcome {
    let reply = subject.get("/latest/meta-data/iam/info")?;
    if subject.facts.role.is_none() && reply.status == 404 {
        return Ok(Finding::skip("the instance has no instance profile"));
    }
    let mut judge = Judge::default();
    if judge.status("GET", &reply, &[200]) {
        if code(&reply).as_deref() == Some("Success") {
            require_keys(
                &mut judge,
                &reply,
                &["Code", "LastUpdated", "InstanceProfileArn", "InstanceProfileId"],
            );
        } else {
            judge.require(
                text(&reply, "Message").is_some(),
                "Code: Success, or a Message",
                "neither",
            );
        }
        require_layout(&mut judge, &reply);
    }
    Ok(judge.finding())
}

fn refused_role(subject: &Subject) -> Outcome {
    let Some(role) = &subject.facts.role else {
        return Ok(no_role());
    };
    let reply = subject.get(&format!("{ROLES}{role}"))?;
    let Some(code) = code(&reply).filter(|code| code != "Success") else {
        return Ok(Finding::skip("the role can be assumed"));
    };
    let mut judge = Judge::default();
    judge.status("GET", &reply, &[200]);
    judge.saw(code);
    for key in ["Message", "LastUpdated"] {
        judge.require(text(&reply, key).is_some(), format!("a {key}"), "none");
    }
    Ok(judge.finding())
}

fn no_profile(subject: &Subject) -> Outcome {
    let info = subject.get("/latest/meta-data/iam/info")?;
    if subject.facts.role.is_some() || info.status == 200 {
        return Ok(Finding::skip("the instance has an instance profile"));
    }
    let mut judge = Judge::default();
    judge.status("iam/info", &info, &[404]);
    judge.status("iam/", &subject.get("/latest/meta-data/iam/")?, &[404]);
    judge.status(ROLES, &subject.get(ROLES)?, &[404]);
    let is_listed = subject
        .get("/latest/meta-data/")?
        .lines()
        .iter()
        .any(|line| line.trim_end_matches('/') == "iam");
    judge.require(!is_listed, "no `iam/` in the listing", "one");
    Ok(judge.finding())
}

fn profile_id(subject: &Subject) -> Outcome {
    let info = subject.get("/latest/meta-data/iam/info")?;
    let Some(id) = text(&info, "InstanceProfileId").filter(|id| info.status == 200 && !id.is_empty()) else {
        return Ok(Finding::skip("the instance profile's id is not known"));
    };
    let mut judge = Judge::default();
    judge.status("GET", &subject.get(&format!("{ROLES}{id}"))?, &[404]);
    Ok(judge.finding())
}

fn extended(subject: &Subject) -> Outcome {
    let list = subject.get(EXTENDED)?;
    let mut judge = Judge::default();
    if judge.status("the list", &list, &[200, 404]) && list.status == 200 {
        let name = list.lines().into_iter().next().unwrap_or_default();
        let reply = subject.get(&format!("{EXTENDED}{name}"))?;
        if judge.status("the credentials", &reply, &[200]) && code(&reply).as_deref() == Some("Success") {
            for key in [
                "AccessKeyId",
                "SecretAccessKey",
                "Token",
                "Expiration",
                "AccountId",
            ] {
                judge.require(
                    text(&reply, key).is_some(),
                    format!("{key}: a text"),
                    format!("{key}: none"),
                );
            }
        }
    }
    Ok(judge.finding())
}

fn instance_credentials(subject: &Subject) -> Outcome {
    let reply =
        subject.get("/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance")?;
    if reply.status == 404 {
        return Ok(Finding::skip("it is not served"));
    }
    let mut judge = Judge::default();
    if judge.status("GET", &reply, &[200]) && code(&reply).as_deref() == Some("Success") {
        require_keys(&mut judge, &reply, &CREDENTIAL_KEYS);
    }
    Ok(judge.finding())
}

pub(super) fn json(reply: &Reply) -> Option<Value> {
    serde_json::from_slice(&reply.body).ok()
}

pub(super) fn text(reply: &Reply, key: &str) -> Option<String> {
    json(reply)?.get(key)?.as_str().map(str::to_owned)
}

pub(super) fn code(reply: &Reply) -> Option<String> {
    text(reply, "Code")
}

/// Asks for these keys in this order.
pub(super) fn require_keys(judge: &mut Judge, reply: &Reply, keys: &[&str]) {
    judge.require(json(reply).is_some(), "JSON", "not JSON");
    let body = reply.text();
    let mut found: Vec<(usize, &str)> = keys
        .iter()
        .filter_map(|key| Some((body.find(&format!("\"{key}\""))?, *key)))
        .collect();
    found.sort_unstable();
    let order: Vec<&str> = found.into_iter().map(|(_, key)| key).collect();
    judge.require(order == keys, keys.join(", "), order.join(", "));
}

/// Asks for an object with one member a line, `  "Key" : value,`.
pub(super) fn require_layout(judge: &mut Judge, reply: &Reply) {
    let body = reply.text();
    let lines: Vec<&str> = body.split('\n').collect();
    let is_laid_out = match lines.as_slice() {
        ["{", members @ .., "}"] => members.iter().all(|line| {
            line.strip_prefix("  \"")
                .and_then(|rest| rest.split_once("\" : "))
                .is_some_and(|(key, value)| !key.contains('"') && !value.is_empty())
        }),
        _ => false,
    };
    judge.require(
        is_laid_out,
        "{, lines of `  \"Key\" : value,`, }",
        "another layout",
    );
}
