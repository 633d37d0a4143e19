//! moto's mock of the service, which real test suites run against: a server that somebody else wrote.

use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use imds_agent::imdsctl::conformance;

use super::{failures, strictly};

/// How long Python may take to import moto.
const PATIENCE: Duration = Duration::from_secs(60);

struct Moto {
    child: Child,
    url: String,
}

impl Moto {
    /// Nothing if it is not installed.
    fn start() -> Option<Self> {
        let is_there = Command::new("python3")
            .args(["-c", "import moto.server"])
            .stderr(Stdio::null())
            .status();
        if !is_there.is_ok_and(|status| status.success()) {
            return None;
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let child = Command::new("python3")
            .args(["-m", "moto.server", "--port", &address.port().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3");
        let moto = Self {
            child,
            url: format!("http://{address}"),
        };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "moto does not listen");
            std::thread::yield_now();
        }
        Some(moto)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[test]
fn moto_is_seen_to_be_a_mock() {
    let Some(moto) = Moto::start() else {
        eprintln!("skipped: moto is not installed (pip install 'moto[server]')");
        return;
    };
    let mut arguments = strictly();
    arguments.strict = false;
    // The rest waits two seconds for each of several silences.
    arguments.only = ["B", "3"].map(str::to_owned).into();
    arguments.only.retain(|section| section != "B");
    arguments
        .only
        .extend(["B/", "B.1", "B.2", "B.3", "B.4", "B.5"].map(str::to_owned));
    let report = conformance::grade(&moto.url, &arguments).expect("a report");
    let failed = failures(&report);
    // A token for whoever asks, however; a directory without its slash; no versions.
    for id in [
        "B/1", "B.1/1a", "B.1/9", "B.2/18", "B.2/19a", "B.2/23", "B.3/33", "B.4/404a", "B.5/2a",
    ] {
        assert!(failed.contains(&id), "{id} did not fail\n{report}");
    }
    for id in [
        "B.1/12",
        "B.5/1",
        "B.5/2d",
        "3/meta-data/instance-id",
        "3/meta-data/placement/region",
    ] {
        assert!(!failed.contains(&id), "{id} failed\n{report}");
    }
    assert!(report.counts().passed > 10, "{report}");
}
