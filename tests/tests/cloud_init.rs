//! cloud-init's own EC2 datasource, run against what an operator may have written: one crawl of everything each time.
//!
//! It is the strictest client there is: a listed name that is not there costs it the whole tree. What a first boot makes
//! of its findings is in `guest_cloud_init.rs`. Last come the conditions on which it looks for the service at all, which
//! are for whoever defines the machine to meet: see `docs/cloud-init.md`.

use anyhow::Result;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use imds_tests::{
    cloud_init::{self, IPV4_URL, IPV6_URL, Smbios},
    debian::Release,
    host::{Host, INSTANCE_ID},
    kernel_guest::KernelGuest,
    records::{self, USER_DATA},
};
use serde_json::{Value, json};

/// The platforms that cloud-init tells apart by SMBIOS: on the first it uses tokens and nothing else, on the second it
/// never does.
const AWS: &str = "aws";
const UNKNOWN: &str = "unknown";

/// The user data of 16 KiB of all bytes there are, in disorder.
const LARGEST: usize = 16 * 1024;

/// What [`AWS`] finds with the record as `change` leaves it. The releases agree on it.
fn crawl(change: impl FnOnce(&mut Value)) -> Result<Value> {
    let (_host, guest) = Host::with_guest(change)?;
    let found = crawl_in(&guest, Release::Bookworm, AWS, None)?;
    assert_alike(&found, &crawl_in(&guest, Release::Trixie, AWS, None)?);
    Ok(found)
}

/// Two crawls found the same. How they would configure the network is a matter of the release.
fn assert_alike(one: &Value, other: &Value) {
    for what in [
        "found",
        "version",
        "instance_id",
        "hostname",
        "region",
        "availability_zone",
        "public_keys",
        "user_data",
        "identity",
        "launch_index",
    ] {
        assert_eq!(one[what], other[what], "{what}");
    }
    let trees = [one, other].map(|found| {
        let mut tree = found["metadata"].clone();
        // They say when the credentials were last updated, which may have been in between.
        if let Some(tree) = tree.as_object_mut() {
            tree.remove("iam");
            tree.remove("identity-credentials");
        }
        tree
    });
    assert_eq!(trees[0], trees[1]);
}

fn crawl_in(guest: &KernelGuest, release: Release, platform: &str, version: Option<&str>) -> Result<Value> {
    cloud_init::crawl(guest, release, platform, &json!({}), version)
}

fn optional(record: &mut Value) {
    record["MetadataOptions"]["HttpTokens"] = "optional".into();
}

/// The complaints of a crawl that must have failed.
fn complaints(found: &Value) -> String {
    assert_eq!(found["found"], false, "{found:#}");
    found["complaints"].to_string()
}

#[test]
fn on_ec2_everything_is_found_with_tokens() -> Result<()> {
    let found = crawl(|_| ())?;
    assert_eq!(found["complaints"], json!([]));
    assert_eq!(found["version"], "2021-03-23");
    assert_eq!(found["instance_id"], INSTANCE_ID);
    assert_eq!(found["hostname"], "ip-10-0-0-2");
    assert_eq!(found["region"], "eu-central-1");
    assert_eq!(found["availability_zone"], "eu-central-1a");
    assert_eq!(found["launch_index"], "0");
    assert_eq!(
        found["public_keys"],
        json!(["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample operator"])
    );
    assert_eq!(found["user_data"], BASE64_STANDARD.encode(USER_DATA));
    let identity = &found["identity"];
    assert_eq!(identity["instanceId"], INSTANCE_ID);
    assert_eq!(identity["accountId"], records::ACCOUNT);
    let metadata = &found["metadata"];
    assert_eq!(metadata["instance-type"], "m5.large");
    assert_eq!(metadata["placement"]["availability-zone"], "eu-central-1a");
    assert_eq!(
        metadata["tags"]["instance"],
        json!({ "Name": "web-1", "team": "blue" })
    );
    assert_eq!(metadata["iam"]["info"]["Code"], "Success");
    let interface = &metadata["network"]["interfaces"]["macs"][records::guest_mac(2).to_string()];
    assert_eq!(interface["subnet-ipv4-cidr-block"], "10.0.0.0/24");
    Ok(())
}

#[test]
fn the_interface_is_configured_by_its_mac_and_dhcp() -> Result<()> {
    let found = crawl(|_| ())?;
    let expected = json!({
        "version": 2,
        "ethernets": { "eth0": {
            "dhcp4": true,
            "dhcp6": false,
            "match": { "macaddress": records::guest_mac(2).to_string() },
            "set-name": "eth0",
        } }
    });
    assert_eq!(found["network"], expected);
    Ok(())
}

#[test]
fn elsewhere_the_same_is_found_without_tokens() -> Result<()> {
    let (_host, guest) = Host::with_guest(optional)?;
    let mut with_tokens = crawl_in(&guest, Release::Bookworm, AWS, None)?;
    // The identity document is of interest on EC2 only.
    with_tokens["identity"] = json!({});
    for release in [Release::Bookworm, Release::Trixie] {
        let without = crawl_in(&guest, release, UNKNOWN, None)?;
        assert_alike(&without, &with_tokens);
    }
    Ok(())
}

#[test]
fn elsewhere_nothing_is_found_where_tokens_are_required() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    for release in [Release::Bookworm, Release::Trixie] {
        let complaints = complaints(&crawl_in(&guest, release, UNKNOWN, None)?);
        assert!(complaints.contains("401"), "{complaints}");
        assert!(complaints.contains("Giving up on md"), "{complaints}");
    }
    Ok(())
}

#[test]
fn a_disabled_endpoint_is_understood_as_one() -> Result<()> {
    let complaints = complaints(&crawl(|record| {
        record["MetadataOptions"]["HttpEndpoint"] = "disabled".into();
    })?);
    assert!(
        complaints.contains("HTTP endpoint is disabled. Aborting"),
        "{complaints}"
    );
    Ok(())
}

#[test]
fn role_credentials_are_not_for_cloud_init_to_keep() -> Result<()> {
    // It writes all that it crawls to the guest's disk, and leaves out what is called `security-credentials`.
    let found = crawl(|_| ())?;
    assert_eq!(found["found"], true);
    assert!(
        !found.to_string().contains("SecretAccessKey"),
        "{:#}",
        found["metadata"]["iam"]
    );
    Ok(())
}

#[test]
fn user_data_arrives_byte_for_byte() -> Result<()> {
    // `#!/bin/sh\necho hello from user data\n`, compressed.
    let gzip_of_a_script = "H4sIAAAAAAACA1NW1E/KzNMvzuBKTc7IV8hIzcnJV0grys9VKC1OLVJISSxJ5AIAY3r2ziQAAAA=";
    let every_byte: Vec<u8> = (0..LARGEST)
        .map(|place| (place.wrapping_mul(167) >> 3) as u8)
        .collect();
    for data in [
        gzip_of_a_script.to_owned(),
        BASE64_STANDARD.encode(&every_byte),
        BASE64_STANDARD.encode(b"\0\n\r\n\r\n\xff"),
    ] {
        let found = crawl(|record| record["UserData"] = data.clone().into())?;
        assert_eq!(found["user_data"], data);
    }
    Ok(())
}

#[test]
fn what_the_record_does_not_say_is_not_missed() -> Result<()> {
    let absent = ["UserData", "IamInstanceProfile", "KeyName", "PublicKeys", "Tags"];
    let found = crawl(|record| {
        let record = record.as_object_mut().expect("a record is an object");
        record.retain(|key, _| !absent.contains(&key.as_str()));
    })?;
    assert_eq!(found["complaints"], json!([]));
    assert_eq!(found["instance_id"], INSTANCE_ID);
    assert_eq!(found["user_data"], "");
    assert_eq!(found["public_keys"], json!([]));
    for path in ["iam", "public-keys", "tags"] {
        assert!(found["metadata"].get(path).is_none(), "{path}");
    }
    Ok(())
}

#[test]
fn tags_are_found_only_where_they_are_enabled() -> Result<()> {
    let found = crawl(|record| record["MetadataOptions"]["InstanceMetadataTags"] = "disabled".into())?;
    assert_eq!(found["found"], true);
    assert!(found["metadata"].get("tags").is_none());
    Ok(())
}

#[test]
fn odd_tag_keys_do_not_cost_the_tree() -> Result<()> {
    let found = crawl(|record| {
        record["Tags"] = json!([
            { "Key": "aws:autoscaling:groupName", "Value": "web" },
            { "Key": "empty", "Value": "" },
            { "Key": "a b", "Value": "with a space" },
            { "Key": "kubernetes.io/cluster/c1", "Value": "owned" },
            { "Key": "größe", "Value": "groß" },
            { "Key": "..", "Value": "dots" },
            { "Key": "percent%41", "Value": "percent" },
        ]);
    })?;
    assert_eq!(found["found"], true, "{found:#}");
    assert_eq!(
        found["metadata"]["tags"]["instance"]["aws:autoscaling:groupName"],
        "web"
    );
    Ok(())
}

#[test]
fn all_keys_of_an_instance_are_found() -> Result<()> {
    let keys = ["ssh-ed25519 AAAAfirst one@a", "ssh-rsa AAAAsecond two@b"];
    let found = crawl(|record| {
        record["PublicKeys"] = json!([
            { "KeyName": "one", "PublicKeyMaterial": keys[0] },
            { "KeyName": "two", "PublicKeyMaterial": keys[1] },
        ]);
    })?;
    assert_eq!(found["public_keys"], json!(keys));
    Ok(())
}

#[test]
fn further_addresses_are_configured_as_well() -> Result<()> {
    let found = crawl(|record| {
        let interface = &mut record["NetworkInterfaces"][0];
        let addresses = ["10.0.0.2", "10.0.0.5", "10.0.0.9"];
        interface["PrivateIpAddresses"] = addresses
            .map(|address| json!({ "PrivateIpAddress": address, "Primary": address == addresses[0] }))
            .to_vec()
            .into();
        interface["Ipv6Addresses"] = json!([{ "Ipv6Address": "2001:db8::2" }]);
    })?;
    let eth0 = &found["network"]["ethernets"]["eth0"];
    assert_eq!(
        eth0["addresses"],
        json!(["10.0.0.5/24", "10.0.0.9/24"]),
        "{found:#}"
    );
    assert_eq!(eth0["dhcp6"], true);
    Ok(())
}

#[test]
fn every_interface_of_an_instance_is_configured() -> Result<()> {
    let second = records::guest_mac(3);
    let (_host, guest) = Host::with_guest(|record| {
        let mut interface = record["NetworkInterfaces"][0].clone();
        interface["NetworkInterfaceId"] = "eni-0fedcba9876543210".into();
        interface["MacAddress"] = second.to_string().into();
        interface["Tap"] = "tap1".into();
        interface["PrivateIpAddress"] = "10.0.1.2".into();
        interface["PrivateIpAddresses"] = json!([{ "PrivateIpAddress": "10.0.1.2", "Primary": true }]);
        interface["SubnetIpv4CidrBlock"] = "10.0.1.0/24".into();
        interface["Attachment"] = json!({ "DeviceIndex": 1, "NetworkCardIndex": 0 });
        record["NetworkInterfaces"]
            .as_array_mut()
            .expect("interfaces are a list")
            .push(interface);
    })?;
    guest.namespace.ip("tuntap add dev eth1 mode tap")?;
    guest.namespace.ip(&format!("link set eth1 address {second}"))?;
    let found = crawl_in(&guest, Release::Bookworm, AWS, None)?;
    let ethernets = &found["network"]["ethernets"];
    for (name, mac, metric) in [("eth0", records::guest_mac(2), 100), ("eth1", second, 200)] {
        assert_eq!(
            ethernets[name]["match"]["macaddress"],
            mac.to_string(),
            "{found:#}"
        );
        assert_eq!(ethernets[name]["dhcp4-overrides"]["route-metric"], metric);
    }
    Ok(())
}

#[test]
fn the_same_is_found_over_ipv6() -> Result<()> {
    let (_host, guest) = Host::with_guest(|record| {
        optional(record);
        record["MetadataOptions"]["HttpProtocolIpv6"] = "enabled".into();
    })?;
    let over_ipv4 = crawl_in(&guest, Release::Bookworm, AWS, None)?;
    assert_eq!(over_ipv4["address"], IPV4_URL);
    guest.add_ipv6()?;
    guest.lose_ipv4()?;
    for (release, platform) in [
        (Release::Bookworm, AWS),
        (Release::Trixie, AWS),
        (Release::Trixie, UNKNOWN),
    ] {
        let mut over_ipv6 = crawl_in(&guest, release, platform, None)?;
        assert_eq!(over_ipv6["address"], IPV6_URL);
        if platform == UNKNOWN {
            over_ipv6["identity"] = over_ipv4["identity"].clone();
        }
        assert_alike(&over_ipv6, &over_ipv4);
    }
    Ok(())
}

#[test]
fn every_version_is_a_whole_tree() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    for version in [
        "2009-04-04",
        "2012-01-12",
        "2016-09-02",
        "2018-09-24",
        "2021-01-03",
        "2024-04-11",
        "latest",
    ] {
        let found = crawl_in(&guest, Release::Bookworm, AWS, Some(version))?;
        assert_eq!(found["version"], version);
        assert_eq!(found["instance_id"], INSTANCE_ID, "{version}: {found:#}");
        let has_tags = found["metadata"].get("tags").is_some();
        assert_eq!(has_tags, version >= "2021-03-23", "{version}");
    }
    Ok(())
}

/// What cloud-init's search decides in each release, before a boot gets to the datasource.
fn identify(uuid: &str, serial: &str, operator_config: &str) -> Result<[String; 2]> {
    let smbios = Smbios {
        uuid,
        serial,
        ..Smbios::default()
    };
    let ask = |release| cloud_init::search(release, smbios, operator_config);
    Ok([ask(Release::Bookworm)?, ask(Release::Trixie)?])
}

const EC2_UUID: &str = "ec2f0000-1111-2222-3333-444455556666";
const OTHER_UUID: &str = "9f1c1d2e-1111-2222-3333-444455556666";

/// The search's results.
const FOUND: &str = "datasource_list: [ Ec2, None ]\n";
const DISABLED: &str = "disabled\n";

#[test]
fn the_search_finds_the_service_where_uuid_and_serial_number_say_ec2() -> Result<()> {
    assert_eq!(identify(EC2_UUID, EC2_UUID, "")?, [FOUND; 2]);
    assert_eq!(identify(EC2_UUID, &EC2_UUID.to_uppercase(), "")?, [FOUND; 2]);
    Ok(())
}

#[test]
fn the_search_gives_up_where_smbios_says_anything_else() -> Result<()> {
    assert_eq!(identify(OTHER_UUID, "", "")?, [DISABLED; 2]);
    assert_eq!(identify(OTHER_UUID, OTHER_UUID, "")?, [DISABLED; 2]);
    Ok(())
}

#[test]
fn only_the_older_search_wants_the_serial_number_too() -> Result<()> {
    assert_eq!(identify(EC2_UUID, "", "")?, [DISABLED, FOUND]);
    Ok(())
}

#[test]
fn there_is_no_search_where_the_operator_names_the_source() -> Result<()> {
    let config = include_str!("../clients/guest/operator.cfg");
    let only = "datasource_list: [ Ec2 ]\n";
    assert_eq!(identify(OTHER_UUID, "", config)?, [FOUND, only]);
    Ok(())
}
