//! Role credentials from Ceph's gateway, which speaks AWS's protocol with an accent: set, refusal, outage, and the use of a
//! set at Ceph's own S3. One test, because the cluster takes a while to start.

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    ceph::{self, Ceph},
    client::{self, wait_for},
    host::Host,
    kernel_guest::KernelGuest,
    moto,
    netns::Namespace,
    records,
};
use serde_json::{Value, json};

/// The name of the files with the role and the instance profile. There are others of the same name in an account.
const FILE: &str = "of-ceph";

/// The role's document as the guest sees it, once there is one.
fn document(guest: &KernelGuest, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
    let ask = || {
        guest.namespace.enter(|| {
            let path = format!("meta-data/iam/security-credentials/{}", records::ROLE);
            let response = client::get(&client::token()?, &path)?;
            if response.status == 503 {
                return Ok(Value::Null);
            }
            ensure!(response.status == 200, "{}", response.head);
            Ok(serde_json::from_slice(&response.body)?)
        })
    };
    let (document, _) = wait_for("the role's document", ask, is_it)?;
    Ok(document)
}

fn is_success(document: &Value) -> bool {
    document["Code"] == "Success"
}

/// The role's record, with `credentials` in it, and without an account like all of Ceph's.
fn role(credentials: Value) -> Value {
    let mut role = records::role();
    role["Arn"] = ceph::ROLE.into();
    role["Credentials"] = credentials;
    role
}

/// boto3 with nothing but the endpoint.
const S3: &str = "
import boto3, json
session = boto3.Session(region_name='us-east-1')
def s3(**more):
    return session.client('s3', endpoint_url='http://10.0.0.1:8000', **more)
own = s3()
own.create_bucket(Bucket='bucket')
own.put_object(Bucket='bucket', Key='key', Body=b'from a guest')
keys = session.get_credentials().get_frozen_credentials()
forger = s3(aws_access_key_id=keys.access_key, aws_secret_access_key=keys.secret_key[::-1], aws_session_token=keys.token)
try:
    forger.list_buckets()
    forged = 'accepted'
except forger.exceptions.ClientError as error:
    forged = error.response['Error']['Code']
print(json.dumps([keys.access_key, own.get_object(Bucket='bucket', Key='key')['Body'].read().decode(), forged]))
";

#[test]
fn sets_refusals_and_outages_of_a_service_that_is_not_aws() -> Result<()> {
    let namespace = Namespace::new()?;
    let mut ceph = Ceph::start(&namespace)?;
    let config = ceph.agent_config();
    let mut profile = records::instance_profile();
    profile["Arn"] = format!("arn:aws:iam:::instance-profile/{}", records::INSTANCE_PROFILE).into();
    let mut host = Host::in_namespace(namespace, &config, |files, instance| {
        instance["IamInstanceProfile"]["Arn"] = profile["Arn"].clone();
        files.put("instance-profiles", FILE, &profile)?;
        files.put("roles", FILE, &role(Value::Null))
    })?;
    host.namespace.ip("address add 10.0.0.1/24 dev tap0")?;
    let guest = host.guest()?;

    let set = document(&guest, is_success)?;
    // Normalised where it differs from AWS, and nothing made up where it says nothing.
    let expiration = set["Expiration"].as_str().context("no expiration")?;
    assert_eq!(expiration.len(), "2026-11-21T08:00:00Z".len(), "{expiration}");
    assert_eq!(set["AccountId"], Value::Null);

    // The set is good where it comes from.
    let used: Value = serde_json::from_str(&moto::run_python(&guest, S3, &[])?)?;
    assert_eq!(
        used,
        json!([set["AccessKeyId"], "from a guest", "SignatureDoesNotMatch"])
    );

    // The trust policy of one role names somebody else; the other is not there.
    for (wrong, complaint) in [
        (ceph::FOREIGN_ROLE, "403 AccessDenied"),
        ("arn:aws:iam:::role/absent", "404 NoSuchEntity"),
    ] {
        let record = role(json!({"Source": "sts", "RoleArn": wrong}));
        host.files.put("roles", FILE, &record)?;
        let line = host.agent.wait_for_log("the role is refused")?;
        assert!(line.ends_with(complaint), "{line}");
        let refused = document(&guest, |document| !is_success(document))?;
        assert_eq!(refused["Code"], "AssumeRoleUnauthorizedAccess");
        host.files.put("roles", FILE, &role(Value::Null))?;
        document(&guest, is_success)?;
    }

    // An outage leaves the last set in force, and ends with a new one.
    let before = document(&guest, is_success)?;
    ceph.kill_gateway()?;
    let mut changed = role(Value::Null);
    changed["MaxSessionDuration"] = 7200.into();
    host.files.put("roles", FILE, &changed)?;
    host.agent.wait_for_log("the source fails")?;
    assert_eq!(document(&guest, is_success)?, before);
    ceph.start_gateway(&host.namespace)?;
    host.agent.wait_for_log("every session is supplied again")?;
    let after = document(&guest, is_success)?;
    assert_ne!(after["AccessKeyId"], before["AccessKeyId"]);
    Ok(())
}
