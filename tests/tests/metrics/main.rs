//! Metrics of the real agent: what guests did, counted, and nothing more.

mod limits;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    time::Duration,
};

use anyhow::{Context as _, Result};
use imds_agent::observe::metrics::FAMILIES;
use imds_ebpf::abi::{Reason, TapIndex};
use imds_tests::{
    agent::Agent,
    client::{PATIENCE, exchange, get, text, token, wait_for},
    frames::{GATEWAY_MAC, Ipv4, OTHER_MAC, eth, tcp},
    host::{Host, INSTANCE_ID, program},
    netns::Namespace,
    records::{self, ACCOUNT, ROLE, guest_mac},
    scrape::{self, Scrape},
    tap::Tap,
};

const FORGED: usize = 5;
const NOT_HTTP: usize = 3;

fn role_arn() -> String {
    format!("arn:aws:iam::{ACCOUNT}:role/{ROLE}")
}

/// Asks for the role's credentials until they are there; how often they were not yet.
fn credentials(token: &str) -> Result<(serde_json::Value, f64)> {
    let mut pending = 0.0;
    let ask = || get(token, &format!("meta-data/iam/security-credentials/{ROLE}"));
    let (response, _) = wait_for(
        "the first set",
        || {
            let response = ask()?;
            pending += if response.status == 503 { 1.0 } else { 0.0 };
            Ok(response)
        },
        |response| response.status == 200,
    )?;
    Ok((serde_json::from_slice(&response.body)?, pending))
}

/// Frames that no guest with good manners sends.
fn misbehave(tap: &Tap) -> Result<()> {
    let packet = Ipv4::default().packet(&tcp(80, 0));
    for _ in 0..FORGED {
        tap.send(&eth(GATEWAY_MAC, OTHER_MAC, &[], 0x0800, &packet))?;
    }
    let packet = Ipv4::default().packet(&tcp(443, 0));
    for _ in 0..NOT_HTTP {
        tap.send(&eth(GATEWAY_MAC, guest_mac(2), &[], 0x0800, &packet))?;
    }
    Ok(())
}

#[test]
fn numbers_are_what_was_sent() -> Result<()> {
    let host = Host::new("", |record| {
        record["MetadataOptions"]["HttpTokens"] = "optional".into();
    })?;
    // A tap that is nobody's.
    let other = host.namespace.enter(|| Tap::new("tap9"))?;
    let guest = host.guest()?;
    let before = host.wait_for_metric("imds_taps_attached", &[], 2.0)?;
    assert_eq!(before.sum("imds_requests_total", &[]), 0.0);
    assert_eq!(
        before.value("imds_request_duration_seconds_count", &[]),
        Some(0.0)
    );

    let (secrets, pending) = guest.namespace.enter(|| -> Result<_> {
        let token = token()?;
        assert_eq!(text(&token, "meta-data/instance-id")?, INSTANCE_ID);
        assert_eq!(get(&token, "no-such-thing")?.status, 404);
        assert_eq!(get("AAAA", "meta-data/")?.status, 401);
        let plain = |request: &str| exchange(&format!("{request} HTTP/1.1\r\n\r\n"));
        assert_eq!(plain("GET /latest/meta-data/")?.status, 200);
        assert_eq!(plain("GET /latest/meta-data/")?.status, 200);
        assert_eq!(plain("DELETE /latest/meta-data/")?.status, 405);
        assert_eq!(plain("nonsense")?.status, 400);
        let forwarded = format!(
            "GET / HTTP/1.1\r\nX-Forwarded-For: 10.1.1.1\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
        );
        assert_eq!(exchange(&forwarded)?.status, 403);
        let (set, pending) = credentials(&token)?;
        let mut secrets = vec![token];
        for field in ["SecretAccessKey", "Token", "AccessKeyId"] {
            secrets.push(set[field].as_str().context("a set")?.to_owned());
        }
        Ok((secrets, pending))
    })?;
    misbehave(&host.tap)?;
    other.send(&Ipv4::default().frame(&tcp(80, 0)))?;

    // A request is timed when its answer has left.
    let after = host.wait_for_metric("imds_request_duration_seconds_count", &[], 9.0 + pending)?;
    let count = |version: &str, method: &str, status: &str| {
        let labels = [("version", version), ("method", method), ("status", status)];
        after.value("imds_requests_total", &labels).unwrap_or(-1.0)
    };
    assert_eq!(count("v2", "put", "200"), 1.0);
    assert_eq!(count("v2", "get", "200"), 2.0);
    assert_eq!(count("v2", "get", "404"), 1.0);
    assert_eq!(count("v2", "get", "401"), 1.0);
    assert_eq!(count("v2", "get", "403"), 1.0);
    assert_eq!(count("v2", "get", "503"), pending);
    assert_eq!(count("v1", "get", "200"), 2.0);
    assert_eq!(count("v1", "other", "405"), 1.0);
    let all = after.sum("imds_requests_total", &[]);
    assert_eq!(all, 9.0 + pending, "and no others");
    // Every one of them was let be answered by its own frame.
    assert_eq!(after.value("imds_request_duration_seconds_count", &[]), Some(all));
    let took = after
        .value("imds_request_duration_seconds_sum", &[])
        .unwrap_or(0.0);
    assert!(took > 0.0 && took < PATIENCE.as_secs_f64(), "{took}");
    for (reason, expected) in [
        ("token-malformed", 1.0),
        ("not-found", 1.0),
        ("forwarded", 1.0),
        ("method-not-allowed", 1.0),
        ("pending", pending),
        ("token-missing", 0.0),
    ] {
        let refused = after.value("imds_requests_refused_total", &[("reason", reason)]);
        assert_eq!(refused, Some(expected), "{reason}");
    }
    assert_eq!(
        after.value("imds_requests_malformed_total", &[("status", "400")]),
        Some(1.0)
    );
    assert_eq!(after.sum("imds_requests_malformed_total", &[]), 1.0);
    assert_eq!(
        after.value("imds_requests_forwarded_total", &[("version", "v2")]),
        Some(1.0)
    );
    assert_eq!(after.value("imds_session_tokens_minted_total", &[]), Some(1.0));
    let delivered = |kind| after.value("imds_role_credentials_delivered_total", &[("kind", kind)]);
    assert_eq!(
        [delivered("instance-profile"), delivered("instance-identity")],
        [Some(1.0), Some(0.0)]
    );

    for reason in Reason::ALL {
        let expected = match reason {
            Reason::SourceMacForged => FORGED as f64,
            Reason::NotHttpPort => NOT_HTTP as f64,
            Reason::TapUnbound => 1.0,
            _ => 0.0,
        };
        let number = (reason as u32).to_string();
        let labels = [("number", number.as_str()), ("reason", reason.name())];
        assert_eq!(
            after.value("imds_frames_dropped_total", &labels),
            Some(expected),
            "{reason:?}"
        );
    }
    let value = |name: &str| after.value(name, &[]).with_context(|| name.to_owned());
    // SYN, acknowledgement, request, FIN: and an ARP request before all of them.
    assert!(value("imds_frames_punted_total")? >= all * 3.0);
    assert!(value("imds_frames_hairpinned_total")? >= 1.0);
    assert!(value("imds_frames_injected_total")? >= all * 2.0);
    assert_eq!(value("imds_frames_lost_total")?, 0.0);
    assert_eq!(value("imds_ring_records_malformed_total")?, 0.0);
    assert_eq!(value("imds_taps_attached")?, 2.0);
    assert_eq!(value("imds_taps_bound")?, 1.0);
    assert_eq!(value("imds_taps_refused")?, 0.0);
    assert_eq!(value("imds_workers")?, 1.0);
    assert_eq!(value("imds_registry_instances")?, 1.0);
    assert_eq!(value("imds_registry_roles")?, 1.0);
    assert_eq!(value("imds_limit_packets_per_second")?, 1024.0);
    assert_eq!(value("imds_audit_events_lost_total")?, 0.0);
    // Two sets were fetched and one was handed over.
    host.wait_for_metric("imds_audit_events_written_total", &[], 3.0)?;

    let role = role_arn();
    let of_role = [("kind", "instance-profile"), ("role", role.as_str())];
    let ready = [of_role[0], of_role[1], ("state", "ready")];
    assert_eq!(after.value("imds_role_sessions", &ready), Some(1.0));
    let remaining = after.value("imds_role_credentials_remaining_seconds", &of_role);
    let age = after.value("imds_role_credentials_age_seconds", &of_role);
    let (remaining, age) = (remaining.context("it expires")?, age.context("it has an age")?);
    assert!((3500.0..=3600.0).contains(&remaining), "{remaining}");
    assert!((0.0..60.0).contains(&age), "{age}");
    let fetched = [("source", "issuer"), ("outcome", "supplied")];
    assert_eq!(
        after.value("imds_role_credentials_fetches_total", &fetched),
        Some(2.0)
    );

    for secret in &secrets {
        assert!(!after.text.contains(secret.as_str()), "a secret");
    }
    assert!(
        !after.text.contains(INSTANCE_ID),
        "a label for each instance has no bound"
    );
    Ok(())
}

#[test]
fn what_is_no_request_is_counted_apart() -> Result<()> {
    let (host, guest) = Host::with_guest(|_| ())?;
    guest.namespace.enter(|| -> Result<_> {
        let long = "x".repeat(9000);
        assert_eq!(
            exchange(&format!("GET / HTTP/1.1\r\nX-Long: {long}\r\n\r\n"))?.status,
            431
        );
        let body = "PUT / HTTP/1.1\r\nContent-Length: 9000\r\n\r\n";
        assert_eq!(exchange(body)?.status, 413);
        // The rest of it never comes.
        assert_eq!(exchange("GET / HTTP/1.1\r\n")?.status, 408);
        Ok(())
    })?;
    let scrape = Scrape::of(&host.files.metrics())?;
    for status in ["431", "413", "408"] {
        let counted = scrape.value("imds_requests_malformed_total", &[("status", status)]);
        assert_eq!(counted, Some(1.0), "{status}");
    }
    assert_eq!(scrape.sum("imds_requests_malformed_total", &[]), 3.0);
    assert_eq!(scrape.sum("imds_requests_total", &[]), 0.0);
    Ok(())
}

#[test]
fn callers_of_the_security_token_service_are_counted() -> Result<()> {
    let host = Host::new("sts_endpoint.http = [\"127.0.0.1:8980\"]", |_| ())?;
    let ask = |query: &str| -> Result<String> {
        host.namespace.enter(|| {
            let stream = TcpStream::connect_timeout(&"127.0.0.1:8980".parse()?, PATIENCE)?;
            Ok(scrape::exchange(stream, &format!("GET /?Version=2011-06-15&{query}"))?.0)
        })
    };
    let status = |head: &str| head.split(' ').nth(1).unwrap_or_default().to_owned();
    let unsigned = status(&ask("Action=GetCallerIdentity")?);
    let unknown = status(&ask("Action=GetSessionToken")?);
    assert!(
        unsigned.starts_with('4') && unknown.starts_with('4'),
        "{unsigned} {unknown}"
    );
    let scrape = Scrape::of(&host.files.metrics())?;
    assert_eq!(scrape.sum("imds_sts_exchanges_total", &[]), 2.0);
    let of_unsigned = [("action", "GetCallerIdentity"), ("status", unsigned.as_str())];
    let of_unknown = [("action", "other"), ("status", unknown.as_str())];
    for labels in [of_unsigned, of_unknown] {
        assert_eq!(
            scrape.value("imds_sts_exchanges_total", &labels),
            Some(1.0),
            "{}",
            scrape.text
        );
    }
    Ok(())
}

#[test]
fn every_family_of_the_table_is_told_and_no_other() -> Result<()> {
    let expected = |is_per_tap: bool| -> Vec<String> {
        let wanted = FAMILIES
            .iter()
            .filter(|family| is_per_tap || !family.name.starts_with("imds_tap_"));
        let mut names: Vec<_> = wanted
            .map(|family| {
                let name = family.full_name();
                let name = name.strip_suffix("_total").or(name.strip_suffix("_info"));
                name.map_or_else(|| family.full_name(), str::to_owned)
            })
            .collect();
        names.sort();
        names
    };
    for is_per_tap in [false, true] {
        let host = Host::new(&format!("metrics.per_tap = {is_per_tap}"), |_| ())?;
        host.tap.send(&Ipv4::default().frame(&tcp(443, 0)))?;
        let scrape = Scrape::of(&host.files.metrics())?;
        let told: Vec<_> = scrape.families.keys().cloned().collect();
        assert_eq!(told, expected(is_per_tap));
        // No more series than the table says, and exactly its labels.
        for family in FAMILIES {
            let name = family.full_name();
            let of_family = scrape.series.keys().filter(|series| {
                let suffix = series.name.strip_prefix(&name);
                suffix.is_some_and(|suffix| matches!(suffix, "" | "_bucket" | "_count" | "_sum"))
            });
            let series: Vec<_> = of_family.collect();
            assert!(series.len() <= family.series_max, "{name}: {}", series.len());
            for series in series {
                let mut labels: Vec<_> = series.labels.keys().filter(|label| *label != "le").collect();
                let mut expected = family.labels.to_vec();
                labels.sort();
                expected.sort_unstable();
                assert_eq!(labels, expected, "{name}");
            }
        }
        if is_per_tap {
            let labels = [("tap", "tap0"), ("number", "3"), ("reason", "source-mac-forged")];
            assert_eq!(scrape.value("imds_tap_frames_dropped_total", &labels), Some(1.0));
        }
    }
    Ok(())
}

#[test]
fn the_sum_of_all_taps_never_shrinks() -> Result<()> {
    let mut host = Host::new("", |_| ())?;
    let forged = [("number", "3"), ("reason", "source-mac-forged")];
    let dropped = |host: &Host| -> Result<f64> {
        let scrape = Scrape::of(&host.files.metrics())?;
        scrape
            .value("imds_frames_dropped_total", &forged)
            .context("it is counted")
    };
    misbehave(&host.tap)?;
    let forged_by_one = FORGED as f64;
    assert_eq!(dropped(&host)?, forged_by_one);

    // A tap goes, and its counters with it.
    let second = host.namespace.enter(|| Tap::new("tap1"))?;
    host.files.put(
        "instances",
        "second",
        &records::instance("i-0fedcba9876543210", guest_mac(3), "tap1", "10.0.0.3"),
    )?;
    host.agent
        .wait_for_log(&format!("tap tap1: bound to {}", guest_mac(3)))?;
    second.send(&Ipv4::default().frame(&tcp(80, 0)))?;
    assert_eq!(dropped(&host)?, forged_by_one + 1.0);
    let index: TapIndex = second.index();
    drop(second);
    host.agent.wait_for_log(&format!("tap {index}: detached"))?;
    assert_eq!(dropped(&host)?, forged_by_one + 1.0);

    // An agent that starts counts its own, and Prometheus takes that for what it is.
    let Host {
        agent,
        files,
        tap,
        namespace,
    } = host;
    agent.kill()?;
    tap.send(&eth(
        GATEWAY_MAC,
        OTHER_MAC,
        &[],
        0x0800,
        &Ipv4::default().packet(&tcp(80, 0)),
    ))?;
    // What the killed one left of its socket is in nobody's way.
    assert!(files.metrics().exists());
    let agent = Agent::start(&program()?, &namespace, &files)?;
    let host = Host {
        agent,
        files,
        tap,
        namespace,
    };
    assert_eq!(dropped(&host)?, 0.0);
    misbehave(&host.tap)?;
    assert_eq!(dropped(&host)?, forged_by_one);
    Ok(())
}

#[test]
fn what_is_wrong_with_records_and_sources_is_told() -> Result<()> {
    let host = Host::in_namespace(Namespace::new()?, "", |files, _| {
        let mut role = records::role();
        role["Credentials"] = serde_json::json!({"Source": "process", "Command": ["/nonexistent"]});
        files.put_guest("i-0fedcba9876543210", "tap1", "10.0.0.3", |record| {
            record["NetworkInterfaces"][0]["MacAddress"] = guest_mac(3).to_string().into();
        })?;
        fs::write(files.state().join("instances/broken.json"), "{")?;
        files.put("roles", "second", &{
            let mut second = role.clone();
            second["RoleName"] = "second".into();
            second["Arn"] = format!("arn:aws:iam::{ACCOUNT}:role/second").into();
            second
        })?;
        let mut profile = records::instance_profile();
        profile["InstanceProfileName"] = "second".into();
        profile["Arn"] = format!("arn:aws:iam::{ACCOUNT}:instance-profile/second").into();
        profile["Roles"][0]["RoleName"] = "second".into();
        files.put("instance-profiles", "second", &profile)?;
        let mut instance = records::instance("i-0fedcba9876543211", guest_mac(4), "tap2", "10.0.0.4");
        instance["IamInstanceProfile"]["Arn"] = profile["Arn"].clone();
        files.put("instances", "third", &instance)
    })?;
    host.wait_for_metric("imds_registry_problems", &[("severity", "error")], 1.0)?;
    let failed = [("source", "process"), ("outcome", "failed")];
    host.wait_for_metric("imds_role_credentials_fetches_total", &failed, 1.0)?;
    let scrape = Scrape::of(&host.files.metrics())?;
    let second = format!("arn:aws:iam::{ACCOUNT}:role/second");
    let labels = [
        ("kind", "instance-profile"),
        ("role", second.as_str()),
        ("state", "empty"),
    ];
    assert_eq!(scrape.value("imds_role_sessions", &labels), Some(1.0));
    let loaded = scrape
        .value("imds_registry_last_load_timestamp_seconds", &[])
        .context("it was loaded")?;
    let started = scrape
        .value("process_start_time_seconds", &[])
        .context("it was started")?;
    assert!((0.0..60.0).contains(&(loaded - started)), "{loaded} {started}");
    fs::remove_file(host.files.state().join("instances/broken.json"))?;
    host.wait_for_metric("imds_registry_problems", &[("severity", "error")], 0.0)?;
    Ok(())
}

#[test]
fn the_endpoint_is_where_it_is_configured_and_serves_metrics_only() -> Result<()> {
    let namespace = Namespace::new()?;
    let host = Host::in_namespace(namespace, "metrics.addresses = [\"127.0.0.1:9254\"]", |_, _| {
        Ok(())
    })?;
    let socket = host.files.metrics();
    let mode = fs::metadata(&socket)?.permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    for (request, status) in [
        ("GET /", "404"),
        ("GET /metrics/", "404"),
        ("POST /metrics", "405"),
        ("GET /metrics?name[]=up", "200"),
    ] {
        let (head, _) = scrape::ask(&socket, request)?;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {head}"
        );
    }
    let (head, body) = scrape::ask(&socket, "HEAD /metrics")?;
    assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head}");
    let (_, body) = host.namespace.enter(|| -> Result<_> {
        let stream = TcpStream::connect_timeout(&"127.0.0.1:9254".parse()?, PATIENCE)?;
        scrape::exchange(stream, "GET /metrics")
    })?;
    Scrape::parse(&body)?;

    // A scraper that is deaf or slow is in nobody's way.
    let deaf: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = std::os::unix::net::UnixStream::connect(&socket)?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\n")?;
            Ok(stream)
        })
        .collect::<Result<_>>()?;
    Scrape::of(&socket)?;
    // It is not waited for without end either.
    for mut stream in deaf {
        stream.set_read_timeout(Some(Duration::from_secs(15)))?;
        _ = stream.read(&mut [0; 16])?;
    }

    // Another agent finds the socket in use, and says so.
    let (_, said) = host.files.refusal(host.namespace.command(program()?), &["run"])?;
    assert!(said.contains("is in use"), "{said}");
    Scrape::of(&socket)?;
    let Host { agent, files, .. } = host;
    agent.stop()?;
    assert!(!files.metrics().exists());
    Ok(())
}
