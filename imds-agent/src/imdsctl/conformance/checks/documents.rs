//! B.5: the identity document and the user data.

use jiff::civil::DateTime;

use super::{
    roles::{json, require_layout, text},
    shapes::time,
};
use crate::imdsctl::conformance::{
    client::Reply,
    finding::{Check, Finding, Judge, Mark::*, Outcome},
    subject::{LEAF, Subject},
};

const DOCUMENT: &str = "/latest/dynamic/instance-identity/document";

/// The keys of the identity document, which are all there, null where there is nothing to say.
const DOCUMENT_KEYS: [&str; 15] = [
    "accountId",
    "architecture",
    "availabilityZone",
    "billingProducts",
    "devpayProductCodes",
    "marketplaceProductCodes",
    "imageId",
    "instanceId",
    "instanceType",
    "kernelId",
    "pendingTime",
    "privateIp",
    "ramdiskId",
    "region",
    "version",
];

/// EC2's own limit.
const USER_DATA_BYTES_MAX: usize = 16 * 1024;

pub(super) const CHECKS: [Check; 9] = [
    Check::new(
        "B.5/9a",
        D,
        "the identity document has all fifteen keys, null where there is nothing",
        "GET instance-identity/document",
        document_keys,
    ),
    Check::new(
        "B.5/9b",
        D,
        "it is written `\"key\" : value`, version 2017-09-30",
        "GET instance-identity/document",
        document_layout,
    ),
    Check::new(
        "B.5/9c",
        D,
        "it agrees with the categories",
        "GET instance-identity/document, instance-id, region, …",
        document_agrees,
    ),
    Check::new(
        "B.5/9d",
        D,
        "it stays the same, and so does its signature",
        "GET document and signature twice",
        document_stays,
    ),
    Check::new(
        "B.5/11a",
        D,
        "`spot/instance-action` is an action and a time",
        "GET spot/instance-action",
        spot_action,
    ),
    Check::new(
        "B.5/11b",
        D,
        "maintenance events are dated `21 Jan 2019 09:00:43 GMT`",
        "GET events/maintenance/scheduled, events/maintenance/history",
        maintenance,
    ),
    Check::new(
        "B.5/11c",
        D,
        "`events/recommendations/rebalance` is a noticeTime",
        "GET events/recommendations/rebalance",
        rebalance,
    ),
    Check::new(
        "B.5/12a",
        D,
        "user data is application/octet-stream of at most 16 KiB, the same every time",
        "GET user-data twice",
        user_data,
    ),
    Check::new(
        "B.5/12b",
        D,
        "without user data it is a 404",
        "GET user-data",
        no_user_data,
    ),
];

/// Grades the identity document with `grade`, if there is one.
fn on_document(subject: &Subject, grade: impl FnOnce(&mut Judge, &Reply)) -> Outcome {
    let reply = subject.get(DOCUMENT)?;
    if reply.status == 404 {
        return Ok(Finding::skip(
            "there is no identity document (see 3/dynamic/instance-identity/document)",
        ));
    }
    let mut judge = Judge::default();
    if judge.status("GET", &reply, &[200]) {
        grade(&mut judge, &reply);
    }
    Ok(judge.finding())
}

fn document_keys(subject: &Subject) -> Outcome {
    on_document(subject, |judge, reply| {
        let document = json(reply);
        for key in DOCUMENT_KEYS {
            let is_there = document
                .as_ref()
                .is_some_and(|document| document.get(key).is_some());
            judge.require(is_there, format!("a {key}"), "none");
        }
    })
}

fn document_layout(subject: &Subject) -> Outcome {
    on_document(subject, |judge, reply| {
        require_layout(judge, reply);
        let version = text(reply, "version").unwrap_or_default();
        judge.require(
            version == "2017-09-30",
            "version: 2017-09-30",
            format!("version: {version}"),
        );
    })
}

fn document_agrees(subject: &Subject) -> Outcome {
    let pairs = [
        ("instanceId", LEAF),
        ("imageId", "/latest/meta-data/ami-id"),
        ("instanceType", "/latest/meta-data/instance-type"),
        ("privateIp", "/latest/meta-data/local-ipv4"),
        (
            "availabilityZone",
            "/latest/meta-data/placement/availability-zone",
        ),
        ("region", "/latest/meta-data/placement/region"),
    ];
    let mut values = Vec::new();
    for (key, target) in pairs {
        let reply = subject.get_kept(target)?;
        values.push((key, (reply.status == 200).then(|| reply.text())));
    }
    on_document(subject, |judge, document| {
        for (key, value) in values {
            let said = text(document, key);
            if value.is_some() && said != value {
                judge.require(
                    false,
                    format!("{key}: as in its category"),
                    format!("{key}: another value"),
                );
            }
        }
    })
}

fn document_stays(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    let mut is_any = false;
    for target in [DOCUMENT, "/latest/dynamic/instance-identity/signature"] {
        let (one, other) = (subject.get(target)?, subject.get(target)?);
        if one.status == 200 {
            is_any = true;
            judge.same_body(target, &other, &one);
        }
    }
    Ok(if is_any {
        judge.finding()
    } else {
        Finding::skip("there is no identity document")
    })
}

/// Grades the document at `path` below the metadata with `grade`, if there is one.
fn on_event(subject: &Subject, path: &str, grade: impl FnOnce(&mut Judge, &Reply)) -> Outcome {
    let reply = subject.get(&format!("/latest/meta-data/{path}"))?;
    if reply.status == 404 {
        return Ok(Finding::skip("there is no such event"));
    }
    let mut judge = Judge::default();
    if judge.status(path, &reply, &[200]) {
        grade(&mut judge, &reply);
    }
    Ok(judge.finding())
}

fn spot_action(subject: &Subject) -> Outcome {
    on_event(subject, "spot/instance-action", |judge, reply| {
        let action = text(reply, "action").unwrap_or_default();
        let is_known = ["hibernate", "stop", "terminate"].contains(&action.as_str());
        judge.require(
            is_known,
            "action: hibernate, stop or terminate",
            format!("action: {action}"),
        );
        require_time(judge, reply, "time");
    })
}

fn rebalance(subject: &Subject) -> Outcome {
    on_event(subject, "events/recommendations/rebalance", |judge, reply| {
        require_time(judge, reply, "noticeTime");
    })
}

fn require_time(judge: &mut Judge, reply: &Reply, key: &str) {
    let value = text(reply, key).unwrap_or_default();
    judge.require(
        time(&value).is_some(),
        format!("{key}: YYYY-MM-DDTHH:MM:SSZ"),
        format!("{key}: {value}"),
    );
}

fn maintenance(subject: &Subject) -> Outcome {
    for path in ["events/maintenance/history", "events/maintenance/scheduled"] {
        let finding = on_event(subject, path, |judge, reply| {
            let events = json(reply).and_then(|events| events.as_array().cloned());
            judge.require(events.is_some(), "a JSON array", reply.summary());
            for event in events.unwrap_or_default() {
                for key in ["NotBefore", "NotAfter"] {
                    if key == "NotAfter" && event.get(key).is_none() {
                        continue;
                    }
                    let date = event.get(key).and_then(|date| date.as_str()).unwrap_or_default();
                    judge.require(
                        is_event_date(date),
                        format!("{key}: 21 Jan 2019 09:00:43 GMT"),
                        format!("{key}: {date}"),
                    );
                }
            }
        })?;
        if !matches!(finding, Finding::Pass { .. }) || path.ends_with("scheduled") {
            return Ok(finding);
        }
    }
    Ok(Finding::skip("there is no such event"))
}

fn is_event_date(text: &str) -> bool {
    const FORMAT: &str = "%d %b %Y %H:%M:%S GMT";
    let date = DateTime::strptime(FORMAT, text);
    date.is_ok_and(|date| {
        // No source shows a day below ten.
        [FORMAT, "%-d %b %Y %H:%M:%S GMT"]
            .iter()
            .any(|format| date.strftime(*format).to_string() == text)
    })
}

fn user_data(subject: &Subject) -> Outcome {
    if !subject.facts.has_user_data {
        return Ok(Finding::skip("the instance has no user data"));
    }
    let (one, other) = (
        subject.get("/latest/user-data")?,
        subject.get("/latest/user-data")?,
    );
    let mut judge = Judge::default();
    judge.header("GET", &one, "Content-Type", "application/octet-stream");
    judge.same_body("the second GET", &other, &one);
    judge.require(
        one.body.len() <= USER_DATA_BYTES_MAX,
        format!("at most {USER_DATA_BYTES_MAX} bytes"),
        format!("{} bytes", one.body.len()),
    );
    Ok(judge.finding())
}

fn no_user_data(subject: &Subject) -> Outcome {
    if subject.facts.has_user_data {
        return Ok(Finding::skip("the instance has user data"));
    }
    let mut judge = Judge::default();
    judge.status("GET", &subject.get("/latest/user-data")?, &[404]);
    Ok(judge.finding())
}
