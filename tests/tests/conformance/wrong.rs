//! Servers with planted defects: each must fail exactly the rows that tell of it.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
};

use imds_agent::{
    http::{ContentType, Request, Response, Service, Status},
    imdsctl::conformance,
    now::Now,
    registry::HttpTokens,
};

use super::{failures, served::Served, service, strictly, world::Server};

/// A service that answers like ours but for one defect.
struct Wrong {
    right: Server,
    defect: fn(&Request<'_>, &mut Response),
}

impl Service for Wrong {
    fn respond(&mut self, now: Now, request: &Request<'_>, response: &mut Response) {
        self.right.respond(now, request, response);
        (self.defect)(request, response);
    }
}

/// What is wrong, how, and which rows tell.
type Planted = (
    &'static str,
    fn(&Request<'_>, &mut Response),
    &'static [&'static str],
);

const PLANTED: [Planted; 17] = [
    (
        "a newline after the role's name",
        |request, response| {
            if is(request, "iam/security-credentials") && response.status == Status::Ok {
                response.body.push(b'\n');
            }
        },
        &["B.5/1", "3/crawl-newline"],
    ),
    (
        "a child that is listed and not there",
        |request, response| {
            if is(request, "meta-data") {
                response.body.extend(b"\nghost");
            }
        },
        &["3/crawl-resolves"],
    ),
    (
        "a category that is there and not listed",
        |request, response| {
            if is(request, "meta-data") {
                replace(response, "reservation-id\n", "");
            }
        },
        &["3/crawl-listed"],
    ),
    (
        "a directory listed without its slash",
        |request, response| {
            if is(request, "meta-data") {
                replace(response, "placement/", "placement");
            }
        },
        &["B.1/9", "3/crawl-listed"],
    ),
    (
        "a name listed twice",
        |request, response| {
            if is(request, "meta-data") {
                replace(response, "mac\n", "mac\nmac\n");
            }
        },
        &["3/crawl-listings"],
    ),
    (
        "a category before its time",
        |request, response| {
            if request.target.starts_with("/2019-10-01/") && is(request, "placement") {
                response.body.extend(b"\nregion");
            }
            if request.target == "/2019-10-01/meta-data/placement/region" {
                response.reset();
                response.body.extend(b"eu-central-1");
            }
        },
        &["B.1/14a", "B.1/14b"],
    ),
    (
        "a token without its TTL beside it",
        |request, response| {
            if request.method == "PUT" {
                response.token_ttl_seconds = None;
            }
        },
        &["B.2/17a", "B.2/17c", "B.2/20"],
    ),
    (
        "a token that may live too long",
        |request, response| {
            let is_too_long = request
                .headers("X-aws-ec2-metadata-token-ttl-seconds")
                .eq([b"21601"]);
            if is_too_long && response.status == Status::BadRequest {
                response.reset();
                response.body.extend([b'A'; 56]);
            }
        },
        &["B.2/19a"],
    ),
    (
        "a token by way of a proxy",
        |request, response| {
            if request.method == "PUT" && response.status == Status::Forbidden && is(request, "token") {
                response.status = Status::BadRequest;
            }
        },
        &["0/1c", "B.2/23", "B.2/25", "B.2/26", "B.4/403"],
    ),
    (
        "a 404 in other words",
        |_, response| {
            if response.status == Status::NotFound {
                response.content_type = ContentType::TextPlain;
                response.body = b"not found".to_vec();
            }
        },
        &["B.4/404a", "B.4/404b"],
    ),
    (
        "a 401 with a body",
        |_, response| {
            if response.status == Status::Unauthorized {
                response.body = b"who are you?".to_vec();
            }
        },
        &["0/3", "B.4/401"],
    ),
    (
        "an expiration with a fraction",
        |request, response| {
            if request.target.contains("security-credentials") {
                replace(response, "Z\",\n  \"AccountId\"", ".5Z\",\n  \"AccountId\"");
            }
        },
        &["B.5/2d"],
    ),
    (
        "credentials in another order",
        |request, response| {
            if request.target.contains("security-credentials/") {
                replace(response, "  \"Type\" : \"AWS-HMAC\",\n", "");
                replace(response, "{\n", "{\n  \"Type\" : \"AWS-HMAC\",\n");
            }
        },
        &["B.5/2b", "B.5/8"],
    ),
    (
        "documents called JSON",
        |request, response| {
            if is(request, "info") && response.status == Status::Ok {
                response.content_type = ContentType::ApplicationJson;
            }
        },
        &["3/crawl-types"],
    ),
    (
        "a value without its shape",
        |request, response| {
            if is(request, "local-ipv4") {
                replace(response, "10.0.1.5", "10.0.1.5/24");
            }
        },
        &["B.5/9c", "3/meta-data/local-ipv4"],
    ),
    (
        "an accelerator in the words of another version",
        |request, response| {
            if request.target.contains("elastic-inference/") {
                replace(response, "version_2018_04_12", "version_2017_07_25");
            }
        },
        &["3/meta-data/elastic-inference/associations/*"],
    ),
    (
        "signed data in its armour",
        |request, response| {
            if is(request, "dsa2048") && response.status == Status::Ok {
                response.body.splice(0..0, *b"-----BEGIN PKCS7-----\n");
            }
        },
        &["3/dynamic/instance-identity/dsa2048"],
    ),
];

#[test]
fn each_defect_fails_its_rows_and_no_others() {
    thread::scope(|scope| {
        let graded = PLANTED.map(|(what, defect, rows)| {
            scope.spawn(move || {
                let right = service("full", |world| {
                    world.member.options.http_tokens = HttpTokens::Required;
                });
                let served = Served::start(Wrong { right, defect });
                let report = conformance::grade(&served.url(), &strictly()).expect("a report");
                let mut failed = failures(&report);
                let mut expected = rows.to_vec();
                failed.sort_unstable();
                expected.sort_unstable();
                (failed != expected).then(|| format!("{what}: {failed:?} instead of {expected:?}\n{report}"))
            })
        });
        let surprises: Vec<String> = graded
            .into_iter()
            .filter_map(|graded| graded.join().expect("a graded server"))
            .collect();
        assert!(surprises.is_empty(), "{}", surprises.join("\n"));
    });
}

/// The simplest server that people write: one answer to whatever comes, the connection left open.
#[test]
fn one_answer_to_everything_is_seen_through() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut buffer = [0; 64 * 1024];
                while matches!(stream.read(&mut buffer), Ok(1..)) {
                    _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ni-fake");
                }
            });
        }
    });
    let mut arguments = strictly();
    arguments.only = [
        "B.2/18", "B.2/21", "B.2/24a", "B.3/33", "B.4", "B.5/12b", "B.6/1a", "B.6/5",
    ]
    .map(str::to_owned)
    .into();
    let report = conformance::grade(&url, &arguments).expect("a report");
    assert_eq!(
        failures(&report),
        [
            "B.2/18", "B.2/24a", "B.3/33", "B.4/404a", "B.4/404b", "B.4/401", "B.4/403", "B.4/405", "B.6/1a"
        ],
        "{report}"
    );
}

/// Whether the last part of the path is `name`.
fn is(request: &Request<'_>, name: &str) -> bool {
    request
        .target
        .trim_end_matches('/')
        .ends_with(&format!("/{name}"))
}

fn replace(response: &mut Response, old: &str, new: &str) {
    let text = String::from_utf8_lossy(&response.body).replacen(old, new, 1);
    response.body = text.into_bytes();
}
