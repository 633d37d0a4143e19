//! The grader of `imdsctl conformance`, held against servers of which it is known how good they are.

mod moto;
mod served;
mod tap;
#[path = "../golden/world.rs"]
#[expect(dead_code, reason = "the golden exchanges use all of it")]
mod world;
mod wrong;

use std::{net::TcpListener, path::Path, sync::Arc, thread};

use imds_agent::{
    credentials::{RoleCredentials, RoleState},
    imdsctl::conformance::{self, Arguments, Finding, Report},
    registry::HttpTokens,
};
use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;

use served::Served;
use world::{Server, World};

/// Where the golden files are, for [`world`].
fn golden(directory: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(directory)
}

/// Everything, as fast as the server can, our own decisions included.
fn strictly() -> Arguments {
    Arguments {
        url: None,
        only: Vec::new(),
        strict: true,
        slow: false,
        packets_per_second: 0,
        list: false,
    }
}

fn grade(server: Server, arguments: &Arguments) -> Report {
    let served = Served::start(server);
    conformance::grade(&served.url(), arguments).expect("a report")
}

fn failures(report: &Report) -> Vec<&'static str> {
    let failed = report
        .rows
        .iter()
        .filter(|row| matches!(row.finding, Finding::Fail { .. }));
    failed.map(|row| row.id).collect()
}

fn set_of_today() -> Arc<RoleState> {
    Arc::new(RoleState::Ready(RoleCredentials {
        access_key_id: "ASIAIOSFODNN7EXAMPLE".to_owned(),
        secret_access_key: SecretString::from("secret"),
        session_token: SecretString::from("token"),
        last_updated: Timestamp::now(),
        expiration: Timestamp::now() + SignedDuration::from_hours(6),
    }))
}

/// The service for an instance of `golden/instances`, with credentials of today.
fn service(name: &str, change: impl FnOnce(&mut World)) -> Server {
    let mut world = World::named(name);
    if matches!(world.role_state.as_deref(), Some(RoleState::Ready(_))) {
        world.role_state = Some(set_of_today());
    }
    world.identity_state = Some(set_of_today());
    change(&mut world);
    let interfaces = &world.member.instance.network_interfaces;
    let primary = interfaces.iter().position(|interface| {
        interface
            .attachment
            .as_ref()
            .is_none_or(|attachment| attachment.device_index == 0)
    });
    let mut server = Server::new();
    server.set_caller(world, primary.expect("a primary interface"));
    server
}

#[test]
fn our_service_has_no_failure() {
    for tokens in [HttpTokens::Required, HttpTokens::Optional] {
        let server = service("full", |world| world.member.options.http_tokens = tokens);
        let report = grade(server, &strictly());
        assert_eq!(failures(&report), [""; 0], "tokens {tokens:?}\n{report}");
        assert!(report.counts().passed > 150, "{report}");
    }
}

/// A record says little: what EC2 always has is missed then, and nothing else is.
#[test]
fn a_sparse_record_misses_only_what_it_does_not_say() {
    thread::scope(|scope| {
        for name in ["bare", "optional", "profileless", "refused", "roleless", "web"] {
            scope.spawn(move || {
                let report = grade(service(name, |_| ()), &strictly());
                for row in &report.rows {
                    if let Finding::Fail { seen, .. } = &row.finding {
                        assert!(
                            row.id.starts_with("3/meta-data/") && seen == "none",
                            "{name}: {row:?}"
                        );
                    }
                }
                assert!(report.counts().passed > 100, "{name}\n{report}");
            });
        }
    });
}

#[test]
fn a_disabled_endpoint_has_one_row_left() {
    let report = grade(service("disabled", |_| ()), &strictly());
    assert_eq!(
        (report.counts().passed, report.counts().failed),
        (1, 0),
        "{report}"
    );
}

#[test]
fn a_stalled_request_is_ended_in_time() {
    let mut arguments = strictly();
    arguments.slow = true;
    arguments.only = vec!["0/14d".to_owned()];
    let report = grade(service("web", |_| ()), &arguments);
    assert_eq!(report.counts().passed, 1, "{report}");
}

/// Programs read these names.
#[test]
fn the_report_as_json() {
    let report = grade(
        service("web", |_| ()),
        &Arguments {
            only: ["B.2/18", "B.2/29"].map(str::to_owned).into(),
            ..strictly()
        },
    );
    let json: serde_json::Value = serde_json::from_str(&report.to_json().expect("JSON")).expect("JSON");
    assert_eq!(json["counts"]["passed"], 1);
    assert_eq!(json["counts"]["skipped"], 1);
    assert_eq!(json["rows"][0]["id"], "B.2/18");
    assert_eq!(json["rows"][0]["mark"], "D");
    assert_eq!(json["rows"][0]["verdict"], "pass");
    assert_eq!(json["rows"][1]["verdict"], "skip");
    assert!(
        json["endpoint"]
            .as_str()
            .is_some_and(|endpoint| endpoint.starts_with("http://127.0.0.1:"))
    );
}

/// Nothing of a secret is in a report, whatever is wrong with it.
#[test]
fn secrets_are_never_told() {
    let server = service("full", |world| {
        world.role_state = Some(Arc::new(RoleState::Ready(RoleCredentials {
            access_key_id: String::new(),
            secret_access_key: SecretString::from("hush-hush"),
            session_token: SecretString::from("hush-hush\n"),
            last_updated: Timestamp::now(),
            expiration: Timestamp::now(),
        })));
    });
    let report = grade(server, &strictly());
    assert!(failures(&report).contains(&"B.5/2a"), "{report}");
    assert!(failures(&report).contains(&"B.5/2e"), "{report}");
    for text in [report.to_string(), report.to_json().expect("JSON")] {
        assert!(!text.contains("hush"), "{text}");
    }
}

#[test]
fn nobody_there_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let error = conformance::grade(&url, &strictly()).expect_err("nobody");
    assert!(format!("{error:#}").contains("no connection"), "{error:#}");
}
