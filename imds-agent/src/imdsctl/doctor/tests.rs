use serde_json::json;

use super::*;

const EC2: &str = "ec2f0000-1111-2222-3333-444455556666";

/// Facts of an instance that is well, in a machine that says EC2.
fn well() -> Facts {
    let record = json!({
        "InstanceId": "i-1",
        "NetworkInterfaces": [{ "MacAddress": "06:00:00:00:00:01", "Tap": "tap1" }],
        "PublicKeys": [{ "KeyName": "k", "PublicKeyMaterial": "ssh-ed25519 A" }],
        "PrivateDnsName": "web",
    });
    let options = json!({ "InstanceMetadataOptions": {
        "State": "applied", "HttpTokens": "required", "HttpPutResponseHopLimit": 2,
        "HttpEndpoint": "enabled", "HttpProtocolIpv6": "disabled",
    } });
    let observed = json!({
        "Taps": [{ "Tap": "tap1", "Punted": 9, "Hairpinned": 1, "Dropped": {} }],
        "HasUserData": true,
    });
    let status = json!({
        "problems": [],
        "taps": [{ "name": "tap1", "macAddress": "06:00:00:00:00:01", "instanceId": "i-1" }],
    });
    let answers = Answers {
        record,
        options,
        observed,
        tokenless: json!({ "MetadataNoToken": 0, "MetadataNoTokenRejected": 0, "Callers": [], "Unlisted": 0 }),
        hop_limit: json!({ "TimeExceeded": 0, "Unacknowledged": 0, "Last": null }),
        status,
    };
    let machine = Machine::of_domain(&domain(EC2, "06:00:00:00:00:01")).unwrap();
    Facts::read("i-1", &answers, machine, Image::default())
}

fn domain(serial: &str, mac: &str) -> String {
    format!(
        "<domain><uuid>{EC2}</uuid><os><smbios mode='sysinfo'/><kernel>/k</kernel>\
         <cmdline>quiet ignition.platform.id=aws</cmdline></os>\
         <sysinfo type='smbios'><bios><entry name='vendor'>Amazon EC2</entry></bios>\
         <system><entry name='serial'>{serial}</entry></system></sysinfo>\
         <devices><interface type='bridge'><mac address='{mac}'/><target dev='tap1'/></interface></devices></domain>"
    )
}

/// `id outcome` of everything that is more than well.
fn told(facts: &Facts) -> Vec<String> {
    let findings = diagnose(facts);
    let told = findings
        .iter()
        .filter(|finding| finding.outcome != Outcome::Works);
    told.map(|finding| format!("{} {}", finding.id, finding.outcome.as_str()))
        .collect()
}

fn with(change: impl FnOnce(&mut Facts)) -> Facts {
    let mut facts = well();
    change(&mut facts);
    facts
}

const SERVICE_DOWN: [&str; 7] = [
    "endpoint blocked",
    "cloud-init blocked",
    "cloud-init-22 blocked",
    "cloudbase-init blocked",
    "afterburn blocked",
    "systemd-imdsd blocked",
    "facter blocked",
];

#[test]
fn software_that_knows_no_tokens_is_all_that_a_good_instance_keeps_out() {
    assert_eq!(told(&well()), ["cloudbase-init blocked"]);
    assert!(told(&with(|facts| facts.options.http_tokens_required = false)).is_empty());
}

/// Something that goes wrong.
type Change = Box<dyn FnOnce(&mut Facts)>;

#[test]
fn each_thing_that_is_wrong_is_told() {
    let drops = |reason: &str| {
        let reason = reason.to_owned();
        move |facts: &mut Facts| {
            facts.dropped.insert(reason, 3);
        }
    };
    let role = |state: &str| facts::Role {
        arn: "arn:aws:iam::1:role/web".to_owned(),
        state: state.to_owned(),
        why: "AssumeRoleUnauthorizedAccess no".to_owned(),
    };
    let cases: Vec<(&str, Change)> = vec![
        ("not-in-force blocked", Box::new(|facts| facts.is_applied = false)),
        ("binding blocked", Box::new(|facts| facts.interfaces.clear())),
        (
            "binding blocked",
            Box::new(|facts| facts.interfaces[0].is_bound = false),
        ),
        (
            "mac blocked",
            Box::new(|facts| facts.interfaces[0].mac = "06:00:00:00:00:02".to_owned()),
        ),
        ("frames blocked", Box::new(drops("source-mac-forged"))),
        ("frames blocked", Box::new(drops("rate-limited"))),
        ("frames notice", Box::new(drops("ipv6-disabled"))),
        ("frames notice", Box::new(drops("not-tcp"))),
        ("tokenless notice", Box::new(|facts| facts.tokenless.rejected = 3)),
        ("hop-limit notice", Box::new(|facts| facts.options.hop_limit = 1)),
        (
            "hop-limit blocked",
            Box::new(|facts| {
                facts.undelivered.time_exceeded = 1;
                facts.undelivered.last = Some(("172.17.0.2".to_owned(), 2));
            }),
        ),
        (
            "role blocked",
            Box::new(|facts| facts.instance_profile = Some("arn:aws:iam::1:instance-profile/p".to_owned())),
        ),
        (
            "public-keys notice",
            Box::new(|facts| facts.found.public_keys = false),
        ),
    ];
    for (expected, change) in cases {
        assert_eq!(told(&with(change)), [expected, "cloudbase-init blocked"]);
    }
    for (state, expected) in [("refused", true), ("pending", true), ("ready", false)] {
        let facts = with(|facts| {
            facts.instance_profile = Some("arn:aws:iam::1:instance-profile/p".to_owned());
            facts.role = Some(role(state));
        });
        assert_eq!(
            told(&facts).contains(&"role blocked".to_owned()),
            expected,
            "{state}"
        );
    }
    assert_eq!(
        told(&with(|facts| facts.options.http_endpoint = false)),
        SERVICE_DOWN
    );
    assert_eq!(told(&with(|facts| facts.instance = None)), ["record blocked"]);
}

#[test]
fn a_hop_limit_that_was_raised_since_is_no_matter() {
    let facts = with(|facts| {
        facts.undelivered.time_exceeded = 1;
        facts.undelivered.last = Some(("172.17.0.2".to_owned(), 1));
    });
    assert_eq!(told(&facts), ["cloudbase-init blocked"]);
}

#[test]
fn a_second_interface_that_is_dark_does_not_keep_software_from_the_first() {
    let second = facts::Interface {
        mac: "06:00:00:00:00:02".to_owned(),
        tap: Some("tap2".to_owned()),
        ..Default::default()
    };
    let facts = with(|facts| {
        facts.interfaces.push(second);
        facts.machine.interfaces = None;
    });
    assert_eq!(told(&facts), ["binding notice", "cloudbase-init blocked"]);
}

#[test]
fn what_nobody_told_is_unknown() {
    let facts = with(|facts| facts.machine = Machine::default());
    let unknown = [
        "cloud-init",
        "cloud-init-22",
        "afterburn",
        "systemd-imdsd",
        "facter",
    ];
    for client in unknown {
        assert!(told(&facts).contains(&format!("{client} unknown")), "{client}");
    }
}

#[test]
fn facter_asks_where_it_takes_the_machine_for_kvms() {
    let of = |pairs: &str| {
        let smbios = Smbios::parse(pairs).unwrap();
        told(&with(|facts| facts.machine.smbios = Some(smbios)))
    };
    let unknown = "facter unknown".to_owned();
    assert!(of("product=Standard PC").contains(&unknown));
    for pairs in ["product=KVM", "product=HVM domU", "bios-vendor=Amazon EC2"] {
        assert!(!of(pairs).contains(&unknown), "{pairs}");
    }
}

#[test]
fn a_domain_tells_what_its_guest_sees() {
    let machine = Machine::of_domain(&domain("S1", "06:AA:00:00:00:01")).unwrap();
    let smbios = machine.smbios.unwrap();
    assert_eq!((smbios.uuid.as_str(), smbios.serial.as_str()), (EC2, "S1"));
    assert_eq!(smbios.bios_vendor, "Amazon EC2");
    let interfaces = machine.interfaces.unwrap();
    assert_eq!(interfaces[0].mac, "06:aa:00:00:00:01");
    assert_eq!(interfaces[0].tap.as_deref(), Some("tap1"));
    // Without the mode nothing but the UUID gets to the guest.
    let hidden = domain("S1", "06:aa:00:00:00:01").replace("<smbios mode='sysinfo'/>", "");
    assert_eq!(Machine::of_domain(&hidden).unwrap().smbios.unwrap().serial, "");
    let hosts = domain("S1", "06:aa:00:00:00:01").replace("'sysinfo'/>", "'host'/>");
    assert!(Machine::of_domain(&hosts).is_err());
    let windows = "<domain><uuid>1</uuid><metadata><l:libosinfo xmlns:l='http://libosinfo.org/xmlns/libvirt/domain/1.0'>\
                   <l:os id='http://microsoft.com/win/2k22'/></l:libosinfo></metadata></domain>";
    assert!(Machine::of_domain(windows).unwrap().is_windows);
}

#[test]
fn pairs_are_qemus_words() {
    let smbios = Smbios::parse("uuid=a,serial=b,bios-vendor=Amazon EC2").unwrap();
    assert_eq!((smbios.uuid.as_str(), smbios.serial.as_str()), ("a", "b"));
    assert!(Smbios::parse("uuid").is_err());
    assert!(Smbios::parse("version=1").is_err());
}

#[test]
fn a_blocked_row_says_what_helps() {
    for finding in diagnose(&with(|facts| facts.options.http_endpoint = false)) {
        let helps = finding
            .fix
            .is_some_and(|fix| fix.contains("--http-endpoint enabled"));
        assert!(helps, "{}", finding.id);
    }
    let facts = well();
    let findings = diagnose(&facts);
    let lines = as_text(&facts, &findings, &LINUX, false);
    assert_eq!(lines[0], "i-1: nothing is in the way");
    let cloudbase = lines.iter().find(|line| line.starts_with("cloudbase-init"));
    assert!(cloudbase.unwrap().contains("blocked (not counted)"));
    let fix = "fix: imdsctl metadata-options modify i-1 --http-tokens optional";
    assert!(lines.iter().any(|line| line.contains(fix)));
}

/// The names of [`rules`] are those that the classifier counts by.
#[test]
fn every_reason_that_is_explained_is_the_classifiers() {
    let reasons = imds_ebpf::abi::Reason::ALL.map(imds_ebpf::abi::Reason::name);
    for reason in rules::explained() {
        assert!(reasons.contains(&reason), "{reason}");
    }
}
