//! A stock Debian with cloud-init, booted with the agent as its only metadata source.
//!
//! The many variants of what cloud-init may find are in `cloud_init.rs`, without a machine; here it is what a first boot
//! makes of it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use imds_tests::{
    host,
    qemu::Software,
    records,
    vm_host::{INSTANCE_ID, VmHost},
};
use serde_json::Value;

/// Three times of what a boot takes under emulation beside another one.
const LIMIT: Duration = Duration::from_secs(400);

const ADDRESS: &str = "10.0.0.2";

const HOSTNAME: &str = "ip-10-0-0-2";

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample operator";

/// `#!/bin/sh\necho "$(hostname) $(cat /var/lib/cloud/data/instance-id)" > /run/user-data-ran\n`.
const USER_DATA: &str = "IyEvYmluL3NoCmVjaG8gIiQoaG9zdG5hbWUpICQoY2F0IC92YXIvbGliL2Nsb3VkL2RhdGEvaW5zdGFuY2UtaWQpIiA+IC9ydW4vdXNlci1kYXRhLXJhbgo=";

/// Boots the guest, and returns its report: see `tests/clients/guest/report.py`.
fn first_boot(name: &str, http_tokens: &str, software: Software) -> Result<Value> {
    let host = VmHost::new(&host::program()?, |record| {
        record["MetadataOptions"]["HttpTokens"] = http_tokens.into();
        record["UserData"] = USER_DATA.into();
    })?;
    let (guest, _dhcp) = host.boot_debian(name, software, LIMIT)?;
    let console = guest.wait()?;
    let report = console
        .lines
        .iter()
        .find_map(|line| line.strip_prefix("report: "))
        .context("the guest reported nothing")?;
    Ok(serde_json::from_str(report)?)
}

/// What a first boot with the service must have come to, whichever way it was found.
fn assert_set_up(report: &Value) {
    let complaints = &report["complaints"];
    assert_eq!(report["hostname"], HOSTNAME, "{complaints:#}");
    assert_eq!(
        report["instance_id"].as_str().map(str::trim),
        Some(INSTANCE_ID),
        "{complaints:#}"
    );
    let keys = report["authorized_keys"].as_str().unwrap_or_default();
    assert_eq!(keys.trim(), KEY);
    assert_eq!(
        report["user_data_ran"],
        format!("{HOSTNAME} {INSTANCE_ID}\n"),
        "the user data is a script and has not run"
    );
    let data = &report["instance_data"];
    assert_eq!(data["region"], "eu-central-1");
    assert_eq!(data["availability_zone"], "eu-central-1a");
    // The interface is configured as the metadata says: by its MAC, and the lease has been taken.
    let netplan = report["netplan"].as_str().unwrap_or_default();
    let match_mac = format!("macaddress: {}", records::guest_mac(2));
    assert!(
        netplan.contains(&match_mac) && netplan.contains("dhcp4: true"),
        "{netplan}"
    );
    let addresses = report["addresses"].to_string();
    assert!(
        addresses.contains(&format!("\"local\":\"{ADDRESS}\"")),
        "{addresses}"
    );
    assert_eq!(report["result"]["v1"]["errors"], Value::Array(Vec::new()));
}

#[test]
fn smbios_says_ec2_and_cloud_init_sets_the_guest_up_with_tokens() -> Result<()> {
    let software = Software::Debian {
        smbios_uuid: Some("ec2f0000-1111-2222-3333-444455556666".to_owned()),
        operator_config: false,
    };
    let report = first_boot("cloud-init-ec2", "required", software)?;
    assert_set_up(&report);
    assert_eq!(report["instance_data"]["cloud_name"], "aws");
    assert_eq!(report["result"]["v1"]["datasource"], "DataSourceEc2Local");
    Ok(())
}

#[test]
fn smbios_says_nothing_and_cloud_init_sets_the_guest_up_where_its_operator_says() -> Result<()> {
    let software = Software::Debian {
        smbios_uuid: None,
        operator_config: true,
    };
    let report = first_boot("cloud-init-plain", "optional", software)?;
    assert_set_up(&report);
    assert_eq!(report["instance_data"]["cloud_name"], "unknown");
    assert_eq!(report["result"]["v1"]["datasource"], "DataSourceEc2");
    Ok(())
}
