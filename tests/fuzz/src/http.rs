//! Streams of HTTP, cut anywhere.

use imds_agent::http::Connection;

use crate::service::{Answer, Runs, World, drain, now};

/// The first byte of `data` is a count of cuts, two bytes each say where; the rest is a stream. Cut there, cut after every
/// byte, and whole, the stream is answered alike.
pub fn run(data: &[u8]) {
    let Some((&count, rest)) = data.split_first() else {
        return;
    };
    let Some((cuts, stream)) = rest.split_at_checked(usize::from(count % 16) * 2) else {
        return;
    };
    let mut cuts: Vec<usize> = cuts
        .as_chunks()
        .0
        .iter()
        .map(|cut| usize::from(u16::from_be_bytes(*cut)) % (stream.len() + 1))
        .collect();
    cuts.sort_unstable();
    let whole = answers(stream, &[]);
    assert_eq!(answers(stream, &cuts), whole);
    // Every byte costs a look at all before it.
    if stream.len() <= 512 {
        assert_eq!(answers(stream, &Vec::from_iter(0..stream.len())), whole);
    }
}

/// What is sent, how often was answered, and whether the connection closes before the peer's end of it.
fn answers(stream: &[u8], cuts: &[usize]) -> (Runs, usize, bool) {
    let mut answer = Answer::new(World::full());
    let mut connection = Connection::new(now());
    let mut runs = Runs::new();
    let mut begin = 0;
    for end in cuts.iter().copied().chain([stream.len()]) {
        assert!(connection.wants_bytes(), "all that it had to send is gone");
        connection.handle_bytes(now(), &stream[begin..end], &mut answer);
        drain(&mut connection, &mut answer, &mut runs);
        begin = end;
    }
    let is_last = connection.is_last();
    connection.handle_end(now());
    drain(&mut connection, &mut answer, &mut runs);
    assert!(connection.is_last(), "nothing more can come");
    (runs, answer.statuses.len(), is_last)
}
