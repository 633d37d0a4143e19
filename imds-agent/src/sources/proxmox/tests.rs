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

/// As Proxmox VE reads its files: `parse_vm_config` and `split_list`.
#[test]
fn lines_are_read_as_proxmox_reads_them() {
    let record = good("name: first\nname: last\ntags: a,b;c d\te\n");
    let keys = record["Tags"].as_array().unwrap().iter();
    let keys: Vec<_> = keys.map(|tag| tag["Key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["a", "b", "c", "d", "e", "Name"]);
    assert_eq!(record["Tags"][5]["Value"], "last");

    // Snapshots may be called nearly anything, and blanks may follow.
    for section in [
        "[PENDING]",
        "[pending]  ",
        "[special:cloudinit]",
        "[a_b-1]\t",
        "[Vor-Update]",
    ] {
        let record = good(&format!(
            "name: now\n\n{section}\n#then\nname: then\nnet0: e1000=BC:24:11:00:00:01\n"
        ));
        assert_eq!(record["Tags"][0]["Value"], "now", "{section}");
        assert_eq!(record["NetworkInterfaces"], json!([]), "{section}");
    }
}

#[test]
fn every_way_to_write_a_network_device_has_its_mac_and_its_tap() {
    for (device, tap) in [
        (
            "virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1,queues=4",
            Some("tap100i7"),
        ),
        (
            "model=virtio,macaddr=BC:24:11:00:00:01,bridge=vmbr0,mtu=1",
            Some("tap100i7"),
        ),
        (
            "e1000-82545em=bc:24:11:00:00:01,link_down=1,bridge=vnet1,rate=12.5,tag=7,trunks=8;9-11",
            Some("tap100i7"),
        ),
        ("bridge=vmbr0,vmxnet3=BC:24:11:00:00:01", Some("tap100i7")),
        ("rtl8139=BC:24:11:00:00:01", None),
    ] {
        let interface = &good(&format!("net7: {device}\n"))["NetworkInterfaces"][0];
        assert_eq!(interface["MacAddress"], "bc:24:11:00:00:01", "{device}");
        assert_eq!(interface["Tap"].as_str(), tap, "{device}");
    }
}

#[test]
fn addresses_are_those_that_are_fixed() {
    let of = |config: &str| {
        let conf = format!("net0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nipconfig0: {config}\n");
        good(&conf)["NetworkInterfaces"][0]["PrivateIpAddress"].clone()
    };
    assert_eq!(of("gw=10.0.0.1,ip=10.0.0.5/24,ip6=auto"), "10.0.0.5");
    for nobodys in ["ip=dhcp", "ip6=2001:db8::5/64", "ip=10.0.0.5", "ip=10.0.0.5/33"] {
        assert_eq!(of(nobodys), Value::Null, "{nobodys}");
    }
}

#[test]
fn what_only_proxmoxs_own_drive_would_tell_is_warned_of() {
    let guest = guest(
        100,
        "ciuser: root\ncicustom: user=local:snippets/user.yml\ncipassword: $5$x\n",
    )
    .unwrap();
    assert_eq!(guest.warnings.len(), 2, "{:?}", guest.warnings);
    let user_data = STANDARD.encode("#cloud-config\nuser: \"root\"\ndisable_root: false\n");
    assert_eq!(guest.document["UserData"], user_data);
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
