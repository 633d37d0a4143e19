use serde_json::json;
use tempfile::TempDir;

use super::{applied::State, *};
use crate::registry::{Directory, InstanceId, Rules, record::Record, store::Key};

/// A control socket without a socket, over a real registry; the agent's loop is played by the test.
struct Host {
    control: Arc<Control>,
    applied: watch::Sender<Option<u64>>,
    refused: Arc<std::sync::Mutex<Option<String>>>,
    _state: TempDir,
}

impl Host {
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        Directory::create(state.path()).unwrap();
        let directory = Directory::open(state.path(), Rules::default()).unwrap();
        let (commands, mut asked) = mpsc::channel(1);
        let applied = watch::Sender::new(None);
        let facts = Facts::default();
        let control = Arc::new(Control {
            store: Store::new(state.path(), Rules::default()),
            snapshots: directory.snapshots(),
            problems: directory.problems(),
            applied: applied.subscribe(),
            commands,
            extended_credentials: ExtendedCredentials::default(),
            started: Instant::now(),
            facts: facts.clone(),
        });
        tokio::spawn(directory.watch(facts.registry));
        let refused = Arc::<std::sync::Mutex<Option<String>>>::default();
        let told = Arc::clone(&refused);
        tokio::spawn(async move {
            while let Some(Command::DescribeRefused(answer)) = asked.recv().await {
                let refused = told.lock().unwrap().clone();
                let tap = |refused| TapState {
                    index: TapIndex(7),
                    name: "tap1".to_owned(),
                    mac: None,
                    instance: None,
                    nobody: None,
                    refused: Some(refused),
                };
                let _ = answer.send(refused.map(tap).into_iter().collect());
            }
        });
        Self {
            control,
            applied,
            refused,
            _state: state,
        }
    }

    /// Writes the record of i-1 and returns it.
    async fn put(&self, kind: &str) -> Record {
        let record = json!({
            "InstanceId": "i-1", "InstanceType": kind,
            "NetworkInterfaces": [{ "MacAddress": "06:00:00:00:00:01", "Tap": "tap1" }],
        });
        let put = move |store: &Store| store.put_instance(&id(), record.to_string().as_bytes());
        self.control.store(put).await.unwrap().record
    }

    async fn state(&self, wait: Duration, record: Option<&Record>) -> State {
        self.control.settle_instance(wait, &id(), record).await.unwrap()
    }

    /// The taps are bound by everything that there is.
    fn apply(&self) {
        self.applied.send_replace(Some(u64::MAX));
    }
}

const NOW: Duration = Duration::ZERO;
const PATIENCE: Duration = Duration::from_secs(30);

fn id() -> InstanceId {
    "i-1".parse().unwrap()
}

#[tokio::test]
async fn a_change_is_pending_until_taps_are_bound_by_it() {
    let host = Host::new().await;
    let record = host.put("m5.large").await;
    // However long the registry has had it.
    host.control
        .snapshots
        .clone()
        .wait_for(|snapshot| snapshot.revision == 1)
        .await
        .unwrap();
    assert_eq!(host.state(NOW, Some(&record)).await, State::Pending);
    host.applied.send_replace(Some(0));
    assert_eq!(host.state(NOW, Some(&record)).await, State::Pending);
    let (state, ()) = tokio::join!(host.state(PATIENCE, Some(&record)), async { host.apply() });
    assert_eq!(state, State::Applied);
}

#[tokio::test]
async fn a_change_is_pending_while_the_kernel_refuses_its_tap() {
    let host = Host::new().await;
    host.apply();
    *host.refused.lock().unwrap() = Some("no".to_owned());
    let record = host.put("m5.large").await;
    assert_eq!(
        host.state(Duration::from_millis(100), Some(&record)).await,
        State::Pending
    );
    *host.refused.lock().unwrap() = None;
    assert_eq!(host.state(PATIENCE, Some(&record)).await, State::Applied);
}

#[tokio::test]
async fn only_what_was_written_counts() {
    let host = Host::new().await;
    host.apply();
    let first = host.put("m5.large").await;
    assert_eq!(host.state(PATIENCE, Some(&first)).await, State::Applied);
    let second = host.put("m5.xlarge").await;
    assert_eq!(host.state(PATIENCE, Some(&second)).await, State::Applied);
    assert_eq!(host.state(NOW, Some(&first)).await, State::Pending);
    assert_eq!(host.state(NOW, None).await, State::Pending);
    host.control
        .store(|store| store.delete(&Key::Instance(id()), &Default::default()))
        .await
        .unwrap();
    assert_eq!(host.state(PATIENCE, None).await, State::Applied);
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_told_of() {
    let host = Host::new().await;
    let (commands, _) = mpsc::channel(1);
    let control = Arc::into_inner(host.control).unwrap();
    let control = Control { commands, ..control };
    assert_eq!(control.taps().await, Err(Refusal::busy()));
}

/// The description names every route, and nothing else.
#[test]
fn description_and_routes_agree() {
    let description: serde_json::Value = serde_json::from_str(status::OPENAPI).unwrap();
    for route in routes::ROUTES {
        let path = route.path.replace("{*", "{");
        let operation = &description["paths"][&path][route.method];
        assert!(operation.is_object(), "{} {path} is not described", route.method);
        let may = operation["description"].as_str().unwrap_or_default();
        let expected = match route.access {
            access::Access::Anyone => "For whoever may open the socket.",
            access::Access::Read => "For members of the read-only group",
            access::Access::Admin => "For root, the agent's own user",
        };
        assert!(may.starts_with(expected), "{} {path}: {may}", route.method);
    }
    let items = description["paths"].as_object().unwrap().values();
    let methods = items
        .flat_map(|item| item.as_object().unwrap().keys())
        .filter(|key| *key != "parameters");
    assert_eq!(methods.count(), routes::ROUTES.len());
}
