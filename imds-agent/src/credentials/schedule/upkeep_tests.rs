//! What the upkeep of a large host's sessions costs: the real schedule and the real issuer under a simulated clock.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
    time::Instant,
};

use rand::{SeedableRng as _, rngs::StdRng};

use super::*;
use crate::{
    credentials::{Issuer, Source as _},
    keys::IssuerKey,
    registry::{
        Rules, record,
        records::{FileKey, Records},
    },
};

const INSTANCES: usize = 10_000;
const ROLES: usize = 50;
const SIMULATED: Duration = Duration::from_secs(2 * 3600);

#[test]
fn ten_thousand_instances_with_fifty_roles_cost_less_than_a_hundredth_of_a_core() {
    let mut records = Records::new(Rules::default());
    let mut put = |kind, name: String, text: String| {
        let key = FileKey {
            kind,
            name: format!("{name}.json").into(),
        };
        records.handle_file(key, text.as_bytes(), Timestamp::UNIX_EPOCH);
    };
    for role in 0..ROLES {
        let arn = |kind| format!("arn:aws:iam::123456789012:{kind}/r{role}");
        let text = format!(r#"{{"RoleName":"r{role}","Arn":"{}"}}"#, arn("role"));
        put(record::Kind::Role, format!("r{role}"), text);
        let text = format!(
            r#"{{"InstanceProfileName":"r{role}","Arn":"{}","Roles":[{{"RoleName":"r{role}"}}]}}"#,
            arn("instance-profile")
        );
        put(record::Kind::InstanceProfile, format!("r{role}"), text);
    }
    for number in 0..INSTANCES {
        let [.., a, b] = number.to_be_bytes();
        let text = format!(
            r#"{{"InstanceId":"i-{number}","OwnerId":"123456789012",
                "IamInstanceProfile":{{"Arn":"arn:aws:iam::123456789012:instance-profile/r{}"}},
                "NetworkInterfaces":[{{"MacAddress":"02:00:00:00:{a:02x}:{b:02x}"}}]}}"#,
            number % ROLES
        );
        put(record::Kind::Instance, number.to_string(), text);
    }
    let snapshot = records.commit().unwrap();
    let issuer = Issuer::new(&IssuerKey::new([1; 4], [1; 32]), &[]);

    let mut spent = Duration::ZERO;
    let mut fetches = 0;
    for kind in [Kind::InstanceProfile, Kind::InstanceIdentity] {
        let mut schedule = Schedule::new(kind, 6 * 3600, StdRng::seed_from_u64(7));
        let mut now = Now {
            monotonic: Duration::ZERO,
            unix: Duration::from_secs(1_800_000_000),
        };
        schedule.handle_snapshot(now, &snapshot);
        // The first sets are the price of a start, and no upkeep.
        run(&mut schedule, &issuer, now);
        let begin = Instant::now();
        while now.monotonic < SIMULATED {
            let due = schedule.poll_timeout().unwrap();
            let step = due.saturating_sub(now.monotonic).max(Duration::from_millis(1));
            now.monotonic += step;
            now.unix += step;
            fetches += run(&mut schedule, &issuer, now);
        }
        spent += begin.elapsed();
    }
    let share = spent.as_secs_f64() / SIMULATED.as_secs_f64();
    eprintln!("{fetches} fetches, {:.4} % of a core", share * 100.0);
    assert!(fetches > 2 * INSTANCES - 1, "only {fetches} fetches in two hours");
    assert!(share < 0.01, "{:.2} % of a core", share * 100.0);
}

fn run(schedule: &mut Schedule<StdRng>, issuer: &Issuer, now: Now) -> usize {
    let mut fetches = 0;
    while let Some((ticket, request)) = schedule.poll_fetch(now) {
        let fetch = pin!(issuer.fetch(&request));
        let Poll::Ready(outcome) = fetch.poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("the issuer waits for nobody");
        };
        schedule.handle_fetched(now, &ticket, outcome);
        fetches += 1;
    }
    fetches
}
