use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use jiff::SignedDuration;

use super::{super::RoleState, *};
use crate::{
    credentials::{Deliveries, Fetch, totals::Troubles},
    registry::{
        InstanceId, Role, Rules,
        record::Kind,
        records::{FileKey, Records},
        role::SourceKind,
    },
};

/// Gives sets that live as long as asked, or panics.
#[derive(Default)]
struct Scripted {
    panics: AtomicBool,
    fetches: AtomicUsize,
}

impl Source for Scripted {
    fn kind(&self, _: &Role) -> SourceKind {
        SourceKind::Process
    }

    fn fetch<'a>(&'a self, request: &'a RoleSessionRequest) -> Fetch<'a> {
        Box::pin(async move {
            let number = self.fetches.fetch_add(1, Ordering::SeqCst);
            assert!(!self.panics.load(Ordering::SeqCst), "as scripted");
            Ok(RoleCredentials {
                access_key_id: format!("{}-{number}", request.role.role_name),
                secret_access_key: "s".into(),
                session_token: "t".into(),
                without_token: None,
                deliveries: Deliveries::default(),
                last_updated: request.now,
                expiration: request.now + SignedDuration::from_secs(request.duration_seconds.into()),
            })
        })
    }
}

fn put(records: &mut Records, kind: Kind, text: &str) {
    let key = FileKey {
        kind,
        name: "x.json".into(),
    };
    records.handle_file(key, text.as_bytes(), Timestamp::UNIX_EPOCH);
}

fn role(name: &str) -> String {
    format!(r#"{{"RoleName":"{name}","Arn":"arn:aws:iam::1:role/{name}"}}"#)
}

fn profile(role: &str) -> String {
    format!(
        r#"{{"InstanceProfileName":"p","Arn":"arn:aws:iam::1:instance-profile/p","Roles":[{{"RoleName":"{role}"}}]}}"#
    )
}

/// The access key id that the guest is given, once it begins with `prefix`.
async fn served(published: &Published, role: &str, prefix: &str) -> String {
    let instance: InstanceId = "i-1".parse().unwrap();
    let role: Role = serde_json::from_str(&self::role(role)).unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            if let Some(state) = published.state(&instance, &role, Timestamp::now())
                && let RoleState::Ready(set) = &*state
                && set.access_key_id.starts_with(prefix)
            {
                return set.access_key_id.clone();
            }
            tokio::task::yield_now().await;
        }
    });
    waited.await.expect("never supplied")
}

#[tokio::test]
async fn follows_snapshots_and_survives_a_panicking_source() {
    let mut records = Records::new(Rules::default());
    let instance = r#"{"InstanceId":"i-1","IamInstanceProfile":{"Arn":"arn:aws:iam::1:instance-profile/p"},
        "NetworkInterfaces":[{"MacAddress":"02:00:00:00:00:01"}]}"#;
    put(&mut records, Kind::Instance, instance);
    put(&mut records, Kind::Role, &role("a"));
    put(&mut records, Kind::InstanceProfile, &profile("a"));
    let (sender, receiver) = watch::channel(records.commit().unwrap());

    let source = Arc::new(Scripted::default());
    source.panics.store(true, Ordering::SeqCst);
    let published = Arc::new(Published::default());
    let refresher = Refresher::new(
        crate::credentials::schedule::Kind::InstanceProfile,
        Arc::clone(&source) as Arc<dyn Source>,
        Arc::clone(&published),
        3600,
    );
    let (totals, rests) = (refresher.totals(), refresher.rests());
    let running = tokio::spawn(refresher.run(receiver));
    while source.fetches.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    source.panics.store(false, Ordering::SeqCst);
    let set = served(&published, "a", "a-").await;
    assert_ne!(set, "a-0", "the first fetch panicked");
    let answers = |outcome| totals.answers(SourceKind::Process, outcome);
    assert!(answers(FetchOutcome::Failed) >= 1);
    assert_eq!(answers(FetchOutcome::Supplied), 1);
    assert_eq!(totals.troubles(), Troubles::default());

    put(&mut records, Kind::Role, &role("b"));
    put(&mut records, Kind::InstanceProfile, &profile("b"));
    sender.send_replace(records.commit().unwrap());
    let (id, new): (InstanceId, Role) = ("i-1".parse().unwrap(), serde_json::from_str(&role("b")).unwrap());
    while published.state(&id, &new, Timestamp::now()).is_none() {
        rests.notified().await;
    }
    let (instance, old) = ("i-1".parse().unwrap(), serde_json::from_str(&role("a")).unwrap());
    assert!(published.state(&instance, &old, Timestamp::now()).is_none());

    drop(sender);
    running.await.unwrap();
}
