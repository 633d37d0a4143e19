//! cloud-init of a stock Debian: its search, and its EC2 datasource alone.

use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    debian::{self, Release},
    kernel_guest::KernelGuest,
    netns::Namespace,
};

/// Where the datasource looks, besides a host's name.
pub const IPV4_URL: &str = "http://169.254.169.254";
/// The same over IPv6.
pub const IPV6_URL: &str = "http://[fd00:ec2::254]";

/// What SMBIOS says, as far as either of them looks at it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Smbios<'a> {
    /// `product_uuid`
    pub uuid: &'a str,
    /// `product_serial`
    pub serial: &'a str,
    /// `sys_vendor`
    pub manufacturer: &'a str,
    /// `product_name`
    pub product: &'a str,
    /// `chassis_asset_tag`
    pub asset: &'a str,
}

/// One crawl of everything, on a `platform` that it is told or, if that is a JSON object, that it finds out from SMBIOS.
///
/// `settings` are added to the datasource's own; `version` is the only version of the metadata that it may ask for.
pub fn crawl(
    guest: &KernelGuest,
    release: Release,
    platform: &str,
    settings: &Value,
    version: Option<&str>,
) -> Result<Value> {
    // Patience costs nothing where all is well, and ends a test where it is not.
    let mut all = json!({ "metadata_urls": [IPV4_URL, IPV6_URL], "max_wait": 4, "timeout": 5 });
    for (name, value) in settings.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    let Output {
        status,
        stdout,
        stderr,
    } = debian::command(release, &guest.namespace, "python3")?
        .args(["-c", include_str!("../clients/cloud_init.py"), platform])
        .arg(all.to_string())
        .args(version)
        .output()
        .context("cannot run cloud-init")?;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "cloud-init ended with {status}: {stderr}");
    Ok(serde_json::from_slice(&stdout)?)
}

/// What the search decides before a boot gets to the datasource, with what the operator has configured.
pub fn search(release: Release, smbios: Smbios<'_>, operator_config: &str) -> Result<String> {
    let machine = [smbios.manufacturer, smbios.product, smbios.asset];
    let output = debian::command(release, &Namespace::new()?, "sh")?
        .args(["-c", include_str!("../clients/ds_identify.sh"), "sh"])
        .args([smbios.uuid, smbios.serial, operator_config])
        .args(machine)
        .output()
        .context("cannot run ds-identify")?;
    Ok(String::from_utf8(output.stdout)?)
}
