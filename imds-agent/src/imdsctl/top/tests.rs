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
            { "name": "tap0", "bound": true, "macAddress": "06:00:00:00:00:01", "instanceId": "i-1" },
            { "name": "tap1", "bound": true, "macAddress": "06:00:00:00:00:02", "instanceId": "i-2" },
            { "name": "tap9", "bound": false, "reason": "no record names it" },
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
    assert_eq!(order(&model, now, Sort::Instance), ["tap0", "tap1", "tap9"]);
    let mut sort = Sort::default();
    for _ in 0..5 {
        sort = sort.next();
    }
    assert_eq!(sort, Sort::default());
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
    let mut terminal = Terminal::new(TestBackend::new(110, 6)).unwrap();
    let rows = model.rows(now, Sort::Requests);
    terminal
        .draw(|frame| view::draw(frame, model.summary(), &rows, Sort::Requests))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let lines: Vec<String> = (0..6)
        .map(|y| {
            (0..110)
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
            "INSTANCE              TAP             REQ/S     REFUSED/S CONNS  MEAN      MAX       WHY NOT BOUND",
            "i-2                   tap1            1.5       0.0       3      50 us     50 us",
            "i-1                   tap0            1.0       0.5       1      200 us    300 us",
            "-                     tap9            0.0       0.0       0      -         -         no record names it",
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
