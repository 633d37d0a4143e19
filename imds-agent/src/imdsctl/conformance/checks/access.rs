//! B.3: who gets an answer, with a token, without, and by which method.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{no_tokens, replies::MISSING, tokens_required};
use crate::imdsctl::conformance::{
    client::Expects,
    finding::{Check, Judge, Mark::*, Outcome},
    subject::{FORWARDED_HEADER, LEAF, Subject, TOKEN_HEADER, Version1, token_of},
};

/// How long the token of row 34 lives.
const SHORT_TTL: Duration = Duration::from_secs(2);

/// A server may keep time in milliseconds, and a fraction of one is lost when a token is made.
const CLOCK_RESOLUTION: Duration = Duration::from_millis(1);

/// Tokens count whole seconds, so one may live that much longer.
const TTL_SLACK: Duration = Duration::from_secs(1);

/// How often row 34 asks.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub(super) const CHECKS: [Check; 11] = [
    Check::new(
        "B.3/31",
        D,
        "without a token all is answered, or all is a 401",
        "GET /, a category, a listing, the identity document, without a token",
        untokened,
    ),
    Check::new(
        "B.3/32",
        I,
        "an empty token header is no token: answered where tokens are optional, else 401",
        "GET with an empty X-aws-ec2-metadata-token",
        empty_token,
    ),
    Check::new(
        "B.3/33",
        D,
        "a token that is offered and wrong: 401, also where tokens are optional",
        "GET with junk, and with the valid token changed, cut, doubled",
        wrong_tokens,
    ),
    Check::new(
        "B.3/34",
        D,
        "a token is valid for exactly its TTL",
        "PUT, TTL 2; GET until it is a 401",
        expiry,
    ),
    Check::new(
        "B.3/35",
        T,
        "a valid token with X-Forwarded-For: 403",
        "GET with both",
        forwarded,
    ),
    Check::new(
        "B.3/36",
        I,
        "X-Forwarded-For without a token is answered where tokens are optional",
        "GET with X-Forwarded-For, no token",
        forwarded_untokened,
    ),
    Check::unseen(
        "B.3/37",
        D,
        "credentials tell whether they were fetched with a token (ec2:RoleDelivery)",
        "only whoever checks the credentials sees that",
    ),
    Check::new(
        "B.3/38a",
        D,
        "HEAD is answered like GET, without the body",
        "HEAD instance-id",
        head,
    ),
    Check::new(
        "B.3/38b",
        I,
        "with the same header fields",
        "HEAD and GET instance-id",
        head_headers,
    ),
    Check::new(
        "B.3/38c",
        D,
        "HEAD without a token is a 401 where tokens are required",
        "HEAD",
        head_untokened,
    ),
    Check::new(
        "B.3/39",
        I,
        "any other method: 405, `Allow: GET, HEAD`",
        "POST, DELETE, PATCH, OPTIONS on a category and on a missing path",
        other_methods,
    ),
];

fn untokened(subject: &Subject) -> Outcome {
    let wanted = match subject.facts.version1 {
        Version1::Answered => 200,
        Version1::Refused => 401,
        Version1::Disabled => 403,
    };
    let mut judge = Judge::default();
    for target in [
        "/",
        "/latest/",
        "/latest/meta-data/",
        LEAF,
        "/latest/dynamic/instance-identity/document",
    ] {
        let is_there = subject.get(target)?.status == 200;
        if is_there || target == LEAF {
            judge.status(target, &subject.ask_bare("GET", target, &[])?, &[wanted]);
        }
    }
    Ok(judge.finding())
}

fn empty_token(subject: &Subject) -> Outcome {
    let wanted = if subject.is_version1_answered() { 200 } else { 401 };
    let mut judge = Judge::default();
    judge.status(
        "GET",
        &subject.ask_bare("GET", LEAF, &[(TOKEN_HEADER, "")])?,
        &[wanted],
    );
    Ok(judge.finding())
}

fn wrong_tokens(subject: &Subject) -> Outcome {
    let mut wrong = vec![
        ("junk", "wrong".to_owned()),
        ("zeros", format!("{}==", "A".repeat(54))),
        ("a long one", "x".repeat(1000)),
        ("not ASCII", "tök€n".to_owned()),
    ];
    if let Some(token) = subject.token() {
        let cut: String = token.chars().take(token.len() / 2).collect();
        let changed: String = token
            .char_indices()
            .map(|(index, letter)| match letter {
                'A' if index == token.len() / 2 => 'B',
                _ if index == token.len() / 2 => 'A',
                _ => letter,
            })
            .collect();
        wrong.extend([("cut", cut), ("changed", changed), ("doubled", token.repeat(2))]);
    }
    let mut judge = Judge::default();
    for (what, token) in wrong {
        judge.status(
            what,
            &subject.ask_bare("GET", LEAF, &[(TOKEN_HEADER, &token)])?,
            &[401],
        );
    }
    Ok(judge.finding())
}

fn expiry(subject: &Subject) -> Outcome {
    let before = Instant::now();
    let minted = subject.put_token(&[&SHORT_TTL.as_secs().to_string()], &[])?;
    let after = Instant::now();
    let Some(token) = token_of(&minted) else {
        return Ok(no_tokens());
    };
    let mut judge = Judge::default();
    loop {
        let asked = after.elapsed();
        let reply = subject.ask_bare("GET", LEAF, &[(TOKEN_HEADER, &token)])?;
        let answered = before.elapsed();
        let said = format!("{} after {} ms", reply.status, answered.as_millis());
        match reply.status {
            200 if asked > SHORT_TTL + TTL_SLACK => judge.require(false, "401 after the TTL", said),
            200 => {
                thread::sleep(POLL_INTERVAL);
                continue;
            }
            401 if answered + CLOCK_RESOLUTION < SHORT_TTL => {
                judge.require(false, "200 within the TTL", said);
            }
            401 => judge.saw(said),
            _ => judge.require(false, "200, then 401", said),
        }
        return Ok(judge.finding());
    }
}

fn forwarded(subject: &Subject) -> Outcome {
    if subject.token().is_none() {
        return Ok(no_tokens());
    }
    let lower = FORWARDED_HEADER.to_ascii_lowercase();
    let mut judge = Judge::default();
    for name in [FORWARDED_HEADER, &lower] {
        judge.status(name, &subject.ask("GET", LEAF, &[(name, "10.0.0.1")])?, &[403]);
    }
    Ok(judge.finding())
}

fn forwarded_untokened(subject: &Subject) -> Outcome {
    if !subject.is_version1_answered() {
        return Ok(tokens_required());
    }
    let reply = subject.ask_bare("GET", LEAF, &[(FORWARDED_HEADER, "10.0.0.1")])?;
    let mut judge = Judge::default();
    judge.status("GET", &reply, &[200]);
    Ok(judge.finding())
}

fn head(subject: &Subject) -> Outcome {
    let mut conversation = subject.client.open()?;
    conversation.send(subject.request("HEAD", LEAF, &[]));
    let reply = conversation.reply(Expects::HeadOnly)?;
    let mut judge = Judge::default();
    if judge.status("HEAD", &reply, &[200]) {
        let closed = conversation.is_closed(Duration::from_millis(500));
        judge.require(
            closed || conversation.unread_bytes() == 0,
            "no body",
            format!("{} bytes", conversation.unread_bytes()),
        );
    }
    Ok(judge.finding())
}

fn head_headers(subject: &Subject) -> Outcome {
    let names = |reply: &crate::imdsctl::conformance::client::Reply| -> Vec<String> {
        reply.headers.iter().map(|(name, _)| name.clone()).collect()
    };
    let (head, get) = (subject.ask("HEAD", LEAF, &[])?, subject.get(LEAF)?);
    let mut judge = Judge::default();
    judge.require(
        names(&head) == names(&get),
        names(&get).join(", "),
        names(&head).join(", "),
    );
    judge.header("HEAD", &head, "Content-Length", &get.body.len().to_string());
    Ok(judge.finding())
}

fn head_untokened(subject: &Subject) -> Outcome {
    if subject.facts.version1 != Version1::Refused {
        return Ok(crate::imdsctl::conformance::finding::Finding::skip(
            "tokens are optional here",
        ));
    }
    let mut judge = Judge::default();
    judge.status("HEAD", &subject.ask_bare("HEAD", LEAF, &[])?, &[401]);
    Ok(judge.finding())
}

fn other_methods(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    for method in ["POST", "DELETE", "PATCH", "OPTIONS"] {
        for target in [LEAF, MISSING] {
            let what = format!("{method} {target}");
            let reply = subject.ask(method, target, &[])?;
            if judge.status(&what, &reply, &[405]) {
                judge.header(&what, &reply, "Allow", "GET, HEAD");
            }
        }
    }
    Ok(judge.finding())
}
