//! What taps have left of their limits.

use std::fs;

use anyhow::Result;
use imds_tests::{
    client::{PATIENCE, exchange, wait_for},
    control::{imdsctl, imdsctl_json, run},
    frames::{GATEWAY_MAC, Ipv4, eth, tcp},
    host::{Host, INSTANCE_ID},
    records::{self, guest_mac},
    scrape::Scrape,
    segment::Segment,
    tap::Tap,
};

#[test]
fn a_guest_at_its_limits_is_told_with_what_it_has_left() -> Result<()> {
    // Slow enough that what is taken stays taken for a moment: a burst of four requests.
    let rates = "packets_per_second = 1\nrequests_per_second = 1\nmetrics.per_tap = true";
    let host = Host::new(rates, |_| ())?;
    let guest = host.guest()?;
    let neighbour = records::instance("i-0fedcba9876543210", guest_mac(3), "tap1", "10.0.0.3");
    host.files.put("instances", "neighbour", &neighbour)?;
    let _neighbour = host.namespace.enter(|| Tap::new("tap1"))?;
    let rest = host.wait_for_metric("imds_taps_bound", &[], 2.0)?;
    for (limit, full) in [("packets", 1024.0), ("requests", 4.0), ("connections", 64.0)] {
        let limit = ("limit", limit);
        assert_eq!(rest.value("imds_budget_left_min", &[limit]), Some(full));
        assert_eq!(rest.value("imds_taps_at_limit", &[limit]), Some(0.0));
        assert_eq!(rest.sum("imds_tap_budget_left", &[limit]), 2.0 * full);
    }

    let requests = [("limit", "requests")];
    let flood = || {
        let ask = || exchange("GET / HTTP/1.1\r\n\r\n");
        while guest.namespace.enter(ask)?.status != 503 {}
        Scrape::of(&host.files.metrics())
    };
    // A second later it has one again.
    let is_at_limit = |scrape: &Scrape| scrape.value("imds_taps_at_limit", &requests) == Some(1.0);
    let (flooded, _) = wait_for("a guest at its limit", flood, is_at_limit)?;
    assert_eq!(flooded.value("imds_budget_left_min", &requests), Some(0.0));
    let of = |tap| flooded.value("imds_tap_budget_left", &[("tap", tap), requests[0]]);
    assert_eq!((of("tap0"), of("tap1")), (Some(0.0), Some(4.0)));
    host.wait_for_metric("imds_budget_left_min", &requests, 4.0)?;

    let send = |packet: &[u8]| {
        host.tap
            .send(&eth(GATEWAY_MAC, guest_mac(2), &[], 0x0800, packet))
    };
    let syn = |port| Segment {
        port,
        ..Segment::default()
    };
    for port in 50_000..50_064 {
        send(&syn(port).ipv4())?;
    }
    let connections = [("limit", "connections")];
    let half_open = host.wait_for_metric("imds_budget_left_min", &connections, 0.0)?;
    assert_eq!(half_open.value("imds_taps_at_limit", &connections), Some(1.0));
    // One more, which takes the place of one that is idle by then.
    send(&syn(50_064).ipv4())?;
    let turned_away = "imds_connections_turned_away_total";
    let scrape = host.wait_for_metric(turned_away, &[("how", "reset")], 1.0)?;
    assert_eq!(scrape.value(turned_away, &[("how", "dropped")]), Some(0.0));
    let mut wrong = syn(50_065).ipv4();
    wrong[10] ^= 0xff;
    send(&wrong)?;
    let scrape = host.wait_for_metric("imds_frames_discarded_total", &[("reason", "malformed")], 1.0)?;
    assert_eq!(scrape.sum("imds_frames_discarded_total", &[]), 1.0);

    let packet = Ipv4::default().packet(&tcp(80, 0));
    for _ in 0..1100 {
        send(&packet)?;
    }
    let packets = [("limit", "packets")];
    let flooded = Scrape::of(&host.files.metrics())?;
    assert_eq!(flooded.value("imds_taps_at_limit", &packets), Some(1.0));
    let left = flooded.value("imds_budget_left_min", &packets);
    assert!(left.is_some_and(|left| left < 64.0), "{left:?}");
    let limited = [("number", "18"), ("reason", "rate-limited")];
    assert!(flooded.value("imds_frames_dropped_total", &limited) >= Some(76.0 - PATIENCE.as_secs_f64()));

    // Operators see it without Prometheus too.
    let status = imdsctl_json(&host.files, "status")?;
    let tap = &status["taps"][0];
    assert_eq!(tap["limits"][0]["isReached"], true, "{status}");
    assert!(tap["framesDropped"].as_u64() > Some(0), "{status}");
    assert_eq!(status["taps"][1]["limits"][0]["left"], 1024, "{status}");
    let text = run(imdsctl(&host.files)?.arg("status"))?;
    assert!(
        text.contains("1024/1024 packets, 4/4 requests, 64/64 connections"),
        "{text}"
    );
    let shown = imdsctl(&host.files)?
        .args(["instance", "show", INSTANCE_ID])
        .output()?;
    let warned = String::from_utf8_lossy(&shown.stderr);
    assert!(
        warned.contains("at its limit on tap0") && warned.contains("of 1024 packets"),
        "{warned}"
    );
    Ok(())
}

#[test]
fn a_limit_that_is_switched_off_has_nothing_left() -> Result<()> {
    let host = Host::new("packets_per_second = 0\nrequests_per_second = 0", |_| ())?;
    let scrape = host.wait_for_metric("imds_taps_bound", &[], 1.0)?;
    for (limit, left) in [("packets", None), ("requests", None), ("connections", Some(64.0))] {
        assert_eq!(scrape.value("imds_budget_left_min", &[("limit", limit)]), left);
    }
    // One that is changed by a reload is told as it is now.
    let config = fs::read_to_string(host.files.config())?;
    let changed = config.replace("packets_per_second = 0", "packets_per_second = 7");
    fs::write(host.files.config(), changed)?;
    run(imdsctl(&host.files)?.arg("reload"))?;
    let scrape = Scrape::of(&host.files.metrics())?;
    assert_eq!(scrape.value("imds_limit_packets_per_second", &[]), Some(7.0));
    let packets = scrape.value("imds_budget_left_min", &[("limit", "packets")]);
    assert_eq!(packets, Some(1024.0));
    Ok(())
}
