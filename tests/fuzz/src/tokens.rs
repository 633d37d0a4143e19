//! Session tokens, on the whole way of a request.

use imds_agent::http::{Connection, Status};

use crate::service::{Answer, Runs, World, drain, now, token};

/// With an even first byte the rest of `data` is offered as a token; with an odd one, the good token is, changed at places
/// that two bytes each tell. Only the good one is good.
pub fn run(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else {
        return;
    };
    let mut offered = rest.to_vec();
    if how & 1 == 1 {
        offered = token().as_bytes().to_vec();
        for [place, change] in rest.as_chunks().0 {
            let place = usize::from(*place) % offered.len();
            offered[place] ^= change;
        }
    }
    // White space around a field value is no part of it (RFC 9110, section 5.6.3).
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let begin = offered.iter().take_while(|byte| is_space(byte)).count();
    let end = offered.iter().rev().take_while(|byte| is_space(byte)).count();
    let value = offered.get(begin..offered.len() - end).unwrap_or_default();
    // What ends the field would begin something else.
    if value.is_empty() || offered.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
        return;
    }
    let request = [
        b"GET /latest/meta-data/instance-id HTTP/1.1\r\nX-aws-ec2-metadata-token: ",
        &*offered,
        b"\r\n\r\n",
    ]
    .concat();
    let mut answer = Answer::new(World::full());
    let mut connection = Connection::new(now());
    connection.handle_bytes(now(), &request, &mut answer);
    drain(&mut connection, &mut answer, &mut Runs::new());
    let is_good = value == token().as_bytes();
    match *answer.statuses {
        // Bytes that no header field may have, or a field that is too long.
        [] => assert!(!is_good),
        [status] => assert_eq!(status, if is_good { Status::Ok } else { Status::Unauthorized }),
        _ => panic!("one request, {} answers", answer.statuses.len()),
    }
}
