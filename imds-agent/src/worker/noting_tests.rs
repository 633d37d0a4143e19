//! What is noted of requests between their answer and the kernel's having it.

use std::{sync::Arc, time::Duration};

use imds_ebpf::abi::{MacAddr, TapIndex};
use rand::{SeedableRng as _, rngs::StdRng};

use super::answer::{Answer, Facts, Origin};
use crate::{
    http::Connection,
    imds::{
        Imds,
        token::{TokenKey, TokenKeys},
    },
    now::Now,
    observe::{Unsent, latency::Observed, trace::Told},
    registry::InstanceId,
    request_rate::RequestBuckets,
};

const MAC: MacAddr = MacAddr([6, 0, 0, 0, 0, 1]);
const ARRIVED: Duration = Duration::from_millis(7000);

/// Answers `requests`, which came with a frame that arrived then, or with none.
fn answer(facts: &Facts, unsent: &mut Unsent, arrived: Option<Duration>, requests: &[u8]) {
    let keys = TokenKeys::new(TokenKey::new([0; 3], [0; 32]), Vec::new());
    let mut imds = Imds::new(Arc::new(keys), StdRng::seed_from_u64(0));
    let owner: InstanceId = "i-1".parse().unwrap();
    let now = Now {
        monotonic: Duration::from_secs(1),
        unix: Duration::from_secs(1_795_248_000),
    };
    let origin = Origin {
        tap: TapIndex(1),
        mac: MAC,
        owner: Some(&owner),
    };
    let mut buckets = RequestBuckets::new(0);
    let mut service = Answer::new(facts, &mut imds, &mut buckets, origin).noting(unsent, arrived);
    let mut connection = Connection::new(now);
    connection.set_peer("10.0.0.2:40000".parse().unwrap());
    connection.handle_bytes(now, requests, &mut service);
}

fn observed(facts: &Facts) -> (u64, Duration) {
    let mut observed = Observed::default();
    facts.requests.latency.add_to(&mut observed);
    (observed.buckets.iter().sum(), observed.sum)
}

#[test]
fn requests_are_timed_until_the_kernel_has_the_answers() {
    let (facts, mut unsent) = (Facts::default(), Unsent::default());
    let twice = b"GET /a HTTP/1.1\r\nConnection: keep-alive\r\n\r\nGET /b HTTP/1.1\r\n\r\n";
    answer(&facts, &mut unsent, Some(ARRIVED), twice);
    answer(&facts, &mut unsent, None, twice);
    assert_eq!(observed(&facts), (0, Duration::ZERO));
    let sent = || ARRIVED + Duration::from_micros(30);
    unsent.handle_sent(sent, &facts.requests.latency, &facts.trace);
    // Those that a timer let be answered are counted and not timed.
    assert_eq!(observed(&facts), (2, Duration::from_micros(60)));
    let unused = || panic!("the clock is read although nothing was answered");
    unsent.handle_sent(unused, &facts.requests.latency, &facts.trace);
}

#[tokio::test]
async fn who_watches_sees_requests_and_no_secret() {
    let (facts, mut unsent) = (Facts::default(), Unsent::default());
    let mut all = facts.trace.subscribe(None).unwrap();
    let mut none = facts.trace.subscribe(Some("i-2".parse().unwrap())).unwrap();
    let token = "A".repeat(56);
    let request = format!(
        "GET /latest/{token}/?token=q HTTP/1.1\r\nUser-Agent: curl/8 {token}\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
    );
    answer(&facts, &mut unsent, Some(ARRIVED), request.as_bytes());
    let sent = || ARRIVED + Duration::from_micros(30);
    unsent.handle_sent(sent, &facts.requests.latency, &facts.trace);
    let told = all.next().await.unwrap();
    let line = String::from_utf8(told.line().to_vec()).unwrap();
    let Told::Request(request) = told else {
        panic!("{line}")
    };
    assert!(!line.contains("AAAA") && !line.contains("token=q"), "{line}");
    assert_eq!(request.path, "/latest/(redacted)/");
    assert_eq!(request.user_agent.as_deref(), Some("curl/8 (redacted)"));
    assert_eq!((request.status, request.version), (503, "v2"));
    assert_eq!(request.refusal, Some("unknown-caller"));
    assert_eq!(request.instance.as_ref().map(InstanceId::as_str), Some("i-1"));
    assert_eq!((request.mac, request.peer_port), (MAC, Some(40_000)));
    assert_eq!(request.latency_seconds, Some(30e-6));
    drop(facts);
    assert_eq!(none.next().await, None);
}
