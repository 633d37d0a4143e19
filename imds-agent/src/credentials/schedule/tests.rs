mod simulation;

use std::collections::HashMap;

use self::simulation::{Simulation, Source};
use super::*;
use crate::registry::{MetadataOptions, Rules, record, records::FileKey};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// One instance, supplied.
fn settled(source: Source) -> Simulation {
    let mut simulation = Simulation::new(source);
    simulation.role("web", "AROA1", 43200);
    simulation.attach(1, "web");
    assert!(simulation.commit());
    simulation.run(Duration::from_secs(1), |_| {});
    simulation
}

#[test]
fn attached_role_is_fetched_at_once_and_refreshed_at_a_third() {
    let mut simulation = Simulation::new(Source::Gives(6 * HOUR));
    simulation.role("web", "AROA1", 43200);
    simulation.attach(1, "web");
    simulation.commit();
    assert_eq!(simulation.fetches_of(1), [Duration::ZERO]);
    assert!(simulation.served(1).is_none(), "the first fetch is under way");
    simulation.run(48 * HOUR, |simulation| {
        if simulation.now.monotonic >= simulation.latency {
            let left = simulation.left(1).expect("a gap");
            assert!(left >= 4 * HOUR - Duration::from_secs(1), "{left:?}");
        }
    });
    let gaps: Vec<Duration> = simulation
        .fetches_of(1)
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .collect();
    assert!(gaps.len() >= 24, "{gaps:?}");
    for gap in &gaps {
        assert!(*gap >= HOUR * 3 / 2 && *gap <= HOUR * 2 + MINUTE, "{gap:?}");
    }
    assert!(gaps.iter().any(|gap| *gap != gaps[0]), "no jitter");
    assert_eq!(simulation.events, []);
}

#[test]
fn role_caps_the_duration_that_is_asked_for() {
    let mut simulation = settled(Source::Gives(HOUR));
    simulation.role("short", "AROA2", 900);
    simulation.attach(2, "short");
    simulation.commit();
    assert_eq!(simulation.under_way[0].2.duration_seconds, 900);
    assert_eq!(simulation.under_way[0].2.instance.as_str(), "i-2");
}

#[test]
fn at_least_a_quarter_hour_is_left_whenever_the_source_can_give_it() {
    for life in [23, 20, 17].map(|minutes| MINUTE * minutes) {
        let mut simulation = settled(Source::Gives(life));
        simulation.run(3 * HOUR, |simulation| {
            let left = simulation.left(1).expect("a gap");
            assert!(left >= LEFT_MIN - Duration::from_secs(1), "{left:?} of {life:?}");
        });
        let fetches = simulation.fetches_of(1).len();
        assert!(
            fetches < 240,
            "{fetches} fetches in three hours for sets of {life:?}"
        );
    }
}

#[test]
fn shorter_sets_are_refreshed_at_a_third() {
    let mut simulation = settled(Source::Gives(10 * MINUTE));
    simulation.run(HOUR, |simulation| {
        let left = simulation.left(1).expect("a gap");
        assert!(left >= MINUTE * 6, "{left:?}");
    });
    assert!(
        (18..=25).contains(&simulation.fetches_of(1).len()),
        "{:?}",
        simulation.fetches_of(1)
    );
}

#[test]
fn outage_serves_the_last_set_to_its_honest_end_and_tells_once() {
    let mut simulation = settled(Source::Gives(HOUR));
    let expiration = simulation.now.unix + simulation.left(1).unwrap();
    simulation.source = Source::Fails;
    simulation.run(2 * HOUR, |simulation| match simulation.left(1) {
        Some(left) => assert_eq!(simulation.now.unix + left, expiration, "the same set all along"),
        None => assert!(simulation.now.unix >= expiration, "given up before its end"),
    });
    assert!(simulation.served(1).is_none(), "an expired set is never served");
    let fetches = simulation.fetches_of(1).len();
    assert!((40..120).contains(&fetches), "{fetches} tries in two hours");
    assert_eq!(
        simulation.events,
        [Event::Failing {
            role: "arn:aws:iam::1:role/web".to_owned(),
            why: "away".to_owned()
        }]
    );

    simulation.source = Source::Gives(HOUR);
    simulation.run(BACKOFF_MAX + MINUTE, |_| {});
    assert!(simulation.left(1).is_some());
    assert_eq!(
        simulation.events[1..],
        [Event::Recovered {
            role: "arn:aws:iam::1:role/web".to_owned()
        }]
    );
}

#[test]
fn half_an_hour_without_source_is_not_felt() {
    let mut simulation = settled(Source::Gives(HOUR));
    for round in 0..5 {
        simulation.run(HOUR, |simulation| {
            assert!(simulation.left(1).is_some(), "round {round}");
        });
        simulation.source = Source::Fails;
        simulation.run(HOUR / 2, |simulation| {
            assert!(
                simulation.left(1).unwrap() > MINUTE * 9,
                "SDKs would complain in round {round}"
            );
        });
        simulation.source = Source::Gives(HOUR);
    }
}

#[test]
fn expired_answer_counts_as_a_failure() {
    let simulation = settled(Source::Gives(Duration::ZERO));
    assert!(simulation.served(1).is_none());
    assert!(matches!(&simulation.events[..], [Event::Failing { why, .. }] if why.contains("expired")));
}

#[test]
fn refusal_reaches_the_guest_when_no_set_is_left() {
    let mut simulation = settled(Source::Gives(HOUR));
    simulation.source = Source::Refuses;
    simulation.run(HOUR - MINUTE, |simulation| assert!(simulation.left(1).is_some()));
    simulation.run(2 * MINUTE, |_| {});
    assert!(simulation.is_refused(1));
    let before = simulation.fetches_of(1).len();
    simulation.run(10 * HOUR, |_| {});
    let tries = simulation.fetches_of(1).len() - before;
    assert!((119..=161).contains(&tries), "{tries} tries in ten hours");
    assert!(
        matches!(&simulation.events[..], [Event::Refused { .. }]),
        "{:?}",
        simulation.events
    );
    simulation.source = Source::Gives(HOUR);
    simulation.run(REFUSED_RETRY + MINUTE, |_| {});
    assert!(simulation.left(1).is_some());
}

#[test]
fn first_refusal_reaches_the_guest_at_once() {
    assert!(settled(Source::Refuses).is_refused(1));
}

#[test]
fn changed_role_is_fetched_anew_without_a_gap_and_its_refusal_counts_at_once() {
    let mut simulation = settled(Source::Gives(6 * HOUR));
    simulation.role("web", "AROA1", 7200);
    assert!(!simulation.commit(), "the session is the same");
    simulation.run(MINUTE, |simulation| {
        assert!(simulation.left(1).is_some(), "a gap");
    });
    assert_eq!(simulation.fetches_of(1).len(), 2);
    simulation.source = Source::Refuses;
    simulation.role("web", "AROA1", 3600);
    simulation.commit();
    simulation.run(MINUTE, |_| {});
    assert!(simulation.is_refused(1));
}

#[test]
fn replaced_role_loses_its_set_at_once() {
    let mut simulation = settled(Source::Gives(6 * HOUR));
    let old_slot = simulation.schedule.sessions().into_values().next().unwrap().state;
    simulation.role("other", "AROA2", 43200);
    simulation.attach(1, "other");
    assert!(simulation.commit());
    assert!(simulation.served(1).is_none());
    assert!(old_slot.load().is_none(), "also for who still holds the old slot");
    simulation.run(MINUTE, |_| {});
    assert!(simulation.left(1).is_some());
    assert_eq!(
        simulation
            .schedule
            .sessions()
            .into_values()
            .next()
            .unwrap()
            .role
            .role_name
            .as_str(),
        "other"
    );
}

#[test]
fn another_role_under_the_same_name_starts_without_a_set() {
    let mut simulation = settled(Source::Gives(6 * HOUR));
    let id = r#""RoleId":"AROA2","MaxSessionDuration":43200"#;
    let sts = |more: &str| format!(r#"{id},"Credentials":{{"Source":"sts"{more}}}"#);
    let process = |more: &str| format!(r#"{id},"Credentials":{{"Source":"process","Command":["/p"{more}}}"#);
    for another in [
        id.to_owned(),
        sts(""),
        sts(r#","Endpoint":"http://a""#),
        sts(r#","Endpoint":"http://a","RoleArn":"arn:aws:iam::2:role/web""#),
        process("]"),
        process(r#","x"]"#),
        format!(r#"{id},"Credentials":{{"Source":"issuer"}}"#),
    ] {
        let old = simulation.served(1);
        assert!(old.is_some());
        simulation.role_with("web", &another);
        assert!(simulation.commit(), "{another}");
        assert!(simulation.served(1).is_none(), "{another}");
        simulation.run(MINUTE, |_| {});
        assert!(simulation.left(1).is_some(), "{another}");
    }
    // Asked in another way it is still the same.
    simulation.role_with("web", &sts(""));
    simulation.commit();
    simulation.run(MINUTE, |_| {});
    for same in [r#","ExternalId":"e""#, r#","Region":"r","SourceIdentity":"s""#] {
        simulation.role_with("web", &sts(same));
        assert!(!simulation.commit(), "{same}");
        assert!(simulation.left(1).is_some(), "{same}");
        simulation.run(MINUTE, |_| {});
    }
}

/// The set that is there says of itself that it went against a session token.
#[test]
fn guests_that_may_ask_without_tokens_get_a_set_for_that_at_once() {
    let mut simulation = settled(Source::Gives(6 * HOUR));
    let before = simulation.fetches.len();
    for (rules, fetches) in [
        (HttpTokens::Optional, 1),
        (HttpTokens::Required, 1),
        (HttpTokens::Optional, 2),
    ] {
        simulation.records.set_rules(Rules {
            options: MetadataOptions {
                http_tokens: rules,
                ..MetadataOptions::default()
            },
            ..Rules::default()
        });
        simulation.commit();
        assert!(simulation.left(1).is_some(), "the old one is served meanwhile");
        simulation.run(MINUTE, |_| {});
        let of_one = simulation.fetches.iter().skip(before);
        let of_one = of_one.filter(|(_, instance)| instance.as_str() == "i-1");
        assert_eq!(of_one.count(), fetches, "{rules:?}");
    }
}

#[test]
fn workers_tell_the_old_role_from_another_of_its_name() {
    let mut simulation = settled(Source::Gives(6 * HOUR));
    let published = crate::credentials::Published::default();
    published.publish(simulation.schedule.sessions());
    let instance: InstanceId = "i-1".parse().unwrap();
    // The registry is ahead of the schedule for a moment.
    let mut state = |id: &str, max_session_seconds| {
        simulation.role("web", id, max_session_seconds);
        let snapshot = simulation.records.commit().unwrap();
        let role = snapshot.instances[&instance].role.clone().unwrap();
        published.state(&instance, &role, timestamp(simulation.now))
    };
    assert!(state("AROA1", 3600).is_some(), "the same role in another version");
    assert!(state("AROA2", 3600).is_none(), "another role");
}

#[test]
fn a_source_that_hangs_keeps_nobody_elses_refreshes_waiting() {
    // Of another source than the rest, and then of the same.
    for own_source in [
        r#""Credentials":{"Source":"process","Command":["/hangs"]}"#,
        r#""Path":"/""#,
    ] {
        let mut simulation = Simulation::new(Source::Gives(HOUR));
        simulation.role("web", "AROA1", 43200);
        simulation.role_with("hangs", own_source);
        for number in 0..150 {
            simulation.attach(number, if number < 50 { "web" } else { "hangs" });
        }
        simulation.commit();
        for _ in 0..60 {
            simulation.run(5 * MINUTE, |_| {});
            for number in [0, 20, 49] {
                let left = simulation.left(number).expect("no set");
                assert!(left > 38 * MINUTE, "{left:?} left of {number}, {own_source}");
            }
        }
        assert!(simulation.left(100).is_none());
        assert!(simulation.under_way_max <= FETCHES_MAX);
    }
}

#[test]
fn answer_for_a_detached_or_replaced_role_is_thrown_away() {
    let mut simulation = settled(Source::Gives(6 * HOUR));
    simulation.role("other", "AROA2", 43200);
    simulation.attach(2, "other");
    simulation.commit();
    assert_eq!(simulation.under_way.len(), 1);
    simulation.attach(2, "web");
    simulation.commit();
    simulation.latency = HOUR;
    simulation.run(simulation.latency / 2, |_| {});
    assert_eq!(simulation.made, 3, "the old answer and the new one came");
    let RoleState::Ready(set) = &*simulation.served(2).unwrap() else {
        panic!()
    };
    assert_eq!(set.access_key_id, "3");
    simulation.records.handle_removed(&FileKey {
        kind: record::Kind::Instance,
        name: "2.json".into(),
    });
    assert!(simulation.commit());
    assert!(simulation.served(2).is_none());
    assert_eq!(simulation.schedule.sessions().len(), 1);
}

#[test]
fn thousands_are_supplied_quickly_by_few_fetches_at_a_time_and_drift_apart() {
    let mut simulation = Simulation::new(Source::Gives(6 * HOUR));
    simulation.role("web", "AROA1", 43200);
    for number in 0..2000 {
        simulation.attach(number, "web");
    }
    simulation.commit();
    let seconds = simulation.latency.as_secs_f64() * 2000.0 / FETCHES_OF_SOURCE_MAX as f64 + 1.0;
    simulation.run(Duration::from_secs_f64(seconds), |_| {});
    assert_eq!(simulation.made, 2000);
    assert_eq!(simulation.under_way_max, FETCHES_OF_SOURCE_MAX);
    simulation.fetches.clear();
    simulation.run(20 * HOUR, |_| {});
    let mut by_second: HashMap<u64, usize> = HashMap::new();
    for (when, _) in &simulation.fetches {
        *by_second.entry(when.as_secs()).or_default() += 1;
    }
    let busiest = by_second.values().max().unwrap();
    assert!(*busiest < 20, "{busiest} refreshes in one second");
    assert_eq!(simulation.under_way_max, FETCHES_OF_SOURCE_MAX);
}

#[test]
fn new_instance_overtakes_refreshes_that_wait() {
    let mut simulation = Simulation::new(Source::Gives(HOUR));
    simulation.role("web", "AROA1", 43200);
    for number in 0..500 {
        simulation.attach(number, "web");
    }
    simulation.commit();
    simulation.run(HOUR / 6, |_| {});
    // The source slows down until hundreds of refreshes are overdue.
    simulation.latency = 5 * MINUTE;
    simulation.run(HOUR / 3, |_| {});
    simulation.attach(1000, "web");
    simulation.commit();
    simulation.run(10 * MINUTE + Duration::from_secs(1), |_| {});
    assert!(simulation.left(1000).is_some());
}

#[test]
fn outage_of_thousands_is_told_once_and_ends_once() {
    let mut simulation = Simulation::new(Source::Fails);
    simulation.role("web", "AROA1", 43200);
    for number in 0..1000 {
        simulation.attach(number, "web");
    }
    simulation.commit();
    simulation.run(10 * MINUTE, |_| {});
    assert_eq!(simulation.events.len(), 1);
    simulation.source = Source::Gives(HOUR);
    simulation.run(10 * MINUTE, |_| {});
    assert_eq!(simulation.events.len(), 2);
    assert!((0..1000).all(|number| simulation.left(number).is_some()));
}

#[test]
fn sets_of_a_clock_that_was_ahead_are_refreshed_as_if_it_had_not_been() {
    let mut simulation = settled(Source::Gives(6 * HOUR));
    simulation.now.unix -= 1000 * HOUR;
    simulation.begin();
    simulation.run(MINUTE, |_| {});
    assert_eq!(simulation.fetches_of(1).len(), 1);
    simulation.run(3 * HOUR, |_| {});
    assert_eq!(simulation.fetches_of(1).len(), 2);
}

#[test]
fn wall_clock_that_is_put_right_moves_the_refresh() {
    let mut simulation = settled(Source::Gives(6 * HOUR));
    simulation.now.unix += 3 * HOUR;
    simulation.begin();
    simulation.run(MINUTE, |_| {});
    assert_eq!(
        simulation.fetches_of(1).len(),
        2,
        "past a third by the wall clock"
    );
    simulation.now.unix += 7 * HOUR;
    assert!(simulation.served(1).is_none(), "expired by the wall clock");
    simulation.begin();
    simulation.run(MINUTE, |_| {});
    assert!(simulation.left(1).is_some());
}
