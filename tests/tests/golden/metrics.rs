//! `docs/metrics.md`, written from the table of families in code. `GOLDEN_BLESS=1` writes it anew.

use std::{fmt::Write as _, path::PathBuf};

use imds_agent::observe::metrics::{FAMILIES, Kind};

const PREAMBLE: &str = "\
# Metrics

Written from the table in `imds-agent/src/observe/metrics/families.rs`, by which the agent tells them: a test compares the two, and
`GOLDEN_BLESS=1 cargo test --package imds-tests --test golden` writes this file anew.

The agent serves them at `/metrics` in the OpenMetrics text format, on the Unix socket `/run/imds-agent/metrics.sock` (mode 0660)
and on no address unless `[metrics]` in its configuration names one:

- A loopback address is open to every user of the host, and to guests on QEMU's own user network, where 10.0.2.2 is the host. A
  socket has a mode and a group, so it is the default. `curl --unix-socket /run/imds-agent/metrics.sock http://localhost/metrics`
  shows what is there.
- Prometheus itself reads no sockets: give it `addresses = [\"127.0.0.1:9254\"]`, or a collector that does.

What workers count costs a request three or four additions to memory of the worker's own, some 40 ns; everything else is read at the time of a
scrape, which costs the agent's own loop three system calls for each tap, for 32 taps between two other events. Counters begin at 0 with the agent, `imds_tap_*` with the tap.
No label has a value that a guest chooses, none names an instance, and *series* is the most that there can be of them:

- `role` is the ARN of a role. The first 100 by their ARN have series of their own, and the rest is told together as `(other)`; the
  instance identity role is one for all instances.
- `tap` (`namespace/tap` in another network namespace) is there only with `per_tap = true`, where a host may have 16384 of them; only reasons that occurred are told.
- `limit` is `packets` or `requests`, of which a tap has a burst that fills again at its rate (`imds_limit_packets_per_second`,
  `imds_limit_requests_per_second`): 1024 packets and four seconds' worth of requests; or `connections`, of which it has
  `imds_limit_connections_per_interface`. `imdsctl status` and `imdsctl top` say which tap it is that has the least left.
- `action` and `status` of `imds_sts_exchanges_total` are what the service has and gives.

`dist/prometheus/imds-agent.rules.yml` has alerts over them, `dist/grafana/imds-agent.json` a dashboard.

";

#[test]
fn the_metrics_are_documented_as_they_are() {
    let mut document = PREAMBLE.to_owned();
    document.push_str("| name | type | labels | series | what |\n|---|---|---|---|---|\n");
    for family in FAMILIES {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Info => "info",
        };
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        _ = writeln!(
            document,
            "| `{}` | {kind} | {} | {} | {} |",
            family.full_name(),
            labels.join(" "),
            family.series_max,
            family.help,
        );
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    assert_eq!(super::check(&path, &document), None);
}
