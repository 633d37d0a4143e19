//! `imdsctl doctor` foretells what cloud-init does: its predictions against cloud-init's own search and datasource, of both
//! releases, on the same guests.

use std::{collections::BTreeMap, io::Write as _, net::UdpSocket, process::Stdio, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    client::wait_for,
    cloud_init::{self, Smbios},
    control::{imdsctl, run},
    debian::Release,
    host::{ADDRESS, Host, INSTANCE_ID},
    kernel_guest::KernelGuest,
    records,
};
use serde_json::{Value, json};

/// The releases, and what doctor calls their cloud-init.
const RELEASES: [(Release, &str); 2] = [
    (Release::Trixie, "cloud-init"),
    (Release::Bookworm, "cloud-init-22"),
];

const EC2: &str = "ec2f0000-1111-2222-3333-444455556666";
/// The same to those who read its first bytes the other way round.
const EC2_SWAPPED: &str = "45e12aec-dcd1-b213-94ed-012345abcdef";
const OTHER: &str = "9f1c1d2e-1111-2222-3333-444455556666";

/// What machines say of themselves.
fn machines() -> BTreeMap<&'static str, Smbios<'static>> {
    let of = |uuid, serial| Smbios {
        uuid,
        serial,
        ..Smbios::default()
    };
    BTreeMap::from([
        ("ec2", of(EC2, EC2)),
        ("ec2-capitals", of("EC2F0000-1111-2222-3333-444455556666", EC2)),
        ("ec2-no-serial", of(EC2, "")),
        ("ec2-other-serial", of(EC2, OTHER)),
        ("ec2-swapped", of(EC2_SWAPPED, EC2_SWAPPED)),
        ("other", of(OTHER, "")),
        ("brightbox", of(OTHER, "srv-12345.gb1.brightbox.com")),
        (
            "zstack",
            Smbios {
                asset: "abc.zstack.io",
                ..of(OTHER, "")
            },
        ),
        (
            "e24cloud",
            Smbios {
                manufacturer: "e24cloud",
                ..of(OTHER, "")
            },
        ),
        (
            "outscale",
            Smbios {
                manufacturer: "3DS Outscale",
                product: "3DS Outscale VM",
                ..of(OTHER, "")
            },
        ),
        (
            "outscale-capitals",
            Smbios {
                manufacturer: "3DS OUTSCALE",
                product: "3DS Outscale VM",
                ..of(OTHER, "")
            },
        ),
    ])
}

/// Metadata options, and the machines that are tried with them: a name alone, or with what the image says.
const TRIALS: &[(&str, &str)] = &[
    (
        "--http-tokens optional --http-endpoint enabled --http-put-response-hop-limit 1",
        "ec2 ec2-capitals ec2-no-serial ec2-other-serial ec2-swapped other brightbox zstack e24cloud outscale \
         outscale-capitals other+named ec2-no-serial+named other+strict ec2+strict brightbox+strict",
    ),
    (
        "--http-tokens required --http-endpoint enabled --http-put-response-hop-limit 1",
        "ec2 ec2-no-serial ec2-swapped other brightbox outscale other+named ec2-no-serial+named",
    ),
    (
        "--http-tokens required --http-endpoint enabled --http-put-response-hop-limit 2",
        "ec2 other+named",
    ),
    (
        "--http-tokens optional --http-endpoint disabled --http-put-response-hop-limit 2",
        "ec2 ec2-swapped other other+named zstack",
    ),
];

/// Whether it got the metadata, and how it asked.
type Seen = (bool, Option<String>);

#[test]
fn cloud_init_does_as_doctor_says() -> Result<()> {
    let (host, guest) = Host::with_guest(|_| ())?;
    let machines = machines();
    let mut wrong = Vec::new();
    for (options, names) in TRIALS {
        let modify = format!("metadata-options modify {INSTANCE_ID} {options}");
        run(imdsctl(&host.files)?.args(modify.split_whitespace()))?;
        for name in names.split_whitespace() {
            let (machine, image) = name.split_once('+').unwrap_or((name, ""));
            let smbios = machines[machine];
            let diagnosis = doctor(&host, smbios, image)?;
            for (release, client) in RELEASES {
                let predicted = predicted(&diagnosis, client)?;
                let observed = observed(&guest, release, smbios, image)?;
                if predicted != observed {
                    wrong.push(format!(
                        "{client}, {name}, {options}: {predicted:?} was predicted, {observed:?} is so"
                    ));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// What doctor prints, whose exit code agrees with it.
fn doctor(host: &Host, smbios: Smbios<'_>, image: &str) -> Result<Value> {
    let Smbios {
        uuid,
        serial,
        manufacturer,
        product,
        asset,
    } = smbios;
    let told =
        format!("uuid={uuid},serial={serial},manufacturer={manufacturer},product={product},asset={asset}");
    let mut command = imdsctl(&host.files)?;
    command.args(["--json", "doctor", INSTANCE_ID, "--smbios", &told]);
    if !image.is_empty() {
        command.arg("--image-names-ec2");
    }
    if image == "strict" {
        command.arg("--strict-id");
    }
    let output = command.output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let diagnosis: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("doctor printed no JSON: {errors}"))?;
    let code = if diagnosis["blocked"] == true { 3 } else { 0 };
    ensure!(output.status.code() == Some(code), "{diagnosis:#}");
    Ok(diagnosis)
}

fn predicted(diagnosis: &Value, client: &str) -> Result<Seen> {
    let mut clients = diagnosis["clients"].as_array().into_iter().flatten();
    let forecast = clients
        .find(|forecast| forecast["id"] == client)
        .context("no such client")?;
    let works = match forecast["outcome"].as_str() {
        Some("works") => true,
        Some("blocked") => false,
        other => anyhow::bail!("{client}: {other:?}"),
    };
    Ok((works, forecast["version"].as_str().map(str::to_owned)))
}

/// Boots as far as metadata go: the search, then what it has decided.
fn observed(guest: &KernelGuest, release: Release, smbios: Smbios<'_>, image: &str) -> Result<Seen> {
    let named = include_str!("../clients/guest/operator.cfg");
    let config = match image {
        "" => String::new(),
        "strict" => named.replace("false", "true"),
        _ => named.to_owned(),
    };
    let decided = cloud_init::search(release, smbios, &config)?;
    if !decided.contains("Ec2") {
        return Ok((false, None));
    }
    let dmi = json!({
        "system-uuid": smbios.uuid,
        "system-serial-number": smbios.serial,
        "system-manufacturer": smbios.manufacturer,
        "system-product-name": smbios.product,
        "chassis-asset-tag": smbios.asset,
    });
    let mut settings = json!({ "max_wait": 2 });
    if !image.is_empty() {
        settings["strict_id"] = (image == "strict").into();
    }
    let seen = cloud_init::crawl(guest, release, &dmi.to_string(), &settings, None)?;
    let methods = seen["methods"].as_array().context("no methods")?;
    let version = match methods.as_slice() {
        [] => None,
        methods if methods.iter().any(|method| method == "PUT") => Some("IMDSv2".to_owned()),
        _ => Some("IMDSv1".to_owned()),
    };
    Ok((seen["found"] == true, version))
}

/// The rules that are in the way of any software, by their names.
fn blocked(diagnosis: &Value) -> Vec<String> {
    let service = diagnosis["service"].as_array().into_iter().flatten();
    let blocked = service.filter(|finding| finding["outcome"] == "blocked");
    blocked
        .filter_map(|finding| Some(finding["id"].as_str()?.to_owned()))
        .collect()
}

/// What doctor says of a domain, its XML on standard input, and its exit code.
fn of_domain(host: &Host, mac: &str) -> Result<(Value, Option<i32>)> {
    let xml = format!(
        "<domain><uuid>{EC2}</uuid><os><smbios mode='sysinfo'/></os>\
         <sysinfo type='smbios'><system><entry name='serial'>{EC2}</entry></system></sysinfo>\
         <devices><interface type='ethernet'><mac address='{mac}'/><target dev='tap0'/></interface></devices></domain>"
    );
    let mut child = imdsctl(&host.files)?
        .args(["--json", "doctor", "--xml", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("no input")?
        .write_all(xml.as_bytes())?;
    let output = child.wait_with_output()?;
    Ok((serde_json::from_slice(&output.stdout)?, output.status.code()))
}

#[test]
fn a_domain_is_known_by_its_mac() -> Result<()> {
    let (host, _guest) = Host::with_guest(|_| ())?;
    let settled = || of_domain(&host, &records::guest_mac(2).to_string().to_uppercase());
    // Credentials are fetched when the agent has started.
    let ((diagnosis, code), _) = wait_for("credentials", settled, |(_, code)| *code == Some(0))?;
    assert_eq!(diagnosis["instanceId"], INSTANCE_ID);
    assert_eq!(code, Some(0));

    let (diagnosis, code) = of_domain(&host, "06:00:00:00:00:99")?;
    assert_eq!((&diagnosis["instanceId"], code), (&Value::Null, Some(3)));
    assert_eq!(blocked(&diagnosis), ["record"]);
    Ok(())
}

#[test]
fn a_tap_that_is_not_there_is_told() -> Result<()> {
    let host = Host::new("", |record| {
        record["NetworkInterfaces"][0]["Tap"] = "tap9".into();
        drop(record["IamInstanceProfile"].take());
    })?;
    assert_eq!(blocked(&doctor(&host, machines()["ec2"], "")?), ["binding"]);
    Ok(())
}

#[test]
fn a_guest_with_another_mac_is_told_by_its_frames() -> Result<()> {
    let host = Host::new("", |record| drop(record["IamInstanceProfile"].take()))?;
    let tap = Arc::clone(&host.tap);
    let guest = KernelGuest::new(tap, records::guest_mac(9), &format!("{ADDRESS}/24"))?;
    let ask = || {
        // Its ARP request is what is dropped; the datagram itself is never sent.
        guest.namespace.enter(|| -> Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(b"anyone", "169.254.169.254:80")?;
            Ok(())
        })?;
        Ok(blocked(&doctor(&host, machines()["ec2"], "")?))
    };
    wait_for("dropped frames", ask, |rules| *rules == ["frames"])?;
    Ok(())
}
