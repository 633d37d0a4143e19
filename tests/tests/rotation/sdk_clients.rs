//! AWS's clients in the guest, who call a service again and again and by a clock of the test's.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::SystemTime,
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
use imds_tests::{clock::Clock, kernel_guest::KernelGuest, moto};
use serde::Deserialize;
use serde_json::Value;

/// The service, as the guest reaches it.
const SERVICE: &str = "http://10.0.0.1:5000";

/// What a client's log is made to say, at level warning.
pub const HEARD: &str = "heard";

/// What one call of a client says.
#[derive(Debug, Deserialize)]
pub struct Call {
    pub arn: String,
    pub access_key_id: String,
    /// All that its log says at level warning or above: first of all [`HEARD`], which shows that it is listened to.
    pub complaints: Vec<String>,
}

/// A client that lives as long as the test.
pub trait Client {
    fn call(&mut self) -> Result<Call>;
}

/// boto3 in a process in the guest.
pub struct Boto3 {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Boto3 {
    pub fn start(guest: &KernelGuest, clock: &Clock) -> Result<Self> {
        let mut command = moto::clean(guest.command(&moto::python()?.to_string_lossy()));
        clock.show_to(&mut command);
        let mut child = command
            .args(["-c", include_str!("../../clients/boto3_for_hours.py")])
            .args([SERVICE, HEARD])
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
pub struct RustSdk {
    ask: Option<mpsc::Sender<()>>,
    answers: mpsc::Receiver<Result<Call>>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl RustSdk {
    pub fn start(guest: &KernelGuest, clock: &Clock) -> Result<Self> {
        let (ask, asked) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let clock = clock.clone();
        let thread = guest.namespace.spawn(move || -> Result<()> {
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
        .endpoint_url(SERVICE)
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

/// What a run of the AWS CLI says.
pub fn aws_cli(guest: &KernelGuest, clock: &Clock) -> Result<Call> {
    let mut command = moto::clean(guest.command(&moto::aws_cli()?.to_string_lossy()));
    clock.show_to(&mut command);
    let output = command
        .args(["sts", "get-caller-identity", "--output", "json", "--debug"])
        .args(["--region", "us-east-1", "--endpoint-url", SERVICE])
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
