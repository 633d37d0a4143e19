//! What the agent notices of guests that are not served as their software expects, and tells their operators.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Output,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    client::{PATIENCE, exchange, wait_for},
    control::{imdsctl, imdsctl_json, run},
    host::{Host, INSTANCE_ID},
    netns::Namespace,
    scrape::Scrape,
};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};

const IPV4_URL: &str = "http://169.254.169.254/latest/api/token";
const IPV6_URL: &str = "http://[fd00:ec2::254]/latest/api/token";

/// Asks for a session token and gives up after two seconds, as the SDKs do.
fn ask_for_token(namespace: &Namespace, url: &str) -> Result<Output> {
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60";
    let mut curl = namespace.command("curl");
    curl.args(["-gsS", "--fail", "-m", "2", "-X", "PUT", "-H", ttl, url]);
    curl.output().context("no curl")
}

/// Waits for the line of the log with `line` in it, which names the instance and says all of `parts`.
fn expect_told(host: &mut Host, line: &str, parts: &[&str]) -> Result<String> {
    let told = host.agent.wait_for_log(line)?;
    for part in [INSTANCE_ID].iter().chain(parts) {
        ensure!(told.contains(part), "{part}: {told}");
    }
    Ok(told)
}

/// What a stopped agent counted of tokens and hop limits.
fn counted(host: Host) -> Result<(String, Vec<String>)> {
    let (_, log) = host.agent.stop()?;
    let counted = log.iter().find(|line| line.contains("token responses expired"));
    Ok((counted.context("nothing is counted")?.clone(), log))
}

/// The token responses that metrics say did not arrive: those that a router dropped, and those that nobody acknowledged.
fn undelivered(host: &Host) -> Result<[f64; 2]> {
    let scrape = Scrape::of(&host.files.metrics())?;
    let of = |sign| scrape.value("imds_token_responses_undelivered_total", &[("sign", sign)]);
    let counted = [of("time-exceeded"), of("unacknowledged")].map(|value| value.context("no such sign"));
    let [time_exceeded, unacknowledged] = counted;
    Ok([time_exceeded?, unacknowledged?])
}

/// What an operator gets to read: a line of `imdsctl status`, and one that comes with the instance's record.
fn expect_remedy(host: &Host, parts: &[&str]) -> Result<()> {
    let status = run(imdsctl(&host.files)?.arg("status"))?;
    let shown = imdsctl(&host.files)?
        .args(["instance", "show", INSTANCE_ID])
        .output()?;
    ensure!(shown.status.success(), "{shown:?}");
    for text in [status, String::from_utf8(shown.stderr)?] {
        let line = text
            .lines()
            .find(|line| line.contains("session tokens expired on their way"));
        let line = line.with_context(|| format!("no remedy in {text:?}"))?;
        for part in [INSTANCE_ID, "--http-put-response-hop-limit"].iter().chain(parts) {
            ensure!(line.contains(part), "{part}: {line}");
        }
    }
    Ok(())
}

/// The host's requests without a session token as metrics count them: let in, and refused.
fn expect_tokenless(host: &Host, admitted: f64, rejected: f64) -> Result<()> {
    let scrape = Scrape::of(&host.files.metrics())?;
    let counted = [
        "imds_metadata_no_token_total",
        "imds_metadata_no_token_rejected_total",
    ]
    .map(|name| scrape.value(name, &[]));
    assert_eq!(counted, [Some(admitted), Some(rejected)]);
    Ok(())
}

#[test]
fn container_whose_tokens_die_at_the_guest_is_told_with_its_remedy() -> Result<()> {
    let (mut host, guest) = Host::with_guest(|_| ())?;
    let container = guest.container()?;
    let output = ask_for_token(&container, IPV4_URL)?;
    ensure!(!output.status.success(), "a token with hop limit 1 arrived");
    expect_told(
        &mut host,
        "HttpPutResponseHopLimit",
        &["172.17.0.2", "router 10.0.0.2", "hop limit is 1", "to 2 or more"],
    )?;
    // It tries on, and the log is no longer for it. The guest itself has its tokens.
    _ = ask_for_token(&container, IPV4_URL)?;
    ensure!(ask_for_token(&guest.namespace, IPV4_URL)?.status.success());
    // Linux says so once a second and destination at most; what it says is counted, and told a moment later.
    let both = || {
        let reported = &imdsctl_json(&host.files, "status")?["undeliveredTokens"][0]["TimeExceeded"];
        Ok((undelivered(&host)?[0], reported.as_f64()))
    };
    let is_same = |(counted, told): &(f64, Option<f64>)| *counted >= 1.0 && Some(*counted) == *told;
    wait_for("the count of expired tokens", both, is_same)?;
    expect_remedy(&host, &["router 10.0.0.2", "for 172.17.0.2 with hop limit 1"])?;
    let (counted, log) = counted(host)?;
    ensure!(!counted.contains(" 0 token responses expired"), "{counted}");
    let times = log.iter().filter(|line| line.contains("HttpPutResponseHopLimit"));
    assert_eq!(times.count(), 1);
    Ok(())
}

/// What the router quotes is then the packet as the container would have had it, unless it undoes that.
#[test]
fn container_behind_the_guests_address_is_told_likewise() -> Result<()> {
    let (mut host, guest) = Host::with_guest(|_| ())?;
    let container = guest.container()?;
    guest.masquerade()?;
    ensure!(!ask_for_token(&container, IPV4_URL)?.status.success());
    expect_told(
        &mut host,
        "HttpPutResponseHopLimit",
        &["for 10.0.0.2 expired", "to 2 or more"],
    )?;
    Ok(())
}

/// Some routers say nothing: then it is told by the responses that nobody acknowledges.
#[test]
fn container_whose_tokens_die_in_silence_is_told_when_its_clients_give_up() -> Result<()> {
    let (mut host, guest) = Host::with_guest(|_| ())?;
    let container = guest.container()?;
    guest.silence_icmp()?;
    for _ in 0..2 {
        container.enter(ask_and_reset)?;
    }
    expect_told(
        &mut host,
        "HttpPutResponseHopLimit",
        &["172.17.0.2 are not acknowledged", "to 2 or more"],
    )?;
    assert_eq!(undelivered(&host)?, [0.0, 2.0]);
    let reported = &imdsctl_json(&host.files, "status")?["undeliveredTokens"];
    assert_eq!(
        (&reported[0]["InstanceId"], &reported[0]["Unacknowledged"]),
        (&INSTANCE_ID.into(), &2.into()),
        "{reported}"
    );
    expect_remedy(
        &host,
        &["2 were not acknowledged", "for 172.17.0.2 with hop limit 1"],
    )?;
    let (counted, _) = counted(host)?;
    ensure!(
        counted.contains(" 0 token responses expired") && counted.contains(" 2 were not acknowledged"),
        "{counted}"
    );
    Ok(())
}

/// Waits for a token somewhat longer than boto3 does, and then lets the kernel forget the connection at once.
fn ask_and_reset() -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&"169.254.169.254:80".parse()?, PATIENCE)?;
    stream.set_read_timeout(Some(Duration::from_millis(1300)))?;
    stream
        .write_all(b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n")?;
    let heard = stream.read(&mut [0]);
    ensure!(heard.is_err(), "a token with hop limit 1 arrived");
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(setsockopt(&stream, sockopt::Linger, &linger)?)
}

#[test]
fn container_within_the_hop_limit_has_its_token_and_nothing_is_told() -> Result<()> {
    let (host, guest) = Host::with_guest(|record| {
        record["MetadataOptions"]["HttpPutResponseHopLimit"] = 2.into();
        record["MetadataOptions"]["HttpProtocolIpv6"] = "enabled".into();
    })?;
    let container = guest.container()?;
    guest.add_ipv6()?;
    guest.add_container_ipv6(&container)?;
    for url in [IPV4_URL, IPV6_URL] {
        let output = ask_for_token(&container, url)?;
        ensure!(output.status.success() && output.stdout.len() == 56, "{output:?}");
    }
    assert_eq!(undelivered(&host)?, [0.0; 2]);
    let reported = &imdsctl_json(&host.files, "status")?["undeliveredTokens"];
    assert_eq!(reported.as_array().map(Vec::len), Some(0), "{reported}");
    let (counted, log) = counted(host)?;
    ensure!(counted.contains(" 0 token responses expired"), "{counted}");
    ensure!(!log.iter().any(|line| line.contains("HttpPutResponseHopLimit")));
    Ok(())
}

#[test]
fn token_that_dies_on_the_way_to_an_ipv6_container_is_told_likewise() -> Result<()> {
    let (mut host, guest) = Host::with_guest(|record| {
        record["MetadataOptions"]["HttpProtocolIpv6"] = "enabled".into();
    })?;
    let container = guest.container()?;
    guest.add_ipv6()?;
    guest.add_container_ipv6(&container)?;
    let output = ask_for_token(&container, IPV6_URL)?;
    ensure!(!output.status.success(), "a token with hop limit 1 arrived");
    expect_told(
        &mut host,
        "HttpPutResponseHopLimit",
        &["for fd00:2::2 ", "router fd00:", "to 2 or more"],
    )?;
    Ok(())
}

#[test]
fn instance_that_requires_tokens_and_is_asked_without_is_told_once() -> Result<()> {
    let (mut host, guest) = Host::with_guest(|_| ())?;
    let ask = || exchange("GET /latest/meta-data/?x HTTP/1.1\r\nUser-Agent: Cloud-Init/22.4\r\n\r\n");
    guest.namespace.enter(|| -> Result<()> {
        for _ in 0..12 {
            ensure!(ask()?.status == 401);
        }
        Ok(())
    })?;
    let told = expect_told(
        &mut host,
        "requires session tokens",
        &["\"/latest/meta-data/\"", "\"Cloud-Init/22.4\"", "HttpTokens"],
    )?;
    expect_tokenless(&host, 0.0, 12.0)?;
    let (counted, log) = counted(host)?;
    ensure!(counted.contains("12 refused for want of one"), "{counted}");
    ensure!(
        !log.iter()
            .any(|line| line.contains("requires session tokens") && *line != told)
    );
    Ok(())
}

#[test]
fn who_asks_without_a_token_where_none_is_required_is_counted() -> Result<()> {
    let (host, guest) =
        Host::with_guest(|record| record["MetadataOptions"]["HttpTokens"] = "optional".into())?;
    let statuses = guest.namespace.enter(|| -> Result<Vec<u16>> {
        ["/latest/meta-data/", "/latest/nowhere"]
            .into_iter()
            .map(|path| Ok(exchange(&format!("GET {path} HTTP/1.1\r\n\r\n"))?.status))
            .collect()
    })?;
    assert_eq!(statuses, [200, 404]);
    expect_tokenless(&host, 2.0, 0.0)?;
    let (counted, _) = counted(host)?;
    ensure!(
        counted.contains("2 requests let in without a session token, 0 refused"),
        "{counted}"
    );
    Ok(())
}
