//! Section 3 as data: every category with its first version, whether an instance may lack it, and its shape. This is
//! the contract's table and not the service's, so that a mistake of the one does not excuse the other.

use super::shapes::Shape::{self, *};
use crate::imdsctl::conformance::{
    finding::{Check, Finding, Judge, Mark, Outcome},
    subject::Subject,
};

/// One row of the contract's tables c.1 to c.3.
#[derive(Clone, Copy, Debug)]
pub(super) struct Category {
    /// Below the version; `*` stands for any part of a name.
    pub path: &'static str,
    /// The version that it is documented for; empty where nobody says.
    pub first: &'static str,
    presence: Presence,
    shape: Shape,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Presence {
    /// Every instance has it.
    Always,
    /// Some do.
    Some,
}

/// Each row: mark, path, first version, presence, shape.
macro_rules! categories {
    ($($mark:ident $path:literal $first:literal $presence:ident $shape:expr;)+) => {
        /// The rows, in the contract's order.
        pub(super) const CATEGORIES: &[Category] = &[$(
            Category { path: $path, first: $first, presence: Presence::$presence, shape: $shape }
        ),+];

        /// A check of every row. A function pointer carries no data, so each row has a function of its own.
        pub(super) fn checks() -> Vec<Check> {
            let checks = [$(
                Check::new(concat!("3/", $path), Mark::$mark, "", "crawl of /latest/, else GET", |subject| {
                    grade(subject, $path)
                })
            ),+];
            checks.into_iter().zip(CATEGORIES).map(|(check, category)| check.in_words(category.words())).collect()
        }
    };
}

const LIFECYCLE_STATES: &[&str] = &[
    "Detached",
    "InService",
    "Standby",
    "Terminated",
    "Warmed:Hibernated",
    "Warmed:Running",
    "Warmed:Stopped",
    "Warmed:Terminated",
];

const LIFE_CYCLES: &[&str] = &["on-demand", "spot", "scheduled", "capacity-block"];

/// And `NotAfter`, if an end is known: a retirement has none in the user guide's own example.
const EVENT_KEYS: &[&str] = &["NotBefore", "Code", "Description", "EventId", "State"];

/// What cloud-init and afterburn read of the document.
const DOCUMENT_KEYS: &[&str] = &["instanceId", "region", "availabilityZone"];

categories! {
    D "meta-data/ami-id" "1.0" Always Line;
    D "meta-data/ami-launch-index" "1.0" Always Number;
    D "meta-data/ami-manifest-path" "1.0" Always Line;
    D "meta-data/ancestor-ami-ids" "2007-10-10" Some Lines;
    D "meta-data/autoscaling/target-lifecycle-state" "2021-07-15" Some OneOf(LIFECYCLE_STATES);
    D "meta-data/block-device-mapping/ami" "2007-12-15" Some Line;
    D "meta-data/block-device-mapping/ebs*" "2007-12-15" Some Line;
    D "meta-data/block-device-mapping/ephemeral*" "2007-12-15" Some Line;
    D "meta-data/block-device-mapping/root" "2007-12-15" Some Line;
    D "meta-data/block-device-mapping/swap" "2007-12-15" Some Line;
    D "meta-data/elastic-gpus/associations/*" "2016-11-30" Some Object(&[]);
    D "meta-data/elastic-inference/associations/*" "2018-11-29" Some Object(&["version_2018_04_12"]);
    D "meta-data/events/maintenance/history" "2018-08-17" Some Array(EVENT_KEYS);
    D "meta-data/events/maintenance/scheduled" "2018-08-17" Some Array(EVENT_KEYS);
    D "meta-data/events/recommendations/rebalance" "2020-10-27" Some Object(&["noticeTime"]);
    D "meta-data/hostname" "1.0" Always Line;
    D "meta-data/iam/info" "2012-01-12" Some Object(&["Code", "LastUpdated"]);
    D "meta-data/iam/security-credentials/*" "2012-01-12" Some Object(&["Code", "LastUpdated"]);
    S "meta-data/iam/security-credentials-extended/*" "" Some Object(&["Code", "LastUpdated"]);
    D "meta-data/identity-credentials/ec2/info" "2018-05-23" Some Object(&["Code", "LastUpdated", "AccountId"]);
    D "meta-data/identity-credentials/ec2/security-credentials/ec2-instance" "2018-05-23" Some Object(&["Code", "LastUpdated"]);
    D "meta-data/instance-action" "2008-09-01" Some OneOf(&["none", "shutdown", "bundle-pending"]);
    D "meta-data/instance-id" "1.0" Always Line;
    D "meta-data/instance-life-cycle" "2019-10-01" Some OneOf(LIFE_CYCLES);
    D "meta-data/instance-type" "2007-08-29" Always Line;
    D "meta-data/ipv6" "2021-01-03" Some Ipv6;
    D "meta-data/kernel-id" "2008-02-01" Some Line;
    D "meta-data/local-hostname" "2007-01-19" Always Line;
    D "meta-data/local-ipv4" "1.0" Some Ipv4;
    D "meta-data/mac" "2011-01-01" Always Mac;
    S "meta-data/metrics/vhostmd" "2011-05-01" Some Xml;
    D "meta-data/network/interfaces/macs/*/device-number" "2011-01-01" Some Number;
    D "meta-data/network/interfaces/macs/*/interface-id" "2011-01-01" Some Line;
    D "meta-data/network/interfaces/macs/*/ipv4-associations/*" "2011-01-01" Some Each(&Ipv4);
    D "meta-data/network/interfaces/macs/*/ipv4-prefix" "" Some Each(&Cidr);
    D "meta-data/network/interfaces/macs/*/ipv6-prefix" "" Some Each(&Cidr);
    D "meta-data/network/interfaces/macs/*/ipv6s" "2016-06-30" Some Each(&Ipv6);
    D "meta-data/network/interfaces/macs/*/local-hostname" "2007-01-19" Some Line;
    D "meta-data/network/interfaces/macs/*/local-ipv4s" "2011-01-01" Some Each(&Ipv4);
    D "meta-data/network/interfaces/macs/*/mac" "2011-01-01" Always Mac;
    D "meta-data/network/interfaces/macs/*/network-card" "2020-11-01" Some Number;
    D "meta-data/network/interfaces/macs/*/network-card-index" "2020-11-01" Some Number;
    D "meta-data/network/interfaces/macs/*/owner-id" "2011-01-01" Some Line;
    D "meta-data/network/interfaces/macs/*/public-hostname" "2011-01-01" Some Line;
    D "meta-data/network/interfaces/macs/*/public-ipv4s" "2011-01-01" Some Each(&Ipv4);
    D "meta-data/network/interfaces/macs/*/security-group-ids" "2011-01-01" Some Lines;
    D "meta-data/network/interfaces/macs/*/security-groups" "2011-01-01" Some Lines;
    D "meta-data/network/interfaces/macs/*/subnet-id" "2011-01-01" Some Line;
    D "meta-data/network/interfaces/macs/*/subnet-ipv4-cidr-block" "2011-01-01" Some Cidr;
    D "meta-data/network/interfaces/macs/*/subnet-ipv6-cidr-blocks" "2016-06-30" Some Each(&Cidr);
    D "meta-data/network/interfaces/macs/*/vpc-id" "2011-01-01" Some Line;
    D "meta-data/network/interfaces/macs/*/vpc-ipv4-cidr-block" "2011-01-01" Some Cidr;
    D "meta-data/network/interfaces/macs/*/vpc-ipv4-cidr-blocks" "2016-06-30" Some Each(&Cidr);
    D "meta-data/network/interfaces/macs/*/vpc-ipv6-cidr-blocks" "2016-06-30" Some Each(&Cidr);
    D "meta-data/placement/availability-zone" "2008-02-01" Always Line;
    D "meta-data/placement/availability-zone-id" "2019-10-01" Some Line;
    D "meta-data/placement/group-name" "2020-08-24" Some Line;
    D "meta-data/placement/host-id" "2020-08-24" Some Line;
    D "meta-data/placement/partition-number" "2020-08-24" Some Number;
    D "meta-data/placement/region" "2020-08-24" Always Line;
    D "meta-data/product-codes" "2007-03-01" Some Lines;
    D "meta-data/public-hostname" "2007-01-19" Some Line;
    D "meta-data/public-ipv4" "2007-01-19" Some Ipv4;
    D "meta-data/public-keys/*/openssh-key" "1.0" Some Line;
    D "meta-data/ramdisk-id" "2007-10-10" Some Line;
    D "meta-data/reservation-id" "1.0" Always Line;
    D "meta-data/security-groups" "1.0" Always Lines;
    D "meta-data/services/domain" "2014-02-25" Some Line;
    D "meta-data/services/partition" "2015-10-20" Some Line;
    D "meta-data/spot/instance-action" "2016-11-15" Some Object(&["action"]);
    D "meta-data/spot/termination-time" "2014-11-05" Some Time;
    D "meta-data/system" "2022-09-24" Some OneOf(&["nitro", "xen-on-nitro"]);
    D "meta-data/tags/instance/*" "2021-03-23" Some Bytes;
    S "meta-data/hibernation/configured" "" Some OneOf(&["true", "false"]);
    S "meta-data/profile" "" Some Line;
    D "dynamic/fws/instance-monitoring" "2009-04-04" Some OneOf(&["enabled", "disabled"]);
    D "dynamic/instance-identity/document" "2009-04-04" Always Object(DOCUMENT_KEYS);
    D "dynamic/instance-identity/signature" "2009-04-04" Some Base64;
    D "dynamic/instance-identity/pkcs7" "2009-04-04" Some Base64;
    D "dynamic/instance-identity/rsa2048" "" Some Base64;
    D "dynamic/instance-identity/dsa2048" "" Some Base64;
    D "user-data" "1.0" Some Bytes;
}

impl Category {
    /// Whether it is at `path`.
    pub(super) fn matches(&self, path: &str) -> bool {
        let mut names = path.split('/');
        self.path
            .split('/')
            .all(|pattern| names.next().is_some_and(|name| fits(pattern, name)))
            && names.next().is_none()
    }

    fn words(&self) -> String {
        let shape = self.shape.words();
        let absence = if self.presence == Presence::Always {
            ""
        } else {
            ", where the instance has it"
        };
        match self.first {
            "" => format!("{shape}{absence}"),
            first => format!("{shape}, since {first}{absence}"),
        }
    }

    /// Whether it is somewhere below the directory `path`.
    pub(super) fn has_directory(&self, path: &str) -> bool {
        let mut patterns = self.path.split('/');
        path.split('/')
            .all(|name| patterns.next().is_some_and(|pattern| fits(pattern, name)))
            && patterns.next().is_some()
    }
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => {
            name.len() > start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
        None => pattern == name,
    }
}

fn grade(subject: &Subject, path: &str) -> Outcome {
    let Some(category) = CATEGORIES.iter().find(|category| category.path == path) else {
        return Ok(Finding::skip("no such category"));
    };
    let mut values: Vec<(String, String)> = Vec::new();
    let mut judge = Judge::default();
    if let Some(tree) = subject.crawl().latest() {
        let found = tree.leaves.iter().filter(|(found, _)| category.matches(found));
        values.extend(found.map(|(found, leaf)| (found.clone(), leaf.text.clone())));
    }
    if values.is_empty() && !path.contains('*') {
        let reply = subject.get_kept(&format!("/latest/{path}"))?;
        match reply.status {
            200 => values.push((path.to_owned(), reply.text())),
            404 => {}
            _ => judge.require(false, "200 or 404", reply.summary()),
        }
    }
    for (found, text) in &values {
        judge.require(
            category.shape.fits(text),
            format!("{found}: {}", category.shape.words()),
            format!("{found}: {} bytes that are not", text.len()),
        );
    }
    let count = values.len();
    if count == 0 && category.presence == Presence::Always {
        judge.require(false, "a value, as on every instance of EC2", "none");
    }
    judge.saw(format!("{count} of {}", category.shape.words()));
    match judge.finding() {
        Finding::Pass { .. } if count == 0 => Ok(Finding::skip("the instance has none")),
        finding => Ok(finding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn category(path: &str) -> &'static Category {
        CATEGORIES.iter().find(|category| category.path == path).unwrap()
    }

    #[test]
    fn paths_and_patterns() {
        let macs = category("meta-data/network/interfaces/macs/*/mac");
        assert!(macs.matches("meta-data/network/interfaces/macs/0e:49:61:0f:c3:11/mac"));
        assert!(!macs.matches("meta-data/network/interfaces/macs/0e:49:61:0f:c3:11"));
        assert!(macs.has_directory("meta-data/network/interfaces/macs/0e:49:61:0f:c3:11"));
        assert!(macs.has_directory("meta-data/network"));
        assert!(!macs.has_directory("meta-data/mac"));
        let ebs = category("meta-data/block-device-mapping/ebs*");
        assert!(ebs.matches("meta-data/block-device-mapping/ebs1"));
        assert!(!ebs.matches("meta-data/block-device-mapping/ebs"));
    }
}
