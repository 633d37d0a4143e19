use std::time::Instant;

use futures_util::StreamExt as _;

use super::*;

fn request(instance: &str, status: u16) -> Request {
    Request {
        time: "2026-11-21T08:00:00Z".parse().unwrap(),
        instance: Some(instance.parse().unwrap()),
        mac: MacAddr([6, 0, 0, 0, 0, 2]),
        method: "GET".to_owned(),
        path: "/latest/meta-data/".to_owned(),
        status,
        version: "v2",
        refusal: None,
        latency_seconds: None,
        user_agent: None,
        peer_port: Some(40_000),
    }
}

fn told(status: u16) -> Told {
    Told::Request(Arc::new(request("i-1", status)))
}

#[tokio::test]
async fn who_listens_is_told_and_only_what_it_wants() {
    let trace = Trace::default();
    assert!(!trace.is_on());
    let mut all = trace.subscribe(None).unwrap();
    let mut one = trace.subscribe(Some("i-1".parse().unwrap())).unwrap();
    assert!(trace.is_on());
    trace.publish(request("i-2", 404), None);
    trace.publish(request("i-1", 200), Some(Duration::from_micros(12)));
    let first = Told::Request(Arc::new(request("i-2", 404)));
    assert_eq!(all.next().await, Some(first));
    let with_latency = Request {
        latency_seconds: Some(12e-6),
        ..request("i-1", 200)
    };
    assert_eq!(one.next().await, Some(Told::Request(Arc::new(with_latency))));
    drop(all);
    assert_eq!(trace.listeners(), 1);
    drop(one);
    assert!(!trace.is_on());
}

#[tokio::test]
async fn a_slow_listener_is_waited_for_by_nobody_and_told_what_it_missed() {
    let trace = Trace::default();
    let mut slow = trace.subscribe(None).unwrap();
    let mut other = trace.subscribe(Some("i-2".parse().unwrap())).unwrap();
    let begin = Instant::now();
    for _ in 0..QUEUE_REQUESTS_MAX + 7 {
        trace.publish(request("i-1", 200), None);
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(slow.next().await, Some(Told::Lost(7)));
    assert_eq!(slow.next().await, Some(told(200)));
    trace.publish(request("i-1", 404), None);
    for _ in 1..QUEUE_REQUESTS_MAX {
        assert_eq!(slow.next().await, Some(told(200)));
    }
    assert_eq!(slow.next().await, Some(told(404)));
    // Another one's trouble is not its own.
    trace.publish(request("i-2", 401), None);
    assert!(matches!(other.next().await, Some(Told::Request(request)) if request.status == 401));
    assert_eq!(trace.lost(), 7);
    drop(trace);
    assert!(matches!(slow.next().await, Some(Told::Request(_))));
    assert_eq!(slow.next().await, None);
}

#[test]
fn listeners_are_bounded() {
    let trace = Trace::default();
    let mut listeners: Vec<_> = (0..LISTENERS_MAX)
        .map(|_| trace.subscribe(None).unwrap())
        .collect();
    assert_eq!(trace.subscribe(None).unwrap_err(), TooManyListeners);
    assert_eq!(trace.listeners(), LISTENERS_MAX);
    listeners.pop();
    assert!(trace.subscribe(None).is_ok());
}

#[tokio::test]
async fn lines_are_json() {
    let trace = Trace::default();
    let subscription = trace.subscribe(None).unwrap();
    trace.publish(request("i-1", 200), None);
    let mut lines = std::pin::pin!(subscription.lines());
    let line = lines.next().await.unwrap().unwrap();
    assert!(line.ends_with(b"\n"));
    let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(
        line,
        serde_json::json!({
            "time": "2026-11-21T08:00:00Z", "instance": "i-1", "mac": "06:00:00:00:00:02", "method": "GET",
            "path": "/latest/meta-data/", "status": 200, "version": "v2", "refusal": null, "latency_seconds": null,
            "user_agent": null, "peer_port": 40_000,
        })
    );
    assert_eq!(&Told::Lost(3).line()[..], b"{\"lost\":3}\n");
}

#[test]
fn what_a_guest_says_is_cleaned() {
    let token = "AQAEALZxVdqPGkpp3UmEGDFnQ1hOqfOBTEVnrqXrHrbJ4SWlw5ZpTg==";
    let secret = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY";
    for (text, clean) in [
        ("/latest/meta-data/iam/security-credentials/web-server", None),
        (
            "aws-cli/2.15.30 Python/3.11.8 Linux/6.1.0-18-cloud-amd64 exe/x86_64.debian.12",
            None,
        ),
        ("", None),
        (&format!("/latest/{token}/x"), Some("/latest/(redacted)/x")),
        (&format!("{secret} {token}"), Some("(redacted) (redacted)")),
        (&format!("token={token}"), Some("(redacted)")),
        ("a\u{1b}[31mb\nc", Some("a\u{fffd}[31mb\u{fffd}c")),
        ("..//", None),
        (
            "\u{9b}2J 200 \u{202e}ok\u{200b}",
            Some("\u{fffd}2J 200 \u{fffd}ok\u{fffd}"),
        ),
        ("it's \"ü\" \\ 漢", None),
    ] {
        assert_eq!(cleaned(text), clean.unwrap_or(text));
    }
    assert_eq!(cleaned(&"ä/".repeat(1000)).chars().count(), TEXT_CHARACTERS_MAX);
}
