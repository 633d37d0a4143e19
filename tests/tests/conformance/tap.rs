//! The real agent behind a real tap, graded from the guest.

use std::time::{Duration, Instant};

use anyhow::Result;
use imds_agent::imdsctl::conformance;
use imds_tests::host::Host;

use super::{failures, strictly};

/// How long the first credentials may take.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn the_agent_has_no_failure_seen_from_a_guest() -> Result<()> {
    let (_host, guest) = Host::with_guest(|record| {
        record["AmiManifestPath"] = "(unknown)".into();
    })?;
    let mut arguments = strictly();
    arguments.packets_per_second = 900;
    let report = guest.namespace.enter(|| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = conformance::grade("http://169.254.169.254", &arguments);
            match report {
                Ok(report) => break Ok(report),
                Err(error) if Instant::now() > deadline => break Err(error),
                Err(_) => std::thread::yield_now(),
            }
        }
    })?;
    assert_eq!(failures(&report), [""; 0], "{report}");
    Ok(())
}
