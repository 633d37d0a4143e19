use std::{collections::HashMap, collections::HashSet, sync::Arc};

use arc_swap::ArcSwapOption;
use jiff::{SignedDuration, Timestamp};

use super::{families::*, sources::*, *};
use crate::{
    credentials::{self, Deliveries, RoleCredentials, RoleSession, RoleState},
    registry,
};

#[test]
fn families_are_named_by_convention() {
    let mut names = HashSet::new();
    for family in FAMILIES {
        let name = family.full_name();
        assert!(names.insert(family.full_name()), "{name} comes twice");
        assert!(
            name.starts_with("imds_") || name == "process_start_time_seconds",
            "{name}"
        );
        assert!(
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
            "{name}"
        );
        assert!(!family.name.ends_with("_total"), "{name}");
        assert!(
            !family.help.contains(['"', '\\', '\n', '|']),
            "{name}: {}",
            family.help
        );
        assert!(family.help.ends_with('.'), "{name}: {}", family.help);
        assert!(family.series_max >= 1, "{name}");
    }
}

#[test]
fn what_stands_in_a_label_is_escaped() {
    #[derive(Debug)]
    struct Odd;

    impl Source for Odd {
        fn put(&self, samples: &mut Samples<'_>) -> fmt::Result {
            samples.many(TAP_FRAMES_PUNTED, [(["a\"b\\c\nd"], 1_u64)])
        }
    }

    let text = Metrics::default().with(Odd).encode().unwrap();
    assert!(
        text.ends_with("imds_tap_frames_punted_total{tap=\"a\\\"b\\\\c\\nd\"} 1\n# EOF\n"),
        "{text}"
    );
}

fn session(role: &str, state: Option<RoleState>) -> RoleSession {
    RoleSession {
        role: Arc::new(serde_json::from_value(serde_json::json!({ "RoleName": role, "Arn": role })).unwrap()),
        state: Arc::new(ArcSwapOption::new(state.map(Arc::new))),
    }
}

fn ready(seconds_left: i64) -> Option<RoleState> {
    let now = Timestamp::now();
    Some(RoleState::Ready(RoleCredentials {
        access_key_id: "ASIAEXAMPLE".to_owned(),
        secret_access_key: "secret".into(),
        session_token: "token".into(),
        last_updated: now - SignedDuration::from_secs(60),
        expiration: now + SignedDuration::from_secs(seconds_left),
        without_token: None,
        deliveries: Deliveries::default(),
    }))
}

fn told(sessions: HashMap<registry::InstanceId, RoleSession>) -> String {
    let source = Credentials {
        profiles: Arc::default(),
        identities: Arc::<credentials::Published>::default(),
        fetches: Default::default(),
    };
    source.profiles.publish(sessions);
    Metrics::default().with(source).encode().unwrap()
}

fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series))?;
    line.trim().parse().ok()
}

#[test]
fn a_role_is_told_by_its_worst_session() {
    let text = told(
        [
            ("i-1", ready(3000)),
            ("i-2", ready(500)),
            ("i-3", ready(-1)),
            ("i-4", None),
        ]
        .into_iter()
        .map(|(instance, state)| (instance.parse().unwrap(), session("web", state)))
        .collect(),
    );
    let of = |state: &str| {
        let labels = format!("{{kind=\"instance-profile\",role=\"web\",state=\"{state}\"}}");
        value(&text, &format!("imds_role_sessions{labels}"))
    };
    assert_eq!(
        [of("ready"), of("refused"), of("empty")],
        [Some(2.0), Some(0.0), Some(2.0)]
    );
    let labels = "{kind=\"instance-profile\",role=\"web\"}";
    let remaining = value(&text, &format!("imds_role_credentials_remaining_seconds{labels}"));
    assert!(
        remaining.is_some_and(|left| left > 400.0 && left <= 500.0),
        "{remaining:?}"
    );
    let age = value(&text, &format!("imds_role_credentials_age_seconds{labels}"));
    assert!(age.is_some_and(|age| (60.0..160.0).contains(&age)), "{age:?}");
    assert!(!text.contains("secret") && !text.contains("token\""), "{text}");
}

#[test]
fn roles_past_the_bound_are_told_together() {
    let sessions = |count: usize| {
        let session = |number: usize| {
            let state = ready(if number + 1 == count { 50 } else { 3000 });
            (
                format!("i-{number}").parse().unwrap(),
                session(&format!("role-{number:04}"), state),
            )
        };
        told((0..count).map(session).collect())
    };
    let series = |text: &str| {
        let name = "imds_role_credentials_remaining_seconds{";
        text.lines().filter(|line| line.starts_with(name)).count()
    };
    assert_eq!(series(&sessions(ROLES_MAX)), ROLES_MAX);
    let text = sessions(ROLES_MAX + 40);
    assert_eq!(series(&text), ROLES_MAX + 1);
    let of_others = "{kind=\"instance-profile\",role=\"(other)\"";
    let count = value(&text, &format!("imds_role_sessions{of_others},state=\"ready\"}}"));
    assert_eq!(count, Some(40.0));
    let remaining = value(
        &text,
        &format!("imds_role_credentials_remaining_seconds{of_others}}}"),
    );
    assert!(remaining.is_some_and(|left| left <= 50.0), "{remaining:?}");
}

/// A scrape before the agent's loop said anything is of no harm.
#[test]
fn nothing_is_told_before_it_is_known() {
    let text = Metrics::default().with(Host::default()).encode().unwrap();
    assert_eq!(text, "# EOF\n");
}
