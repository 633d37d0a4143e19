//! B.1: roots, versions, listings, and how a path may be written.

use super::replies::MISSING;
use crate::imdsctl::conformance::{
    client::Reply,
    finding::{Check, Finding, Judge, Mark::*, Outcome, shortened},
    subject::{LEAF, Subject, is_version},
};

/// Versions that clients ask for by name: cloud-init, cloudbase-init, afterburn.
const ASKED_VERSIONS: [&str; 6] = [
    "2008-02-01",
    "2009-04-04",
    "2016-09-02",
    "2018-09-24",
    "2021-01-03",
    "2021-03-23",
];

/// What `/` listed on EC2 in August 2024.
const CAPTURED_VERSIONS: &str = "1.0 2007-01-19 2007-03-01 2007-08-29 2007-10-10 2007-12-15 2008-02-01 2008-09-01 \
    2009-04-04 2011-01-01 2011-05-01 2012-01-12 2014-02-25 2014-11-05 2015-10-20 2016-04-19 2016-06-30 2016-09-02 \
    2018-03-28 2018-08-17 2018-09-24 2019-10-01 2020-10-27 2021-01-03 2021-03-23 2021-07-15 2022-07-09 2022-09-24 \
    2024-04-11 latest";

const PUBLIC_KEYS: &str = "/latest/meta-data/public-keys";

pub(super) const CHECKS: [Check; 21] = [
    Check::new(
        "B.1/1a",
        C,
        "`/` lists the versions, oldest first, `latest` last, text/plain, no newline at the end",
        "GET /",
        root,
    ),
    Check::new(
        "B.1/1b",
        S,
        "the versions that clients ask for are among them",
        "GET /",
        asked_versions,
    ),
    Check::new(
        "B.1/1c",
        I,
        "they are the thirty of the capture of August 2024",
        "GET /",
        captured_versions,
    ),
    Check::new(
        "B.1/2a",
        C,
        "`/latest` and `/latest/` list `dynamic`, `meta-data` and perhaps `user-data`",
        "GET /latest, /latest/",
        version_root,
    ),
    Check::new(
        "B.1/2b",
        I,
        "`user-data` is listed only when it is set",
        "GET /latest/, /latest/user-data",
        user_data,
    ),
    Check::new(
        "B.1/3",
        T,
        "a version without a slash is answered",
        "GET /2009-04-04",
        old_version,
    ),
    Check::new(
        "B.1/4",
        S,
        "`/latest/meta-data` is the listing, or leads to it",
        "GET /latest/meta-data and with a slash",
        meta_data_without_slash,
    ),
    Check::new(
        "B.1/5",
        C,
        "`iam/security-credentials` is the listing, or leads to it",
        "GET iam/security-credentials and with a slash",
        role_list_without_slash,
    ),
    Check::new(
        "B.1/6a",
        D,
        "`public-keys/` lists `index=name`",
        "GET public-keys/",
        public_keys,
    ),
    Check::new(
        "B.1/6b",
        S,
        "`public-keys` without a slash is the same",
        "GET public-keys",
        public_keys_bare,
    ),
    Check::new(
        "B.1/7",
        D,
        "`public-keys/0/` lists `openssh-key`",
        "GET public-keys/0/",
        public_key,
    ),
    Check::new(
        "B.1/8",
        D,
        "`public-keys/0/openssh-key` is a key",
        "GET public-keys/0/openssh-key",
        openssh_key,
    ),
    Check::new(
        "B.1/9",
        D,
        "in a listing sub-directories end in a slash and leaves do not",
        "crawl of /latest/",
        super::tree::slashes,
    ),
    Check::new(
        "B.1/10",
        S,
        "a slash at the end of a leaf changes nothing",
        "GET instance-id/, placement/availability-zone/, instance-identity/document/, user-data/",
        slash_after_leaf,
    ),
    Check::new(
        "B.1/11",
        S,
        "two slashes are one",
        "GET /latest//meta-data/instance-id, /latest/meta-data//instance-id",
        double_slash,
    ),
    Check::new("B.1/12", C, "a query is ignored", "GET instance-id?x=1", query),
    Check::new(
        "B.1/13",
        I,
        "a date that is no version is a 404",
        "GET /2020-01-01/meta-data/",
        unknown_version,
    ),
    Check::new(
        "B.1/14a",
        I,
        "no version lists a category that is newer than itself",
        "crawl of every version of `/`",
        super::tree::not_listed_early,
    ),
    Check::new(
        "B.1/14b",
        I,
        "nor serves it",
        "GET every category of the instance in the last version before its first",
        super::tree::not_served_early,
    ),
    Check::new(
        "B.1/15",
        I,
        "paths are case-sensitive",
        "GET /latest/Meta-Data/, /LATEST/, /latest/meta-data/Instance-Id",
        case,
    ),
    Check::new(
        "B.1/16",
        I,
        "`..` never leads out of the tree",
        "GET /latest/meta-data/../../../etc/passwd, /..",
        climbing,
    ),
];

fn root(subject: &Subject) -> Outcome {
    let reply = subject.get("/")?;
    let mut judge = Judge::default();
    if judge.status("GET /", &reply, &[200]) {
        judge.header("GET /", &reply, "Content-Type", "text/plain");
        let lines = reply.lines();
        let strange = lines.iter().filter(|line| !is_version(line)).count();
        judge.require(
            strange == 0,
            "only versions",
            format!("{strange} lines that are none"),
        );
        judge.require(lines.is_sorted(), "the oldest first", "another order");
        judge.require(
            lines.last().is_some_and(|line| line == "latest"),
            "`latest` last",
            "another line last",
        );
        judge.require(!reply.body.ends_with(b"\n"), "no newline at the end", "one");
        judge.saw(format!("{} versions", lines.len()));
    }
    Ok(judge.finding())
}

fn asked_versions(subject: &Subject) -> Outcome {
    let lines = subject.get("/")?.lines();
    let missing: Vec<&str> = ASKED_VERSIONS
        .into_iter()
        .filter(|version| !lines.iter().any(|line| line == version))
        .collect();
    let mut judge = Judge::default();
    judge.require(
        missing.is_empty(),
        ASKED_VERSIONS.join(", "),
        format!("missing: {}", missing.join(", ")),
    );
    judge.saw(ASKED_VERSIONS.join(", "));
    Ok(judge.finding())
}

fn captured_versions(subject: &Subject) -> Outcome {
    let lines = subject.get("/")?.lines();
    let mut judge = Judge::default();
    let is_same = lines
        .iter()
        .map(String::as_str)
        .eq(CAPTURED_VERSIONS.split_whitespace());
    judge.require(
        is_same,
        "the thirty captured versions",
        format!("{} lines, others", lines.len()),
    );
    Ok(judge.finding())
}

fn version_root(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    for target in ["/latest", "/latest/"] {
        let reply = subject.get(target)?;
        if judge.status(target, &reply, &[200]) {
            let lines = reply.lines();
            let names: Vec<&str> = lines.iter().map(|line| line.trim_end_matches('/')).collect();
            judge.require(
                names.strip_suffix(&["user-data"]).unwrap_or(&names) == ["dynamic", "meta-data"],
                format!("{target}: dynamic, meta-data, perhaps user-data"),
                format!(
                    "{target}: {}",
                    names.iter().take(5).copied().collect::<Vec<_>>().join(", ")
                ),
            );
        }
    }
    Ok(judge.finding())
}

fn user_data(subject: &Subject) -> Outcome {
    let is_listed = subject
        .get("/latest/")?
        .lines()
        .iter()
        .any(|line| line == "user-data");
    let is_set = subject.facts.has_user_data;
    let words = |is: bool| if is { "listed" } else { "not listed" };
    let mut judge = Judge::default();
    judge.require(is_listed == is_set, words(is_set), words(is_listed));
    judge.saw(words(is_listed));
    Ok(judge.finding())
}

fn old_version(subject: &Subject) -> Outcome {
    let reply = subject.get("/2009-04-04")?;
    let mut judge = Judge::default();
    judge.status("GET", &reply, &[200]);
    Ok(judge.finding())
}

fn meta_data_without_slash(subject: &Subject) -> Outcome {
    same_or_redirect(subject, "/latest/meta-data")
}

fn role_list_without_slash(subject: &Subject) -> Outcome {
    if subject.facts.role.is_none() {
        return Ok(super::no_role());
    }
    same_or_redirect(subject, "/latest/meta-data/iam/security-credentials")
}

/// Every client reads the same body; those that follow redirects are content with one.
fn same_or_redirect(subject: &Subject, path: &str) -> Outcome {
    let bare = subject.get(path)?;
    let mut judge = Judge::default();
    judge.status("without a slash", &bare, &[200, 301]);
    if bare.status == 301 {
        let location = bare.header("Location").unwrap_or_default();
        judge.require(
            location.ends_with(&format!("{path}/")),
            format!("Location: …{path}/"),
            format!("Location: {location}"),
        );
    } else {
        judge.same_body("without a slash", &bare, &subject.get(&format!("{path}/"))?);
    }
    Ok(judge.finding())
}

fn no_keys() -> Finding {
    Finding::skip("the instance has no key pair")
}

fn public_keys(subject: &Subject) -> Outcome {
    if !subject.facts.has_public_keys {
        return Ok(no_keys());
    }
    let reply = subject.get(&format!("{PUBLIC_KEYS}/"))?;
    let mut judge = Judge::default();
    judge.status("GET", &reply, &[200]);
    for (index, line) in reply.lines().iter().enumerate() {
        let is_well_formed = line
            .split_once('=')
            .is_some_and(|(number, name)| number == index.to_string() && !name.is_empty());
        judge.require(is_well_formed, format!("{index}=<name>"), shortened(line));
    }
    Ok(judge.finding())
}

fn public_keys_bare(subject: &Subject) -> Outcome {
    if !subject.facts.has_public_keys {
        return Ok(no_keys());
    }
    let bare = subject.get(PUBLIC_KEYS)?;
    let mut judge = Judge::default();
    judge.status("without a slash", &bare, &[200]);
    judge.same_body(
        "without a slash",
        &bare,
        &subject.get(&format!("{PUBLIC_KEYS}/"))?,
    );
    Ok(judge.finding())
}

fn public_key(subject: &Subject) -> Outcome {
    if !subject.facts.has_public_keys {
        return Ok(no_keys());
    }
    let reply = subject.get(&format!("{PUBLIC_KEYS}/0/"))?;
    let mut judge = Judge::default();
    judge.status("GET", &reply, &[200]);
    judge.require(reply.body == b"openssh-key", "openssh-key alone", reply.summary());
    Ok(judge.finding())
}

fn openssh_key(subject: &Subject) -> Outcome {
    if !subject.facts.has_public_keys {
        return Ok(no_keys());
    }
    let reply = subject.get(&format!("{PUBLIC_KEYS}/0/openssh-key"))?;
    let mut judge = Judge::default();
    if judge.status("GET", &reply, &[200]) {
        let text = reply.text();
        let words: Vec<&str> = text.split(' ').collect();
        let is_key = matches!(words.as_slice(), [kind, key, ..] if kind.contains("ssh-") || kind.starts_with("ecdsa-")
            || kind.starts_with("sk-"))
            && words.get(1).is_some_and(|key| key.starts_with("AAAA"));
        judge.require(is_key, "<type> AAAA… [comment]", reply.summary());
    }
    Ok(judge.finding())
}

fn slash_after_leaf(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    for path in [
        LEAF,
        "/latest/meta-data/placement/availability-zone",
        "/latest/dynamic/instance-identity/document",
        "/latest/user-data",
    ] {
        let bare = subject.get(path)?;
        if bare.status == 200 || path == LEAF {
            let slashed = subject.get(&format!("{path}/"))?;
            judge.status(&format!("{path}/"), &slashed, &[200]);
            judge.same_body(&format!("{path}/"), &slashed, &bare);
        }
    }
    Ok(judge.finding())
}

fn double_slash(subject: &Subject) -> Outcome {
    let bare = subject.get(LEAF)?;
    let mut judge = Judge::default();
    for target in ["/latest//meta-data/instance-id", "/latest/meta-data//instance-id"] {
        let doubled = subject.get(target)?;
        judge.status(target, &doubled, &[200]);
        judge.same_body(target, &doubled, &bare);
    }
    Ok(judge.finding())
}

fn query(subject: &Subject) -> Outcome {
    let bare = subject.get(LEAF)?;
    let mut judge = Judge::default();
    for query in ["?", "?x=1", "?a=/../b&c=%20"] {
        let reply = subject.get(&format!("{LEAF}{query}"))?;
        judge.status(query, &reply, &[200]);
        judge.same_body(query, &reply, &bare);
    }
    Ok(judge.finding())
}

fn unknown_version(subject: &Subject) -> Outcome {
    not_found(
        subject,
        &[
            "/2020-01-01/meta-data/",
            "/2020-01-01/",
            "/1999-12-31/meta-data/instance-id",
        ],
    )
}

fn case(subject: &Subject) -> Outcome {
    not_found(
        subject,
        &["/latest/Meta-Data/", "/LATEST/", "/latest/meta-data/Instance-Id"],
    )
}

fn not_found(subject: &Subject, targets: &[&str]) -> Outcome {
    let mut judge = Judge::default();
    for target in targets {
        judge.status(target, &subject.get(target)?, &[404]);
    }
    Ok(judge.finding())
}

fn climbing(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    let is_shown = |reply: &Reply| reply.status == 200 && reply.text().contains("root:");
    for target in [
        "/latest/meta-data/../../../../../../etc/passwd",
        "/latest/meta-data/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/../../../../etc/passwd",
    ] {
        let reply = subject.get(target)?;
        judge.status(target, &reply, &[400, 404]);
        judge.require(!is_shown(&reply), "nothing of the host", "a file of the host");
    }
    let missing = subject.get(&format!("{MISSING}/../no-such-category"))?;
    judge.status("a missing path through `..`", &missing, &[400, 404]);
    Ok(judge.finding())
}
