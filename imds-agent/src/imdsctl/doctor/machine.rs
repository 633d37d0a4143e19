//! The machine that the guest's software finds itself in: SMBIOS, network interfaces, kernel arguments.
//!
//! Read first: libvirt.org/formatdomain.html, "SMBIOS System Information" and "Direct kernel boot".

use anyhow::{Context as _, Result, bail, ensure};
use roxmltree::{Document, Node};

use crate::sources::libvirt::{child, content, interfaces};

/// What is known of a machine.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Machine {
    /// What SMBIOS says, if anybody told.
    pub smbios: Option<Smbios>,
    /// Its network interfaces, if anybody told.
    pub interfaces: Option<Vec<Interface>>,
    /// The kernel's arguments, if the hypervisor starts the kernel itself.
    pub kernel_arguments: Option<String>,
    /// Whether it is described as one for Windows.
    pub is_windows: bool,
}

/// What the firmware tells of the machine. What is not set is whatever the hypervisor fills in.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Smbios {
    /// `product_uuid` in Linux.
    pub uuid: String,
    /// `product_serial`
    pub serial: String,
    /// `sys_vendor`
    pub manufacturer: String,
    /// `product_name`
    pub product: String,
    /// `chassis_asset_tag`
    pub asset: String,
    /// `bios_vendor`
    pub bios_vendor: String,
}

/// One of the machine's network interfaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// In lower case.
    pub mac: String,
    /// The tap, if it runs.
    pub tap: Option<String>,
}

impl Smbios {
    /// From `uuid=...,serial=...`, the words of QEMU's `-smbios type=1`, with `asset` of type 3 and `bios-vendor` of type 0.
    pub fn parse(text: &str) -> Result<Self> {
        let mut smbios = Self::default();
        for pair in text.split(',') {
            let (name, value) = pair
                .split_once('=')
                .with_context(|| format!("{pair:?} is no NAME=VALUE"))?;
            let field = smbios.field(name).with_context(|| {
                format!("{name:?} is none of uuid, serial, manufacturer, product, asset, bios-vendor")
            })?;
            value.clone_into(field);
        }
        Ok(smbios)
    }

    fn field(&mut self, name: &str) -> Option<&mut String> {
        Some(match name {
            "uuid" => &mut self.uuid,
            "serial" => &mut self.serial,
            "manufacturer" => &mut self.manufacturer,
            "product" => &mut self.product,
            "asset" => &mut self.asset,
            "bios-vendor" => &mut self.bios_vendor,
            _ => return None,
        })
    }
}

impl Machine {
    /// From libvirt's description of a domain.
    pub fn of_domain(xml: &str) -> Result<Self> {
        let document = Document::parse(xml).context("the domain is no well-formed XML")?;
        let domain = document.root_element();
        ensure!(domain.has_tag_name("domain"), "this is no <domain>");
        let os = child(domain, "os");
        let arguments = os.and_then(|os| child(os, "cmdline")).map(content);
        let has_own_kernel = os.is_some_and(|os| child(os, "kernel").is_some());
        Ok(Self {
            smbios: Some(smbios_of(domain, os)?),
            interfaces: Some(interfaces_of(domain)),
            kernel_arguments: arguments.or_else(|| has_own_kernel.then(String::new)),
            is_windows: domain.descendants().any(|node| {
                // libosinfo's mark, which virt-install leaves.
                node.tag_name().name() == "os"
                    && node
                        .attribute("id")
                        .is_some_and(|id| id.contains("microsoft.com/"))
            }),
        })
    }
}

/// libvirt hands the domain's UUID to the firmware in any case, and the rest only if it is told to.
fn smbios_of(domain: Node<'_, '_>, os: Option<Node<'_, '_>>) -> Result<Smbios> {
    let uuid = child(domain, "uuid").map(content).unwrap_or_default();
    let mut smbios = Smbios {
        uuid,
        ..Smbios::default()
    };
    let mode = os
        .and_then(|os| child(os, "smbios"))
        .and_then(|node| node.attribute("mode"));
    match mode {
        Some("sysinfo") => {}
        Some("host") => bail!("the domain shows the host's own SMBIOS: say with --smbios what that is"),
        _ => return Ok(smbios),
    }
    let sysinfo = domain
        .children()
        .find(|node| node.has_tag_name("sysinfo") && node.attribute("type") == Some("smbios"));
    for part in sysinfo.into_iter().flat_map(|sysinfo| sysinfo.children()) {
        for entry in part.children().filter(|node| node.has_tag_name("entry")) {
            let name = entry.attribute("name").unwrap_or_default();
            let name = match (part.tag_name().name(), name) {
                ("system", "uuid" | "serial" | "manufacturer" | "product") | ("chassis", "asset") => name,
                ("bios", "vendor") => "bios-vendor",
                _ => continue,
            };
            if let Some(field) = smbios.field(name) {
                *field = content(entry);
            }
        }
    }
    Ok(smbios)
}

fn interfaces_of(domain: Node<'_, '_>) -> Vec<Interface> {
    let interfaces = interfaces(domain).map(|(mac, tap)| Interface {
        mac: mac.to_ascii_lowercase(),
        tap: tap.map(str::to_owned),
    });
    interfaces.collect()
}
