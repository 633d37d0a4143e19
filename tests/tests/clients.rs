//! AWS's own clients, and others that people have, in a guest whose only source of anything is the metadata service.
//!
//! curl, wget and urllib are in `service.rs`, cloud-init in `cloud_init.rs`, AWS's SDK for Rust in `aws_config.rs`.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use imds_tests::{
    debian::{self, Release},
    host::{Host, INSTANCE_ID},
    kernel_guest::KernelGuest,
    netns::Namespace,
    records,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const ROLE_PATH: &str = "/latest/meta-data/iam/security-credentials/web-server";

/// What people move files with, told where a storage is and nothing of who asks. rclone is made with AWS's SDK for Go, restic
/// with MinIO's client for Go, and s3cmd asks the service by itself.
const STORAGE_TOOLS: &[&[&str]] = &[
    &[
        "rclone",
        "--retries=1",
        "--low-level-retries=1",
        "--s3-env-auth",
        "--s3-provider=Other",
        "--s3-region=eu-central-1",
        "--s3-endpoint=http://127.0.0.1:9000",
        "lsf",
        ":s3:bucket",
    ],
    &[
        "restic",
        "--no-cache",
        "--repo=s3:http://127.0.0.1:9000/bucket",
        "init",
    ],
    &[
        "s3cmd",
        "--config=/dev/null",
        "--no-ssl",
        "--region=eu-central-1",
        "--host=127.0.0.1:9000",
        "--host-bucket=127.0.0.1:9000",
        "ls",
        "s3://bucket",
    ],
];

/// Programs that the tests' set-up fetches.
fn fetched(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(path)
}

/// A command in the guest with nothing of the host's environment: no credentials, no region, no settings of anyone's.
struct Client {
    command: Command,
    _home: TempDir,
}

impl Client {
    fn new(guest: &Namespace, program: &Path) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("imds-client-").tempdir()?;
        let mut command = guest.command(program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", home.path());
        Ok(Self { command, _home: home })
    }

    fn python(guest: &Namespace, script: &str) -> Result<Self> {
        let mut client = Self::new(guest, &fetched("venv/bin/python"))?;
        client.command.args(["-c", script]);
        Ok(client)
    }

    fn aws(guest: &Namespace, arguments: &[&str]) -> Result<Self> {
        let mut client = Self::new(guest, &fetched("venv/bin/aws"))?;
        client.command.args(arguments);
        Ok(client)
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    fn output(mut self) -> Result<String> {
        output(&mut self.command)
    }
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "the client ended with {}: {errors}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// The three secrets that the service hands out, read by curl as soon as they are there.
fn role_credentials(guest: &KernelGuest) -> Result<Value> {
    let token = output(guest.command("curl").args([
        "-sSf",
        "-X",
        "PUT",
        "-H",
        "X-aws-ec2-metadata-token-ttl-seconds: 60",
        "http://169.254.169.254/latest/api/token",
    ]))?;
    read_role_credentials(guest, &format!("X-aws-ec2-metadata-token: {token}"))
}

/// The same for who asks without a token: the issuer seals how a set was asked for, so it is another one.
fn role_credentials_v1(guest: &KernelGuest) -> Result<Value> {
    read_role_credentials(guest, "Accept: */*")
}

fn read_role_credentials(guest: &KernelGuest, header: &str) -> Result<Value> {
    let url = format!("http://169.254.169.254{ROLE_PATH}");
    // It tries again after a 503, which is the answer until the first set is there.
    let document = output(
        guest
            .command("curl")
            .args(["-sSf", "--retry", "5", "-H", header, &url]),
    )?;
    let document: Value = serde_json::from_str(&document)?;
    Ok(json!([
        document["AccessKeyId"],
        document["SecretAccessKey"],
        document["Token"]
    ]))
}

fn optional(record: &mut Value) {
    record["MetadataOptions"]["HttpTokens"] = "optional".into();
}

fn boto3(guest: &Namespace) -> Result<Client> {
    Client::python(guest, include_str!("../clients/boto3_client.py"))
}

#[test]
fn boto3_finds_credentials_and_region() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let expected = role_credentials(&guest)?;
    for v1_disabled in ["true", "false"] {
        let client = boto3(&guest.namespace)?.env("AWS_EC2_METADATA_V1_DISABLED", v1_disabled);
        let found: Value = serde_json::from_str(&client.output()?)?;
        assert_eq!(found["complaints"], json!([]));
        assert_eq!(found["credentials"], expected);
        assert_eq!(found["method"], "iam-role");
        assert_eq!(found["refresh_needed"], false);
        assert_eq!(found["region"], "eu-central-1");
        let presigned = found["presigned"].as_str().unwrap_or_default();
        let access_key = expected[0].as_str().unwrap_or_default();
        assert!(
            presigned.contains(&format!("X-Amz-Credential={access_key}%2F")),
            "{presigned}"
        );
    }
    Ok(())
}

#[test]
fn boto3_falls_back_to_v1_where_no_token_can_be_had_and_tokens_are_optional() -> Result<()> {
    let (_host, guest) = Host::with_guest(|record| {
        optional(record);
        record["MetadataOptions"]["HttpPutResponseHopLimit"] = 1.into();
    })?;
    let expected = role_credentials_v1(&guest)?;
    // A container: whatever it sends and gets is routed once more. Its token dies on the way.
    let container = guest.container()?;
    let found: Value = serde_json::from_str(&boto3(&container)?.output()?)?;
    assert_eq!(found["credentials"], expected, "{found:#}");
    let client = boto3(&container)?.env("AWS_EC2_METADATA_V1_DISABLED", "true");
    let error = client
        .output()
        .expect_err("there is no token in a container")
        .to_string();
    assert!(error.contains("IMDSv1 has been disabled"), "{error}");
    Ok(())
}

#[test]
fn boto3_finds_the_same_over_ipv6() -> Result<()> {
    let (_host, guest) = Host::with_guest(|record| {
        record["MetadataOptions"]["HttpProtocolIpv6"] = "enabled".into();
    })?;
    let expected = role_credentials(&guest)?;
    guest.add_ipv6()?;
    guest.lose_ipv4()?;
    let client = boto3(&guest.namespace)?.env("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "ipv6");
    let found: Value = serde_json::from_str(&client.output()?)?;
    assert_eq!(found["credentials"], expected, "{found:#}");
    Ok(())
}

#[test]
fn boto3_finds_nothing_where_the_endpoint_is_disabled() -> Result<()> {
    let (_host, guest) = Host::with_guest(|record| {
        record["MetadataOptions"]["HttpEndpoint"] = "disabled".into();
    })?;
    let found: Value = serde_json::from_str(&boto3(&guest.namespace)?.output()?)?;
    assert_eq!(found["credentials"], Value::Null);
    assert_eq!(found["region"], Value::Null);
    Ok(())
}

#[test]
fn the_aws_cli_signs_with_the_roles_credentials() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let expected = role_credentials(&guest)?;
    let access_key = expected[0].as_str().context("no access key")?;
    let settings = Client::aws(&guest.namespace, &["configure", "list"])?.output()?;
    let line = settings
        .lines()
        .find(|line| line.trim_start().starts_with("access_key"))
        .with_context(|| format!("no access key in {settings}"))?;
    assert!(
        line.contains(&access_key[access_key.len() - 4..]) && line.contains("iam-role"),
        "{line}"
    );
    let presign = ["s3", "presign", "s3://bucket/key", "--region", "eu-central-1"];
    let client = Client::aws(&guest.namespace, &presign)?.env("AWS_EC2_METADATA_V1_DISABLED", "true");
    let url = client.output()?;
    assert!(
        url.contains(access_key) && url.to_lowercase().contains("x-amz-security-token="),
        "{url}"
    );
    Ok(())
}

#[test]
fn the_sdk_for_javascript_finds_credentials() -> Result<()> {
    let modules = fetched("node");
    if !modules.join("node_modules").exists() {
        eprintln!("skipped: npm is not installed on this machine");
        return Ok(());
    }
    let (_host, guest) = Host::with_guest(|_| ())?;
    let expected = role_credentials(&guest)?;
    let mut client = Client::new(&guest.namespace, Path::new("node"))?;
    client
        .command
        .arg("--input-type=module")
        .arg("-e")
        .arg(include_str!("../clients/aws_sdk.mjs"));
    client.command.arg(&modules);
    let found: Value = serde_json::from_str(&client.output()?)?;
    assert_eq!(found["credentials"], expected);
    assert_eq!(found["account"], records::ACCOUNT);
    assert_eq!(found["instanceId"], INSTANCE_ID);
    Ok(())
}

#[test]
fn the_aws_cli_2_finds_its_region_too() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let expected = role_credentials(&guest)?;
    let access_key = expected[0].as_str().context("no access key")?;
    let mut command = debian::command(Release::Trixie, &guest.namespace, "aws")?;
    let presigned = output(
        command
            .args(["s3", "presign", "s3://bucket/key"])
            .env("AWS_EC2_METADATA_V1_DISABLED", "true"),
    )?;
    assert!(
        presigned.contains(&format!("X-Amz-Credential={access_key}%2F"))
            && presigned.contains("%2Feu-central-1%2Fs3%2F"),
        "{presigned}"
    );
    Ok(())
}

#[test]
fn the_sdk_for_ruby_finds_credentials_and_metadata() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let expected = role_credentials(&guest)?;
    let script = include_str!("../clients/aws_sdk.rb");
    let found = output(debian::command(Release::Trixie, &guest.namespace, "ruby")?.args(["-e", script]))?;
    let found: Value = serde_json::from_str(&found)?;
    assert_eq!(found["credentials"], expected);
    assert_eq!(found["instance_id"], INSTANCE_ID);
    Ok(())
}

#[test]
fn asyncaws_for_php_finds_credentials_with_and_without_tokens() -> Result<()> {
    let script = include_str!("../clients/async_aws.php");
    for change in [|_: &mut Value| (), optional] {
        let (_host, guest) = Host::with_guest(change)?;
        let expected = role_credentials(&guest)?;
        let found = output(debian::command(Release::Trixie, &guest.namespace, "php")?.args(["-r", script]))?;
        assert_eq!(serde_json::from_str::<Value>(&found)?, expected);
    }
    Ok(())
}

/// The head of the first request to a storage in the guest that gives nobody anything; empty if there was none.
fn first_request_to_storage(guest: &Namespace, tool: &mut Command) -> Result<String> {
    const STORAGE: &str = "127.0.0.1:9000";
    let listener = guest.enter(|| TcpListener::bind(STORAGE))?;
    let storage = thread::spawn(move || -> Result<String> {
        let (mut stream, _) = listener.accept()?;
        let head = BufReader::new(stream.try_clone()?)
            .lines()
            .take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()))
            .collect::<Result<Vec<_>, _>>()?;
        // Whoever asks again is refused by the kernel.
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        Ok(head.join("\n"))
    });
    tool.status()?;
    // A storage that nobody asked waits no longer.
    drop(guest.enter(|| TcpStream::connect(STORAGE)));
    storage.join().expect("the storage does not panic")
}

#[test]
fn tools_for_object_storage_sign_with_the_roles_credentials() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let expected = role_credentials(&guest)?;
    let (access_key, token) = (expected[0].as_str(), expected[2].as_str());
    let (access_key, token) = access_key.zip(token).context("no credentials")?;
    for tool in STORAGE_TOOLS {
        let (program, arguments) = tool.split_first().context("no program")?;
        let mut command = debian::command(Release::Trixie, &guest.namespace, program)?;
        command.args(arguments).env("RESTIC_PASSWORD", "unused");
        let request = first_request_to_storage(&guest.namespace, &mut command)?;
        ensure!(
            request.contains(&format!("Credential={access_key}/")) && request.contains(token),
            "{program} asks with {request:?}"
        );
    }
    Ok(())
}

#[test]
fn facter_crawls_the_tree() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let script = include_str!("../clients/facter.rb");
    let found = output(debian::command(Release::Trixie, &guest.namespace, "ruby")?.args(["-e", script]))?;
    let found: Value = serde_json::from_str(&found)?;
    assert_eq!(found["metadata"]["instance-id"], INSTANCE_ID);
    assert_eq!(
        found["metadata"]["public-keys"]["0"]["openssh-key"],
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample operator"
    );
    assert_eq!(found["metadata"]["tags"]["instance"]["team"], "blue");
    assert_eq!(found["user_data"], records::USER_DATA.trim_end());
    Ok(())
}

#[test]
fn amazons_ec2_metadata_shows_everything_with_its_double_slashes() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let shown = output(debian::command(Release::Bookworm, &guest.namespace, "ec2-metadata")?.arg("--all"))?;
    for line in [
        "ami-id: ami-0abcdef1234567890",
        "instance-id: i-0123456789abcdef0",
        "instance-type: m5.large",
        "placement: eu-central-1a",
        "reservation-id: r-0123456789abcdef0",
        "security-groups: web",
        "Name: web-1",
    ] {
        assert!(
            shown.lines().any(|shown| shown.trim() == line),
            "no {line:?} in {shown}"
        );
    }
    Ok(())
}

#[test]
fn ubuntus_ec2metadata_shows_what_there_was_in_2009() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let shown = output(&mut debian::command(
        Release::Bookworm,
        &guest.namespace,
        "ec2metadata",
    )?)?;
    for line in [
        "instance-id: i-0123456789abcdef0",
        "availability-zone: eu-central-1a",
        "local-ipv4: 10.0.0.2",
        "public-keys: ['ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample operator']",
    ] {
        assert!(
            shown.lines().any(|shown| shown.trim() == line),
            "no {line:?} in {shown}"
        );
    }
    Ok(())
}

#[test]
fn cloudbase_init_knows_no_tokens_and_is_served_only_where_they_are_optional() -> Result<()> {
    let find = |guest: &KernelGuest| -> Result<Value> {
        let script = include_str!("../clients/cloudbase_init.py");
        let found = Client::python(&guest.namespace, script)?.output()?;
        Ok(serde_json::from_str(&found)?)
    };
    let (_host, guest) = Host::with_guest(optional)?;
    let expected = json!({
        "found": true,
        "hostname": "ip-10-0-0-2.eu-central-1.compute.internal",
        "instance_id": INSTANCE_ID,
        "user_data": BASE64_STANDARD.encode(records::USER_DATA),
        "public_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample operator"],
    });
    assert_eq!(find(&guest)?, expected);
    let (_host, guest) = Host::with_guest(|_| ())?;
    assert_eq!(find(&guest)?, json!({ "found": false }));
    Ok(())
}
