//! B.2: the token endpoint.

use std::collections::HashSet;

use super::replies::{TTL_REPLY_HEADER, require_order, require_set};
use crate::imdsctl::conformance::{
    client::Expects,
    finding::{Check, Finding, Judge, Mark::*, Outcome},
    subject::{FORWARDED_HEADER, LEAF, Subject, TOKEN_HEADER, TOKEN_PATH, TTL_HEADER, Version1, token_of},
};

/// Tokens that are valid side by side in the check of row 30.
const TOKENS_AT_ONCE: usize = 16;

pub(super) const CHECKS: [Check; 21] = [
    Check::new(
        "B.2/17a",
        D,
        "PUT with a TTL gives a token, and the reply names the TTL, without which most SDKs reject it",
        "PUT /latest/api/token, TTL 21600",
        mint,
    ),
    Check::new(
        "B.2/17b",
        C,
        "a token is 56 characters of URL-safe base64, padding included",
        "PUT /latest/api/token, TTL 21600",
        token_shape,
    ),
    Check::new(
        "B.2/17c",
        C,
        "the header set of a token: text/plain, no Last-Modified, no Accept-Ranges, closed",
        "PUT /latest/api/token, TTL 21600",
        token_headers,
    ),
    Check::new("B.2/18", D, "no TTL: 400", "PUT /latest/api/token", no_ttl),
    Check::new(
        "B.2/19a",
        D,
        "TTL 0 and 21601: 400",
        "PUT /latest/api/token, TTL 0, 21601",
        ttl_out_of_range,
    ),
    Check::new(
        "B.2/19b",
        I,
        "a TTL that is no plain number, or two: 400",
        "PUT /latest/api/token, TTL -1, abc, 1.5, 0x3c, 60s, '6 0', empty, 2^64, two fields",
        ttl_malformed,
    ),
    Check::new(
        "B.2/20",
        D,
        "TTL 1 and 21600 are valid and come back",
        "PUT, TTL 1, 15, 21600",
        ttl_limits,
    ),
    Check::new(
        "B.2/21",
        D,
        "header names in any case",
        "PUT and GET with lower-case and upper-case names",
        header_case,
    ),
    Check::new(
        "B.2/22",
        I,
        "a body of the PUT is ignored",
        "PUT with a body of 5 bytes, and with Content-Length: 0",
        body,
    ),
    Check::new(
        "B.2/23",
        C,
        "PUT with X-Forwarded-For, any value, any case: 403",
        "PUT with X-Forwarded-For: 10.0.0.1, x-forwarded-for: junk, and an empty one",
        forwarded,
    ),
    Check::new(
        "B.2/24a",
        C,
        "GET, POST, DELETE on the token path: 405, `Allow: OPTIONS, PUT`, empty, closed",
        "GET, POST, DELETE /latest/api/token",
        other_methods,
    ),
    Check::new(
        "B.2/24b",
        C,
        "the header fields of that 405 come in EC2's order",
        "GET /latest/api/token",
        other_methods_order,
    ),
    Check::new(
        "B.2/25",
        C,
        "PUT with a slash at the end: 403, empty",
        "PUT /latest/api/token/",
        slashed,
    ),
    Check::new(
        "B.2/26",
        S,
        "PUT below another version: 403",
        "PUT /2021-01-03/api/token",
        other_version,
    ),
    Check::new(
        "B.2/27a",
        I,
        "PUT anywhere else: 403 or 405",
        "PUT instance-id, a missing path",
        elsewhere,
    ),
    Check::new(
        "B.2/27b",
        I,
        "and of the two 405, `Allow: GET, HEAD`",
        "PUT instance-id",
        elsewhere_allow,
    ),
    Check::new(
        "B.2/28",
        D,
        "a disabled endpoint says 403 to everything",
        "PUT for a token; GET /, a category, a missing path",
        disabled,
    ),
    Check::unseen(
        "B.2/29",
        D,
        "the reply to the PUT leaves with the hop limit of the instance",
        "the IP header is hidden from a TCP client: capture the reply, or ask from behind a router",
    ),
    Check::new(
        "B.2/30a",
        D,
        "any number of tokens is valid at once",
        "16 tokens, then a GET with each",
        many_tokens,
    ),
    Check::unseen(
        "B.2/30b",
        D,
        "a token is valid on its instance only",
        "needs a second instance; B.3/33 offers forged tokens",
    ),
    Check::new(
        "B.2/30c",
        S,
        "two tokens are never the same",
        "16 tokens",
        distinct_tokens,
    ),
];

fn mint(subject: &Subject) -> Outcome {
    let reply = subject.put_token(&["21600"], &[])?;
    let mut judge = Judge::default();
    if judge.status("PUT", &reply, &[200]) {
        judge.require(
            token_of(&reply).is_some(),
            "a token of visible ASCII",
            reply.summary(),
        );
        judge.header("PUT", &reply, TTL_REPLY_HEADER, "21600");
    }
    Ok(judge.finding())
}

fn token_shape(subject: &Subject) -> Outcome {
    let reply = subject.put_token(&["21600"], &[])?;
    let mut judge = Judge::default();
    if judge.status("PUT", &reply, &[200]) {
        let token = reply.text();
        let is_base64 = token
            .trim_end_matches('=')
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        judge.require(
            token.len() == 56 && is_base64,
            "56 characters of URL-safe base64",
            format!(
                "{} characters{}",
                token.len(),
                if is_base64 { "" } else { ", others too" }
            ),
        );
    }
    Ok(judge.finding())
}

fn token_headers(subject: &Subject) -> Outcome {
    let reply = subject.put_token(&["21600"], &[])?;
    let mut judge = Judge::default();
    if judge.status("PUT", &reply, &[200]) {
        let names = [
            TTL_REPLY_HEADER,
            "Content-Length",
            "Content-Type",
            "Date",
            "Server",
            "Connection",
        ];
        require_set(&mut judge, &reply, &names);
        require_order(&mut judge, &reply, &names);
        judge.header("PUT", &reply, "Content-Type", "text/plain");
        judge.header("PUT", &reply, "Connection", "close");
    }
    Ok(judge.finding())
}

fn no_ttl(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    judge.status("no TTL", &subject.put_token(&[], &[])?, &[400]);
    Ok(judge.finding())
}

fn ttl_out_of_range(subject: &Subject) -> Outcome {
    refused_ttls(subject, &[&["0"], &["21601"]])
}

fn ttl_malformed(subject: &Subject) -> Outcome {
    refused_ttls(
        subject,
        &[
            &["-1"],
            &["abc"],
            &["1.5"],
            &["0x3c"],
            &["60s"],
            &["6 0"],
            &[""],
            &["18446744073709551676"],
            &["60", "60"],
        ],
    )
}

fn refused_ttls(subject: &Subject, ttls: &[&[&str]]) -> Outcome {
    let mut judge = Judge::default();
    for values in ttls {
        let reply = subject.put_token(values, &[])?;
        judge.status(&format!("TTL {:?}", values.join(" and ")), &reply, &[400]);
    }
    Ok(judge.finding())
}

fn ttl_limits(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    for ttl in ["1", "15", "21600"] {
        let reply = subject.put_token(&[ttl], &[])?;
        if judge.status(&format!("TTL {ttl}"), &reply, &[200]) {
            judge.header(&format!("TTL {ttl}"), &reply, TTL_REPLY_HEADER, ttl);
        }
    }
    Ok(judge.finding())
}

fn header_case(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    for (ttl_name, token_name) in [
        (TTL_HEADER.to_ascii_lowercase(), TOKEN_HEADER.to_ascii_lowercase()),
        (TTL_HEADER.to_ascii_uppercase(), TOKEN_HEADER.to_ascii_uppercase()),
    ] {
        let minted = subject.ask_bare("PUT", TOKEN_PATH, &[(&ttl_name, "60")])?;
        judge.status(&format!("PUT with {ttl_name}"), &minted, &[200]);
        if let Some(token) = token_of(&minted) {
            let reply = subject.ask_bare("GET", LEAF, &[(&token_name, &token)])?;
            judge.status(&format!("GET with {token_name}"), &reply, &[200]);
        }
    }
    Ok(judge.finding())
}

fn body(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    for body in ["", "hello"] {
        let length = body.len().to_string();
        let head = subject.client.request(
            "PUT",
            TOKEN_PATH,
            &[
                (TTL_HEADER, "60"),
                ("Content-Length", &length),
                ("Content-Type", "text/plain"),
            ],
        );
        let reply = subject.client.exchange(head + body, Expects::Body)?;
        judge.status(&format!("{length} bytes"), &reply, &[200]);
    }
    Ok(judge.finding())
}

fn forwarded(subject: &Subject) -> Outcome {
    let lower = FORWARDED_HEADER.to_ascii_lowercase();
    let mut judge = Judge::default();
    for (name, value) in [
        (FORWARDED_HEADER, "10.0.0.1"),
        (&lower, "junk"),
        (FORWARDED_HEADER, ""),
    ] {
        let what = format!("{name} {value:?}");
        let reply = subject.put_token(&["60"], &[(name, value)])?;
        if judge.status(&what, &reply, &[403]) {
            judge.empty_plain(&what, &reply);
        }
    }
    Ok(judge.finding())
}

fn other_methods(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    for method in ["GET", "POST", "DELETE"] {
        let reply = subject.ask_bare(method, TOKEN_PATH, &[])?;
        if judge.status(method, &reply, &[405]) {
            judge.header(method, &reply, "Allow", "OPTIONS, PUT");
            judge.header(method, &reply, "Connection", "close");
            judge.empty_plain(method, &reply);
        }
    }
    Ok(judge.finding())
}

fn other_methods_order(subject: &Subject) -> Outcome {
    let reply = subject.ask_bare("GET", TOKEN_PATH, &[])?;
    let mut judge = Judge::default();
    if judge.status("GET", &reply, &[405]) {
        require_order(
            &mut judge,
            &reply,
            &["Allow", "Content-Length", "Connection", "Content-Type", "Server"],
        );
    }
    Ok(judge.finding())
}

fn slashed(subject: &Subject) -> Outcome {
    let reply = subject.ask_bare("PUT", "/latest/api/token/", &[(TTL_HEADER, "60")])?;
    let mut judge = Judge::default();
    if judge.status("PUT", &reply, &[403]) {
        judge.header("PUT", &reply, "Content-Length", "0");
    }
    Ok(judge.finding())
}

fn other_version(subject: &Subject) -> Outcome {
    let reply = subject.ask_bare("PUT", "/2021-01-03/api/token", &[(TTL_HEADER, "60")])?;
    let mut judge = Judge::default();
    judge.status("PUT", &reply, &[403]);
    Ok(judge.finding())
}

fn elsewhere(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    for target in [LEAF, super::replies::MISSING, "/latest/user-data"] {
        let reply = subject.ask("PUT", target, &[(TTL_HEADER, "60")])?;
        judge.status(target, &reply, &[403, 405]);
    }
    Ok(judge.finding())
}

fn elsewhere_allow(subject: &Subject) -> Outcome {
    let reply = subject.ask("PUT", LEAF, &[(TTL_HEADER, "60")])?;
    let mut judge = Judge::default();
    if judge.status("PUT", &reply, &[405]) {
        judge.header("PUT", &reply, "Allow", "GET, HEAD");
    }
    Ok(judge.finding())
}

fn disabled(subject: &Subject) -> Outcome {
    if subject.facts.version1 != Version1::Disabled {
        return Ok(Finding::skip("the endpoint is enabled"));
    }
    let mut judge = Judge::default();
    judge.status("PUT", &subject.put_token(&["60"], &[])?, &[403]);
    for target in ["/", LEAF, super::replies::MISSING, "/latest/user-data"] {
        judge.status(target, &subject.ask_bare("GET", target, &[])?, &[403]);
    }
    Ok(judge.finding())
}

fn many_tokens(subject: &Subject) -> Outcome {
    let tokens = tokens(subject)?;
    let mut judge = Judge::default();
    for (index, token) in tokens.iter().enumerate() {
        let Some(token) = token else {
            return Ok(super::no_tokens());
        };
        let reply = subject.ask_bare("GET", LEAF, &[(TOKEN_HEADER, token)])?;
        judge.status(&format!("token {index}"), &reply, &[200]);
    }
    Ok(judge.finding())
}

fn distinct_tokens(subject: &Subject) -> Outcome {
    let Some(tokens) = tokens(subject)?.into_iter().collect::<Option<HashSet<_>>>() else {
        return Ok(super::no_tokens());
    };
    let mut judge = Judge::default();
    judge.require(
        tokens.len() == TOKENS_AT_ONCE,
        format!("{TOKENS_AT_ONCE} tokens"),
        format!("{} different ones of {TOKENS_AT_ONCE}", tokens.len()),
    );
    Ok(judge.finding())
}

fn tokens(
    subject: &Subject,
) -> Result<Vec<Option<String>>, crate::imdsctl::conformance::client::ExchangeError> {
    (0..TOKENS_AT_ONCE)
        .map(|_| Ok(token_of(&subject.put_token(&["60"], &[])?)))
        .collect()
}
