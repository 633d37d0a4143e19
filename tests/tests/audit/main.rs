//! What a whole run leaves behind: an audit trail, and no secret anywhere.

mod told;

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    control::{imdsctl, run},
    host::{Host, INSTANCE_ID, program},
    kernel_guest::KernelGuest,
    moto::{self, Moto},
    netns::Namespace,
    records::{self, ACCOUNT},
    scrape::Scrape,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// Gets everything that is secret, with and without a session token, and uses it. Prints the secrets.
const GUEST: &str = "
import boto3, json, sys, time, urllib.request, urllib.error
url = 'http://169.254.169.254/latest/'
put = urllib.request.Request(url + 'api/token', method='PUT', headers={'X-aws-ec2-metadata-token-ttl-seconds': '60'})
token = urllib.request.urlopen(put, timeout=10).read().decode()
def get(path, headers):
    for _ in range(300):
        try:
            request = urllib.request.Request(url + 'meta-data/' + path, headers={'User-Agent': 'test/1', **headers})
            return json.loads(urllib.request.urlopen(request, timeout=10).read())
        except urllib.error.HTTPError as error:
            if error.code != 503: raise
            time.sleep(0.1)
secrets = [token]
v1, v2 = {}, {'X-aws-ec2-metadata-token': token}
for path in 'iam/security-credentials/web-server', 'identity-credentials/ec2/security-credentials/ec2-instance':
    for headers in v1, v2, v2:
        set = get(path, headers)
        secrets += [set['SecretAccessKey'], set['Token']]
        if set['AccessKeyId'].startswith('ASIA') and len(sys.argv) > 1:
            boto3.client('sts', region_name='eu-central-1', endpoint_url=sys.argv[1], aws_access_key_id=set['AccessKeyId'],
                aws_secret_access_key=set['SecretAccessKey'], aws_session_token=set['Token']).get_caller_identity()
print(json.dumps(secrets))
";

fn secrets_of(guest: &KernelGuest, endpoint: &[&str]) -> Result<Vec<String>> {
    Ok(serde_json::from_str(&moto::run_python(guest, GUEST, endpoint)?)?)
}

fn events(host: &Host) -> Result<Vec<Value>> {
    let text = fs::read_to_string(host.files.audit())?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// A host whose guest gets everything, and an operator who watches it.
struct Run {
    host: Host,
    guest: KernelGuest,
    imdsctl_trace: Child,
    traced: thread::JoinHandle<std::io::Result<String>>,
}

impl Run {
    fn start(extra: &str, namespace: Namespace) -> Result<Self> {
        let config = format!("log_level = \"trace\"\nmetrics.per_tap = true\n{extra}");
        let host = Host::in_namespace(namespace, &config, |_, record| {
            record["MetadataOptions"]["HttpTokens"] = "optional".into();
            Ok(())
        })?;
        let mut imdsctl_trace = imdsctl(&host.files)?
            .args(["trace", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let told = imdsctl_trace.stdout.take().context("its output is piped")?;
        let traced = thread::spawn(move || std::io::read_to_string(told));
        host.wait_for_metric("imds_trace_listeners", &[], 1.0)?;
        let guest = host.guest()?;
        Ok(Self {
            host,
            guest,
            imdsctl_trace,
            traced,
        })
    }
}

/// Stops the agent and looks for `secrets` in all that it wrote, told and answered.
fn stop_and_search(whole: Run, secrets: &[String]) -> Result<Vec<Value>> {
    let Run {
        host,
        guest,
        mut imdsctl_trace,
        traced,
    } = whole;
    let mut written = Vec::new();
    told::by_imdsctl(&host, &mut written)?;
    told::by_the_socket(&host, &mut written)?;
    let scrape = Scrape::of(&host.files.metrics())?.text;
    ensure!(scrape.contains("imds_tap_"), "{scrape}");
    written.push(("the metrics".to_owned(), scrape));
    let checked = Command::new(program()?)
        .args(["check", "--config"])
        .arg(host.files.config())
        .output()?;
    let checked = [checked.stdout, checked.stderr].concat();
    written.push((
        "imds-agent check".to_owned(),
        String::from_utf8_lossy(&checked).into_owned(),
    ));
    // Who asks for them is shown them, so the search is not blind.
    let role = format!("meta-data/iam/security-credentials/{}", records::ROLE);
    let asked_for = run(imdsctl(&host.files)?.args(["get", INSTANCE_ID, &role, "--show-secrets"]))?;
    ensure!(
        secrets.iter().any(|secret| asked_for.contains(secret.as_str())),
        "there is another secret in force than those that are looked for"
    );
    told::by_files(&host.files.state(), &mut written)?;
    let process = Path::new("/proc").join(host.agent.pid()?.to_string());
    for name in ["cmdline", "environ"] {
        let text = fs::read(process.join(name)).with_context(|| format!("the agent's {name}"))?;
        ensure!(!text.is_empty(), "the agent's {name} is empty");
        written.push((format!("its {name}"), String::from_utf8_lossy(&text).into_owned()));
    }
    let audit = host.files.audit();
    let Host { agent, files, .. } = host;
    let (status, log) = agent.stop()?;
    ensure!(status.success(), "{status}");
    // With the agent ends what it tells.
    imdsctl_trace.wait()?;
    let traced = traced.join().expect("no panic")?;
    ensure!(
        traced.contains("/latest/api/token"),
        "nothing was traced: {traced}"
    );
    written.push(("imdsctl trace".to_owned(), traced));
    drop(guest);
    let trail = fs::read_to_string(&audit)?;
    written.push(("the audit trail".to_owned(), trail.clone()));
    written.push(("the log".to_owned(), log.join("\n")));
    drop(files);
    for secret in secrets {
        assert!(secret.len() >= 16, "{secret} is no secret");
        for (name, text) in &written {
            assert!(!text.contains(secret.as_str()), "{name} holds a secret");
        }
    }
    trail
        .lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

#[test]
fn a_whole_run_is_told_in_the_trail_and_shows_no_secret() -> Result<()> {
    let namespace = Namespace::new()?;
    namespace.ip("address add 10.0.0.1/32 dev lo")?;
    let run = Run::start("[sts_endpoint]\nhttp = [\"10.0.0.1:8980\"]\n", namespace)?;
    run.host.namespace.ip("address add 10.0.0.1/24 dev tap0")?;
    let mut secrets = secrets_of(&run.guest, &["http://10.0.0.1:8980"])?;
    for key in ["issuer", "token"] {
        let text = fs::read_to_string(run.host.files.state().join("keys").join(key))?;
        secrets.push(text.trim().rsplit(':').next().context("a key")?.to_owned());
    }
    let events = stop_and_search(run, &secrets)?;
    let named =
        |name: &str| -> Vec<&Value> { events.iter().filter(|event| event["eventName"] == name).collect() };
    let assumed = named("AssumeRole");
    assert_eq!(assumed.len(), 2, "one for either role: {assumed:?}");
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web-server");
    let of_role = assumed
        .iter()
        .find(|event| event["requestParameters"]["roleArn"] == *role)
        .context("the role is in the trail")?;
    assert_eq!(of_role["requestParameters"]["roleSessionName"], INSTANCE_ID);
    assert_eq!(of_role["userIdentity"]["invokedBy"], "ec2.amazonaws.com");
    assert_eq!(of_role["additionalEventData"]["refresh"], false);
    assert_eq!(of_role["recipientAccountId"], ACCOUNT);
    for event in &events {
        assert_eq!(event["awsRegion"], "eu-central-1", "{event}");
    }

    // Each of two roles, each of two ways, each once although one was asked for twice.
    let delivered = named("GetRoleCredentials");
    assert_eq!(delivered.len(), 4, "{delivered:?}");
    for (version, delivery) in [("IMDSv1", "1.0"), ("IMDSv2", "2.0")] {
        let event = delivered
            .iter()
            .find(|event| {
                event["additionalEventData"]["imdsVersion"] == version
                    && event["userIdentity"]["sessionContext"]["sessionIssuer"]["arn"] == *role
            })
            .context("each way is in the trail")?;
        let context = &event["userIdentity"]["sessionContext"];
        assert_eq!(context["ec2RoleDelivery"], delivery);
        assert_eq!(event["userAgent"], "test/1");
        assert_eq!(event["sourceIPAddress"], "10.0.0.2");
        let more = &event["additionalEventData"];
        assert!(
            more["sourcePort"].as_u64().is_some_and(|port| port > 1023),
            "{event}"
        );
        assert_eq!(
            more["path"],
            "/latest/meta-data/iam/security-credentials/web-server"
        );
    }
    let called = named("GetCallerIdentity");
    assert_eq!(called.len(), 6);
    let session = format!("arn:aws:sts::{ACCOUNT}:assumed-role/web-server/{INSTANCE_ID}");
    let deliveries: Vec<_> = called
        .iter()
        .filter(|event| event["userIdentity"]["arn"] == *session)
        .map(|event| event["userIdentity"]["sessionContext"]["ec2RoleDelivery"].as_str())
        .collect();
    assert_eq!(deliveries, [Some("1.0"), Some("2.0"), Some("2.0")]);
    Ok(())
}

#[test]
fn secrets_of_a_security_token_service_are_shown_nowhere() -> Result<()> {
    let namespace = Namespace::new()?;
    let moto = Moto::start(&namespace)?;
    let extra = moto.agent_config();
    let run = Run::start(&extra, namespace)?;
    let mut secrets = secrets_of(&run.guest, &[])?;
    let of_host = fs::read_to_string(moto.credentials_file())?;
    secrets.extend(
        of_host
            .lines()
            .find_map(|line| line.strip_prefix("aws_secret_access_key = ").map(str::to_owned)),
    );
    stop_and_search(run, &secrets)?;
    Ok(())
}

/// Prints a set, a piece of one, or nothing good at all, as a file beside it says; and always more than it should.
const PROGRAM: &str = r#"#!/bin/sh
echo "complaint about $VAULT_TOKEN, output-of-a-program-that-fails" >&2
case $(cat "$(dirname "$0")/mood") in
good) end='"}' ;;
torn) end='' ;;
failing) echo "output-of-a-program-that-fails"; exit 1 ;;
esac
printf '{"Version": 1, "AccessKeyId": "ASIAEXAMPLEEXAMPLE00", "SecretAccessKey": "secret-key-of-a-program",
    "SessionToken": "session-token-of-a-program", "Expiration": "%s%s' "$(date -u -d '+1 hour' +%FT%TZ)" "$end"
"#;

#[test]
fn secrets_of_a_program_are_shown_nowhere_however_it_fails() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let program = directory.path().join("program");
    fs::write(&program, PROGRAM)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let mood = |mood: &str| fs::write(directory.path().join("mood"), mood);
    mood("good")?;
    let config = format!(
        "[credentials]\nsource = \"process\"\n[credentials.process]\ncommand = [{program:?}]\n\
         environment = {{ VAULT_TOKEN = \"what-the-program-logs-in-with\" }}\n"
    );
    let mut run = Run::start(&config, Namespace::new()?)?;
    let mut role = records::role();
    for (now, line) in [
        ("torn", "the source fails"),
        ("good", "every session is supplied again"),
        ("failing", "the source fails"),
    ] {
        mood(now)?;
        // A changed record asks for another set.
        role["MaxSessionDuration"] = (role["MaxSessionDuration"].as_u64().unwrap_or_default() + 1).into();
        run.host.files.put("roles", records::ROLE, &role)?;
        run.host.agent.wait_for_log(line)?;
    }
    let mut secrets = secrets_of(&run.guest, &[])?;
    for secret in [
        "secret-key-of-a-program",
        "session-token-of-a-program",
        "what-the-program-logs-in-with",
        "output-of-a-program-that-fails",
    ] {
        secrets.push(secret.to_owned());
    }
    ensure!(
        secrets
            .iter()
            .filter(|secret| secret.ends_with("-of-a-program"))
            .count()
            > 2,
        "it was not served"
    );
    let events = stop_and_search(run, &secrets)?;
    let failures = events
        .iter()
        .filter(|event| event["errorCode"] == "ServiceUnavailable");
    assert!(failures.count() >= 2, "{events:?}");
    Ok(())
}

#[test]
fn a_full_disk_stops_nothing() -> Result<()> {
    let namespace = Namespace::new()?;
    let host = Host::in_namespace(namespace, "", |files, _| {
        // Every write to it fails as on a full disk.
        fs::create_dir_all(files.audit().parent().context("a directory")?)?;
        std::os::unix::fs::symlink("/dev/full", files.audit())?;
        Ok(())
    })?;
    let guest = host.guest()?;
    let program = GUEST.replace("v1, v2, v2:", "v2, v2:");
    moto::run_python(&guest, &program, &[])?;
    let Host { agent, .. } = host;
    let (_, log) = agent.stop()?;
    let complaints = log.iter().filter(|line| line.contains("events are lost"));
    assert_eq!(complaints.count(), 1, "told once: {log:?}");
    let counted = log.iter().find(|line| line.contains("in the audit trail"));
    let counted = counted.context("the trail is counted")?;
    assert!(
        counted.contains("0 events in the audit trail, 4 lost"),
        "{counted}"
    );
    Ok(())
}

#[test]
fn secrets_are_in_no_core_dump() -> Result<()> {
    // What is started from here on inherits it.
    let own = std::process::id().to_string();
    let limit = Command::new("prlimit")
        .args(["--pid", &own, "--core=unlimited"])
        .status()?;
    ensure!(limit.success(), "prlimit: {limit}");
    // A process that may dump core shows that the system lets it.
    let directory = tempfile::tempdir()?;
    let mut other = Command::new("sleep")
        .arg("1000")
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .spawn()?;
    let other_dumps = abort(i32::try_from(other.id())?, || Ok(other.try_wait()?))?;
    if !other_dumps {
        eprintln!("skipped: this system writes no core dumps");
        return Ok(());
    }
    let host = Host::new("", |_| ())?;
    let pid = host.agent.pid()?;
    let Host { mut agent, .. } = host;
    assert!(
        !abort(pid.as_raw(), || agent.try_wait())?,
        "the agent left a core dump"
    );
    Ok(())
}

/// Aborts a process; whether it dumped core.
fn abort(pid: i32, mut try_wait: impl FnMut() -> Result<Option<std::process::ExitStatus>>) -> Result<bool> {
    kill(Pid::from_raw(pid), Signal::SIGABRT)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = try_wait()? {
            return Ok(status.core_dumped());
        }
        ensure!(Instant::now() < deadline, "it does not end");
        thread::yield_now();
    }
}

#[test]
fn a_failure_is_in_the_trail() -> Result<()> {
    let host = Host::in_namespace(Namespace::new()?, "", |files, _| {
        let mut role = records::role();
        role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]["Service"] =
            "lambda.amazonaws.com".into();
        role["RoleName"] = "other".into();
        role["Arn"] = format!("arn:aws:iam::{ACCOUNT}:role/other").into();
        files.put("roles", "other", &role)?;
        let mut profile = records::instance_profile();
        profile["InstanceProfileName"] = "other".into();
        profile["Arn"] = format!("arn:aws:iam::{ACCOUNT}:instance-profile/other").into();
        profile["Roles"][0]["RoleName"] = "other".into();
        files.put("instance-profiles", "other", &profile)?;
        let mut instance =
            records::instance("i-0fedcba9876543210", records::guest_mac(3), "tap1", "10.0.0.3");
        instance["IamInstanceProfile"]["Arn"] = profile["Arn"].clone();
        files.put("instances", "other", &instance)
    })?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let events = events(&host).unwrap_or_default();
        let failed = events
            .iter()
            .find(|event| event["errorCode"] == "AssumeRoleUnauthorizedAccess");
        if let Some(failed) = failed {
            assert_eq!(
                failed["errorMessage"],
                "its trust policy does not let EC2 assume it"
            );
            assert_eq!(
                failed["requestParameters"]["roleSessionName"],
                "i-0fedcba9876543210"
            );
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not in the trail: {events:?}");
        thread::yield_now();
    }
}
