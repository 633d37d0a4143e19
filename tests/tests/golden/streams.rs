//! Properties of a connection to the real service: whatever comes, in whatever pieces, and however slowly the responses
//! are taken.

use std::time::Duration;

use imds_agent::http::Connection;
use proptest::prelude::*;

use super::world::{Server, World, now};

/// Pieces that bring a random stream past the first parser: requests, parts of them, and what breaks them.
const FRAGMENTS: &[&str] = &[
    "GET /latest/meta-data/ HTTP/1.1\r\nConnection: keep-alive\r\n\r\n",
    "GET /latest/user-data HTTP/1.1\r\nConnection: keep-alive\r\n\r\n",
    "GET /latest/dynamic/instance-identity/document HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "HEAD / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n",
    "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\nConnection: keep-alive\r\n\r\n",
    "PUT /latest/api/token HTTP/1.1\r\nConnection: keep-alive\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody",
    "PUT /latest/api/token HTTP/1.1\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "GET /latest/meta-data/",
    "GET /latest/../../etc/passwd HTTP/1.1\r\n",
    " HTTP/1.1\r\n",
    "X-aws-ec2-metadata-token: AQAAAQAAAXwFKuoYmaDfpgVo4oq2IWKeVENvFf_fpwFJCI_us0F5ug==\r\n",
    "X-Forwarded-For: a\r\n",
    "Connection: keep-alive\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: 99999999999999999999\r\n",
    "Expect: 100-continue\r\n",
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\r",
    "0\r\n\r\n",
    "fffffffffffffffff\r\n",
];

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let fragment = proptest::sample::select(FRAGMENTS).prop_map(|text| text.as_bytes().to_vec());
    let noise = prop::collection::vec(any::<u8>(), 0..20);
    let filler = (0..9000_usize).prop_map(|count| vec![b'x'; count]);
    let piece = prop_oneof![12 => fragment, 2 => noise, 1 => filler];
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

/// Everything that comes back for `stream`, sent in pieces of these lengths over and over, and whether it ends.
fn answers(stream: &[u8], pieces: &[usize], takes: &[usize]) -> (Vec<(Option<u8>, u8)>, bool) {
    let mut server = Server::new();
    server.set_caller(World::named("optional"), 0);
    let now = now(Duration::ZERO);
    let mut connection = Connection::new(now);
    let mut answers = Vec::new();
    let mut rest = stream;
    let mut takes = takes.iter().copied().cycle();
    for piece in pieces.iter().copied().cycle() {
        if rest.is_empty() && connection.poll_transmit().is_none() {
            break;
        }
        if connection.wants_bytes() {
            let (piece, after) = rest.split_at(piece.min(rest.len()));
            connection.handle_bytes(now, piece, &mut server);
            rest = after;
        }
        if let Some(transmit) = connection.poll_transmit() {
            let count = takes.next().expect("an endless cycle").min(transmit.bytes.len());
            let taken = &transmit.bytes[..count];
            answers.extend(taken.iter().map(|byte| (transmit.hop_limit, *byte)));
            connection.handle_transmitted(now, count, &mut server);
        }
    }
    (answers, connection.is_last())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_cut_of_a_stream_changes_nothing(
        stream in stream(),
        pieces in prop::collection::vec(1..2000_usize, 1..5),
        takes in prop::collection::vec(1..2000_usize, 1..5),
    ) {
        let whole = answers(&stream, &[usize::MAX], &[usize::MAX]);
        prop_assert_eq!(&answers(&stream, &pieces, &takes), &whole);
        prop_assert_eq!(&answers(&stream, &[1], &[usize::MAX]), &whole);
    }

    #[test]
    fn any_bytes_get_an_answer_or_wait_for_more(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        answers(&bytes, &[usize::MAX], &[usize::MAX]);
    }

    #[test]
    fn any_target_gets_a_status(target in "[!-~]{1,60}", method in "GET|HEAD|PUT|OPTIONS|[A-Z]{1,8}") {
        let mut server = Server::new();
        server.set_caller(World::named("optional"), 0);
        let request = format!("{method} {target} HTTP/1.1\r\n\r\n");
        let response = server.exchange(now(Duration::ZERO), request.as_bytes());
        prop_assert!(response.starts_with(b"HTTP/1.1 "));
    }
}
