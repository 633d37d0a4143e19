//! What cloud-init will do, from what SMBIOS says.
//!
//! Read first: cloud-init's `tools/ds-identify` (the search, before anything else of it runs) and
//! `cloudinit/sources/DataSourceEc2.py`, of 22.4 and 25.1. `tests/tests/doctor.rs` holds this file against both.

use super::{
    client::{Forecast, Outcome, Version, endpoint_command, tokens_command},
    facts::Facts,
    machine::Smbios,
};

/// Which of the two ways of telling EC2 a cloud-init has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Generation {
    /// As 22.4 in Debian 12: UUID and serial number have to be equal and begin with `ec2`.
    Both,
    /// As 25.1 in Debian 13: the UUID has to, in either byte order.
    Uuid,
}

/// Which part of cloud-init looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// `ds-identify`, which minds the case of vendors' names.
    Search,
    /// The datasource, which does not.
    Datasource,
}

/// The clouds that both know to be like EC2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Platform {
    Aws,
    Alike(&'static str),
    Unknown,
}

/// How a cloud is told by SMBIOS.
enum Mark {
    SerialEnds(&'static str),
    AssetEnds(&'static str),
    Manufacturer(&'static str),
    ManufacturerAndProduct(&'static str, &'static str),
}

/// `ec2_identify_platform` and `identify_platform`, but for EC2 itself.
const ALIKE: &[(&str, Mark)] = &[
    ("Brightbox", Mark::SerialEnds(".brightbox.com")),
    ("ZStack", Mark::AssetEnds(".zstack.io")),
    ("e24cloud", Mark::Manufacturer("e24cloud")),
    (
        "Outscale",
        Mark::ManufacturerAndProduct("3DS Outscale", "3DS Outscale VM"),
    ),
];

/// The one among them that is asked before the network is up, as EC2 is.
const ASKED_EARLY: Platform = Platform::Alike("Outscale");

/// What a cloud-init will do.
pub(super) fn forecast(facts: &Facts, generation: Generation) -> Forecast {
    let Some(smbios) = &facts.machine.smbios else {
        return Forecast::unknown(
            "nobody said what the guest sees in SMBIOS, which decides it",
            "imdsctl doctor with --domain, --xml or --smbios",
        );
    };
    let search = platform(smbios, generation, Part::Search);
    if search == Platform::Unknown && !facts.image.names_ec2 {
        return not_found(smbios, generation);
    }
    let platform = platform(smbios, generation, Part::Datasource);
    if platform == Platform::Unknown && facts.image.is_strict {
        return Forecast::blocked(
            None,
            "SMBIOS does not say EC2, and the image's strict_id keeps the datasource from asking all the same",
            "strict_id: false in the image, or the UUID and serial number of an EC2 instance",
        );
    }
    let seconds = match generation {
        Generation::Both => 120,
        Generation::Uuid => 240,
    };
    if platform == Platform::Aws {
        return on_ec2(facts);
    }
    elsewhere(facts, smbios, platform, seconds)
}

fn not_found(smbios: &Smbios, generation: Generation) -> Forecast {
    let why = if ec2_uuid(&smbios.uuid) == Some(ByteOrder::Big) && generation == Generation::Both {
        "the UUID begins with ec2, but its serial number is not the same: its search (ds-identify) finds nothing and \
         disables cloud-init, which then asks for nothing"
    } else if ec2_uuid(&smbios.uuid).is_some() {
        "the UUID begins with ec2 only in the other byte order: its search (ds-identify) finds nothing and disables \
         cloud-init, which then asks for nothing"
    } else {
        "SMBIOS does not say EC2: its search (ds-identify) finds nothing and disables cloud-init, which then asks for \
         nothing, unless the image names the source (--image-names-ec2)"
    };
    Forecast::blocked(None, why, smbios_fix(smbios))
}

fn on_ec2(facts: &Facts) -> Forecast {
    let version = Some(Version::V2);
    if !facts.options.http_endpoint {
        let why = "SMBIOS says EC2: it asks for a session token, is told that the endpoint is disabled, and gives up at once";
        return Forecast::blocked(version, why, endpoint_command(facts));
    }
    let why = "SMBIOS says EC2: it uses session tokens and nothing else, before the network is up, with an address of \
               its own from DHCP";
    Forecast {
        outcome: Outcome::Works,
        version,
        why: format!("{why}{}", first_boot(facts)),
        fix: None,
    }
}

/// Tokens are for EC2 alone; whatever else it finds it asks without.
fn elsewhere(facts: &Facts, smbios: &Smbios, platform: Platform, seconds: u32) -> Forecast {
    let version = Some(Version::V1);
    let (who, when) = match platform {
        Platform::Alike(name) if platform == ASKED_EARLY => {
            (format!("SMBIOS says {name}"), "before the network is up")
        }
        Platform::Alike(name) => (format!("SMBIOS says {name}"), "after the network is up"),
        Platform::Aws | Platform::Unknown => (
            "SMBIOS does not say EC2, but the image names the source".to_owned(),
            "after the network is up",
        ),
    };
    if !facts.options.http_endpoint {
        let why = format!(
            "{who}: the disabled endpoint refuses it, and it tries again for {seconds} seconds before it gives up"
        );
        return Forecast::blocked(version, why, endpoint_command(facts));
    }
    if facts.options.http_tokens_required {
        let why = format!(
            "{who}: it asks without a token, is refused because HttpTokens is required, and tries again for {seconds} \
             seconds before it gives up"
        );
        let fix = format!("{}; or {}", smbios_fix(smbios), tokens_command(facts));
        return Forecast::blocked(version, why, fix);
    }
    Forecast {
        outcome: Outcome::Works,
        version,
        why: format!("{who}: it asks without a token, {when}{}", first_boot(facts)),
        fix: None,
    }
}

/// Where it finds what a first boot is about.
fn first_boot(facts: &Facts) -> String {
    let found = facts.found;
    let user_data = if found.user_data {
        "user data at /2021-03-23/user-data"
    } else {
        "no user data (the record has none)"
    };
    let hostname = if found.hostname {
        "host name at meta-data/local-hostname"
    } else {
        "no host name (the record has none)"
    };
    let keys = if found.public_keys {
        "keys at meta-data/public-keys/"
    } else {
        "no public keys (the record has none)"
    };
    format!("; it finds {user_data}, {hostname}, {keys}")
}

fn platform(smbios: &Smbios, generation: Generation, part: Part) -> Platform {
    let is = |text: &str, known: &str| match part {
        Part::Search => text == known,
        Part::Datasource => text.eq_ignore_ascii_case(known),
    };
    let ends = |text: &str, known: &str| {
        let tail = text.len().checked_sub(known.len()).and_then(|at| text.get(at..));
        tail.is_some_and(|tail| is(tail, known))
    };
    let is_marked = |mark: &Mark| match mark {
        Mark::SerialEnds(tail) => ends(&smbios.serial, tail),
        Mark::AssetEnds(tail) => ends(&smbios.asset, tail),
        Mark::Manufacturer(name) => is(&smbios.manufacturer, name),
        Mark::ManufacturerAndProduct(name, product) => {
            is(&smbios.manufacturer, name) && is(&smbios.product, product)
        }
    };
    let alike = ALIKE.iter().find(|(_, mark)| is_marked(mark));
    let alike = alike.map(|(name, _)| Platform::Alike(name));
    let ec2 = says_ec2(smbios, generation).then_some(Platform::Aws);
    let known = match part {
        Part::Search => alike.or(ec2),
        Part::Datasource => ec2.or(alike),
    };
    known.unwrap_or(Platform::Unknown)
}

fn says_ec2(smbios: &Smbios, generation: Generation) -> bool {
    let order = ec2_uuid(&smbios.uuid);
    match generation {
        Generation::Both => order == Some(ByteOrder::Big) && smbios.uuid.eq_ignore_ascii_case(&smbios.serial),
        Generation::Uuid => order.is_some(),
    }
}

/// In which order of its first bytes a UUID begins with `ec2`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ByteOrder {
    Big,
    Little,
}

fn ec2_uuid(uuid: &str) -> Option<ByteOrder> {
    let uuid = uuid.to_ascii_lowercase();
    if uuid.starts_with("ec2") {
        return Some(ByteOrder::Big);
    }
    // 45e12aec-... is ec2ae145-... to those who read SMBIOS before 2.6.
    let last = uuid.split('-').next()?.get(4..8)?;
    (last.starts_with('2') && last.ends_with("ec")).then_some(ByteOrder::Little)
}

/// A UUID that says EC2, as near to the machine's own as can be.
fn smbios_fix(smbios: &Smbios) -> String {
    let own = smbios.uuid.to_ascii_lowercase();
    let rest = own
        .get(3..)
        .filter(|rest| rest.len() == 33)
        .unwrap_or("f0000-1111-2222-3333-444455556666");
    format!(
        "-smbios type=1,uuid=ec2{rest},serial=ec2{rest} (with libvirt <sysinfo> and <smbios mode=\"sysinfo\"/>, see docs/cloud-init.md)"
    )
}
