//! B.6: what holds for a connection, whatever is asked over it.

use std::{thread, time::Duration};

use super::{no_tokens, replies::MISSING};
use crate::imdsctl::conformance::{
    client::{Conversation, ExchangeError, Expects, Reply},
    finding::{Check, Finding, Judge, Mark::*, Outcome},
    subject::{LEAF, Subject, TOKEN_PATH, TTL_HEADER},
};

/// How soon a reply that says `close` is followed by the end of the connection.
pub(super) const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// How long a client holds its body back before it sends it unasked (RFC 9110, section 10.1.1).
const CONTINUE_WITHIN: Duration = Duration::from_secs(1);

/// Connections that are held open with half a request in the check against slow clients.
const HELD_CONNECTIONS: usize = 20;

/// The header field that keeps a connection.
pub(super) const KEEP_ALIVE: (&str, &str) = ("Connection", "keep-alive");

pub(super) const CHECKS: [Check; 16] = [
    Check::new(
        "B.6/1a",
        C,
        "a connection is closed after its reply, which says so",
        "GET, then wait for the end",
        closes,
    ),
    Check::new(
        "B.6/1b",
        C,
        "unless the request says keep-alive",
        "three GETs on one connection",
        keeps,
    ),
    Check::new(
        "B.6/2",
        I,
        "HTTP/1.0 is answered and closed",
        "GET … HTTP/1.0",
        http_1_0,
    ),
    Check::new(
        "B.6/3",
        I,
        "pipelined requests are answered in order, or the first and no other",
        "two GETs in one write",
        pipelined,
    ),
    Check::new(
        "B.6/4a",
        I,
        "a head that is too long: 400 or 431, closed, never silence",
        "a field of 9000 bytes",
        long_field,
    ),
    Check::new(
        "B.6/4b",
        I,
        "and a request line too (or 414)",
        "a target of 9000 bytes",
        long_target,
    ),
    Check::new("B.6/5", I, "`Host` is not required", "GET without Host", no_host),
    Check::new(
        "B.6/6a",
        I,
        "a chunked body of a PUT is drained, or the connection closed",
        "PUT with a chunked body, then a GET on the same connection",
        chunked,
    ),
    Check::new(
        "B.6/6b",
        S,
        "the same with `Expect: 100-continue`, as a client in C++ sends it",
        "PUT, wait for 100, body, GET on the same connection",
        expects_continue,
    ),
    Check::new(
        "B.6/6c",
        S,
        "a body of a GET is drained",
        "GET with 3 bytes of body, then another GET",
        get_body,
    ),
    Check::new(
        "B.6/7a",
        S,
        "a request in many small pieces is one request",
        "GET, one byte a write",
        slow_writes,
    ),
    Check::new(
        "B.6/7b",
        S,
        "slow clients do not lock out others",
        "20 connections with half a request each, then a GET",
        held_connections,
    ),
    Check::new(
        "B.6/7c",
        S,
        "many clients at once are all answered",
        "16 GETs at the same time",
        at_once,
    ),
    Check::unseen(
        "B.6/8",
        D,
        "1024 packets a second",
        "a flood would slow the instance's DNS and NTP on EC2",
    ),
    Check::new(
        "B.6/9",
        D,
        "the endpoint on IPv6 is the same",
        "the address of this run",
        ipv6,
    ),
    Check::new(
        "B.6/10",
        S,
        "a 401 comes at once",
        "GET with a wrong token, timed",
        fast_refusal,
    ),
];

/// Whether the exchange ended in the way a refusal of unreadable bytes does.
pub(super) fn require_closed(judge: &mut Judge, conversation: &mut Conversation<'_>) {
    judge.require(
        conversation.is_closed(CLOSE_WITHIN),
        "the connection closed",
        "it stays open, or more bytes follow",
    );
}

fn closes(subject: &Subject) -> Outcome {
    let mut conversation = subject.client.open()?;
    conversation.send(subject.request("GET", LEAF, &[]));
    let reply = conversation.reply(Expects::Body)?;
    let mut judge = Judge::default();
    judge.status("GET", &reply, &[200]);
    judge.header("GET", &reply, "Connection", "close");
    require_closed(&mut judge, &mut conversation);
    Ok(judge.finding())
}

fn keeps(subject: &Subject) -> Outcome {
    let mut conversation = subject.client.open()?;
    let mut judge = Judge::default();
    for (target, status) in [(LEAF, 200), (MISSING, 404), (LEAF, 200)] {
        conversation.send(subject.request("GET", target, &[KEEP_ALIVE]));
        let reply = conversation.reply(Expects::Body)?;
        judge.status(target, &reply, &[status]);
        judge.require(!says_close(&reply), "no Connection: close", "one");
    }
    Ok(judge.finding())
}

fn http_1_0(subject: &Subject) -> Outcome {
    let mut conversation = subject.client.open()?;
    conversation.send(old_request(subject, &[]));
    let reply = conversation.reply(Expects::Body)?;
    let mut judge = Judge::default();
    judge.status("GET", &reply, &[200]);
    require_closed(&mut judge, &mut conversation);
    Ok(judge.finding())
}

/// A request of HTTP/1.0, which knows no `Host`.
pub(super) fn old_request(subject: &Subject, headers: &[(&str, &str)]) -> String {
    let host = format!(
        "Host: {}\r\n",
        subject.client.to_string().trim_start_matches("http://")
    );
    subject
        .request("GET", LEAF, headers)
        .replacen("HTTP/1.1", "HTTP/1.0", 1)
        .replacen(&host, "", 1)
}

fn pipelined(subject: &Subject) -> Outcome {
    let (one, two) = (subject.get(LEAF)?, subject.get(MISSING)?);
    let mut conversation = subject.client.open()?;
    conversation.send(subject.request("GET", LEAF, &[KEEP_ALIVE]) + &subject.request("GET", MISSING, &[]));
    let mut judge = Judge::default();
    let first = conversation.reply(Expects::Body)?;
    judge.status("the first", &first, &[200]);
    judge.same_body("the first", &first, &one);
    match conversation.reply(Expects::Body) {
        Ok(second) => {
            judge.status("the second", &second, &[two.status]);
            judge.same_body("the second", &second, &two);
        }
        Err(ExchangeError::Closed { bytes: 0 } | ExchangeError::Reset { bytes: 0 }) => {
            judge.saw("then closed");
        }
        Err(error) => judge.require(false, "a second reply or the end", error.to_string()),
    }
    Ok(judge.finding())
}

fn long_field(subject: &Subject) -> Outcome {
    let request = subject.request("GET", LEAF, &[("X-Padding", &"x".repeat(9000))]);
    refused_and_closed(subject, &request, &[400, 431])
}

fn long_target(subject: &Subject) -> Outcome {
    let request = subject.request("GET", &format!("{LEAF}?{}", "x".repeat(9000)), &[]);
    refused_and_closed(subject, &request, &[400, 414, 431])
}

pub(super) fn refused_and_closed(subject: &Subject, request: &str, allowed: &[u16]) -> Outcome {
    let mut conversation = subject.client.open()?;
    conversation.send(request);
    let reply = conversation.reply(Expects::Body)?;
    let mut judge = Judge::default();
    judge.status("the reply", &reply, allowed);
    require_closed(&mut judge, &mut conversation);
    Ok(judge.finding())
}

fn no_host(subject: &Subject) -> Outcome {
    let request = old_request(subject, &[]).replacen("HTTP/1.0", "HTTP/1.1", 1);
    let reply = subject.client.exchange(request, Expects::Body)?;
    let mut judge = Judge::default();
    judge.status("GET", &reply, &[200]);
    Ok(judge.finding())
}

fn chunked(subject: &Subject) -> Outcome {
    if subject.token().is_none() {
        return Ok(no_tokens());
    }
    let mut conversation = subject.client.open()?;
    let head = subject.client.request(
        "PUT",
        TOKEN_PATH,
        &[(TTL_HEADER, "60"), ("Transfer-Encoding", "chunked"), KEEP_ALIVE],
    );
    conversation.send(head + "5\r\nhello\r\n0\r\n\r\n");
    let reply = conversation.reply(Expects::Body)?;
    let mut judge = Judge::default();
    judge.status("PUT", &reply, &[200]);
    in_step(subject, &mut judge, conversation, &reply)?;
    Ok(judge.finding())
}

fn expects_continue(subject: &Subject) -> Outcome {
    if subject.token().is_none() {
        return Ok(no_tokens());
    }
    let mut conversation = subject.client.open()?;
    conversation.send(subject.client.request(
        "PUT",
        TOKEN_PATH,
        &[
            (TTL_HEADER, "60"),
            ("Transfer-Encoding", "chunked"),
            ("Expect", "100-continue"),
            KEEP_ALIVE,
        ],
    ));
    let mut judge = Judge::default();
    let mut reply = conversation.reply_within(Expects::Body, CONTINUE_WITHIN);
    match &reply {
        Ok(interim) if interim.status == 100 => {
            judge.saw("100 Continue");
            conversation.send("5\r\nhello\r\n0\r\n\r\n");
            reply = conversation.reply(Expects::Body);
        }
        Ok(_) => judge.saw("a reply without the body"),
        Err(error) => {
            judge.require(false, "100 Continue, or a reply", error.to_string());
            return Ok(judge.finding());
        }
    }
    let reply = reply?;
    judge.status("PUT", &reply, &[200]);
    in_step(subject, &mut judge, conversation, &reply)?;
    Ok(judge.finding())
}

fn get_body(subject: &Subject) -> Outcome {
    let mut conversation = subject.client.open()?;
    conversation.send(subject.request("GET", LEAF, &[("Content-Length", "3"), KEEP_ALIVE]) + "abc");
    let reply = conversation.reply(Expects::Body)?;
    let mut judge = Judge::default();
    judge.status("GET with a body", &reply, &[200]);
    in_step(subject, &mut judge, conversation, &reply)?;
    Ok(judge.finding())
}

/// A server that did not understand the body takes it for the next request.
fn in_step(
    subject: &Subject,
    judge: &mut Judge,
    mut conversation: Conversation<'_>,
    reply: &Reply,
) -> Result<(), ExchangeError> {
    if says_close(reply) {
        judge.saw("then closed");
        return Ok(());
    }
    conversation.send(subject.request("GET", LEAF, &[]));
    match conversation.reply(Expects::Body) {
        Ok(next) => _ = judge.status("the next request", &next, &[200]),
        Err(ExchangeError::Closed { bytes: 0 } | ExchangeError::Reset { bytes: 0 }) => {
            judge.saw("then closed");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

fn slow_writes(subject: &Subject) -> Outcome {
    let mut conversation = subject.client.open()?;
    for byte in subject.request("GET", LEAF, &[]).as_bytes() {
        conversation.send([*byte]);
    }
    let reply = conversation.reply(Expects::Body)?;
    let mut judge = Judge::default();
    judge.status("GET", &reply, &[200]);
    Ok(judge.finding())
}

fn held_connections(subject: &Subject) -> Outcome {
    let held: Vec<Conversation<'_>> = (0..HELD_CONNECTIONS)
        .map(|_| {
            let mut conversation = subject.client.open()?;
            conversation.send("GET /latest/");
            Ok(conversation)
        })
        .collect::<Result<_, ExchangeError>>()?;
    let reply = subject.get(LEAF)?;
    let mut judge = Judge::default();
    judge.status(&format!("beside {} others", held.len()), &reply, &[200]);
    Ok(judge.finding())
}

fn at_once(subject: &Subject) -> Outcome {
    let request = subject.request("GET", LEAF, &[]);
    let mut open: Vec<Conversation<'_>> = (0..16).map(|_| subject.client.open()).collect::<Result<_, _>>()?;
    for conversation in &mut open {
        conversation.send(&request);
    }
    let mut judge = Judge::default();
    for (index, conversation) in open.iter_mut().enumerate() {
        judge.status(
            &format!("request {index}"),
            &conversation.reply(Expects::Body)?,
            &[200],
        );
    }
    Ok(judge.finding())
}

fn ipv6(subject: &Subject) -> Outcome {
    if !subject.client.address().is_ipv6() {
        return Ok(Finding::skip(
            "this run is over IPv4: name the endpoint's IPv6 address as URL",
        ));
    }
    let mut judge = Judge::default();
    judge.status("GET", &subject.get(LEAF)?, &[200]);
    Ok(judge.finding())
}

fn fast_refusal(subject: &Subject) -> Outcome {
    let began = std::time::Instant::now();
    let reply = subject.ask_bare("GET", LEAF, &[("X-aws-ec2-metadata-token", "wrong")])?;
    let took = began.elapsed();
    let mut judge = Judge::default();
    if judge.status("GET", &reply, &[401]) {
        judge.require(
            took < Duration::from_millis(500),
            "within 500 ms (the SDKs wait one second)",
            format!("after {} ms", took.as_millis()),
        );
    }
    Ok(judge.finding())
}

pub(super) fn says_close(reply: &Reply) -> bool {
    reply
        .header("Connection")
        .is_some_and(|value| value.eq_ignore_ascii_case("close"))
}

/// Waits between two pieces of a request that is sent slowly on purpose.
pub(super) fn dawdle(pause: Duration) {
    thread::sleep(pause);
}
