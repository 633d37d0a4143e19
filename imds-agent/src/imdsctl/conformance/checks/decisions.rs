//! Section 0: the decisions that bind this project where no source exists, as far as another section does not check
//! them already.

use super::{connections::require_closed, replies::MISSING};
use crate::imdsctl::conformance::{
    client::Expects,
    finding::{Check, Finding, Judge, Mark::*, Outcome},
    subject::{FORWARDED_HEADER, LEAF, Subject, TOKEN_HEADER, TOKEN_PATH},
};

/// How many paths of the tree are asked for in another spelling.
const SPELLINGS_MAX: usize = 20;

pub(super) const CHECKS: [Check; 12] = [
    Check::new(
        "0/1a",
        I,
        "malformed HTTP: 400 and closed, whatever else is wrong",
        "junk, a field without a colon, HTTP/9.9, a wrong and a contradicted Content-Length",
        malformed,
    ),
    Check::new(
        "0/1b",
        I,
        "the method is judged before X-Forwarded-For and the token",
        "POST with X-Forwarded-For and a wrong token",
        method_first,
    ),
    Check::new(
        "0/1c",
        I,
        "X-Forwarded-For is judged before the token and the TTL",
        "GET with X-Forwarded-For and a wrong token; PUT with X-Forwarded-For and TTL 0",
        forwarded_second,
    ),
    Check::new(
        "0/1d",
        I,
        "the token is judged before the path",
        "GET a missing path with a wrong token",
        path_last,
    ),
    Check::new(
        "0/2",
        I,
        "a 400 has the page of the 404 with its own title",
        "PUT without a TTL; junk",
        bad_request_page,
    ),
    Check::new(
        "0/3",
        I,
        "a 401 is empty text/plain",
        "GET with a wrong token",
        unauthorized,
    ),
    Check::unseen(
        "0/5",
        I,
        "defaults: tokens required, hop limit 1, IPv6 off, tags off",
        "an instance cannot tell a default from a setting",
    ),
    Check::unseen(
        "0/6",
        I,
        "what is asked without a token is counted",
        "the counters are the operator's: see the metrics",
    ),
    Check::new(
        "0/9a",
        I,
        "a directory without its slash is 200 with the same body",
        "up to 20 directories of /latest/, bare",
        bare_directories,
    ),
    Check::new(
        "0/9b",
        I,
        "a leaf with a slash is 200 with the same body",
        "up to 20 leaves of /latest/, with a slash",
        slashed_leaves,
    ),
    Check::new(
        "0/9c",
        I,
        "two slashes anywhere are one",
        "//latest//meta-data//instance-id//",
        doubled_slashes,
    ),
    Check::new(
        "0/9d",
        I,
        "`..` is a 404",
        "GET /latest/meta-data/../meta-data/instance-id, /latest/..",
        dots,
    ),
];

fn malformed(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    for (what, request) in [
        ("junk", "JUNK\r\n\r\n".to_owned()),
        (
            "no colon",
            "POST /latest/ HTTP/1.1\r\nno colon here\r\n\r\n".to_owned(),
        ),
        ("HTTP/9.9", "GET /latest/ HTTP/9.9\r\n\r\n".to_owned()),
        ("binary", "\u{1}\u{2}\u{3}\r\n\r\n".to_owned()),
        (
            "Content-Length: x",
            subject.request("GET", LEAF, &[("Content-Length", "x")]),
        ),
        (
            "two lengths",
            subject.request("GET", LEAF, &[("Content-Length", "1"), ("Content-Length", "2")]),
        ),
        (
            "length and chunked",
            subject.request(
                "GET",
                LEAF,
                &[("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
            ) + "0\r\n\r\n",
        ),
    ] {
        let mut conversation = subject.client.open()?;
        conversation.send(request);
        match conversation.reply(Expects::Body) {
            Ok(reply) if judge.status(what, &reply, &[400]) => require_closed(&mut judge, &mut conversation),
            Ok(_) => {}
            Err(error) => judge.require(false, format!("{what}: 400"), format!("{what}: {error}")),
        }
    }
    Ok(judge.finding())
}

fn method_first(subject: &Subject) -> Outcome {
    let headers = [(FORWARDED_HEADER, "10.0.0.1"), (TOKEN_HEADER, "wrong")];
    let mut judge = Judge::default();
    for (method, target) in [("POST", LEAF), ("PUT", LEAF), ("DELETE", TOKEN_PATH)] {
        let what = format!("{method} {target}");
        judge.status(&what, &subject.ask_bare(method, target, &headers)?, &[405]);
    }
    Ok(judge.finding())
}

fn forwarded_second(subject: &Subject) -> Outcome {
    let forwarded = (FORWARDED_HEADER, "10.0.0.1");
    let mut judge = Judge::default();
    let get = subject.ask_bare("GET", LEAF, &[forwarded, (TOKEN_HEADER, "wrong")])?;
    judge.status("GET with a wrong token", &get, &[403]);
    judge.status(
        "PUT with TTL 0",
        &subject.put_token(&["0"], &[forwarded])?,
        &[403],
    );
    judge.status(
        "PUT without a TTL",
        &subject.put_token(&[], &[forwarded])?,
        &[403],
    );
    Ok(judge.finding())
}

fn path_last(subject: &Subject) -> Outcome {
    let reply = subject.ask_bare("GET", MISSING, &[(TOKEN_HEADER, "wrong")])?;
    let mut judge = Judge::default();
    judge.status("GET", &reply, &[401]);
    Ok(judge.finding())
}

fn bad_request_page(subject: &Subject) -> Outcome {
    let junk = subject.client.exchange("JUNK\r\n\r\n", Expects::Body)?;
    let mut judge = Judge::default();
    for (what, reply) in [("no TTL", subject.put_token(&[], &[])?), ("junk", junk)] {
        if judge.status(what, &reply, &[400]) {
            judge.header(what, &reply, "Content-Type", "text/html");
            let text = reply.text();
            let is_page = text.starts_with("<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n")
                && text.matches("400 - Bad Request").count() == 2
                && text.ends_with("</html>\n");
            judge.require(
                is_page,
                format!("{what}: EC2's page, 400 - Bad Request"),
                reply.summary(),
            );
        }
    }
    Ok(judge.finding())
}

fn unauthorized(subject: &Subject) -> Outcome {
    let reply = subject.ask_bare("GET", LEAF, &[(TOKEN_HEADER, "wrong")])?;
    let mut judge = Judge::default();
    if judge.status("GET", &reply, &[401]) {
        judge.empty_plain("401", &reply);
        judge.header("401", &reply, "Connection", "close");
    }
    Ok(judge.finding())
}

fn bare_directories(subject: &Subject) -> Outcome {
    let Some(tree) = subject.crawl().latest() else {
        return Ok(Finding::skip("there is no tree"));
    };
    let directories = tree
        .listings
        .keys()
        .filter(|path| !path.is_empty())
        .take(SPELLINGS_MAX);
    let targets = directories.map(|path| (format!("/latest/{path}"), format!("/latest/{path}/")));
    spelled(subject, &targets.collect::<Vec<_>>())
}

fn slashed_leaves(subject: &Subject) -> Outcome {
    let Some(tree) = subject.crawl().latest() else {
        return Ok(Finding::skip("there is no tree"));
    };
    let leaves = tree
        .leaves
        .keys()
        .filter(|path| !path.contains("/tags/"))
        .take(SPELLINGS_MAX);
    let targets = leaves.map(|path| (format!("/latest/{path}/"), format!("/latest/{path}")));
    spelled(subject, &targets.collect::<Vec<_>>())
}

fn doubled_slashes(subject: &Subject) -> Outcome {
    spelled(
        subject,
        &[("//latest//meta-data//instance-id//".to_owned(), LEAF.to_owned())],
    )
}

/// Asks for each first target and wants what the second gets.
fn spelled(subject: &Subject, targets: &[(String, String)]) -> Outcome {
    let mut judge = Judge::default();
    for (odd, plain) in targets {
        let (one, other) = (subject.get_kept(odd)?, subject.get_kept(plain)?);
        judge.status(odd, &one, &[200]);
        judge.same_body(odd, &one, &other);
    }
    if targets.is_empty() {
        return Ok(Finding::skip("there is nothing to ask for"));
    }
    Ok(judge.finding())
}

fn dots(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    for target in [
        "/latest/meta-data/../meta-data/instance-id",
        "/latest/..",
        "/latest/meta-data/./instance-id",
    ] {
        judge.status(target, &subject.get(target)?, &[404]);
    }
    Ok(judge.finding())
}
