//! The security token service that the agent is, asked by the AWS CLI and boto3 in a guest and on the host.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    client,
    host::{Host, INSTANCE_ID, program},
    kernel_guest::KernelGuest,
    moto,
    netns::Namespace,
    records::{self, ACCOUNT},
    scrape::Scrape,
};
use serde_json::{Value, json};

/// Where the agent listens: on the host's side of the tap, which the guest can reach.
const ENDPOINT: &str = "http://10.0.0.1:8980";

const CONFIG: &str = "[sts_endpoint]\nhttp = [\"10.0.0.1:8980\"]\nhttps = [\"10.0.0.1:8943\"]\n";

fn host() -> Result<(Host, KernelGuest)> {
    host_with(CONFIG)
}

fn host_with(config: &str) -> Result<(Host, KernelGuest)> {
    let namespace = Namespace::new()?;
    // The address is there before the tap is, so that the agent can listen at it.
    namespace.ip("address add 10.0.0.1/32 dev lo")?;
    let host = Host::in_namespace(namespace, config, |files, _| {
        let mut deploy = records::role();
        deploy["RoleName"] = "deploy".into();
        deploy["RoleId"] = "AROADEPLOYDEPLOYDEPLO".into();
        deploy["Arn"] = format!("arn:aws:iam::{ACCOUNT}:role/ops/deploy").into();
        deploy["Path"] = "/ops/".into();
        deploy["AssumeRolePolicyDocument"] = json!({"Statement": {
            "Effect": "Allow",
            "Principal": {"AWS": format!("arn:aws:iam::{ACCOUNT}:role/{}", records::ROLE)},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"sts:ExternalId": "e-1"}}
        }});
        files.put("roles", "deploy", &deploy)
    })?;
    host.namespace.ip("address add 10.0.0.1/24 dev tap0")?;
    let guest = host.guest()?;
    Ok((host, guest))
}

/// Runs `command` without the machine's own environment, and with `variables`.
fn run(command: Command, arguments: &[&str], variables: &[(&str, &str)]) -> Result<String> {
    let output = moto::clean(command)
        .args(arguments)
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .env("AWS_EC2_METADATA_SERVICE_NUM_ATTEMPTS", "20")
        .envs(variables.iter().copied())
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {stderr}");
    Ok(String::from_utf8(output.stdout)?)
}

fn python(guest: &KernelGuest, program: &str) -> Result<String> {
    let python = moto::python()?;
    let variables = [
        ("AWS_ENDPOINT_URL_STS", ENDPOINT),
        ("AWS_DEFAULT_REGION", "eu-central-1"),
    ];
    run(
        guest.command(&python.to_string_lossy()),
        &["-c", program],
        &variables,
    )
}

fn session_arn() -> String {
    format!(
        "arn:aws:sts::{ACCOUNT}:assumed-role/{}/{INSTANCE_ID}",
        records::ROLE
    )
}

#[test]
fn aws_cli_in_a_guest_is_told_who_it_is() -> Result<()> {
    let (_host, guest) = host()?;
    let aws = moto::aws_cli()?;
    // The endpoint alone, and the region, which this CLI does not ask the instance for.
    let variables = [
        ("AWS_ENDPOINT_URL_STS", ENDPOINT),
        ("AWS_DEFAULT_REGION", "eu-central-1"),
    ];
    let arguments = ["sts", "get-caller-identity", "--output", "json"];
    let output = run(guest.command(&aws.to_string_lossy()), &arguments, &variables)?;
    let identity: Value = serde_json::from_str(&output)?;
    assert_eq!(identity["Arn"], session_arn());
    assert_eq!(identity["Account"], ACCOUNT);
    assert_eq!(identity["UserId"], format!("AROAABCDEFGHIJKLMNOPQ:{INSTANCE_ID}"));
    Ok(())
}

#[test]
fn a_presigned_request_tells_another_who_the_guest_is() -> Result<()> {
    let (host, guest) = host()?;
    let url = python(
        &guest,
        "import boto3, sys\nsys.stdout.write(boto3.client('sts').generate_presigned_url('get_caller_identity', ExpiresIn=60, HttpMethod='GET'))",
    )?;
    ensure!(url.contains("X-Amz-Signature="), "{url}");
    let ask = |url: &str| -> Result<(String, String)> {
        let output = host
            .namespace
            .command("curl")
            .args(["-sS", "-m", "10", "-w", "\n%{http_code}", url])
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let (body, status) = text.rsplit_once('\n').context("curl prints the status")?;
        Ok((body.to_owned(), status.to_owned()))
    };
    // More than once: that is what relying parties do.
    for _ in 0..2 {
        let (body, status) = ask(&url)?;
        assert_eq!(status, "200", "{body}");
        assert!(body.contains(&format!("<Arn>{}</Arn>", session_arn())), "{body}");
    }
    let (body, status) = ask(&url.replace("GetCallerIdentity", "AssumeRole"))?;
    assert_eq!(status, "403", "{body}");
    assert!(body.contains("<Code>SignatureDoesNotMatch</Code>"), "{body}");
    let (body, status) = ask(ENDPOINT)?;
    assert_eq!(status, "403", "{body}");
    assert!(body.contains("<Code>MissingAuthenticationToken</Code>"), "{body}");
    Ok(())
}

#[test]
fn a_role_is_assumed_from_a_role_when_its_trust_policy_says_so() -> Result<()> {
    let (_host, guest) = host()?;
    let output = python(
        &guest,
        &format!(
            "
import boto3, botocore, json
sts = boto3.client('sts')
def attempt(**more):
    try:
        return sts.assume_role(RoleSessionName='nightly', **more)
    except botocore.exceptions.ClientError as error:
        return error.response['Error']['Code']
deploy = 'arn:aws:iam::{ACCOUNT}:role/ops/deploy'
set = attempt(RoleArn=deploy, ExternalId='e-1', DurationSeconds=900)
again = boto3.client('sts', aws_access_key_id=set['Credentials']['AccessKeyId'],
    aws_secret_access_key=set['Credentials']['SecretAccessKey'], aws_session_token=set['Credentials']['SessionToken'])
print(json.dumps([
    set['AssumedRoleUser']['Arn'],
    again.get_caller_identity()['Arn'],
    attempt(RoleArn=deploy),
    attempt(RoleArn=deploy, ExternalId='e-2'),
    attempt(RoleArn='arn:aws:iam::{ACCOUNT}:role/web-server'),
    attempt(RoleArn='arn:aws:iam::{ACCOUNT}:role/absent'),
    attempt(RoleArn=deploy, ExternalId='e-1', DurationSeconds=7200),
    attempt(RoleArn=deploy, ExternalId='e-1', Policy='{{}}'),
]))"
        ),
    )?;
    let arn = format!("arn:aws:sts::{ACCOUNT}:assumed-role/deploy/nightly");
    assert_eq!(
        serde_json::from_str::<Value>(&output)?,
        json!([
            arn,
            arn,
            "AccessDenied",
            "AccessDenied",
            "AccessDenied",
            "AccessDenied",
            "ValidationError",
            "ValidationError"
        ])
    );
    Ok(())
}

#[test]
fn https_shows_a_certificate_of_its_own() -> Result<()> {
    let (host, guest) = host()?;
    let pem = host.files.state().join("keys/sts-endpoint.pem");
    let variables = [
        ("AWS_ENDPOINT_URL_STS", "https://10.0.0.1:8943"),
        ("AWS_DEFAULT_REGION", "eu-central-1"),
        ("AWS_CA_BUNDLE", &*pem.to_string_lossy()),
    ];
    let program = "import boto3\nprint(boto3.client('sts').get_caller_identity()['Arn'])";
    let python = moto::python()?;
    let output = run(
        guest.command(&python.to_string_lossy()),
        &["-c", program],
        &variables,
    )?;
    assert_eq!(output.trim(), session_arn());
    Ok(())
}

#[test]
fn https_shows_a_given_certificate_and_none_of_its_own() -> Result<()> {
    let directory = tempfile::tempdir()?;
    moto::certify(directory.path(), "10.0.0.1".parse()?)?;
    let file = |name: &str| directory.path().join(name);
    // The agent runs as a user of its own.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(file("server.key"), fs::Permissions::from_mode(0o644))?;
    let (host, guest) = host_with(&format!(
        "[sts_endpoint]\nhttps = [\"10.0.0.1:8943\"]\ncertificate_file = {:?}\nprivate_key_file = {:?}\n",
        file("server.crt"),
        file("server.key")
    ))?;
    let ask = |authority: &str| {
        let authority = file(authority);
        let variables = [
            ("AWS_ENDPOINT_URL_STS", "https://10.0.0.1:8943"),
            ("AWS_DEFAULT_REGION", "eu-central-1"),
            ("AWS_CA_BUNDLE", &*authority.to_string_lossy()),
        ];
        let program = "import boto3\nprint(boto3.client('sts').get_caller_identity()['Arn'])";
        let python = moto::python()?;
        run(
            guest.command(&python.to_string_lossy()),
            &["-c", program],
            &variables,
        )
    };
    assert_eq!(ask("ca.crt")?.trim(), session_arn());
    let directory_of_another = tempfile::tempdir()?;
    moto::certify(directory_of_another.path(), "10.0.0.1".parse()?)?;
    fs::copy(directory_of_another.path().join("ca.crt"), file("other.crt"))?;
    let error = ask("other.crt").expect_err("another authority").to_string();
    assert!(error.contains("CERTIFICATE_VERIFY_FAILED"), "{error}");
    assert!(!host.files.state().join("keys/sts-endpoint.pem").exists());
    Ok(())
}

#[test]
fn issuer_keys_are_rotated_while_the_agent_runs_and_no_set_is_refused() -> Result<()> {
    let (mut host, guest) = host()?;
    let keys = host.files.state().join("keys");
    let accepted = keys.join("issuer-accepted");
    // The access key id and what the service says to it, of the set that the guest has now or had.
    let set = || -> Result<Value> {
        let path = format!("meta-data/iam/security-credentials/{}", records::ROLE);
        let ask = || guest.namespace.enter(|| client::get(&client::token()?, &path));
        let (response, _) = client::wait_for("a set", ask, |response| response.status == 200)?;
        Ok(serde_json::from_slice(&response.body)?)
    };
    let says = |set: &Value| {
        let program = format!(
            "import boto3, botocore\n\
             sts = boto3.client('sts', aws_access_key_id={}, aws_secret_access_key={}, aws_session_token={})\n\
             try: print(sts.get_caller_identity()['Arn'])\n\
             except botocore.exceptions.ClientError as error: print(error.response['Error']['Code'])",
            set["AccessKeyId"], set["SecretAccessKey"], set["Token"]
        );
        Ok::<_, anyhow::Error>(python(&guest, &program)?.trim().to_owned())
    };
    let old = set()?;
    assert_eq!(says(&old)?, session_arn());

    // As docs/credentials.md says, on a cloud of one host.
    fs::create_dir(&accepted)?;
    let next = accepted.join("next");
    let mut make = Command::new(program()?);
    let made = make.arg("issuer-key").arg(&next).status()?;
    ensure!(made.success() && !make.status()?.success(), "a key is made once");
    let owner = keys.join("issuer").metadata()?;
    chown(&next, Some(owner.uid()), Some(owner.gid()))?;
    fs::rename(keys.join("issuer"), accepted.join("previous"))?;
    host.agent.wait_for_log("issuer keys stay as they were")?;
    assert_eq!(says(&old)?, session_arn(), "nothing is made in between");
    fs::rename(&next, keys.join("issuer"))?;
    host.agent.wait_for_log("issuer keys:")?;
    assert_eq!(says(&old)?, session_arn(), "its key is still accepted");
    let mut role = records::role();
    role["MaxSessionDuration"] = 7200.into();
    host.files.put("roles", records::ROLE, &role)?;
    let (new, _) = client::wait_for("a new set", set, |new| *new != old)?;
    assert_eq!(says(&new)?, session_arn());

    fs::remove_file(accepted.join("previous"))?;
    host.agent.wait_for_log("issuer keys:")?;
    assert_eq!(says(&old)?, "InvalidClientTokenId");
    assert_eq!(says(&new)?, session_arn());
    Ok(())
}

#[test]
fn every_instance_proves_what_it_is_with_its_identity_role() -> Result<()> {
    let (_host, guest) = host()?;
    let output = python(
        &guest,
        "
import boto3, json, urllib.request
url = 'http://169.254.169.254/latest/'
put = urllib.request.Request(url + 'api/token', method='PUT', headers={'X-aws-ec2-metadata-token-ttl-seconds': '60'})
token = urllib.request.urlopen(put, timeout=10).read().decode()
def get(path):
    path = url + 'meta-data/identity-credentials/ec2/' + path
    request = urllib.request.Request(path, headers={'X-aws-ec2-metadata-token': token})
    return urllib.request.urlopen(request, timeout=10).read().decode()
set = json.loads(get('security-credentials/ec2-instance'))
sts = boto3.client('sts', aws_access_key_id=set['AccessKeyId'], aws_secret_access_key=set['SecretAccessKey'],
    aws_session_token=set['Token'])
identity = sts.get_caller_identity()
print(json.dumps([get('security-credentials/'), set['Code'], identity['Arn'], identity['UserId']]))",
    )?;
    assert_eq!(
        serde_json::from_str::<Value>(&output)?,
        json!([
            "ec2-instance",
            "Success",
            format!("arn:aws:sts::{ACCOUNT}:assumed-role/aws:ec2-instance/{INSTANCE_ID}"),
            format!("{ACCOUNT}:aws:ec2-instance:{INSTANCE_ID}")
        ])
    );
    Ok(())
}

#[test]
fn who_takes_all_connections_takes_nobody_elses() -> Result<()> {
    let (host, guest) = host()?;
    let address = "10.0.0.1:8980";
    // Far more than there may be, and nothing is ever said on them.
    let mut greedy: Vec<TcpStream> = guest
        .namespace
        .enter(|| (0..600).map_while(|_| TcpStream::connect(address).ok()).collect());
    let is_turned_away = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
            && matches!(stream.read(&mut [0]), Ok(0) | Err(_))
    };
    let last = greedy.last_mut().context("the guest connects")?;
    assert!(
        is_turned_away(last),
        "one guest has as many connections as it likes"
    );
    let answer = host.namespace.enter(unsigned)?;
    assert!(answer.contains("MissingAuthenticationToken"), "{answer}");
    Ok(())
}

/// The answer to a request that nobody has signed.
fn unsigned() -> Result<String> {
    exchange("Connection: close\r\n", 1)
}

/// What is answered to so many unsigned requests with this header on one connection, until the service ends it.
fn exchange(header: &str, requests: usize) -> Result<String> {
    let mut stream = TcpStream::connect("10.0.0.1:8980")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let request = format!("GET /?Action=GetCallerIdentity HTTP/1.1\r\nHost: x\r\n{header}\r\n");
    stream.write_all(request.repeat(requests).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn who_asks_too_often_is_told_so_and_nobody_else_is() -> Result<()> {
    const REQUESTS: usize = 100;
    let (host, guest) = host_with(&format!("{CONFIG}requests_per_second = 2"))?;
    let begin = Instant::now();
    let answers = (0..REQUESTS).map(|_| guest.namespace.enter(unsigned));
    let answers: Vec<_> = answers.collect::<Result<_>>()?;
    let is_throttled =
        |answer: &&String| answer.starts_with("HTTP/1.1 400 ") && answer.contains("<Code>Throttling</Code>");
    let throttled = answers.iter().filter(is_throttled).count();
    let answered = answers
        .iter()
        .filter(|answer| answer.contains("MissingAuthenticationToken"));
    let answered = answered.count();
    ensure!(answered + throttled == REQUESTS, "{answers:#?}");
    // A burst of four seconds' worth, and what became due meanwhile.
    let due = begin.elapsed().as_secs_f64().ceil() * 2.0;
    ensure!(
        answered >= 8 && answered as f64 <= 8.0 + due,
        "{answered} of {REQUESTS}"
    );

    // To be refused again costs another connection.
    let answer = guest.namespace.enter(|| exchange("", 16))?;
    ensure!(answer.matches("<Code>Throttling</Code>").count() == 1, "{answer}");

    let answer = host.namespace.enter(unsigned)?;
    ensure!(answer.contains("MissingAuthenticationToken"), "{answer}");
    // What an SDK does of itself is enough to be answered in the end.
    let identity = python(
        &guest,
        "import boto3\nprint(boto3.client('sts').get_caller_identity()['Arn'])",
    )?;
    assert_eq!(identity.trim(), session_arn());

    let scrape = Scrape::of(&host.files.metrics())?;
    let told = scrape.value("imds_sts_throttled_total", &[]).unwrap_or_default();
    ensure!(told >= throttled as f64, "{told} of {throttled}");
    let in_trail = || {
        let trail = fs::read_to_string(host.files.audit())?;
        Ok(trail
            .lines()
            .filter(|line| line.contains("\"sourceIPAddress\":\"10.0.0."))
            .count())
    };
    // Those that were answered, of whomever.
    client::wait_for("the audit trail", in_trail, |events| *events >= answered + 2)?;
    ensure!(in_trail()? < answered + 10, "{} for {answered}", in_trail()?);
    Ok(())
}
