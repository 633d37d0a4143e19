//! Section 2, the header sets, and B.4, the error bodies.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use super::no_tokens;
use crate::imdsctl::conformance::{
    client::Reply,
    finding::{Check, Finding, Judge, Mark::*, Outcome},
    subject::{FORWARDED_HEADER, LEAF, Subject, TOKEN_HEADER, TOKEN_PATH, TTL_SECONDS},
};

/// The reply header that tells how long a token lives.
pub(super) const TTL_REPLY_HEADER: &str = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds";

/// A path that no server has.
pub(super) const MISSING: &str = "/latest/meta-data/no-such-category";

/// The page of EC2's 404, byte for byte: 339 of them.
const NOT_FOUND_PAGE: &str = "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n\
    <!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\"\n\
    \t\t \"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\">\n\
    <html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n\
    \x20<head>\n\x20 <title>404 - Not Found</title>\n\x20</head>\n\
    \x20<body>\n\x20 <h1>404 - Not Found</h1>\n\x20</body>\n</html>\n";

pub(super) const CHECKS: [Check; 6] = [
    Check::new(
        "B/1",
        C,
        "a 200 carries EC2's header set, `Server: EC2ws`, `Accept-Ranges: none` and `Connection: close`",
        "GET meta-data/instance-id with a token",
        header_set,
    ),
    Check::new(
        "B/2",
        C,
        "the header fields come in EC2's order",
        "GET meta-data/instance-id with a token",
        header_order,
    ),
    Check::new(
        "B/3",
        C,
        "`Date` and `Last-Modified` are HTTP dates, the second not after the first",
        "GET meta-data/instance-id with a token",
        dates,
    ),
    Check::new(
        "B/4",
        C,
        "a reply to a token tells the seconds that it has left, a 404 too",
        "GET meta-data/instance-id and a missing path with a token",
        seconds_left,
    ),
    Check::new(
        "B/5",
        C,
        "a reply without a token does not",
        "GET meta-data/instance-id without a token",
        no_seconds_left,
    ),
    Check::new(
        "B/6",
        C,
        "the status line is HTTP/1.1 with EC2's reason phrases",
        "GET, GET of a missing path, POST to the token path",
        status_lines,
    ),
];

pub(super) const ERROR_CHECKS: [Check; 5] = [
    Check::new(
        "B.4/404a",
        C,
        "a 404 has EC2's page of 339 bytes",
        "GET a missing path",
        not_found_page,
    ),
    Check::new(
        "B.4/404b",
        C,
        "a 404 is text/html, has no Last-Modified and no Accept-Ranges, and closes",
        "GET a missing path",
        not_found_headers,
    ),
    Check::new(
        "B.4/401",
        C,
        "a 401 is empty, or has EC2's older page of 343 bytes",
        "GET with a wrong token",
        unauthorized_body,
    ),
    Check::new(
        "B.4/403",
        C,
        "a 403 is empty text/plain",
        "PUT for a token with X-Forwarded-For",
        forbidden_body,
    ),
    Check::new(
        "B.4/405",
        C,
        "a 405 is empty text/plain",
        "DELETE on the token path",
        not_allowed_body,
    ),
];

/// An HTTP date (RFC 9110, section 5.6.7) in its one modern form.
pub(super) fn http_date(text: &str) -> Option<Timestamp> {
    const FORMAT: &str = "%a, %d %b %Y %H:%M:%S GMT";
    let date = DateTime::strptime(FORMAT, text).ok()?;
    let is_exact = date.strftime(FORMAT).to_string() == text;
    date.to_zoned(TimeZone::UTC)
        .ok()
        .filter(|_| is_exact)
        .map(|zoned| zoned.timestamp())
}

/// Whether these header fields, of which some may be missing, come in this order.
pub(super) fn require_order(judge: &mut Judge, reply: &Reply, order: &[&str]) {
    let found: Vec<&str> = reply
        .headers
        .iter()
        .filter_map(|(name, _)| order.iter().find(|wanted| wanted.eq_ignore_ascii_case(name)))
        .copied()
        .collect();
    let wanted: Vec<&str> = order
        .iter()
        .filter(|name| found.contains(name))
        .copied()
        .collect();
    judge.require(found == wanted, wanted.join(", "), found.join(", "));
    judge.saw(found.join(", "));
}

/// Whether the reply has these header fields and no others.
pub(super) fn require_set(judge: &mut Judge, reply: &Reply, wanted: &[&str]) {
    for name in wanted {
        let is_there = reply.header(name).is_some();
        judge.require(is_there, format!("{name} present"), format!("{name} missing"));
    }
    for (name, _) in &reply.headers {
        let is_wanted = wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
        judge.require(is_wanted, format!("no {name}"), format!("{name} present"));
    }
}

fn header_set(subject: &Subject) -> Outcome {
    let reply = subject.get(LEAF)?;
    let mut judge = Judge::default();
    judge.status("GET", &reply, &[200]);
    let mut wanted = vec![
        "Content-Type",
        "Accept-Ranges",
        "Last-Modified",
        "Content-Length",
        "Date",
        "Server",
        "Connection",
    ];
    if subject.token().is_some() {
        wanted.insert(0, TTL_REPLY_HEADER);
    }
    require_set(&mut judge, &reply, &wanted);
    for (name, value) in [
        ("Content-Type", "text/plain"),
        ("Accept-Ranges", "none"),
        ("Server", "EC2ws"),
        ("Connection", "close"),
    ] {
        judge.header("GET", &reply, name, value);
    }
    Ok(judge.finding())
}

fn header_order(subject: &Subject) -> Outcome {
    let reply = subject.get(LEAF)?;
    let mut judge = Judge::default();
    require_order(
        &mut judge,
        &reply,
        &[
            TTL_REPLY_HEADER,
            "Content-Type",
            "Accept-Ranges",
            "Last-Modified",
            "Content-Length",
            "Date",
            "Server",
            "Connection",
        ],
    );
    Ok(judge.finding())
}

fn dates(subject: &Subject) -> Outcome {
    let reply = subject.get(LEAF)?;
    let mut judge = Judge::default();
    let mut read = |name| {
        let text = reply.header(name).unwrap_or_default();
        let date = http_date(text);
        judge.require(
            date.is_some(),
            format!("{name}: an HTTP date"),
            format!("{name}: {text}"),
        );
        judge.saw(format!("{name}: {text}"));
        date
    };
    if let (Some(date), Some(last_modified)) = (read("Date"), read("Last-Modified")) {
        judge.require(
            last_modified <= date,
            "Last-Modified not after Date",
            format!("{last_modified} after {date}"),
        );
    }
    Ok(judge.finding())
}

fn seconds_left(subject: &Subject) -> Outcome {
    if subject.token().is_none() {
        return Ok(no_tokens());
    }
    let mut judge = Judge::default();
    for (what, target) in [("200", LEAF), ("404", MISSING)] {
        let reply = subject.get(target)?;
        let text = reply.header(TTL_REPLY_HEADER);
        let left: Option<u32> = text.and_then(|text| text.parse().ok());
        judge.require(
            left.is_some_and(|left| (TTL_SECONDS - 600..=TTL_SECONDS).contains(&left)),
            format!("{what}: {TTL_REPLY_HEADER}: a little under {TTL_SECONDS}"),
            format!("{what}: {}", text.unwrap_or("none")),
        );
        judge.saw(format!("{what}: {} s left", text.unwrap_or("no")));
    }
    Ok(judge.finding())
}

fn no_seconds_left(subject: &Subject) -> Outcome {
    if !subject.is_version1_answered() {
        return Ok(super::tokens_required());
    }
    let reply = subject.ask_bare("GET", LEAF, &[])?;
    let mut judge = Judge::default();
    judge.status("GET without a token", &reply, &[200]);
    judge.no_header("GET without a token", &reply, TTL_REPLY_HEADER);
    Ok(judge.finding())
}

fn status_lines(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    for (method, target, wanted) in [
        ("GET", LEAF, "HTTP/1.1 200 OK"),
        ("GET", MISSING, "HTTP/1.1 404 Not Found"),
        ("POST", TOKEN_PATH, "HTTP/1.1 405 Not Allowed"),
    ] {
        let reply = subject.ask(method, target, &[])?;
        let line = format!("{} {} {}", reply.version, reply.status, reply.reason);
        judge.require(line == wanted, wanted, line.clone());
        judge.saw(line);
    }
    Ok(judge.finding())
}

fn not_found_page(subject: &Subject) -> Outcome {
    let reply = subject.get(MISSING)?;
    let mut judge = Judge::default();
    if judge.status("GET", &reply, &[404]) {
        let page = NOT_FOUND_PAGE.as_bytes();
        let differs_at = page.iter().zip(&reply.body).position(|(one, other)| one != other);
        judge.require(
            reply.body == page,
            format!("the page of {} bytes", page.len()),
            format!(
                "{} bytes, another one from byte {}",
                reply.body.len(),
                differs_at.unwrap_or(page.len().min(reply.body.len()))
            ),
        );
    }
    Ok(judge.finding())
}

fn not_found_headers(subject: &Subject) -> Outcome {
    let reply = subject.get(MISSING)?;
    let mut judge = Judge::default();
    if judge.status("GET", &reply, &[404]) {
        judge.header("404", &reply, "Content-Type", "text/html");
        judge.header("404", &reply, "Connection", "close");
        judge.header("404", &reply, "Server", "EC2ws");
        judge.no_header("404", &reply, "Last-Modified");
        judge.no_header("404", &reply, "Accept-Ranges");
    }
    Ok(judge.finding())
}

fn unauthorized_body(subject: &Subject) -> Outcome {
    let reply = subject.ask_bare("GET", LEAF, &[(TOKEN_HEADER, "wrong")])?;
    let mut judge = Judge::default();
    if judge.status("GET", &reply, &[401]) {
        let older = NOT_FOUND_PAGE
            .replace("\t\t ", "\t")
            .replace("404 - Not Found", "401 - Unauthorized");
        judge.require(
            reply.body.is_empty() || reply.body == older.as_bytes(),
            format!("nothing, or the page of {} bytes", older.len()),
            reply.summary(),
        );
        judge.saw(reply.summary());
    }
    Ok(judge.finding())
}

fn forbidden_body(subject: &Subject) -> Outcome {
    let reply = subject.put_token(&["60"], &[(FORWARDED_HEADER, "10.0.0.1")])?;
    Ok(refusal(&reply, 403))
}

fn not_allowed_body(subject: &Subject) -> Outcome {
    let reply = subject.ask_bare("DELETE", TOKEN_PATH, &[])?;
    Ok(refusal(&reply, 405))
}

fn refusal(reply: &Reply, status: u16) -> Finding {
    let mut judge = Judge::default();
    if judge.status("the refusal", reply, &[status]) {
        judge.empty_plain("the refusal", reply);
        judge.header("the refusal", reply, "Server", "EC2ws");
        judge.header("the refusal", reply, "Connection", "close");
    }
    judge.finding()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_bytes_of_the_capture() {
        assert_eq!(NOT_FOUND_PAGE.len(), 339);
        assert!(NOT_FOUND_PAGE.contains("\n <head>\n  <title>404"));
    }

    #[test]
    fn http_dates() {
        assert!(http_date("Mon, 20 Sep 2021 21:43:31 GMT").is_some());
        for text in [
            "",
            "Tue, 20 Sep 2021 21:43:31 GMT",
            "Mon, 20 Sep 2021 21:43:31 UTC",
            "20 Sep 2021",
        ] {
            assert_eq!(http_date(text), None, "{text}");
        }
    }
}
