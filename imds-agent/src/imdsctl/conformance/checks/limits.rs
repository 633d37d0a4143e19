//! Section 0: the decisions on connections, limits and what is left of the section.

use std::time::{Duration, Instant};

use super::{
    connections::{KEEP_ALIVE, dawdle, old_request, refused_and_closed, require_closed, says_close},
    no_tokens,
    replies::MISSING,
};
use crate::imdsctl::conformance::{
    client::Expects,
    finding::{Check, Finding, Judge, Mark::*, Outcome},
    subject::{LEAF, Subject, TOKEN_PATH, TTL_HEADER},
};

const MAC_SUBTREES: &str = "/latest/meta-data/network/interfaces/macs";

pub(super) const CHECKS: [Check; 16] = [
    Check::new(
        "0/12a",
        I,
        "pipelined requests are answered in order",
        "three keep-alive requests in one write",
        pipelined,
    ),
    Check::new(
        "0/12b",
        I,
        "HTTP/1.0 may ask for keep-alive too",
        "two HTTP/1.0 GETs with keep-alive",
        old_keep_alive,
    ),
    Check::new(
        "0/14a",
        I,
        "a head over 8 KiB: 431, closed",
        "a field of 9000 bytes",
        long_head,
    ),
    Check::new(
        "0/14b",
        I,
        "over 64 header fields: 431, closed",
        "a GET with 65 fields",
        many_fields,
    ),
    Check::new(
        "0/14c",
        I,
        "7 KiB and 60 fields are answered",
        "a GET with a field of 7000 bytes; one with 60 fields",
        large_head,
    ),
    Check::new(
        "0/14d",
        I,
        "a request that is not whole after 5 s: 408, closed",
        "half a GET, then silence",
        stalled,
    )
    .slow(),
    Check::new(
        "0/14e",
        I,
        "also when it trickles",
        "one byte a second",
        trickling,
    )
    .slow(),
    Check::new(
        "0/14f",
        I,
        "a kept connection that idles 30 s is closed",
        "a keep-alive GET, then silence",
        idle,
    )
    .slow(),
    Check::new(
        "0/15a",
        I,
        "a body of up to 8 KiB is drained",
        "PUT with 4096 bytes, then a GET on the same connection",
        large_body,
    ),
    Check::new(
        "0/15b",
        I,
        "a longer one: 413, closed",
        "PUT with 9000 bytes",
        too_large_body,
    ),
    Check::new(
        "0/15c",
        I,
        "`Expect: 100-continue` is answered with 100",
        "PUT with a body that is held back",
        continues,
    ),
    Check::unseen(
        "0/16",
        I,
        "an instance that the registry does not know yet: 503",
        "this instance is known",
    ),
    Check::unseen(
        "0/17",
        I,
        "over the request rate: 503, never silence",
        "a flood would hurt the instance",
    ),
    Check::unseen(
        "0/18a",
        I,
        "the hop limit is 64 on all but the token's reply",
        "the IP header is hidden from a TCP client",
    ),
    Check::unseen(
        "0/18b",
        I,
        "and 64 again on a kept connection",
        "the IP header is hidden from a TCP client",
    ),
    Check::new(
        "0/19",
        I,
        "`network-card` and `network-card-index` are both served",
        "GET both below the interface's MAC",
        network_card,
    ),
];

fn pipelined(subject: &Subject) -> Outcome {
    let mut conversation = subject.client.open()?;
    let targets = [(LEAF, 200), (MISSING, 404), ("/latest/meta-data/", 200)];
    conversation.send(
        targets
            .map(|(target, _)| subject.request("GET", target, &[KEEP_ALIVE]))
            .concat(),
    );
    let mut judge = Judge::default();
    for (target, status) in targets {
        let reply = conversation.reply(Expects::Body)?;
        judge.status(target, &reply, &[status]);
        if status == 200 {
            judge.same_body(target, &reply, &subject.get(target)?);
        }
    }
    Ok(judge.finding())
}

fn old_keep_alive(subject: &Subject) -> Outcome {
    let mut conversation = subject.client.open()?;
    let mut judge = Judge::default();
    for what in ["the first", "the second"] {
        conversation.send(old_request(subject, &[KEEP_ALIVE]));
        let reply = conversation.reply(Expects::Body)?;
        judge.status(what, &reply, &[200]);
        judge.require(
            !says_close(&reply),
            format!("{what}: no Connection: close"),
            "one",
        );
    }
    Ok(judge.finding())
}

fn long_head(subject: &Subject) -> Outcome {
    refused_and_closed(
        subject,
        &subject.request("GET", LEAF, &[("X-Padding", &"x".repeat(9000))]),
        &[431],
    )
}

fn many_fields(subject: &Subject) -> Outcome {
    // The request brings `Host` with it.
    refused_and_closed(
        subject,
        &subject.client.request("GET", LEAF, &[("X-Field", "x"); 64]),
        &[431],
    )
}

fn large_head(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    judge.status(
        "7 KiB",
        &subject.ask("GET", LEAF, &[("X-Padding", &"x".repeat(7000))])?,
        &[200],
    );
    judge.status(
        "60 fields",
        &subject.ask("GET", LEAF, &[("X-Field", "x"); 58])?,
        &[200],
    );
    Ok(judge.finding())
}

fn stalled(subject: &Subject) -> Outcome {
    let mut conversation = subject.client.open()?;
    let began = Instant::now();
    conversation.send("GET /latest/ HTTP/1.1\r\n");
    let reply = conversation.reply_within(Expects::Body, Duration::from_secs(8))?;
    let took = began.elapsed();
    let mut judge = Judge::default();
    if judge.status("half a request", &reply, &[408]) {
        let is_in_time = (4..7).contains(&took.as_secs());
        judge.require(is_in_time, "after 5 s", format!("after {} ms", took.as_millis()));
        require_closed(&mut judge, &mut conversation);
    }
    Ok(judge.finding())
}

fn trickling(subject: &Subject) -> Outcome {
    let mut conversation = subject.client.open()?;
    let mut judge = Judge::default();
    for letter in ["G", "E", "T", " ", "/", "l", "a", "t"] {
        conversation.send(letter);
        dawdle(Duration::from_secs(1));
    }
    let reply = conversation.reply(Expects::Body)?;
    judge.status("a trickle", &reply, &[408]);
    Ok(judge.finding())
}

fn idle(subject: &Subject) -> Outcome {
    let mut conversation = subject.client.open()?;
    conversation.send(subject.request("GET", LEAF, &[KEEP_ALIVE]));
    let mut judge = Judge::default();
    judge.status("GET", &conversation.reply(Expects::Body)?, &[200]);
    let began = Instant::now();
    let is_closed = conversation.is_closed(Duration::from_secs(35));
    let seconds = began.elapsed().as_secs();
    judge.require(
        is_closed && seconds >= 25,
        "closed after 30 s",
        if is_closed {
            format!("closed after {seconds} s")
        } else {
            "still open after 35 s".to_owned()
        },
    );
    Ok(judge.finding())
}

fn large_body(subject: &Subject) -> Outcome {
    if subject.token().is_none() {
        return Ok(no_tokens());
    }
    let mut conversation = subject.client.open()?;
    conversation.send(put_with_body(subject, 4096));
    let mut judge = Judge::default();
    judge.status("PUT", &conversation.reply(Expects::Body)?, &[200]);
    conversation.send(subject.request("GET", LEAF, &[]));
    judge.status("the GET after it", &conversation.reply(Expects::Body)?, &[200]);
    Ok(judge.finding())
}

fn too_large_body(subject: &Subject) -> Outcome {
    refused_and_closed(subject, &put_with_body(subject, 9000), &[413])
}

fn put_with_body(subject: &Subject, bytes: usize) -> String {
    let length = bytes.to_string();
    let headers = [
        (TTL_HEADER, "60"),
        ("Content-Length", length.as_str()),
        KEEP_ALIVE,
    ];
    subject.client.request("PUT", TOKEN_PATH, &headers) + &"x".repeat(bytes)
}

fn continues(subject: &Subject) -> Outcome {
    let headers = [
        (TTL_HEADER, "60"),
        ("Content-Length", "5"),
        ("Expect", "100-continue"),
    ];
    let mut conversation = subject.client.open()?;
    conversation.send(subject.client.request("PUT", TOKEN_PATH, &headers));
    let mut judge = Judge::default();
    if judge.status("the head", &conversation.reply(Expects::Body)?, &[100]) {
        conversation.send("hello");
        judge.status("the body", &conversation.reply(Expects::Body)?, &[200]);
    }
    Ok(judge.finding())
}

fn network_card(subject: &Subject) -> Outcome {
    let Some(mac) = &subject.facts.mac else {
        return Ok(Finding::skip("the instance has no MAC"));
    };
    let one = subject.get(&format!("{MAC_SUBTREES}/{mac}/network-card"))?;
    let other = subject.get(&format!("{MAC_SUBTREES}/{mac}/network-card-index"))?;
    if one.status == 404 && other.status == 404 {
        return Ok(Finding::skip("neither is served: the record does not say"));
    }
    let mut judge = Judge::default();
    judge.status("network-card", &one, &[200]);
    judge.status("network-card-index", &other, &[200]);
    judge.same_body("network-card", &one, &other);
    Ok(judge.finding())
}
