//! The real agent behind a real tap, graded from the guest.

use std::time::{Duration, Instant};

use anyhow::Result;
use imds_agent::imdsctl::conformance::{self, Arguments, Report};
use imds_tests::host::Host;

use super::{failures, strictly};

/// How long the first credentials may take.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn the_agent_has_no_failure_seen_from_a_guest() -> Result<()> {
    let report = graded_from_a_guest(strictly())?;
    assert_eq!(failures(&report), [""; 0], "{report}");
    Ok(())
}

/// Here it is the agent's own TCP that has to keep the connection for so long.
#[test]
fn the_agent_keeps_an_idle_connection_and_closes_it_in_time() -> Result<()> {
    let report = graded_from_a_guest(Arguments {
        slow: true,
        only: vec!["0/14f".to_owned()],
        ..strictly()
    })?;
    assert_eq!(report.counts().passed, 1, "{report}");
    Ok(())
}

fn graded_from_a_guest(mut arguments: Arguments) -> Result<Report> {
    let (_host, guest) = Host::with_guest(|record| {
        record["AmiManifestPath"] = "(unknown)".into();
    })?;
    arguments.packets_per_second = 900;
    guest.namespace.enter(|| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = conformance::grade("http://169.254.169.254", &arguments);
            match report {
                Ok(report) => break Ok(report),
                Err(error) if Instant::now() > deadline => break Err(error),
                Err(_) => std::thread::yield_now(),
            }
        }
    })
}
