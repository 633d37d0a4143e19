use super::*;
use crate::registry::{Rules, record};

const CONF: &str = include_str!("../../../../docs/examples/hypervisors/proxmox-100.conf");

fn good(conf: &str) -> Map<String, Value> {
    let guest = guest(100, conf).unwrap();
    let text = Value::Object(guest.document.clone()).to_string();
    let parsed = record::parse(record::Kind::Instance, text.as_bytes(), &Rules::default());
    let (_, warnings) = parsed.expect("a good record");
    let about_fields: Vec<_> = warnings
        .iter()
        .filter(|finding| finding.field != "NetworkInterfaces")
        .collect();
    assert!(about_fields.is_empty(), "{about_fields:?}");
    guest.document
}

#[test]
fn the_current_configuration_makes_the_record_and_no_section_does() {
    let expected = json!({
        "InstanceId": "i-47b58757f8d12e286",
        "VirtualizationType": "hvm",
        "InstanceType": "4vcpu-4096mib",
        "KeyName": "ops",
        "PublicKeys": [
            { "KeyName": "ops", "PublicKeyMaterial": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample ops" },
            { "KeyName": "key-1", "PublicKeyMaterial": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOther" }
        ],
        "UserData": STANDARD.encode("#cloud-config\nuser: \"debian\"\n"),
        "NetworkInterfaces": [
            {
                "MacAddress": "bc:24:11:aa:bb:01",
                "Attachment": { "DeviceIndex": 0 },
                "Tap": "tap100i0",
                "PrivateIpAddress": "10.0.0.5",
                "SubnetIpv4CidrBlock": "10.0.0.0/24"
            },
            { "MacAddress": "bc:24:11:aa:bb:02", "Attachment": { "DeviceIndex": 1 }, "Tap": "tap100i1" },
            { "MacAddress": "bc:24:11:aa:bb:03", "Attachment": { "DeviceIndex": 2 } },
            { "MacAddress": "bc:24:11:aa:bb:04", "Attachment": { "DeviceIndex": 3 }, "Tap": "tap100i10" }
        ],
        "Tags": [
            { "Key": "prod", "Value": "" },
            { "Key": "web", "Value": "" },
            { "Key": "Name", "Value": "web-1" }
        ],
        "OwnerId": "123456789012",
        "Placement": { "Region": "home-1", "AvailabilityZone": "home-1a" },
    });
    assert_eq!(Value::Object(good(CONF)), expected);
}

#[test]
fn what_a_configuration_leaves_out_has_proxmoxs_defaults() {
    let record = good("");
    assert_eq!(record["InstanceType"], "1vcpu-512mib");
    assert_eq!(record["InstanceId"], "i-05ad65e33eb361213");
    assert_eq!(record["NetworkInterfaces"], json!([]));
    assert_eq!(
        good("memory: current=2048\nvcpus: 3\ncores: 8\n")["InstanceType"],
        "3vcpu-2048mib"
    );
    assert_eq!(good("arch: aarch64\n")["Architecture"], "arm64");
}

#[test]
fn a_description_may_stand_in_a_line_of_its_own() {
    let record = good("description: one%0Aimds-agent%3A {\"ImageId\"%3A \"ami-1\"}%0A\n");
    assert_eq!(record["ImageId"], "ami-1");
    let error = guest(100, "#imds-agent%3A nonsense\n").unwrap_err().to_string();
    assert!(error.contains("is not JSON"), "{error}");
}

#[test]
fn a_template_makes_no_record() {
    assert!(matches!(guest(100, "template: 1\n"), Err(ConfError::Template)));
}

proptest::proptest! {
    #[test]
    fn any_text_makes_a_record_or_an_error(text in "(net[0-9]|memory|#imds-agent%3A|sshkeys|tags|ipconfig0|\\[a\\])?[:= ]{0,2}\\PC{0,40}\n?") {
        let _ = guest(100, &text);
    }
}
