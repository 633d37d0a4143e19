//! Instances with several interfaces, and instances that have the same addresses.

use anyhow::{Result, ensure};
use imds_tests::{
    client::{get, text, token, wait_for},
    host::{ADDRESS, Host, INSTANCE_ID},
    records,
};
use serde_json::{Value, json};

/// A second interface, in another subnet, on `tap1`.
fn second_interface() -> Value {
    json!({
        "NetworkInterfaceId": "eni-0fedcba9876543210",
        "MacAddress": records::guest_mac(3).to_string(),
        "Tap": "tap1",
        "OwnerId": records::ACCOUNT,
        "SubnetId": "subnet-0fedcba9876543210",
        "VpcId": "vpc-0123456789abcdef0",
        "PrivateDnsName": "ip-10-0-1-2.eu-central-1.compute.internal",
        "PrivateIpAddress": "10.0.1.2",
        "PrivateIpAddresses": [
            { "PrivateIpAddress": "10.0.1.2", "Primary": true },
            { "PrivateIpAddress": "10.0.1.3" }
        ],
        "Groups": [{ "GroupId": "sg-0fedcba9876543210", "GroupName": "storage" }],
        "Attachment": { "DeviceIndex": 1, "NetworkCardIndex": 0 },
        "SubnetIpv4CidrBlock": "10.0.1.0/24",
        "VpcIpv4CidrBlocks": ["10.0.0.0/16"]
    })
}

/// What every interface of the instance must be told.
fn expect_both_interfaces() -> Result<()> {
    let token = token()?;
    let (first, second) = (records::guest_mac(2), records::guest_mac(3));
    let at = |path: &str| text(&token, &format!("meta-data/{path}"));
    assert_eq!(at("instance-id")?, INSTANCE_ID);
    // The instance's own are those of the interface with device number 0, whoever asks and wherever its record has it.
    assert_eq!(at("mac")?, first.to_string());
    assert_eq!(at("local-ipv4")?, ADDRESS);
    assert_eq!(at("network/interfaces/macs/")?, format!("{first}/\n{second}/"));
    for (mac, path, value) in [
        (first, "device-number", "0"),
        (first, "interface-id", "eni-0123456789abcdef0"),
        (first, "local-ipv4s", ADDRESS),
        (first, "subnet-ipv4-cidr-block", "10.0.0.0/24"),
        (first, "security-groups", "web"),
        (second, "device-number", "1"),
        (second, "interface-id", "eni-0fedcba9876543210"),
        (
            second,
            "local-hostname",
            "ip-10-0-1-2.eu-central-1.compute.internal",
        ),
        (second, "local-ipv4s", "10.0.1.2\n10.0.1.3"),
        (second, "mac", &second.to_string()),
        (second, "subnet-id", "subnet-0fedcba9876543210"),
        (second, "subnet-ipv4-cidr-block", "10.0.1.0/24"),
        (second, "security-groups", "storage"),
    ] {
        assert_eq!(
            at(&format!("network/interfaces/macs/{mac}/{path}"))?,
            value,
            "{mac} {path}"
        );
    }
    Ok(())
}

#[test]
fn an_instance_is_answered_on_each_of_its_interfaces() -> Result<()> {
    // The record has the second interface first.
    let (host, first) = Host::with_guest(|record| {
        record["NetworkInterfaces"]
            .as_array_mut()
            .expect("interfaces")
            .insert(0, second_interface());
    })?;
    let second = host.add_guest("tap1", records::guest_mac(3), "10.0.1.2/24")?;
    first.namespace.enter(expect_both_interfaces)?;
    second.namespace.enter(expect_both_interfaces)?;
    // A token stays on the interface that it was given to.
    let token_of_first = first.namespace.enter(token)?;
    let response = second.namespace.enter(|| get(&token_of_first, "meta-data/mac"))?;
    assert_eq!(response.status, 401);
    Ok(())
}

#[test]
fn an_interface_that_is_added_to_a_running_instance_is_answered_too() -> Result<()> {
    let (host, first) = Host::with_guest(|_| ())?;
    let macs = "meta-data/network/interfaces/macs";
    let own_token = first.namespace.enter(token)?;
    let only = first.namespace.enter(|| text(&own_token, macs))?;
    assert_eq!(only, format!("{}/", records::guest_mac(2)));

    let mut record = records::instance(INSTANCE_ID, records::guest_mac(2), "tap0", ADDRESS);
    let interfaces = record["NetworkInterfaces"].as_array_mut().expect("interfaces");
    interfaces.push(second_interface());
    host.files.put("instances", INSTANCE_ID, &record)?;
    let second = host.add_guest("tap1", records::guest_mac(3), "10.0.1.2/24")?;
    // The tap and the record come to the agent's notice one after the other.
    let is_answered = || wait_for("the new interface", || Ok(token()), Result::is_ok);
    _ = second.namespace.enter(is_answered)?;
    second.namespace.enter(expect_both_interfaces)?;
    first.namespace.enter(expect_both_interfaces)?;

    // And once it is taken away, it is in no listing any more.
    let interfaces = record["NetworkInterfaces"].as_array_mut().expect("interfaces");
    interfaces.pop();
    host.files.put("instances", INSTANCE_ID, &record)?;
    first.namespace.enter(|| {
        wait_for(
            "one interface",
            || text(&own_token, macs),
            |listing| *listing == only,
        )
    })?;
    Ok(())
}

#[test]
fn two_tenants_with_the_same_addresses_never_see_each_other() -> Result<()> {
    const REQUESTS: usize = 200;
    let (host, one) = Host::with_guest(|_| ())?;
    // The same addresses, names and subnet, on another tap with another MAC.
    let mut record = records::instance("i-0fedcba9876543210", records::guest_mac(3), "tap1", ADDRESS);
    record["UserData"] = "b3RoZXI=".into();
    record["Tags"] = json!([{ "Key": "team", "Value": "red" }]);
    host.files.put("instances", "other", &record)?;
    let other = host.add_guest("tap1", records::guest_mac(3), &format!("{ADDRESS}/24"))?;

    let tenants = [
        (
            &one,
            INSTANCE_ID,
            records::guest_mac(2),
            records::USER_DATA,
            "blue",
        ),
        (
            &other,
            "i-0fedcba9876543210",
            records::guest_mac(3),
            "other",
            "red",
        ),
    ];
    let mut tokens = Vec::new();
    for (guest, ..) in &tenants {
        tokens.push(guest.namespace.enter(token)?);
    }
    // Both at once, from the same address and often from the same port.
    let mut workers = Vec::new();
    for ((guest, id, mac, user_data, team), own) in tenants.iter().zip(&tokens) {
        let (id, mac, user_data, team, own) = (
            (*id).to_owned(),
            mac.to_string(),
            (*user_data).to_owned(),
            (*team).to_owned(),
            own.clone(),
        );
        workers.push(guest.namespace.spawn(move || -> Result<()> {
            for _ in 0..REQUESTS / 5 {
                for (path, value) in [
                    ("meta-data/instance-id", &id),
                    ("meta-data/mac", &mac),
                    ("meta-data/network/interfaces/macs/", &format!("{mac}/")),
                    ("meta-data/tags/instance/team", &team),
                    ("user-data", &user_data),
                ] {
                    let found = text(&own, path)?;
                    ensure!(found == *value, "{path} of {id} is {found}");
                }
            }
            Ok(())
        })?);
    }
    for worker in workers {
        worker.join().expect("no panic")?;
    }
    for ((guest, ..), token_of_other) in tenants.iter().zip(tokens.iter().rev()) {
        let response = guest
            .namespace
            .enter(|| get(token_of_other, "meta-data/instance-id"))?;
        assert_eq!(response.status, 401);
    }
    let other_mac = records::guest_mac(3);
    let path = format!("meta-data/network/interfaces/macs/{other_mac}/mac");
    let response = one.namespace.enter(|| get(&tokens[0], &path))?;
    assert_eq!(response.status, 404);
    Ok(())
}
