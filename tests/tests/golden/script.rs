//! One conversation as text, byte by byte.
//!
//! ```text
//! Where the bytes are known from, and which row of the wire contract they hold.
//! as web                    the caller is golden/instances/web.json; `as web 1`: through its second interface
//! > GET / HTTP/1.0\r\n      bytes of the guest, escapes as in Rust; the lines up to the next event are sent together
//! < HTTP/1.1 200 OK\r\n     bytes to the guest; `<1 ` says that they leave with hop limit 1
//! = V2 SessionToken         what is counted: how it was asked, what was handed out or why not
//! closed                    nothing more will follow on this connection
//! after 5 s                 time passes
//! end                       the guest sends its last byte
//! connect                   a new connection
//! over rate                 the interface asks too often from here on; `within rate`: no longer
//! ```
//!
//! `{token}` in a request is a session token of 21600 seconds that the caller got when the exchange began; `{token-2}` is one
//! of 2 seconds; `{token-web}` is that of another instance. Everything that is observed is part of the file: what is
//! not there did not happen.

use std::{collections::HashMap, fmt::Write as _, time::Duration};

use imds_agent::http::Connection;
use imds_tests::exchange::unescape;

use super::world::{Server, World, now};

/// Plays the events of `text`, sending at most `piece_bytes` at a time, and returns the text as it was observed.
pub fn run(text: &str, piece_bytes: usize) -> String {
    let mut run = Run {
        server: Server::new(),
        since_begin: Duration::ZERO,
        connection: Connection::new(now(Duration::ZERO)),
        is_closed: false,
        tokens: HashMap::new(),
        observed: String::new(),
    };
    let mut request = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if let Some(bytes) = line.strip_prefix("> ") {
            _ = writeln!(run.observed, "{line}");
            request.extend(unescape(&run.with_tokens(bytes)));
            continue;
        }
        run.send(&mut request, piece_bytes);
        // What was observed is written anew; all other lines stay.
        if !line.starts_with(['<', '=']) && line != "closed" {
            _ = writeln!(run.observed, "{line}");
            if number > 0 {
                run.play(line);
            }
        }
    }
    run.send(&mut request, piece_bytes);
    run.observed
}

struct Run {
    server: Server,
    since_begin: Duration,
    connection: Connection,
    is_closed: bool,
    tokens: HashMap<String, String>,
    observed: String,
}

impl Run {
    fn play(&mut self, event: &str) {
        let words: Vec<_> = event.split_whitespace().collect();
        match words[..] {
            [] => {}
            ["as", "nobody"] => self.server.unset_caller(),
            ["as", name] => self.set_caller(name, 0),
            ["as", name, interface] => self.set_caller(name, interface.parse().expect("an index")),
            ["after", count, unit] => {
                let count: u64 = count.parse().expect("a number");
                self.since_begin += match unit {
                    "s" => Duration::from_secs(count),
                    "ms" => Duration::from_millis(count),
                    _ => panic!("no unit of time: {event}"),
                };
                let now = now(self.since_begin);
                if self
                    .connection
                    .poll_timeout()
                    .is_some_and(|at| at <= now.monotonic)
                {
                    self.connection.handle_timeout(now);
                }
                self.observe();
            }
            ["end"] => {
                self.connection.handle_end(now(self.since_begin));
                self.observe();
            }
            ["over", "rate"] => self.server.is_over_rate = true,
            ["within", "rate"] => self.server.is_over_rate = false,
            ["connect"] => {
                self.connection = Connection::new(now(self.since_begin));
                self.is_closed = false;
            }
            _ => panic!("no event: {event}"),
        }
    }

    fn set_caller(&mut self, name: &str, interface: usize) {
        self.server.set_caller(World::named(name), interface);
        let now = now(self.since_begin);
        let long = self.server.mint(now, 21_600);
        self.tokens
            .insert("{token-2}".to_owned(), self.server.mint(now, 2));
        self.tokens.insert(format!("{{token-{name}}}"), long.clone());
        self.tokens.insert("{token}".to_owned(), long);
    }

    fn with_tokens(&self, line: &str) -> String {
        self.tokens
            .iter()
            .fold(line.to_owned(), |line, (name, token)| line.replace(name, token))
    }

    fn send(&mut self, request: &mut Vec<u8>, piece_bytes: usize) {
        let now = now(self.since_begin);
        let mut observed = Vec::new();
        for piece in request.chunks(piece_bytes.min(request.len().max(1))) {
            assert!(self.connection.wants_bytes(), "the connection takes no bytes");
            self.connection.handle_bytes(now, piece, &mut self.server);
            self.drain(&mut observed);
        }
        if !request.is_empty() {
            request.clear();
            self.write(&observed);
        }
    }

    fn observe(&mut self) {
        let mut observed = Vec::new();
        self.drain(&mut observed);
        self.write(&observed);
    }

    /// Takes what the connection sends, as runs of one hop limit.
    fn drain(&mut self, runs: &mut Vec<(Option<u8>, Vec<u8>)>) {
        while let Some(transmit) = self.connection.poll_transmit() {
            assert!(!transmit.bytes.is_empty());
            match runs.last_mut() {
                Some((hop_limit, bytes)) if *hop_limit == transmit.hop_limit => bytes.extend(transmit.bytes),
                _ => runs.push((transmit.hop_limit, transmit.bytes.to_vec())),
            }
            let count = transmit.bytes.len();
            self.connection
                .handle_transmitted(now(self.since_begin), count, &mut self.server);
        }
    }

    fn write(&mut self, runs: &[(Option<u8>, Vec<u8>)]) {
        for (hop_limit, bytes) in runs {
            let hop_limit = hop_limit.map_or_else(String::new, |limit| limit.to_string());
            for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                _ = writeln!(self.observed, "<{hop_limit} {}", line.escape_ascii());
            }
        }
        for outcome in self.server.outcomes.drain(..) {
            let version = outcome.version;
            let forwarded = if outcome.is_forwarded { " forwarded" } else { "" };
            _ = match outcome.refusal {
                Some(refusal) => writeln!(self.observed, "= {version:?}{forwarded} {refusal:?}"),
                None => writeln!(self.observed, "= {version:?}{forwarded} {:?}", outcome.delivery),
            };
        }
        if self.connection.is_last() && !self.is_closed {
            self.is_closed = true;
            self.observed.push_str("closed\n");
        }
    }
}
