//! Role credentials from real sources, as programs in a guest see them.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    host::{Host, INSTANCE_ID},
    kernel_guest::KernelGuest,
    moto::{self, Moto},
    netns::Namespace,
    records::{self, ACCOUNT},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A metadata path, once it is not 503.
const GET: &str = "
import sys, time, urllib.request, urllib.error
def get(path):
    url = 'http://169.254.169.254/latest/'
    put = urllib.request.Request(url + 'api/token', method='PUT', headers={'X-aws-ec2-metadata-token-ttl-seconds': '60'})
    token = urllib.request.urlopen(put, timeout=10).read().decode()
    for _ in range(300):
        try:
            request = urllib.request.Request(url + path, headers={'X-aws-ec2-metadata-token': token})
            return urllib.request.urlopen(request, timeout=10).read().decode()
        except urllib.error.HTTPError as error:
            if error.code != 503: raise
            time.sleep(0.1)
";

fn get(guest: &KernelGuest, path: &str) -> Result<String> {
    let program = format!("{GET}\nsys.stdout.write(get('meta-data/{path}'))");
    moto::run_python(guest, &program, &[])
}

fn with_moto(extra: &str) -> Result<(Moto, Host, KernelGuest)> {
    let namespace = Namespace::new()?;
    let moto = Moto::start(&namespace)?;
    let config = moto.agent_config() + &format!("instance_tags = [\"team\"]\n{extra}");
    let host = Host::in_namespace(namespace, &config, |_, _| Ok(()))?;
    let guest = host.guest()?;
    Ok((moto, host, guest))
}

#[test]
fn guest_gets_a_role_that_a_security_token_service_gives() -> Result<()> {
    let (moto, host, guest) = with_moto("")?;
    let document = get(&guest, "iam/security-credentials/web-server")?;
    let set: serde_json::Value = serde_json::from_str(&document)?;
    assert_eq!(set["Code"], "Success", "{document}");
    assert_eq!(set["AccountId"], ACCOUNT);
    let expiration = set["Expiration"].as_str().context("no expiration")?;
    assert_eq!(expiration.len(), "2026-11-21T08:00:00Z".len(), "{expiration}");

    // The service knows whose they are, by their signature.
    let program = format!(
        "import boto3\nprint(boto3.client('sts', region_name='us-east-1', endpoint_url={:?},\n\
         aws_access_key_id={}, aws_secret_access_key={}, aws_session_token={}).get_caller_identity()['Arn'])",
        moto.url(),
        set["AccessKeyId"],
        set["SecretAccessKey"],
        set["Token"]
    );
    let output = moto::clean(host.namespace.command(moto::python()?))
        .args(["-c", &program])
        .output()?;
    assert_eq!(
        String::from_utf8(output.stdout)?.trim(),
        format!("arn:aws:sts::{ACCOUNT}:assumed-role/web-server/{INSTANCE_ID}"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn a_private_authority_is_trusted_when_the_configuration_says_so() -> Result<()> {
    let namespace = Namespace::new()?;
    let moto = Moto::start_tls(&namespace)?;
    let config = moto.agent_config();
    let mut stranger = Host::in_namespace(namespace, &config, |_, _| Ok(()))?;
    let line = stranger.agent.logged("the source fails")?;
    assert!(line.contains("certificate"), "{line}");
    let Host {
        agent,
        files,
        tap,
        namespace,
    } = stranger;
    drop((agent, files, tap));

    let config = format!("{config}ca_file = {:?}\n", moto.ca_file());
    let host = Host::in_namespace(namespace, &config, |_, _| Ok(()))?;
    let set = get(&host.guest()?, "iam/security-credentials/web-server")?;
    assert!(set.contains("\"Success\""), "{set}");
    Ok(())
}

#[test]
fn role_that_the_service_denies_gets_the_words_of_ec2() -> Result<()> {
    let (_moto, mut host, guest) = with_moto("")?;
    let mut role = records::role();
    role["Credentials"] = serde_json::json!({"Source": "sts", "RoleArn": format!("arn:aws:iam::{ACCOUNT}:role/{}", moto::FOREIGN_ROLE)});
    host.files.put("roles", records::ROLE, &role)?;
    let line = host.agent.wait_for_log("the role is refused")?;
    assert!(line.contains("403 AccessDenied"), "{line}");
    let document = get(&guest, "iam/security-credentials/web-server")?;
    assert!(document.contains("AssumeRoleUnauthorizedAccess"), "{document}");
    assert!(!document.contains("user/host"), "{document}");
    Ok(())
}

#[test]
fn outage_of_the_service_leaves_the_last_set_in_force() -> Result<()> {
    let (moto, mut host, guest) = with_moto("")?;
    let before = get(&guest, "iam/security-credentials/web-server")?;
    let address = moto.url().replace("http://", "");
    drop(moto);
    assert!(host.namespace.enter(|| TcpStream::connect(address)).is_err());
    // A changed record asks for another set, which is not to be had.
    let mut role = records::role();
    role["Description"] = "changed".into();
    role["MaxSessionDuration"] = 7200.into();
    host.files.put("roles", records::ROLE, &role)?;
    host.agent.wait_for_log("the source fails")?;
    assert_eq!(get(&guest, "iam/security-credentials/web-server")?, before);
    Ok(())
}

#[test]
fn a_role_comes_and_goes_with_the_record() -> Result<()> {
    let (host, guest) = Host::with_guest(|_| ())?;
    get(&guest, "iam/security-credentials/web-server")?;
    let mut record = records::instance(
        INSTANCE_ID,
        records::guest_mac(2),
        "tap0",
        imds_tests::host::ADDRESS,
    );
    let profile = record["IamInstanceProfile"].take();
    host.files.put("instances", INSTANCE_ID, &record)?;
    let is_there = || get(&guest, "iam/security-credentials/web-server").is_ok();
    let wait = |wanted: bool| -> Result<Duration> {
        let begin = Instant::now();
        while is_there() != wanted {
            ensure!(begin.elapsed() < PATIENCE, "still {}", !wanted);
        }
        Ok(begin.elapsed())
    };
    wait(false)?;
    record["IamInstanceProfile"] = profile;
    host.files.put("instances", INSTANCE_ID, &record)?;
    wait(true)?;
    Ok(())
}

#[test]
fn the_extended_path_can_be_switched_off_and_the_sdk_goes_on_to_the_documented_one() -> Result<()> {
    let host = Host::new("[credentials]\nextended = false\n", |_| ())?;
    let guest = host.guest()?;
    let set = get(&guest, "iam/security-credentials/web-server")?;
    assert!(set.contains("\"Success\""), "{set}");
    for path in [
        "iam/security-credentials-extended/",
        "iam/security-credentials-extended/web-server",
    ] {
        let error = get(&guest, path).unwrap_err().to_string();
        assert!(error.contains("HTTP Error 404"), "{error}");
    }
    let listing = get(&guest, "iam/")?;
    assert_eq!(listing, "info\nsecurity-credentials/");
    Ok(())
}
