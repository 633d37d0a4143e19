//! What a guest that asks too often gets, and its neighbours do not.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    client::{PATIENCE, exchange, get, token, wait_for},
    host::{Host, INSTANCE_ID},
    records,
};

/// After a burst of twenty.
const RATE: &str = "requests_per_second = 5";

#[test]
fn a_flooder_is_told_503_and_a_neighbour_never() -> Result<()> {
    let host = Host::new(RATE, |_| ())?;
    let flooder = host.guest()?;
    let record = records::instance("i-0fedcba9876543210", records::guest_mac(3), "tap1", "10.0.0.3");
    host.files.put("instances", "neighbour", &record)?;
    let neighbour = host.add_guest("tap1", records::guest_mac(3), "10.0.0.3/24")?;
    neighbour.namespace.enter(|| {
        let is_known = || exchange("GET / HTTP/1.1\r\n\r\n");
        wait_for("the neighbour", is_known, |response| response.status == 401)
    })?;

    let flood = flooder.namespace.spawn(|| -> Result<Vec<u16>> {
        let token = token()?;
        (0..60)
            .map(|_| {
                let response = get(&token, "meta-data/instance-id")?;
                match response.status {
                    200 => ensure!(response.text() == INSTANCE_ID, "{response:?}"),
                    _ => ensure!(
                        response.field("Retry-After") == Some("1") && response.body.is_empty(),
                        "{response:?}"
                    ),
                }
                Ok(response.status)
            })
            .collect()
    })?;
    let quiet = neighbour.namespace.spawn(|| -> Result<Vec<u16>> {
        let token = token()?;
        (0..15)
            .map(|_| Ok(get(&token, "meta-data/instance-id")?.status))
            .collect()
    })?;
    let statuses = flood.join().expect("no panic")?;
    assert_eq!(quiet.join().expect("no panic")?, vec![200; 15]);
    // The token took one of the burst's twenty.
    let (burst, rest) = statuses.split_at(19);
    assert_eq!(burst, vec![200; 19]);
    let refused = rest.iter().filter(|status| **status == 503).count();
    ensure!(
        refused > 0 && rest.iter().all(|status| [200, 503].contains(status)),
        "{rest:?}"
    );
    // A moment later there is a token again.
    let again = || wait_for("a token", || Ok(token()), Result::is_ok);
    _ = flooder.namespace.enter(again)?;
    let (_, log) = host.agent.stop()?;
    let counted = log.iter().find(|line| line.contains(" refused"));
    let counted = counted.context("nothing is counted")?;
    ensure!(!counted.contains(" 0 refused"), "{counted}");
    Ok(())
}

#[test]
fn what_is_pipelined_behind_a_503_is_not_answered() -> Result<()> {
    let host = Host::new(RATE, |_| ())?;
    let guest = host.guest()?;
    let replies = guest.namespace.enter(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&"169.254.169.254:80".parse()?, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let keep_alive = "GET / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n";
        stream.write_all(keep_alive.repeat(400).as_bytes())?;
        let mut replies = String::new();
        stream.read_to_string(&mut replies)?;
        Ok(replies)
    })?;
    let count = |status: &str| replies.matches(&format!("HTTP/1.1 {status} ")).count();
    ensure!((20..30).contains(&count("401")), "{} are answered", count("401"));
    assert_eq!(count("503"), 1);
    ensure!(replies.ends_with("Connection: close\r\n\r\n"), "{replies}");
    Ok(())
}
