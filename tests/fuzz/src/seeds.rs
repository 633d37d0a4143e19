//! What the fuzzer begins with: every shape that the other tests know, so that it need not find out what a request is.
//!
//! `cargo run --package imds-fuzz --example seeds` writes them to the corpora, and the words that they are made of to the
//! dictionaries. What stands in a corpus beside them was found by fuzzing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use imds_agent::{imds::tree::ROWS, registry::record::Kind};
use imds_ebpf::abi::{PUNT_HEADER_BYTES, PuntHeader};
use imds_tests::{exchange::unescape, verdicts};
use secrecy::ExposeSecret as _;

use crate::{capsules, ring::LENGTH_AT, service};

/// Inputs longer than this only slow the fuzzer down.
const SEED_BYTES_MAX: usize = 8192;

/// Inputs of one target, by name.
pub type Seeds = BTreeMap<String, Vec<u8>>;

/// This crate's directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The seeds of every target.
pub fn all() -> BTreeMap<&'static str, Seeds> {
    let mut all = BTreeMap::from([
        ("capsules", capsules()),
        ("classifier", classifier()),
        ("http", http()),
        ("paths", paths()),
        ("records", records()),
        ("ring", ring()),
        ("stack", stack()),
        ("sts", sts()),
        ("tokens", tokens()),
    ]);
    for seeds in all.values_mut() {
        seeds.retain(|_, seed| seed.len() <= SEED_BYTES_MAX);
    }
    all
}

/// The dictionaries, for the targets that read words.
pub fn dictionaries() -> BTreeMap<&'static str, String> {
    let streams = http();
    let streams: Vec<_> = streams
        .values()
        .map(|stream| String::from_utf8_lossy(stream))
        .collect();
    let fields = streams.iter().flat_map(|stream| stream.split("\r\n"));
    let names = fields
        .clone()
        .filter_map(|field| Some(format!("{}: ", field.split_once(": ")?.0)));
    let methods = fields.filter_map(|field| {
        field
            .strip_suffix(" HTTP/1.1")?
            .split_once(' ')
            .map(|(method, _)| method)
    });
    let methods = methods.map(|method| method.trim_start_matches('\0').to_owned());
    let framing = [
        "HTTP/1.0",
        "HTTP/1.1",
        "\r\n",
        "\r\n\r\n",
        "chunked",
        "0\r\n\r\n",
        "keep-alive",
        "close",
    ];
    let segments = ROWS.iter().flat_map(|row| row.path.split('/')).map(str::to_owned);
    let keys = records();
    let keys = keys.values().flat_map(|record| {
        let text = String::from_utf8_lossy(&record[1..]).into_owned();
        let words: Vec<_> = text
            .split('"')
            .skip(1)
            .step_by(2)
            .map(|word| format!("\"{word}\""))
            .collect();
        words
    });
    let parameters = sts();
    let parameters = parameters.values().flat_map(|request| {
        let text = String::from_utf8_lossy(&request[1..]).into_owned();
        let words: Vec<_> = text
            .split(['&', '=', '\n', ' ', ','])
            .map(str::to_owned)
            .collect();
        words
    });
    BTreeMap::from([
        (
            "http",
            dictionary(names.chain(methods).chain(framing.map(str::to_owned))),
        ),
        (
            "paths",
            dictionary(segments.chain(imds_agent::imds::path::VERSIONS.map(str::to_owned))),
        ),
        ("records", dictionary(keys)),
        ("sts", dictionary(parameters)),
    ])
}

fn dictionary(words: impl Iterator<Item = String>) -> String {
    let words: BTreeSet<_> = words
        .filter(|word| (2..=40).contains(&word.len()) && word.is_ascii())
        .collect();
    let mut lines = String::new();
    for word in words {
        lines.push('"');
        for byte in word.bytes() {
            match byte {
                b'"' | b'\\' => _ = write!(lines, "\\{}", char::from(byte)),
                b' '..=b'~' => lines.push(byte.into()),
                _ => _ = write!(lines, "\\x{byte:02x}"),
            }
        }
        lines.push_str("\"\n");
    }
    lines
}

fn named<const N: usize>(seeds: [(&str, Vec<u8>); N]) -> Seeds {
    seeds
        .into_iter()
        .map(|(name, seed)| (name.to_owned(), seed))
        .collect()
}

fn with(how: u8, bytes: &[u8]) -> Vec<u8> {
    [&[how], bytes].concat()
}

fn capsules() -> Seeds {
    let good = capsules::sealed().session_token.expose_secret().as_bytes();
    named([
        ("good", with(0, good)),
        ("good-unchanged", with(1, &[])),
        ("good-changed", with(1, &[0, 60, 1])),
        ("cut", with(0, &good[..40])),
    ])
}

fn classifier() -> Seeds {
    // Bound, on both addresses.
    let cases = verdicts::table().into_iter();
    cases
        .map(|case| (file_name(case.name), with(4, &case.frame)))
        .collect()
}

/// The streams of the golden exchanges.
fn http() -> Seeds {
    let mut seeds = Seeds::new();
    for (name, text) in files(&root().join("../golden/exchanges")) {
        let mut streams = vec![Vec::new()];
        for line in text.lines() {
            match line.strip_prefix("> ") {
                Some(bytes) => {
                    let bytes = bytes.replace("{token}", service::token());
                    streams.last_mut().expect("there is one").extend(unescape(&bytes));
                }
                None if line == "connect" => streams.push(Vec::new()),
                None => {}
            }
        }
        streams.sort_by_key(Vec::len);
        // The shortest says what the exchange is about, mostly.
        if let Some(stream) = streams.into_iter().find(|stream| !stream.is_empty()) {
            seeds.insert(name, with(0, &stream));
        }
    }
    seeds
}

fn paths() -> Seeds {
    let targets = [
        "/",
        "/latest",
        "/latest/",
        "/1.0/",
        "/latest//meta-data/",
        "/latest/meta-data/tags/instance/with%2Fslash",
        "/latest/meta-data/network/interfaces/macs/0e:49:61:0f:c3:11/ipv4-associations/203.0.113.7",
        "/latest/meta-data/public-keys/",
        "/latest/meta-data/public-keys/1/openssh-key?x=/..",
        "http://169.254.169.254/latest/user-data",
        "/latest/dynamic/instance-identity/document",
        "/latest/meta-data/iam/security-credentials/imds-assume-role-test",
        "/2021-03-23/meta-data/../api/token",
        "/latest/meta-data/tags/instance-index/4/value",
    ];
    targets
        .iter()
        .map(|target| (file_name(target), target.as_bytes().to_vec()))
        .collect()
}

fn records() -> Seeds {
    let mut seeds = Seeds::new();
    let examples = root().join("../../docs/examples");
    for (how, kind) in (0_u8..).zip(Kind::ALL) {
        for (name, text) in files(&examples.join(kind.directory())) {
            seeds.insert(format!("{}-{name}", kind.directory()), with(how, text.as_bytes()));
        }
    }
    for (name, text) in files(&root().join("../golden/instances")) {
        let file: serde_json::Value = serde_json::from_str(&text).expect("a golden file");
        seeds.insert(
            format!("golden-{name}"),
            with(0, file["Instance"].to_string().as_bytes()),
        );
        if name == "web" {
            let described =
                serde_json::json!({ "Reservations": [{ "OwnerId": "1", "Instances": [file["Instance"]] }] });
            seeds.insert(
                "described-web".to_owned(),
                with(0, described.to_string().as_bytes()),
            );
        }
    }
    seeds
}

fn ring() -> Seeds {
    let record = |promised: u16, frame: &[u8]| {
        let mut record = vec![0; PUNT_HEADER_BYTES];
        record[LENGTH_AT..LENGTH_AT + 2].copy_from_slice(&promised.to_ne_bytes());
        record.extend(frame);
        assert_eq!(
            PuntHeader::split(&record).is_some(),
            frame.len() >= usize::from(promised)
        );
        record
    };
    named([
        ("whole", record(5, b"frame")),
        ("with-room-left", record(3, b"frame")),
        ("promises-more", record(6, b"frame")),
        ("head-only", record(0, b"")),
    ])
}

/// Scripts of [`imds_tests::raw_guest`].
fn stack() -> Seeds {
    let open = |flow, sequence| [0, flow, 0, 1, 0, 0, 0, sequence];
    let exchange = |request| [&open(0, 9)[..], &[2, 0, request, 5, 0, 7, 0]].concat();
    let mut seeds: Seeds = (0..8)
        .map(|request| {
            (
                format!("request-{request}"),
                with(request & 1, &exchange(request)),
            )
        })
        .collect();
    seeds.extend(named([
        (
            "two-at-once",
            with(
                0,
                &[&open(0, 1)[..], &open(1, 2), &[2, 1, 1, 2, 0, 0, 5, 0, 5, 1]].concat(),
            ),
        ),
        (
            "window-shut",
            with(
                1,
                &[&open(0, 1)[..], &[9, 0, 0, 2, 0, 4, 15, 0, 50, 9, 0, 3, 255, 255]].concat(),
            ),
        ),
        (
            "storms",
            with(0, &[13, 0, 0, 255, 13, 0, 1, 255, 15, 0, 100, 13, 0, 2, 99]),
        ),
        (
            "beside",
            with(
                0,
                &[
                    &open(0, 1)[..],
                    &[10, 0, 0x18, 0xff, 0xf0, 0, 0, 9, 2, 0, 1, 8, 0],
                ]
                .concat(),
            ),
        ),
        ("syn-with-data", with(0, &[0, 0, 0xfe, 4, 0, 0, 0, 1, 2, 0, 0])),
    ]));
    seeds
}

fn sts() -> Seeds {
    let identity = "Action=GetCallerIdentity&Version=2011-06-15";
    let assume = "Action=AssumeRole&Version=2011-06-15&RoleSessionName=session&DurationSeconds=900&ExternalId=x&\
                  RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fother";
    let token = capsules::sealed().session_token.expose_secret();
    let authorization = format!(
        "host: sts.internal\nx-amz-date: 20261121T080000Z\nx-amz-security-token: {token}\nauthorization: AWS4-HMAC-SHA256 \
         Credential={}/20261121/eu-central-1/sts/aws4_request, SignedHeaders=host;x-amz-date, Signature={}",
        capsules::sealed().access_key_id,
        "0".repeat(64)
    );
    let presigned = format!(
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}%2F20261121%2Feu-central-1%2Fsts%2Faws4_request&\
         X-Amz-Date=20261121T080000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature={}&{identity}",
        capsules::sealed().access_key_id,
        "0".repeat(64)
    );
    let request = |how, query: &str, body: &str, fields: &str| {
        with(how, format!("{query}\n{body}\n{fields}").as_bytes())
    };
    named([
        ("identity-in-header", request(1, "", identity, "")),
        ("identity-in-query", request(2, identity, "", "")),
        ("assume-role", request(1, "", assume, "")),
        ("assume-role-in-query", request(2, assume, "", "")),
        ("changed", request(3, "", identity, "")),
        ("changed-signature", request(0x83, identity, "", "")),
        ("unsigned", request(0, identity, "", "host: sts.internal")),
        ("forged", request(0, "", identity, &authorization)),
        (
            "forged-in-query",
            request(0, &presigned, "", "host: sts.internal"),
        ),
    ])
}

fn tokens() -> Seeds {
    let good = service::token().as_bytes();
    named([
        ("good", with(0, good)),
        ("good-unchanged", with(1, &[])),
        ("good-changed", with(1, &[30, 1])),
        ("cut", with(0, &good[..55])),
        ("spaces-around", with(0, &[b" ", good, b"\t "].concat())),
    ])
}

/// The files of a directory by their names without extension, in order.
fn files(directory: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries
        .map(|entry| {
            let path = entry.expect("a file").path();
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let text =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (name, text)
        })
        .collect()
}

fn file_name(text: &str) -> String {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    let name = words.join("-").to_lowercase();
    if name.is_empty() { "root".to_owned() } else { name }
}
