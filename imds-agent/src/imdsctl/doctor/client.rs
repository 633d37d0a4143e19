//! The software in guests that asks for metadata, as a table: each with what decides what it does.
//!
//! Read first: `docs/wire-contract.md`, section 4, "Real clients".

use super::{
    cloud_init::{self, Generation},
    facts::Facts,
};

/// One kind of software.
pub struct Client {
    /// As `--client` and `--json` call it.
    pub id: &'static str,
    /// Where what is said of it comes from.
    pub source: &'static str,
    forecast: fn(&Facts) -> Forecast,
}

/// All that are told of.
pub const CLIENTS: &[Client] = &[
    Client {
        id: "cloud-init",
        source: "cloud-init 25.1, DataSourceEc2.py and ds-identify",
        forecast: |facts| cloud_init::forecast(facts, Generation::Uuid),
    },
    Client {
        id: "cloud-init-22",
        source: "cloud-init 22.4, DataSourceEc2.py and ds-identify",
        forecast: |facts| cloud_init::forecast(facts, Generation::Both),
    },
    Client {
        id: "cloudbase-init",
        source: "docs/wire-contract.md, section 4: EC2Service",
        forecast: cloudbase_init,
    },
    Client {
        id: "afterburn",
        source: "docs/wire-contract.md, section 4: provider aws",
        forecast: afterburn,
    },
    Client {
        id: "systemd-imdsd",
        source: "docs/wire-contract.md, section 4: hwdb bvnAmazonEC2",
        forecast: systemd_imdsd,
    },
    Client {
        id: "facter",
        source: "facter 4, facts/linux/ec2_metadata.rb and util/resolvers/aws_token.rb",
        forecast: facter,
    },
];

/// What it will do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forecast {
    /// How it ends.
    pub outcome: Outcome,
    /// How it asks, if it does.
    pub version: Option<Version>,
    /// Why, in a sentence.
    pub why: String,
    /// What would change that.
    pub fix: Option<String>,
}

/// How something ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// It gets its metadata; or nothing is wrong.
    Works,
    /// It depends on what nobody told.
    Unknown,
    /// It works, and something should be known about it.
    Notice,
    /// It does not get its metadata.
    Blocked,
}

/// How metadata are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// Without session tokens.
    V1,
    /// With session tokens.
    V2,
}

impl Client {
    /// What it will do, as far as it and the record's options decide that.
    pub(super) fn forecast(&self, facts: &Facts) -> Forecast {
        (self.forecast)(facts)
    }
}

impl Forecast {
    pub(super) fn unknown(why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::with_fix(Outcome::Unknown, None, why, fix)
    }

    pub(super) fn blocked(version: Option<Version>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::with_fix(Outcome::Blocked, version, why, fix)
    }

    fn works(version: Version, why: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Works,
            version: Some(version),
            why: why.into(),
            fix: None,
        }
    }

    fn with_fix(
        outcome: Outcome,
        version: Option<Version>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            outcome,
            version,
            why: why.into(),
            fix: Some(fix.into()),
        }
    }
}

impl Outcome {
    /// For programs and people alike.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Unknown => "unknown",
            Self::Notice => "notice",
            Self::Blocked => "blocked",
        }
    }
}

impl Version {
    /// EC2's name for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "IMDSv1",
            Self::V2 => "IMDSv2",
        }
    }
}

/// The command that changes an option of the instance.
pub(super) fn modify(facts: &Facts, option: &str) -> String {
    let instance = facts.instance.as_deref().unwrap_or("INSTANCE");
    format!("imdsctl metadata-options modify {instance} {option}")
}

pub(super) fn endpoint_command(facts: &Facts) -> String {
    modify(facts, "--http-endpoint enabled")
}

pub(super) fn tokens_command(facts: &Facts) -> String {
    modify(facts, "--http-tokens optional")
}

fn cloudbase_init(facts: &Facts) -> Forecast {
    let version = Some(Version::V1);
    if !facts.options.http_endpoint {
        return Forecast::blocked(version, "the endpoint is disabled", endpoint_command(facts));
    }
    if facts.options.http_tokens_required {
        let why = "it knows no session tokens, and HttpTokens is required";
        return Forecast::blocked(version, why, tokens_command(facts));
    }
    Forecast::works(
        Version::V1,
        "it asks without a token, whatever SMBIOS says, if its metadata_services has EC2Service",
    )
}

fn afterburn(facts: &Facts) -> Forecast {
    const WANTED: &str = "ignition.platform.id=aws";
    if let Some(arguments) = &facts.machine.kernel_arguments
        && !arguments.split_whitespace().any(|argument| argument == WANTED)
    {
        let why = format!("the kernel's arguments have no {WANTED}, so it asks another cloud or none");
        return Forecast::blocked(None, why, format!("{WANTED} among the kernel's arguments"));
    }
    if !facts.options.http_endpoint {
        return Forecast::blocked(
            Some(Version::V2),
            "the endpoint is disabled",
            endpoint_command(facts),
        );
    }
    let why = format!("it uses a session token, or none where it gets none; {WANTED} decides, not SMBIOS");
    if facts.machine.kernel_arguments.is_some() {
        return Forecast::works(Version::V2, why);
    }
    Forecast {
        version: Some(Version::V2),
        ..Forecast::unknown(
            format!("{why}, and nobody said what the kernel's arguments are"),
            format!("an image for AWS, or {WANTED} among the kernel's arguments (--kernel-arguments)"),
        )
    }
}

fn systemd_imdsd(facts: &Facts) -> Forecast {
    let Some(smbios) = &facts.machine.smbios else {
        return Forecast::unknown(
            "nobody said what the guest sees in SMBIOS, which decides it",
            "imdsctl doctor with --domain, --xml or --smbios",
        );
    };
    // udev's modalias has the vendor without blanks: bvnAmazonEC2.
    if smbios.bios_vendor.replace(' ', "") != "AmazonEC2" {
        return Forecast::blocked(
            None,
            "the BIOS vendor in SMBIOS is not \"Amazon EC2\", so it does not look for the service",
            "-smbios type=0,vendor=\"Amazon EC2\"",
        );
    }
    if !facts.options.http_endpoint {
        return Forecast::blocked(
            Some(Version::V2),
            "the endpoint is disabled",
            endpoint_command(facts),
        );
    }
    Forecast::works(
        Version::V2,
        "the BIOS vendor in SMBIOS is Amazon EC2: it uses session tokens",
    )
}

fn facter(facts: &Facts) -> Forecast {
    if !facts.options.http_endpoint {
        return Forecast::blocked(
            Some(Version::V2),
            "the endpoint is disabled",
            endpoint_command(facts),
        );
    }
    let is_told = facts.machine.smbios.as_ref().is_some_and(|smbios| {
        let is_product = ["KVM", "HVM domU"]
            .iter()
            .any(|name| smbios.product.contains(name));
        is_product || smbios.bios_vendor.contains("Amazon EC2")
    });
    if is_told {
        let why = "SMBIOS says KVM, Xen or EC2: it uses a session token, or none where it gets none";
        return Forecast::works(Version::V2, why);
    }
    Forecast {
        version: Some(Version::V2),
        ..Forecast::unknown(
            "SMBIOS does not say KVM, Xen or EC2, so it asks if virt-what or lspci in the guest sees KVM or virtio",
            "pciutils in the image, or -smbios type=0,vendor=\"Amazon EC2\"",
        )
    }
}
