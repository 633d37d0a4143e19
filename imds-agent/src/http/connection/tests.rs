use super::*;
use crate::http::Request;

/// Answers every request with as many bytes as its target says, and with hop limit 1 if it is a PUT.
struct Filler;

impl Service for Filler {
    fn respond(&mut self, _: Now, request: &Request<'_>, response: &mut Response) {
        let count = request.target.trim_start_matches('/').parse().unwrap();
        response.body.resize(count, b'.');
        response.hop_limit = (request.method == "PUT").then_some(1);
    }
}

fn at(seconds: u64) -> Now {
    Now {
        monotonic: Duration::from_secs(seconds),
        unix: Duration::from_secs(1_800_000_000 + seconds),
    }
}

fn request(method: &str, count: usize) -> Vec<u8> {
    format!("{method} /{count} HTTP/1.1\r\nConnection: keep-alive\r\n\r\n").into_bytes()
}

/// Takes `count` bytes of the front run.
fn take(connection: &mut Connection, now: Now, count: usize) {
    assert!(connection.poll_transmit().unwrap().bytes.len() >= count);
    connection.handle_transmitted(now, count, &mut Filler);
}

fn queued(connection: &Connection) -> usize {
    connection.outbound.unsent()
}

#[test]
fn full_queue_leaves_the_stream_unread() {
    let mut connection = Connection::new(at(0));
    let pipelined = request("GET", QUEUED_BYTES_MAX).repeat(3);
    connection.handle_bytes(at(0), &pipelined, &mut Filler);
    assert!(!connection.wants_bytes());
    let first = queued(&connection);
    assert!((QUEUED_BYTES_MAX..QUEUED_BYTES_MAX + 512).contains(&first));

    // A byte of room lets the second in, and no more.
    take(&mut connection, at(0), first - QUEUED_BYTES_MAX + 1);
    assert!(!connection.wants_bytes());
    assert_eq!(queued(&connection), QUEUED_BYTES_MAX - 1 + first);

    take(&mut connection, at(0), 2 * QUEUED_BYTES_MAX);
    let rest = queued(&connection);
    take(&mut connection, at(0), rest);
    assert!(connection.wants_bytes() && connection.poll_transmit().is_none());
}

#[test]
fn connection_that_begins_again_after_another_is_as_if_new() {
    let mut connection = Connection::new(at(0));
    connection.handle_bytes(at(0), &request("GET", 1000), &mut Filler);
    connection.handle_bytes(at(0), b"GET /", &mut Filler);
    // The peer takes nothing, and is given up.
    connection.handle_timeout(at(5));
    connection.handle_timeout(at(40));
    assert!(connection.is_cut() && connection.is_last());
    connection.wipe();
    connection.begin(at(41));
    assert!(!connection.is_cut() && !connection.is_last() && connection.wants_bytes());
    assert_eq!(connection.poll_timeout(), Connection::new(at(41)).poll_timeout());
    assert!(connection.poll_transmit().is_none());
}

#[test]
fn full_queue_is_no_slow_request() {
    let mut connection = Connection::new(at(0));
    let pipelined = request("GET", QUEUED_BYTES_MAX).repeat(2);
    connection.handle_bytes(at(0), &pipelined, &mut Filler);
    assert_eq!(connection.poll_timeout(), Some(IDLE_TIMEOUT));
}

#[test]
fn sent_bytes_do_not_pile_up() {
    let mut connection = Connection::new(at(0));
    for _ in 0..1000 {
        connection.handle_bytes(at(0), &request("GET", 1000), &mut Filler);
        let all_but_one = queued(&connection) - 1;
        take(&mut connection, at(0), all_but_one);
    }
    assert!(connection.outbound.bytes.len() < 2 * QUEUED_BYTES_MAX);
}

#[test]
fn hop_limits_never_share_a_chunk() {
    let mut connection = Connection::new(at(0));
    for method in ["GET", "PUT", "GET", "GET"] {
        connection.handle_bytes(at(0), &request(method, 10), &mut Filler);
    }
    let mut runs = Vec::new();
    while let Some(transmit) = connection.poll_transmit() {
        let bodies = transmit
            .bytes
            .windows(10)
            .filter(|bytes| *bytes == b"..........")
            .count();
        runs.push((transmit.hop_limit, bodies));
        // In two steps, as a full send buffer would take it.
        let (first, rest) = (5, transmit.bytes.len() - 5);
        take(&mut connection, at(0), first);
        take(&mut connection, at(0), rest);
    }
    assert_eq!(runs, [(None, 1), (Some(1), 1), (None, 2)]);
}

#[test]
fn peer_that_takes_nothing_is_given_up() {
    let mut connection = Connection::new(at(0));
    connection.handle_bytes(at(1), b"GET /10 HTTP/1.1\r\n\r\n", &mut Filler);
    assert!(connection.is_last() && connection.poll_transmit().is_some());
    assert_eq!(connection.poll_timeout(), Some(Duration::from_secs(31)));
    connection.handle_timeout(at(30));
    assert!(connection.poll_transmit().is_some());
    connection.handle_timeout(at(31));
    assert_eq!(
        (connection.poll_transmit(), connection.poll_timeout()),
        (None, None)
    );
    assert!(connection.is_cut());
}

#[test]
fn end_with_a_full_queue_still_answers_what_was_asked() {
    let mut connection = Connection::new(at(0));
    let pipelined = request("GET", QUEUED_BYTES_MAX).repeat(3);
    connection.handle_bytes(at(0), &pipelined, &mut Filler);
    connection.handle_end(at(0));
    let mut taken = 0;
    while let Some(transmit) = connection.poll_transmit() {
        let count = transmit.bytes.len();
        taken += count;
        take(&mut connection, at(0), count);
    }
    assert!(taken > 3 * QUEUED_BYTES_MAX);
    assert!(connection.is_last());
}

#[test]
fn closing_throws_further_bytes_away() {
    let mut connection = Connection::new(at(0));
    connection.handle_bytes(
        at(0),
        b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
        &mut Filler,
    );
    let before = queued(&connection);
    connection.handle_bytes(at(0), &request("GET", 3), &mut Filler);
    assert!(connection.wants_bytes() && connection.inbound.is_empty());
    assert_eq!(queued(&connection), before);
}
