use super::*;

fn at(seconds: u64) -> Now {
    Now {
        monotonic: Duration::from_secs(seconds),
        unix: Duration::from_secs(1_795_248_000 + seconds),
    }
}

fn sighting(instance: &str, sign: Sign) -> Sighting {
    Sighting {
        instance: instance.parse().unwrap(),
        undelivered: Undelivered {
            remote: "172.17.0.2:40000".parse().unwrap(),
            hop_limit: 1,
            sign,
        },
    }
}

const TIME_EXCEEDED: Sign = Sign::TimeExceeded {
    router: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)),
};

#[test]
fn routers_word_is_told_at_once_and_again_after_an_hour() {
    let (mut hop_limit, mut warnings) = (HopLimit::default(), Warnings::default());
    let sighting = sighting("i-one", TIME_EXCEEDED);
    let mut record = |seconds| hop_limit.record(at(seconds), &sighting, &mut warnings);
    let told = record(0).unwrap();
    for part in [
        "i-one",
        "172.17.0.2",
        "10.0.0.2",
        "hop limit is 1",
        "HttpPutResponseHopLimit to 2",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert_eq!([record(1), record(3599)], [None, None]);
    assert!(record(3600).is_some());
    let report = hop_limit.report(&sighting.instance);
    assert_eq!((report.time_exceeded, report.unacknowledged), (4, 0));
    let last = Last {
        at: at(3600).timestamp(),
        hop_limit: 1,
        remote: "172.17.0.2".parse().unwrap(),
        router: Some("10.0.0.2".parse().unwrap()),
    };
    assert_eq!(report.last, Some(last));
    assert_eq!(hop_limit.report(&"i-two".parse().unwrap()), Report::default());
}

#[test]
fn silence_is_told_when_it_is_more_than_one_response_that_nobody_acknowledged() {
    let (mut hop_limit, mut warnings) = (HopLimit::default(), Warnings::default());
    let sighting = sighting("i-one", Sign::Unacknowledged);
    assert_eq!(hop_limit.record(at(0), &sighting, &mut warnings), None);
    assert_eq!(hop_limit.undelivered(), []);
    let told = hop_limit.record(at(1), &sighting, &mut warnings).unwrap();
    assert!(told.contains("not acknowledged, most likely"), "{told}");
    let report = hop_limit.report(&sighting.instance);
    assert_eq!(report.unacknowledged, 2);
    assert_eq!(hop_limit.undelivered(), [(sighting.instance, report.clone())]);
    assert_eq!(report.last.unwrap().router, None);
}

#[test]
fn instances_that_are_gone_are_forgotten() {
    let (mut hop_limit, mut warnings) = (HopLimit::default(), Warnings::default());
    let [gone, stays] = ["i-gone", "i-stays"].map(|name| sighting(name, TIME_EXCEEDED));
    for sighting in [&gone, &stays] {
        hop_limit.record(at(0), sighting, &mut warnings);
    }
    hop_limit.retain(|instance| *instance == stays.instance);
    assert_eq!(hop_limit.report(&gone.instance), Report::default());
    assert_eq!(hop_limit.report(&stays.instance).time_exceeded, 1);
}
