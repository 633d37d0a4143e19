use clap::ValueEnum as _;
use ratatui::{Terminal, backend::TestBackend};

use super::*;

fn request(mac: &str, instance: &str, port: u16, refusal: Option<&str>, latency: f64) -> Value {
    json!({ "mac": mac, "instance": instance, "peer_port": port, "refusal": refusal, "latency_seconds": latency })
}

fn status() -> Value {
    json!({
        "ready": true,
        "instances": 2,
        "taps": [
            {
                "name": "tap0", "bound": true, "macAddress": "06:00:00:00:00:01", "instanceId": "i-1",
                "framesDropped": 100, "credentials": { "state": "ready", "remainingSeconds": 21_540 },
                "limits": [
                    { "limit": "packets", "left": 1024, "of": 1024, "isReached": false },
                    { "limit": "requests", "left": 51, "of": 1024, "isReached": true },
                ],
            },
            {
                "name": "tap1", "bound": true, "macAddress": "06:00:00:00:00:02", "instanceId": "i-2",
                "framesDropped": 0, "credentials": { "state": "refused" },
                "limits": [{ "limit": "packets", "left": 1024, "of": 1024, "isReached": false }],
            },
            { "name": "tap9", "bound": false, "reason": "no record names it", "framesDropped": 7, "limits": [] },
        ],
        "credentials": [{ "ready": 2, "pending": 0, "refused": 0 }, { "ready": 0, "pending": 1, "refused": 3 }],
    })
}

/// Two seconds old: i-1 asked twice on one connection and was refused once, i-2 three times on three.
fn busy() -> (Model, Instant) {
    let start = Instant::now();
    let mut model = Model::new(start);
    model.handle_status(start, &status());
    model.handle_request(start, &request("06:00:00:00:00:01", "i-1", 1, None, 0.000_1));
    model.handle_request(
        start,
        &request("06:00:00:00:00:01", "i-1", 1, Some("no_token"), 0.000_3),
    );
    for port in [1, 2, 3] {
        model.handle_request(start, &request("06:00:00:00:00:02", "i-2", port, None, 0.000_05));
    }
    (model, start + Duration::from_secs(2))
}

fn order(model: &Model, now: Instant, sort: Sort) -> Vec<String> {
    let rows = model.rows(now, sort).into_iter();
    rows.map(|row| row.tap.unwrap_or_default()).collect()
}

#[test]
fn requests_are_counted_by_interface() {
    let (model, now) = busy();
    let rows = model.rows(now, Sort::Instance);
    let row = &rows[0];
    assert_eq!(
        (row.instance_id.as_deref(), row.tap.as_deref()),
        (Some("i-1"), Some("tap0"))
    );
    assert_eq!((row.requests_per_second, row.refused_per_second), (1.0, 0.5));
    assert_eq!((row.connections, row.latency_max_seconds), (1, Some(0.000_3)));
    assert!((row.latency_mean_seconds.unwrap() - 0.000_2).abs() < 1e-9);
    assert_eq!((rows[1].requests_per_second, rows[1].connections), (1.5, 3));
    assert_eq!(
        (rows[2].requests_per_second, rows[2].latency_mean_seconds),
        (0.0, None)
    );
    assert_eq!(rows[2].reason.as_deref(), Some("no record names it"));
}

#[test]
fn rows_are_ordered_as_asked() {
    let (model, now) = busy();
    assert_eq!(order(&model, now, Sort::Requests), ["tap1", "tap0", "tap9"]);
    assert_eq!(order(&model, now, Sort::Latency), ["tap0", "tap1", "tap9"]);
    assert_eq!(order(&model, now, Sort::Refused), ["tap0", "tap1", "tap9"]);
    assert_eq!(order(&model, now, Sort::Connections), ["tap1", "tap0", "tap9"]);
    assert_eq!(order(&model, now, Sort::Left), ["tap0", "tap1", "tap9"]);
    assert_eq!(order(&model, now, Sort::Expiry), ["tap0", "tap1", "tap9"]);
    assert_eq!(order(&model, now, Sort::Instance), ["tap0", "tap1", "tap9"]);
    let orders = Sort::value_variants();
    let (first, last) = (orders[0], orders[orders.len() - 1]);
    assert_eq!((first, last.next()), (Sort::default(), first));
}

#[test]
fn drops_are_those_of_the_last_seconds() {
    let (mut model, start) = busy();
    let mut told = |second, dropped: u64| {
        let mut status = status();
        status["taps"][2]["framesDropped"] = dropped.into();
        let now = start + Duration::from_secs(second);
        model.handle_status(now, &status);
        let rows = model.rows(now, Sort::Drops);
        let of_tap = rows.iter().find(|row| row.tap.as_deref() == Some("tap9"));
        (of_tap.unwrap().dropped_per_second, rows[0].tap.clone())
    };
    // The first answer came two seconds before.
    assert_eq!(told(0, 27), (10.0, Some("tap9".to_owned())));
    assert_eq!(told(2, 47).0, 10.0);
    assert_eq!(told(8, 47).0, 0.0);
    // A device that is new counts from nothing.
    assert_eq!(told(9, 3).0, 0.0);
    assert_eq!(told(10, 5).0, 2.0);
}

#[test]
fn seconds_go_by_and_are_forgotten() {
    let (mut model, now) = busy();
    let later = now + Duration::from_secs(4);
    assert!(
        model
            .rows(later, Sort::Requests)
            .iter()
            .all(|row| row.requests_per_second == 0.0)
    );
    // An interface whose tap is not told yet is there while it asks.
    model.handle_request(later, &request("06:00:00:00:00:07", "i-7", 1, None, 0.1));
    let row = &model.rows(later, Sort::Requests)[0];
    assert_eq!(
        (row.instance_id.as_deref(), row.tap.as_deref()),
        (Some("i-7"), None)
    );
    assert_eq!(model.rows(later, Sort::Requests).len(), 4);
    let later = later + Duration::from_secs(5);
    model.handle_status(later, &status());
    assert_eq!(model.rows(later, Sort::Requests).len(), 3);
}

#[test]
fn what_was_missed_is_added_up() {
    let (mut model, now) = busy();
    model.handle_request(now, &json!({ "lost": 17 }));
    model.handle_status(now, &status());
    model.handle_request(now, &json!({ "lost": 3 }));
    let summary = model.summary();
    assert_eq!(summary.lost_requests, 20);
    assert_eq!(
        (
            summary.credentials_ready,
            summary.credentials_pending,
            summary.credentials_refused
        ),
        (2, 1, 3)
    );
}

#[test]
fn a_frame_has_all_of_it() {
    let (model, now) = busy();
    let mut terminal = Terminal::new(TestBackend::new(150, 6)).unwrap();
    let rows = model.rows(now, Sort::Requests);
    terminal
        .draw(|frame| view::draw(frame, model.summary(), &rows, Sort::Requests))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let lines: Vec<String> = (0..6)
        .map(|y| {
            (0..150)
                .map(|x| buffer[(x, y)].symbol())
                .collect::<String>()
                .trim_end()
                .to_owned()
        })
        .collect();
    assert_eq!(
        lines,
        [
            "imds-agent ready, 2 instances; credentials: 2 ready, 1 pending, 3 refused; 0 requests missed",
            "INSTANCE              TAP             REQ/S     REFUSED/S DROPS/S  CONNS  MEAN      MAX       LEAST LEFT      EXPIRES  WHY NOT BOUND",
            "i-2                   tap1            1.5       0.0       0.0      3      50 us     50 us     100% packets    refused",
            "i-1                   tap0            1.0       0.5       0.0      1      200 us    300 us    4% requests     5h59m",
            "-                     tap9            0.0       0.0       0.0      0      -         -         -               -        no record names it",
            "by requests   s: by another   q: quit",
        ]
    );
}

#[test]
fn control_c_and_q_end_it() {
    let key = |code, modifiers| is_end(KeyEvent::new(code, modifiers));
    assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL));
    assert!(key(KeyCode::Char('q'), KeyModifiers::NONE));
    assert!(!key(KeyCode::Char('c'), KeyModifiers::NONE));
}
