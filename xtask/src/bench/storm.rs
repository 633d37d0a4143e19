//! P12: hundreds of guests boot at once.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use imds_tests::load::{self, Load, Outcome};

use super::{
    crowd::{Crowd, guest, request},
    picture::{Picture, distribution, latencies},
    table::{Goal, Row, Spread},
};

/// Each storm finds a server that has just started, so that nothing is answered from what an earlier one left.
const ROUNDS: usize = 3;

/// `guests` guests do what cloud-init does, all at once: a session token, then the whole tree and the documents. nginx gets the same
/// requests, and answers all with the same short reply.
pub fn run(guests: usize, program: &Path, target: &Path) -> Result<(Vec<Row>, Picture)> {
    let mut sides = [Vec::new(), Vec::new()];
    let mut requests = 0;
    for _ in 0..ROUNDS {
        let crowd = Crowd::of_agent(program, guests)?;
        let paths = crawl(&crowd)?;
        let reply = response(&crowd, "/2021-03-23/meta-data/instance-id")?;
        let requests_of = requests_of(&crowd, &paths)?;
        let ours = storm(&crowd, &requests_of)?;
        drop(crowd);
        let nginx = storm(&Crowd::of_nginx(target, guests, &reply)?, &requests_of)?;
        requests = paths.len() + 1;
        for (side, outcome) in sides.iter_mut().zip([ours, nginx]) {
            side.push(outcome);
        }
    }
    let row = |figure: String, unit, value: &dyn Fn(&Outcome) -> f64| {
        let [ours, nginx] = sides.each_ref().map(|side| Spread::of(side.iter().map(value)));
        Row {
            id: "P12",
            figure,
            unit,
            ours,
            peer: Some(nginx),
            goal: Goal::Reported,
        }
    };
    let rows = vec![
        row(
            format!(
                "until {guests} guests that boot at once have made {requests} requests each, none lost or repeated"
            ),
            "s",
            &|outcome| outcome.elapsed.as_secs_f64(),
        ),
        row("p99 of an exchange in that storm".to_owned(), "ms", &|outcome| {
            outcome.quantile(0.99).as_secs_f64() * 1e3
        }),
    ];
    let [ours, nginx] = sides
        .each_ref()
        .map(|side| side.iter().map(distribution).collect::<Vec<_>>());
    let title = format!("P12: latency while {guests} guests boot at once");
    Ok((rows, latencies("latency-storm", title, [&ours, &nginx])))
}

/// Of each guest, a request for a token and then for all `paths`: written beforehand, and so are the tokens that they bear.
fn requests_of(crowd: &Crowd, paths: &[String]) -> Result<Vec<Vec<Vec<u8>>>> {
    let token_request =
        b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\nContent-Length: 0\r\n\
          X-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n";
    let requests = |number| {
        let token = crowd.token(number)?;
        let gets = paths.iter().map(|path| request(path, &token));
        Ok(std::iter::once(token_request.to_vec()).chain(gets).collect())
    };
    (0..crowd.taps.len()).map(requests).collect()
}

/// A client that gives nothing up and sends nothing twice: a frame that is lost, or a request that is refused, is an error.
fn storm(crowd: &Crowd, requests_of: &[Vec<Vec<u8>>]) -> Result<Outcome> {
    let guests = crowd.taps.iter().zip(requests_of).enumerate();
    let guests = guests.map(|(number, (tap, requests))| {
        let load = Load {
            exchanges_max: requests.len(),
            duration: Duration::from_secs(60),
            requests: requests.clone(),
            ..guest(number)?
        };
        anyhow::Ok((tap, load))
    });
    let guests: Vec<_> = guests.collect::<Result<_>>()?;
    let outcome = Outcome::of_all(load::run_all(&guests)?);
    let expected: usize = requests_of.iter().map(Vec::len).sum();
    ensure!(
        outcome.exchanges == expected && outcome.lost == 0,
        "{} of {expected} exchanges ended well, {} were lost",
        outcome.exchanges,
        outcome.lost
    );
    Ok(outcome)
}

/// Every path that cloud-init asks for, found like it does: listing by listing.
fn crawl(crowd: &Crowd) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    let mut listings = vec!["/2021-03-23/meta-data/".to_owned()];
    while let Some(listing) = listings.pop() {
        let text = get(crowd, &listing)?;
        for line in text.lines() {
            match line.split_once('=') {
                Some((index, _)) => listings.push(format!("{listing}{index}/")),
                None if line.contains("security-credentials") => {}
                None if line.ends_with('/') => listings.push(format!("{listing}{line}")),
                None => paths.push(format!("{listing}{line}")),
            }
        }
        paths.push(listing);
    }
    paths.extend(
        [
            "/2021-03-23/user-data",
            "/2021-03-23/dynamic/instance-identity/document",
        ]
        .map(str::to_owned),
    );
    Ok(paths)
}

fn get(crowd: &Crowd, path: &str) -> Result<String> {
    let response = String::from_utf8(response(crowd, path)?)?;
    let (head, body) = response.split_once("\r\n\r\n").context("half a response")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
    Ok(body.to_owned())
}

/// What the first guest is told, head and body.
fn response(crowd: &Crowd, path: &str) -> Result<Vec<u8>> {
    let load = Load {
        requests: vec![request(path, &crowd.token(0)?)],
        ..guest(0)?
    };
    Ok(load::run(crowd.tap(0)?, &load)?.response)
}
