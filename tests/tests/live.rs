//! What changes on a running instance: its record is written anew, and the guest sees it at once. The
//! metadata options, tags, notices of what is about to happen, and user data.
//!
//! "At once" is counted in events and not in time, which a busy machine would make a matter of luck: one write makes one
//! revision of the registry, and the very next request is answered by it. That nothing waits by the clock on the
//! way from the write to the revision is held by a test of the registry on a clock of its own, and by `cargo xtask tidy`.

use std::{
    os::fd::AsRawFd as _,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use imds_tests::{
    client::{Response, exchange, get, text, token, wait_for},
    host::{ADDRESS, Host, INSTANCE_ID},
    kernel_guest::KernelGuest,
    records,
};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket},
};
use serde_json::{Value, json};

/// A running instance whose record can be changed.
struct Instance {
    host: Host,
    guest: KernelGuest,
    record: Value,
}

impl Instance {
    fn new() -> Result<Self> {
        let (host, guest) = Host::with_guest(|_| ())?;
        let record = records::instance(INSTANCE_ID, records::guest_mac(2), "tap0", ADDRESS);
        Ok(Self { host, guest, record })
    }

    /// Writes the record with a change. Once the agent says that it has read it, `ask` is answered as `wanted`, the first time.
    fn change<T: std::fmt::Debug + Send>(
        &mut self,
        what: &str,
        change: impl FnOnce(&mut Value),
        ask: impl Fn() -> Result<T> + Send,
        wanted: impl Fn(&T) -> bool + Send,
    ) -> Result<T> {
        change(&mut self.record);
        let begin = Instant::now();
        self.host.files.put("instances", INSTANCE_ID, &self.record)?;
        self.host.agent.wait_for_log("registry revision")?;
        let answer = self.guest.namespace.enter(ask)?;
        println!("{what}: seen after {:?}", begin.elapsed());
        ensure!(wanted(&answer), "{what}: {answer:?}");
        Ok(answer)
    }

    fn token(&self) -> Result<String> {
        self.guest.namespace.enter(token)
    }
}

fn untokened(path: &str) -> Result<Response> {
    exchange(&format!("GET /latest/{path} HTTP/1.1\r\n\r\n"))
}

#[test]
fn metadata_options_are_in_force_when_their_record_is_read() -> Result<()> {
    let mut instance = Instance::new()?;
    let token = instance.token()?;
    let id = "meta-data/instance-id";
    let options = |name: &'static str, value: Value| {
        move |record: &mut Value| record["MetadataOptions"][name] = value.clone()
    };
    instance.change(
        "HttpTokens optional",
        options("HttpTokens", json!("optional")),
        || untokened(id),
        |response| response.status == 200,
    )?;
    instance.change(
        "HttpTokens required",
        options("HttpTokens", json!("required")),
        || untokened(id),
        |response| response.status == 401,
    )?;
    instance.change(
        "HttpEndpoint disabled",
        options("HttpEndpoint", json!("disabled")),
        || get(&token, id),
        |response| response.status == 403,
    )?;
    instance.change(
        "HttpEndpoint enabled",
        options("HttpEndpoint", json!("enabled")),
        || get(&token, id),
        |response| response.status == 200,
    )?;
    let tag = "meta-data/tags/instance/team";
    instance.change(
        "InstanceMetadataTags disabled",
        options("InstanceMetadataTags", json!("disabled")),
        || get(&token, tag),
        |response| response.status == 404,
    )?;
    instance.change(
        "InstanceMetadataTags enabled",
        options("InstanceMetadataTags", json!("enabled")),
        || get(&token, tag),
        |response| response.text() == "blue",
    )?;
    for limit in [2, 64, 1] {
        instance.change(
            &format!("HttpPutResponseHopLimit {limit}"),
            options("HttpPutResponseHopLimit", json!(limit)),
            hop_limit_of_a_token,
            |seen| *seen == limit,
        )?;
    }
    // What `describe-instances` says of a change that is under way is no option: it is taken and has no effect.
    instance.change(
        "State",
        |record| {
            record["MetadataOptions"]["State"] = "pending".into();
            record["InstanceType"] = "m5.xlarge".into();
        },
        || text(&token, "meta-data/instance-type"),
        |found| found == "m5.xlarge",
    )?;
    Ok(())
}

/// The IP hop limit that a token's response arrives with, as a listener on the guest's interface sees it.
fn hop_limit_of_a_token() -> Result<u8> {
    let listener = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthIp,
    )?;
    token()?;
    let mut limit = None;
    let mut packet = [0; 2048];
    loop {
        match recv(listener.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(length) => {
                let packet = &packet[..length];
                let is_from_service = packet[12..16] == [169, 254, 169, 254];
                if is_from_service && packet.windows(5).any(|bytes| bytes == b"HTTP/") {
                    limit = Some(packet[8]);
                }
            }
            Err(Errno::EAGAIN) => return limit.context("no packet of the response was seen"),
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn tags_of_any_key_can_be_had_where_the_index_is_switched_on() -> Result<()> {
    let mut instance = Instance::new()?;
    let token = instance.token()?;
    let tags = "meta-data/tags/instance";
    let index = "meta-data/tags/instance-index";
    instance.change(
        "new tags",
        |record| {
            let new = [
                json!({ "Key": "kubernetes.io/cluster/blue", "Value": "owned" }),
                json!({ "Key": "cost center", "Value": "42" }),
                json!({ "Key": "größe", "Value": "XL" }),
                json!({ "Key": "stage", "Value": "test" }),
            ];
            record["Tags"].as_array_mut().expect("tags").extend(new);
        },
        || text(&token, &format!("{tags}/")),
        |listing| listing == "Name\nteam\nstage",
    )?;
    let odd = [
        "kubernetes.io%2Fcluster%2Fblue",
        "cost%20center",
        "gr%C3%B6%C3%9Fe",
    ];
    instance.guest.namespace.enter(|| -> Result<()> {
        ensure!(get(&token, index)?.status == 404);
        for key in odd {
            ensure!(get(&token, &format!("{tags}/{key}"))?.status == 404, "{key}");
        }
        Ok(())
    })?;
    let indexed = instance.change(
        "InstanceMetadataTagsIndex",
        |record| record["MetadataOptions"]["InstanceMetadataTagsIndex"] = "enabled".into(),
        || get(&token, index),
        |response| response.status == 200,
    )?;
    let indexed: Value = serde_json::from_slice(&indexed.body)?;
    assert_eq!(
        indexed,
        json!({
            "Name": "web-1", "team": "blue", "kubernetes.io/cluster/blue": "owned",
            "cost center": "42", "größe": "XL", "stage": "test",
        })
    );
    instance.guest.namespace.enter(|| -> Result<()> {
        for (key, value) in odd.into_iter().zip(["owned", "42", "XL"]) {
            assert_eq!(text(&token, &format!("{tags}/{key}"))?, value);
        }
        assert_eq!(text(&token, tags)?, "Name\nteam\nstage");
        Ok(())
    })
}

/// As a record has it: with the precision of a clock.
fn in_a_moment(wait: Duration) -> (SystemTime, String) {
    let time = SystemTime::now() + wait;
    let time = jiff::Timestamp::try_from(time).expect("a time of this century");
    (time.into(), time.to_string())
}

#[test]
fn notices_are_set_delayed_and_cleared() -> Result<()> {
    let mut instance = Instance::new()?;
    let token = instance.token()?;
    let action = "meta-data/spot/instance-action";
    let is_there = |response: &Response| response.status == 200;
    let is_absent = |response: &Response| response.status == 404;
    ensure!(is_absent(
        &instance.guest.namespace.enter(|| get(&token, action))?
    ));

    let notice = instance.change(
        "an interruption",
        |record| {
            record["Events"]["SpotInterruption"] =
                json!({ "Action": "terminate", "Time": "2026-11-21T08:22:00Z" });
        },
        || get(&token, action),
        is_there,
    )?;
    assert_eq!(
        notice.text(),
        r#"{"action":"terminate","time":"2026-11-21T08:22:00Z"}"#
    );
    let termination = instance
        .guest
        .namespace
        .enter(|| text(&token, "meta-data/spot/termination-time"))?;
    assert_eq!(termination, "2026-11-21T08:22:00Z");
    instance.change(
        "no interruption",
        |record| record["Events"] = json!({}),
        || get(&token, action),
        is_absent,
    )?;

    // Written now, to be seen from `after` to `until`: nothing is written at those moments.
    let (after, visible_after) = in_a_moment(Duration::from_secs(1));
    let (until, visible_until) = in_a_moment(Duration::from_secs(4));
    instance.record["Events"] = json!({
        "RebalanceRecommendation": {
            "NoticeTime": "2026-11-21T08:20:00Z", "VisibleAfter": visible_after, "VisibleUntil": visible_until
        },
        "AutoScaling": [
            { "TargetLifecycleState": "InService" },
            { "TargetLifecycleState": "Warmed:Stopped", "VisibleAfter": visible_after },
        ],
    });
    let state = "meta-data/autoscaling/target-lifecycle-state";
    instance.change(
        "a delayed notice",
        |_| (),
        || get(&token, state),
        |response| response.text() == "InService" || SystemTime::now() >= after,
    )?;
    let rebalance = || get(&token, "meta-data/events/recommendations/rebalance");
    instance.guest.namespace.enter(|| -> Result<()> {
        let before = rebalance()?;
        if SystemTime::now() < after {
            ensure!(is_absent(&before), "seen too early");
        }
        let (notice, _) = wait_for("the recommendation", rebalance, is_there)?;
        ensure!(SystemTime::now() >= after, "seen too early");
        assert_eq!(notice.text(), r#"{"noticeTime":"2026-11-21T08:20:00Z"}"#);
        assert_eq!(text(&token, state)?, "Warmed:Stopped");
        wait_for("the end of the recommendation", rebalance, is_absent)?;
        ensure!(SystemTime::now() >= until, "gone too early");
        Ok(())
    })
}

#[test]
fn maintenance_is_scheduled_and_becomes_history() -> Result<()> {
    let mut instance = Instance::new()?;
    let token = instance.token()?;
    let scheduled = || get(&token, "meta-data/events/maintenance/scheduled");
    let history = || get(&token, "meta-data/events/maintenance/history");
    let (before, _) = instance
        .guest
        .namespace
        .enter(|| -> Result<_> { Ok((scheduled()?, history()?)) })?;
    assert_eq!(before.text(), "[]");
    // As `aws ec2 describe-instance-status` prints it.
    let event = json!({
        "InstanceEventId": "instance-event-0d59937288b749b32",
        "Code": "system-reboot",
        "Description": "scheduled reboot",
        "NotBefore": "2019-01-21T09:00:43.000Z",
        "NotAfter": "2019-01-21T09:17:23.000Z",
        "NotBeforeDeadline": "2019-02-05T11:00:00.000Z"
    });
    let body = |description: &str, state: &str| {
        json!([{
            "NotBefore": "21 Jan 2019 09:00:43 GMT",
            "Code": "system-reboot",
            "Description": description,
            "EventId": "instance-event-0d59937288b749b32",
            "NotAfter": "21 Jan 2019 09:17:23 GMT",
            "State": state,
        }])
    };
    let found = instance.change(
        "scheduled maintenance",
        |record| record["Events"]["Maintenance"] = json!([event]),
        scheduled,
        |response| response.text() != "[]",
    )?;
    assert_eq!(
        serde_json::from_slice::<Value>(&found.body)?,
        body("scheduled reboot", "active")
    );
    let found = instance.change(
        "canceled maintenance",
        |record| record["Events"]["Maintenance"][0]["State"] = "canceled".into(),
        history,
        |response| response.text() != "[]",
    )?;
    assert_eq!(
        serde_json::from_slice::<Value>(&found.body)?,
        body("[Canceled] scheduled reboot", "canceled")
    );
    let after = instance.guest.namespace.enter(scheduled)?;
    assert_eq!(after.text(), "[]");
    Ok(())
}

#[test]
fn user_data_is_exact_and_can_be_changed() -> Result<()> {
    let mut instance = Instance::new()?;
    let token = instance.token()?;
    let every_byte: Vec<u8> = (0..=255).collect();
    // What `gzip` makes of nothing: a header with zeroes, a deflate block and a trailer.
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00".to_vec();
    let longest: Vec<u8> = every_byte.iter().rev().copied().cycle().take(16 * 1024).collect();
    for (what, bytes) in [
        ("every byte", every_byte),
        ("gzip", gzip),
        ("16 KiB", longest),
        ("lines without an end", b"\r\n\r\n#!/bin/sh".to_vec()),
    ] {
        let response = instance.change(
            &format!("user data: {what}"),
            |record| record["UserData"] = STANDARD.encode(&bytes).into(),
            || get(&token, "user-data"),
            |response| response.body == bytes,
        )?;
        assert_eq!(response.field("Content-Type"), Some("application/octet-stream"));
        assert_eq!(
            response.field("Content-Length"),
            Some(bytes.len().to_string().as_str())
        );
    }
    instance.change(
        "no user data",
        |record| record["UserData"] = Value::Null,
        || get(&token, "user-data"),
        |response| response.status == 404,
    )?;
    let roots = instance.guest.namespace.enter(|| text(&token, ""))?;
    assert_eq!(roots, "dynamic\nmeta-data");
    Ok(())
}
