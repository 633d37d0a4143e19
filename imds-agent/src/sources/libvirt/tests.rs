use super::*;
use crate::registry::{Rules, record};

const DOMAIN: &str = include_str!("../../../../docs/examples/hypervisors/libvirt.xml");

/// The guest that the reader of records has nothing to say about.
fn good(xml: &str) -> Guest {
    let guest = guest(xml, None).unwrap();
    let text = Value::Object(guest.document.clone()).to_string();
    let parsed = record::parse(record::Kind::Instance, text.as_bytes(), &Rules::default());
    let (_, warnings) = parsed.expect("a good record");
    assert_eq!(warnings, []);
    guest
}

fn with_metadata(inner: &str) -> String {
    format!(
        "<domain><name>n</name><uuid>8c4b6f00-2d5e-4f0a-9c3e-1b2a3c4d5e6f</uuid><metadata>\
         <i:instance xmlns:i='{NAMESPACE}'>{inner}</i:instance></metadata><devices><interface type='user'>\
         <mac address='52:54:00:aa:bb:09'/></interface></devices></domain>"
    )
}

#[test]
fn the_example_makes_a_whole_record() {
    let launched = "2026-11-21T08:00:00Z".parse().unwrap();
    let guest = guest(DOMAIN, Some(launched)).unwrap();
    assert_eq!(guest.warnings, Vec::<String>::new());
    assert_eq!(guest.origin, origin_of(DOMAIN).unwrap());
    let expected = json!({
        "InstanceId": "i-c3d50d06593b812b2",
        "Architecture": "x86_64",
        "VirtualizationType": "hvm",
        "InstanceType": "m5.large",
        "LaunchTime": "2026-11-21T08:00:00Z",
        "Tags": [{ "Key": "Name", "Value": "web-1" }, { "Key": "team", "Value": "blue" }],
        "NetworkInterfaces": [
            {
                "MacAddress": "52:54:00:aa:bb:01",
                "Attachment": { "DeviceIndex": 0 },
                "Tap": "vnet3",
                "PrivateIpAddress": "10.0.0.2"
            },
            { "MacAddress": "52:54:00:aa:bb:02", "Attachment": { "DeviceIndex": 1 }, "Tap": "web-1-storage" },
            { "MacAddress": "52:54:00:aa:bb:03", "Attachment": { "DeviceIndex": 2 } }
        ],
        "OwnerId": "123456789012",
        "Placement": { "Region": "home-1", "AvailabilityZone": "home-1a" },
        "ImageId": "ami-0abcdef1234567890",
        "PrivateDnsName": "web-1.example.internal",
        "IamInstanceProfile": { "Arn": "arn:aws:iam::123456789012:instance-profile/web-servers" },
        "KeyName": "ops",
        "PublicKeys": [{ "KeyName": "ops", "PublicKeyMaterial": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample ops" }],
        "MetadataOptions": {
            "HttpTokens": "optional",
            "HttpPutResponseHopLimit": 2,
            "InstanceMetadataTags": "enabled"
        },
        "UserData": STANDARD.encode("#!/bin/sh\necho \"one & two\" > /run/hello\n"),
        "SecurityGroups": [{ "GroupId": "sg-0123456789abcdef0", "GroupName": "web" }],
    });
    assert_eq!(Value::Object(guest.document), expected);
    good(DOMAIN);
}

#[test]
fn a_domain_that_says_nothing_of_us_has_what_libvirt_knows() {
    let begin = DOMAIN.find("  <metadata>").unwrap();
    let end = DOMAIN.find("  <memory").unwrap();
    let bare = format!("{}{}", &DOMAIN[..begin], &DOMAIN[end..]);
    let guest = good(&bare);
    let fields: Vec<&str> = guest.document.keys().map(String::as_str).collect();
    assert_eq!(
        fields,
        [
            "InstanceId",
            "Architecture",
            "VirtualizationType",
            "InstanceType",
            "Tags",
            "NetworkInterfaces"
        ]
    );
    assert_eq!(guest.document["InstanceType"], "2vcpu-2048mib");
}

#[test]
fn the_namespace_is_needed_on_the_outermost_element_alone() {
    let xml = "<domain><uuid>8c4b6f00-2d5e-4f0a-9c3e-1b2a3c4d5e6f</uuid><metadata><imds:instance \
               xmlns:imds='urn:imds-agent:instance:1'><instance-profile>web</instance-profile><account>123456789012</account>\
               </imds:instance></metadata></domain>";
    let guest = guest(xml, None).unwrap();
    let arn = "arn:aws:iam::123456789012:instance-profile/web";
    assert_eq!(guest.document["IamInstanceProfile"]["Arn"], arn);
    assert_eq!(guest.warnings, Vec::<String>::new());
}

#[test]
fn the_id_follows_from_the_uuid_unless_it_is_said() {
    assert_eq!(good(&with_metadata("")).id.as_str(), "i-47b58757f8d12e286");
    let said = good(&with_metadata(
        "<i:instance-id>i-0123456789abcdef0</i:instance-id>",
    ));
    assert_eq!(said.id.as_str(), "i-0123456789abcdef0");
    assert_eq!(said.origin.id, "8c4b6f00-2d5e-4f0a-9c3e-1b2a3c4d5e6f");
}

#[test]
fn user_data_may_be_any_bytes_in_base64() {
    let guest = good(&with_metadata(
        "<i:user-data encoding='base64'>\n  /w==\n</i:user-data>",
    ));
    assert_eq!(guest.document["UserData"], "/w==");
}

#[test]
fn the_own_name_tag_wins_over_the_domains_name() {
    let guest = good(&with_metadata("<i:tag key='Name'>shop</i:tag>"));
    assert_eq!(
        guest.document["Tags"],
        json!([{ "Key": "Name", "Value": "shop" }])
    );
}

#[test]
fn slips_are_told_with_the_element() {
    let unknown = guest(&with_metadata("<i:instance-tpye>x</i:instance-tpye>"), None).unwrap();
    assert_eq!(
        unknown.warnings,
        ["<instance-tpye> in the domain's metadata has no effect"]
    );
    for (inner, message) in [
        (
            "<i:instance-profile>web</i:instance-profile>",
            "needs an <account>",
        ),
        (
            "<i:record>{</i:record>",
            "<record> in the domain's metadata is not JSON",
        ),
        (
            "<i:record>{\"NetworkInterfaces\": [{\"MacAddress\": \"1\"}]}</i:record>",
            "no interface",
        ),
        ("<i:record>{\"Origin\": {}}</i:record>", "Origin is not"),
        (
            "<i:metadata-options tokens='optional'/>",
            "has no attribute tokens",
        ),
        ("<i:tag>blue</i:tag>", "has no attribute key"),
        ("<i:instance-id>a b</i:instance-id>", "<instance-id>"),
    ] {
        let error = guest(&with_metadata(inner), None).unwrap_err().to_string();
        assert!(error.contains(message), "{inner}: {error}");
    }
    let placed = "<i:record>{\"Placement\": \"x\"}</i:record><i:region>r</i:region>";
    let placed = guest(&with_metadata(placed), None).unwrap();
    assert_eq!(placed.document["Placement"], "x", "which the store refuses");
    for no_domain in [
        "",
        "<network><uuid>8c4b6f00-2d5e-4f0a-9c3e-1b2a3c4d5e6f</uuid></network>",
        "<domain/>",
    ] {
        assert!(guest(no_domain, None).is_err(), "{no_domain}");
    }
}

#[test]
fn the_documentation_is_true() {
    let document = include_str!("../../../../docs/hypervisors.md");
    let (_, rest) = document.split_once("```xml\n").unwrap();
    let (metadata, _) = rest.split_once("```").unwrap();
    let devices = "<devices><interface type='user'><mac address='52:54:00:aa:bb:09'/></interface></devices>";
    let uuid = "8c4b6f00-2d5e-4f0a-9c3e-1b2a3c4d5e6f";
    let guest = good(&format!(
        "<domain><uuid>{uuid}</uuid>{metadata}{devices}</domain>"
    ));
    assert_eq!(guest.warnings, Vec::<String>::new());
    assert_eq!(
        guest.document["UserData"],
        STANDARD.encode("#!/bin/sh\necho hello\n")
    );
}
