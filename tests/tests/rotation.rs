//! A working day of AWS's clients in a guest: sets are rotated ten times, the source is away for half an hour, and the role
//! is replaced, and neither the clients nor their logs notice.
//!
//! The agent, the service that it asks, boto3 and the AWS CLI go by a clock that the test puts forward; AWS's SDK for
//! Rust, which lives in the test itself, is given the same clock as its source of time. Every use of a set is a signed call
//! that the service verifies. That the agent's timers keep the same times is shown in its own tests of the schedule.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use aws_config::{
    BehaviorVersion, Region, imds::credentials::ImdsCredentialsProvider, provider_config::ProviderConfig,
};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_sts::config::{
    ConfigBag, Intercept, RuntimeComponents, interceptors::BeforeTransmitInterceptorContextRef,
};
use aws_smithy_async::{
    rt::sleep::{SharedAsyncSleep, TokioSleep},
    time::{SharedTimeSource, TimeSource},
};
use imds_tests::{
    agent::{Agent, HostFiles},
    client::wait_for,
    clock::Clock,
    host::{self, ADDRESS, INSTANCE_ID},
    kernel_guest::KernelGuest,
    moto::{self, Moto},
    netns::Namespace,
    records::{self, ACCOUNT},
    tap::Tap,
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

/// How often the clients call. Sets that live an hour are refreshed fifteen to twenty minutes after they were made, so none
/// is under way when the clock is put forward but every third time, when one has to come.
const STEP: Duration = Duration::from_secs(7 * 60);

/// A set that is older than this is refreshed as soon as the agent wakes up.
const REFRESH_AFTER: Duration = Duration::from_secs(20 * 60);

/// The address at which the agent reaches the service. The guest has another.
const SOURCE: &str = "10.99.0.1";

/// What a client's log is made to say, at level warning.
const HEARD: &str = "heard";

/// What one call of a client says.
#[derive(Debug, Deserialize)]
struct Call {
    arn: String,
    access_key_id: String,
    /// All that its log says at level warning or above: first of all [`HEARD`], which shows that it is listened to.
    complaints: Vec<String>,
}

/// A client that lives as long as the test.
trait Client {
    fn call(&mut self) -> Result<Call>;
}

/// The host, its guest, the service that both know, and the time, which is left last.
struct Cloud {
    agent: Agent,
    files: HostFiles,
    guest: KernelGuest,
    _moto: Moto,
    namespace: Namespace,
    steps: u32,
    clock: Clock,
}

/// A set as the audit trail has it.
#[derive(Clone, Debug)]
struct Set {
    access_key_id: String,
    made: Timestamp,
    expiration: Timestamp,
}

impl Cloud {
    fn new() -> Result<Self> {
        let clock = Clock::new()?;
        let namespace = Namespace::new()?;
        namespace.ip(&format!("address add {SOURCE}/32 dev lo"))?;
        let moto = Moto::start_by(&clock, &namespace)?;
        let tap = Arc::new(namespace.enter(|| Tap::new("tap0"))?);
        namespace.ip("address add 10.0.0.1/24 dev tap0")?;
        let config = moto.agent_config_at(&format!("http://{SOURCE}:5000"));
        let files = HostFiles::new(&config)?;
        files.put_guest(INSTANCE_ID, "tap0", ADDRESS, |_| ())?;
        let agent = Agent::start_by(&clock, &host::program()?, &namespace, &files)?;
        let guest = KernelGuest::new(tap, records::guest_mac(2), &format!("{ADDRESS}/24"))?;
        Ok(Self {
            agent,
            files,
            guest,
            _moto: moto,
            namespace,
            steps: 0,
            clock,
        })
    }

    /// The sets that the agent was given for the guest's role, oldest first.
    fn sets(&self) -> Result<Vec<Set>> {
        let trail = fs::read_to_string(self.files.audit()).unwrap_or_default();
        let mut sets = Vec::new();
        for line in trail.lines() {
            let event: Value = serde_json::from_str(line)?;
            let role = event["requestParameters"]["roleArn"].as_str().unwrap_or_default();
            let set = &event["responseElements"]["credentials"];
            if event["eventName"] == "AssumeRole" && role.contains(":role/") && set.is_object() {
                let text = |value: &Value| value.as_str().context("no text").map(str::to_owned);
                sets.push(Set {
                    access_key_id: text(&set["accessKeyId"])?,
                    made: text(&event["eventTime"])?.parse()?,
                    expiration: text(&set["expiration"])?.parse()?,
                });
            }
        }
        Ok(sets)
    }

    fn now(&self) -> Result<Timestamp> {
        Ok(self.clock.now().try_into()?)
    }

    /// The age of the newest set.
    fn age(&self) -> Result<Duration> {
        let sets = self.sets()?;
        let newest = sets.last().context("there is no set")?;
        Ok(self
            .now()?
            .duration_since(newest.made)
            .try_into()
            .unwrap_or_default())
    }

    /// Puts the clock forward and wakes the agent up with a record: by itself it looks at the clock twice a minute.
    fn advance(&mut self, by: Duration) -> Result<()> {
        self.clock.advance(by)?;
        self.steps += 1;
        let (id, mac) = ("i-0fedcba9876543210", records::guest_mac(99));
        let mut bystander = records::instance(id, mac, "tap99", "10.0.0.99");
        bystander["IamInstanceProfile"].take();
        bystander["Tags"] = json!([{"Key": "step", "Value": self.steps.to_string()}]);
        self.files.put("instances", id, &bystander)
    }

    /// The same, and waits for the set that has to come if one has to.
    fn advance_supplied(&mut self, by: Duration) -> Result<()> {
        self.advance(by)?;
        wait_for(
            "the newest set is too old",
            || self.age(),
            |age| *age <= REFRESH_AFTER,
        )?;
        Ok(())
    }

    /// Checks that a call was made by `role`, with a set that had not expired, and that its log is silent.
    fn check(&self, client: &str, role: &str, call: &Call) -> Result<()> {
        let when = format!("{client} at {}", self.now()?);
        let is_quiet = matches!(&call.complaints[..], [heard] if heard.contains(HEARD));
        ensure!(is_quiet, "{when}: {:?}", call.complaints);
        let arn = format!("arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{INSTANCE_ID}");
        ensure!(call.arn == arn, "{when}: it is {}", call.arn);
        let find = || {
            let mut sets = self.sets()?.into_iter();
            Ok(sets.find(|set| set.access_key_id == call.access_key_id))
        };
        // The trail is written a moment after a set is there.
        let (set, _) = wait_for("the set is not in the trail", find, Option::is_some)?;
        let set = set.context("it was found")?;
        ensure!(set.expiration > self.now()?, "{when}: it signs with {set:?}");
        Ok(())
    }

    /// What a run of the AWS CLI says.
    fn aws_cli(&self) -> Result<Call> {
        let mut command = moto::clean(self.guest.command(&moto::aws_cli()?.to_string_lossy()));
        self.clock.show_to(&mut command);
        let output = command
            .args(["sts", "get-caller-identity", "--output", "json", "--debug"])
            .args(["--region", "us-east-1", "--endpoint-url", "http://10.0.0.1:5000"])
            .output()?;
        let log = String::from_utf8(output.stderr)?;
        ensure!(output.status.success(), "{log}");
        let identity: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(log.contains(" - DEBUG - "), "a log of another form: {log}");
        let complaints = log.lines().filter(|line| {
            [" - WARNING - ", " - ERROR - "]
                .iter()
                .any(|level| line.contains(level))
        });
        let key = log
            .split("Credential=")
            .nth(1)
            .and_then(|rest| rest.split('/').next());
        Ok(Call {
            arn: identity["Arn"].as_str().unwrap_or_default().to_owned(),
            access_key_id: key.context("the log shows no request")?.to_owned(),
            complaints: [HEARD].into_iter().chain(complaints).map(str::to_owned).collect(),
        })
    }
}

/// boto3 in a process in the guest.
struct Boto3 {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Boto3 {
    fn start(cloud: &Cloud) -> Result<Self> {
        let mut command = moto::clean(cloud.guest.command(&moto::python()?.to_string_lossy()));
        cloud.clock.show_to(&mut command);
        let mut child = command
            .args(["-c", include_str!("../clients/boto3_for_hours.py")])
            .args(["http://10.0.0.1:5000", HEARD])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let ask = child.stdin.take().context("its input is piped")?;
        let answers = BufReader::new(child.stdout.take().context("its output is piped")?);
        Ok(Self { child, ask, answers })
    }
}

impl Client for Boto3 {
    fn call(&mut self) -> Result<Call> {
        self.ask.write_all(b"call\n")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).context("boto3 fails")
    }
}

impl Drop for Boto3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// AWS's SDK for Rust on a thread in the guest's network.
struct RustSdk {
    ask: Option<mpsc::Sender<()>>,
    answers: mpsc::Receiver<Result<Call>>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl RustSdk {
    fn start(cloud: &Cloud) -> Result<Self> {
        let (ask, asked) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let clock = cloud.clock.clone();
        let thread = cloud.guest.namespace.spawn(move || -> Result<()> {
            let complaints = Complaints::default();
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
                .with_writer(complaints.clone())
                .with_ansi(false)
                .finish();
            // The runtime has this thread alone, so all that the SDK does is seen.
            let _guard = tracing::subscriber::set_default(subscriber);
            tracing::warn!("{HEARD}");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let key = Key::default();
            let client = runtime.block_on(sts_client(clock, key.clone()));
            for () in asked {
                let called = runtime.block_on(client.get_caller_identity().send());
                let call = called.map_err(anyhow::Error::from).map(|identity| Call {
                    arn: identity.arn.unwrap_or_default(),
                    access_key_id: key.0.lock().expect("no panic").clone(),
                    complaints: complaints.lines(),
                });
                answer.send(call)?;
            }
            Ok(())
        })?;
        Ok(Self {
            ask: Some(ask),
            answers,
            thread: Some(thread),
        })
    }
}

impl Client for RustSdk {
    fn call(&mut self) -> Result<Call> {
        self.ask.as_ref().context("it has ended")?.send(())?;
        self.answers.recv().context("the SDK's thread ended")?
    }
}

impl Drop for RustSdk {
    fn drop(&mut self) {
        self.ask.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn sts_client(clock: Clock, key: Key) -> aws_sdk_sts::Client {
    let time_source = SharedTimeSource::new(ClockTime(clock));
    let http = aws_smithy_http_client::Builder::new().build_http();
    let config = ProviderConfig::without_region()
        .with_http_client(http.clone())
        .with_time_source(time_source.clone());
    let provider = ImdsCredentialsProvider::builder().configure(&config).build();
    let shared = aws_config::SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("us-east-1"))
        .endpoint_url("http://10.0.0.1:5000")
        .http_client(http)
        .time_source(time_source)
        .sleep_impl(SharedAsyncSleep::new(TokioSleep::new()))
        .identity_cache(aws_config::identity::IdentityCache::lazy().build())
        .credentials_provider(SharedCredentialsProvider::new(provider))
        .build();
    let config = aws_sdk_sts::config::Builder::from(&shared)
        .interceptor(key)
        .build();
    aws_sdk_sts::Client::from_conf(config)
}

#[derive(Debug)]
struct ClockTime(Clock);

impl TimeSource for ClockTime {
    fn now(&self) -> SystemTime {
        self.0.now()
    }
}

/// Sees which access key a request was signed with.
#[derive(Clone, Default, Debug)]
struct Key(Arc<Mutex<String>>);

impl Intercept for Key {
    fn name(&self) -> &'static str {
        "access key"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), aws_sdk_sts::error::BoxError> {
        let authorization = context
            .request()
            .headers()
            .get("authorization")
            .unwrap_or_default();
        let credential = authorization.split("Credential=").nth(1).unwrap_or_default();
        let key = credential.split('/').next().unwrap_or_default();
        *self.0.lock().expect("no panic") = key.to_owned();
        Ok(())
    }
}

/// A log in memory.
#[derive(Clone, Default, Debug)]
struct Complaints(Arc<Mutex<Vec<u8>>>);

impl Complaints {
    fn lines(&self) -> Vec<String> {
        let bytes = self.0.lock().expect("no panic");
        String::from_utf8_lossy(&bytes)
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

impl std::io::Write for Complaints {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Complaints {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[test]
fn clients_work_through_ten_rotations_an_outage_and_a_role_replacement_without_a_word() -> Result<()> {
    let mut cloud = Cloud::new()?;
    wait_for("no first set", || cloud.sets(), |sets| !sets.is_empty())?;
    let mut clients: [(&str, Box<dyn Client>, BTreeSet<String>); 2] = [
        ("boto3", Box::new(Boto3::start(&cloud)?), BTreeSet::new()),
        (
            "the SDK for Rust",
            Box::new(RustSdk::start(&cloud)?),
            BTreeSet::new(),
        ),
    ];
    let mut call = |cloud: &Cloud, role: &str| -> Result<usize> {
        for (name, client, keys) in &mut clients {
            let call = client
                .call()
                .with_context(|| format!("{name} at {:?}", cloud.now()))?;
            cloud.check(name, role, &call)?;
            keys.insert(call.access_key_id);
        }
        let fewest = clients.iter().map(|(.., keys)| keys.len()).min();
        Ok(fewest.unwrap_or_default())
    };

    // Ten other sets than the first, in each client.
    let begin = cloud.now()?;
    let mut sets = 0;
    while sets < 11 {
        let sets_now = call(&cloud, records::ROLE)?;
        if sets_now > sets {
            cloud.check("the AWS CLI", records::ROLE, &cloud.aws_cli()?)?;
        }
        sets = sets_now;
        let hours = cloud.now()?.duration_since(begin).as_hours();
        ensure!(hours < 12, "{sets} sets in {hours} hours");
        cloud.advance_supplied(STEP)?;
    }

    // The source goes away when the set is as old as it gets.
    while cloud.age()? < STEP * 2 {
        cloud.advance_supplied(STEP)?;
    }
    let before = cloud.sets()?.len();
    cloud.namespace.ip(&format!("address del {SOURCE}/32 dev lo"))?;
    for _ in 0..5 {
        cloud.advance(STEP)?;
        call(&cloud, records::ROLE)?;
    }
    cloud.agent.wait_for_log("the source fails")?;
    cloud.check("the AWS CLI", records::ROLE, &cloud.aws_cli()?)?;
    assert_eq!(cloud.sets()?.len(), before, "the source was not away");
    cloud.namespace.ip(&format!("address add {SOURCE}/32 dev lo"))?;
    cloud.advance_supplied(Duration::from_secs(120))?;
    cloud.agent.wait_for_log("every session is supplied again")?;
    call(&cloud, records::ROLE)?;

    // Another role. A client learns of it when it asks again.
    let mut role = records::role();
    role["RoleName"] = moto::SECOND_ROLE.into();
    role["Arn"] = format!("arn:aws:iam::{ACCOUNT}:role/{}", moto::SECOND_ROLE).into();
    cloud.files.put("roles", moto::SECOND_ROLE, &role)?;
    let mut profile = records::instance_profile();
    profile["Roles"][0]["RoleName"] = moto::SECOND_ROLE.into();
    cloud
        .files
        .put("instance-profiles", records::INSTANCE_PROFILE, &profile)?;
    wait_for(
        "no set of the other role",
        || cloud.aws_cli(),
        |call| call.arn.contains(moto::SECOND_ROLE),
    )?;
    cloud.check("the AWS CLI", moto::SECOND_ROLE, &cloud.aws_cli()?)?;
    // The longest that a client keeps a set is its life.
    let end = cloud.now()? + Duration::from_secs(3600);
    while cloud.now()? < end {
        cloud.advance_supplied(STEP)?;
        for (_, client, _) in &mut clients {
            client.call()?;
        }
    }
    for (name, client, _) in &mut clients {
        cloud.check(name, moto::SECOND_ROLE, &client.call()?)?;
    }
    Ok(())
}
