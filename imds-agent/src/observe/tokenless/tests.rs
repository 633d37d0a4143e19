use std::net::SocketAddr;

use super::*;
use crate::{
    http::{Connection, Response, Service, Status},
    imds::{Delivery, TokenError},
};

const MAC: MacAddr = MacAddr([6, 0, 0, 0, 0, 2]);

fn instance(name: &str) -> InstanceId {
    name.parse().unwrap()
}

fn at(seconds: u64) -> Now {
    Now {
        monotonic: Duration::from_secs(seconds),
        unix: Duration::from_secs(1_795_248_000 + seconds),
    }
}

/// What is noted of `request`, a whole one as it is on the wire.
fn sighting(instance: &InstanceId, request: &[u8], fate: Fate) -> Sighting {
    struct Note<'a>(&'a InstanceId, Fate, Option<Sighting>);

    impl Service for Note<'_> {
        fn respond(&mut self, _now: Now, request: &Request<'_>, _response: &mut Response) {
            self.2 = Some(Sighting::new(self.0, MAC, request, self.1));
        }
    }

    let mut note = Note(instance, fate, None);
    let peer = SocketAddr::from(([10, 0, 0, 2], 40_000));
    let mut connection = Connection::new(at(0));
    connection.set_peer(peer);
    connection.handle_bytes(at(0), request, &mut note);
    note.2.unwrap()
}

fn get(path: &str, user_agent: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nUser-Agent: {user_agent}\r\n\r\n").into_bytes()
}

#[test]
fn callers_are_told_apart_by_path_and_user_agent_the_latest_first() {
    let (mut tokenless, mut warnings) = (Tokenless::default(), Warnings::default());
    let one = instance("i-one");
    let mut ask = |second, path, user_agent, fate| {
        let sighting = sighting(&one, &get(path, user_agent), fate);
        tokenless.record(at(second), &sighting, &mut warnings)
    };
    assert_eq!(ask(1, "/latest/", "curl/8", Fate::Admitted), None);
    assert_eq!(ask(2, "/latest/user-data", "curl/8", Fate::Admitted), None);
    assert_eq!(ask(3, "/latest/?a=b", "curl/8", Fate::Rejected), None);
    let report = tokenless.report(&one);
    assert_eq!(
        (
            report.metadata_no_token,
            report.metadata_no_token_rejected,
            report.unlisted
        ),
        (2, 1, 0)
    );
    let [first, second] = &report.callers[..] else {
        panic!("{report:?}");
    };
    let expected = Caller {
        path: "/latest/".to_owned(),
        user_agent: "curl/8".to_owned(),
        count: 2,
        rejected: 1,
        last_seen: at(3).timestamp(),
        source_port: Some(40_000),
        interface: MAC,
    };
    assert_eq!(*first, expected);
    assert_eq!(
        (&*second.path, second.count, second.rejected),
        ("/latest/user-data", 1, 0)
    );
    assert_eq!(tokenless.report(&instance("i-two")), Report::default());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["MetadataNoTokenRejected"], 1);
    assert_eq!(json["Callers"][0]["Interface"], "06:00:00:00:00:02");
}

#[test]
fn what_a_guest_writes_is_cut_and_cleaned() {
    let long = "a".repeat(3000);
    let request = [
        b"GET /",
        long.as_bytes(),
        b" HTTP/1.1\r\nUser-Agent: \x80\xe2\x80\xae\t",
        long.as_bytes(),
        b"\r\n\r\n",
    ];
    let Key { path, user_agent } = sighting(&instance("i-one"), &request.concat(), Fate::Admitted).caller;
    assert_eq!((path.len(), user_agent.len()), (PATH_MAX, USER_AGENT_MAX));
    assert!(user_agent.starts_with("?????aaa"), "{user_agent}");
    assert_eq!(&*plain(b"\x1b[2J\r\n\x7f\0 ~", 100), "?[2J???? ~");
    let secret = b"GET /latest/user-data?token=secret HTTP/1.1\r\n\r\n";
    let Key { path, user_agent } = sighting(&instance("i-one"), secret, Fate::Admitted).caller;
    assert_eq!((&*path, &*user_agent), ("/latest/user-data", ""));
}

#[test]
fn bounds_hold_and_what_is_forgotten_is_counted() {
    let (mut tokenless, mut warnings) = (Tokenless::default(), Warnings::default());
    let one = instance("i-one");
    for number in 0..1000 {
        let request = get(&format!("/{number}"), "made up");
        let sighting = sighting(&one, &request, Fate::Admitted);
        tokenless.record(at(number), &sighting, &mut warnings);
    }
    let report = tokenless.report(&one);
    assert_eq!(report.callers.len(), CALLERS_MAX);
    assert_eq!(
        (report.metadata_no_token, report.unlisted),
        (1000, 1000 - CALLERS_MAX as u64)
    );
    assert_eq!(report.callers[0].path, "/999");

    for number in 0..INSTANCES_MAX {
        let other = instance(&format!("i-{number}"));
        let sighting = sighting(&other, &get("/", ""), Fate::Admitted);
        tokenless.record(at(2000), &sighting, &mut warnings);
    }
    // It still asks without a token, for all that is known.
    let forgotten = Report {
        metadata_no_token: 1000,
        unlisted: 1000,
        ..Report::default()
    };
    assert_eq!(tokenless.report(&one), forgotten);
    assert_eq!(tokenless.callers.iter().count(), INSTANCES_MAX);
    let two = instance("i-2");
    tokenless.retain(|instance| *instance == two);
    assert_eq!(tokenless.report(&one), Report::default());
    assert_eq!(tokenless.report(&two).callers.len(), 1);
    assert_eq!(
        (tokenless.instances.len(), tokenless.callers.iter().count()),
        (1, 1)
    );
}

#[test]
fn instance_that_keeps_asking_is_told_once_an_hour() {
    let (mut tokenless, mut warnings) = (Tokenless::default(), Warnings::default());
    let one = instance("i-one");
    let mut refuse = |second| {
        let sighting = sighting(&one, &get("/latest/", "Cloud-Init/25"), Fate::Rejected);
        tokenless.record(at(second), &sighting, &mut warnings)
    };
    let told: Vec<_> = (0..4000)
        .filter_map(|second| Some((second, refuse(second)?)))
        .collect();
    let [(4, first), (3604, second)] = &told[..] else {
        panic!("{told:?}");
    };
    for part in [
        "i-one",
        "5 requests",
        "/latest/",
        "Cloud-Init/25",
        "port 40000",
        "HttpTokens = optional",
    ] {
        assert!(first.contains(part), "{part}: {first}");
    }
    assert!(second.contains("3600 requests"), "{second}");
}

#[test]
fn who_is_let_in_without_a_token_is_not_told() {
    let (mut tokenless, mut warnings) = (Tokenless::default(), Warnings::default());
    let one = instance("i-one");
    for second in 0..100 {
        let sighting = sighting(&one, &get("/latest/", ""), Fate::Admitted);
        assert_eq!(tokenless.record(at(second), &sighting, &mut warnings), None);
    }
}

#[test]
fn only_a_missing_token_is_counted() {
    let outcome = |version, refusal| Outcome {
        version,
        status: Status::Ok,
        refusal,
        delivery: Delivery::Nothing,
        is_forwarded: false,
    };
    for (version, refusal, fate) in [
        (ImdsVersion::V1, None, Some(Fate::Admitted)),
        (ImdsVersion::V1, Some(Refusal::NotFound), Some(Fate::Admitted)),
        (ImdsVersion::V1, Some(Refusal::Pending), Some(Fate::Admitted)),
        (ImdsVersion::V1, Some(Refusal::TokenMissing), Some(Fate::Rejected)),
        (ImdsVersion::V1, Some(Refusal::EndpointDisabled), None),
        (ImdsVersion::V1, Some(Refusal::OverRate), None),
        (ImdsVersion::V2, None, None),
        (ImdsVersion::V2, Some(Refusal::Token(TokenError::Malformed)), None),
    ] {
        assert_eq!(Fate::of(&outcome(version, refusal)), fate, "{refusal:?}");
    }
}
