//! `imdsctl identity` as a relying party runs it: output and exit codes.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use imds_agent::{
    identity_files,
    imds::identity::{IdentityKeys, Part, Signatures},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const DOCUMENT: &str =
    "{\n  \"accountId\" : \"123456789012\",\n  \"kernelId\" : null,\n  \"imageId\" : \"\\u001b[2J\"\n}";

const YES: i32 = 0;
const FAILURE: i32 = 1;
const USAGE: i32 = 2;
const NO: i32 = 3;

/// What a relying party was sent, and the certificates of two hosts.
struct Received {
    directory: TempDir,
    signature: String,
    rsa2048: String,
}

impl Received {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let keys = identity_files::load_or_create(&path.join("host-1"), "host-1", now).unwrap();
        let text = |part| text(&keys, DOCUMENT, part);
        let (signature, rsa2048) = (text(Part::Signature), text(Part::Rsa2048));
        // This one is valid from tomorrow on.
        let tomorrow = now + Duration::from_secs(2 * 24 * 60 * 60);
        identity_files::load_or_create(&path.join("host-2"), "host-2", tomorrow).unwrap();

        let certificate = |host: &str, file: &str| fs::read_to_string(path.join(host).join(file)).unwrap();
        let rsa = |host: &str| certificate(host, "identity.crt");
        fs::write(path.join("host-1.crt"), rsa("host-1")).unwrap();
        fs::write(path.join("host-2.crt"), rsa("host-2")).unwrap();
        fs::write(path.join("fleet.crt"), rsa("host-2") + "\n" + &rsa("host-1")).unwrap();
        let dsa = certificate("host-1", "identity-dsa.crt");
        fs::write(path.join("host-1-dsa.crt"), &dsa).unwrap();
        fs::write(path.join("host-1-both.crt"), rsa("host-1") + &dsa).unwrap();
        fs::write(path.join("document"), DOCUMENT).unwrap();
        fs::write(path.join("other"), b"{}").unwrap();
        fs::write(path.join("signature"), &signature).unwrap();
        fs::write(path.join("rsa2048"), &rsa2048).unwrap();
        fs::write(path.join("dsa2048"), text(Part::Dsa2048)).unwrap();
        Self {
            directory,
            signature,
            rsa2048,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn imdsctl(&self, arguments: &str, input: &str) -> (i32, Output) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_imdsctl"))
            .args(arguments.split_whitespace())
            .current_dir(self.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may have ended already, for an error in its arguments.
        _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        (output.status.code().unwrap(), output)
    }
}

/// What a guest reads.
fn text(keys: &IdentityKeys, document: &str, part: Part) -> String {
    let signatures = Signatures::new(keys, document.as_bytes()).unwrap();
    let signatures = signatures.with_dsa2048(keys).unwrap();
    let mut text = document.into();
    signatures.put(part, 0, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn genuine_document_is_told_in_every_form() {
    let received = Received::new();
    let armoured = format!(
        "-----BEGIN PKCS7-----\n{}\n-----END PKCS7-----\n",
        received.rsa2048
    );
    for (arguments, input) in [
        ("--rsa2048 rsa2048", ""),
        ("--pkcs7 rsa2048 --document document", ""),
        ("--signature signature --document document", ""),
        ("--signature - --document document", &*received.signature),
        ("--rsa2048 -", &*received.rsa2048),
        ("", &armoured),
    ] {
        for certificate in ["host-1.crt", "fleet.crt"] {
            let command = format!("identity verify --certificate {certificate} {arguments}");
            let (code, output) = received.imdsctl(&command, input);
            assert_eq!(code, YES, "{command}: {output:?}");
            // In the order of the document.
            let table = "accountId  123456789012\nkernelId   -\nimageId    \"\\u001b[2J\"\n";
            assert_eq!(String::from_utf8_lossy(&output.stdout), table, "{command}");
        }
    }
    for certificate in ["host-1-dsa.crt", "host-1-both.crt"] {
        let command = format!("identity verify --certificate {certificate} --dsa2048 dsa2048");
        let (code, output) = received.imdsctl(&command, "");
        assert_eq!(code, YES, "{command}: {output:?}");
    }
    let (code, output) = received.imdsctl(
        "identity verify --json --certificate fleet.crt --rsa2048 rsa2048",
        "",
    );
    assert_eq!(code, YES);
    let told = json(&output);
    assert_eq!(told["verified"], true);
    assert_eq!(told["claims"], serde_json::from_str::<Value>(DOCUMENT).unwrap());
    assert_eq!(told["certificate"]["subject"], "CN=host-1,OU=instance identity");
}

#[test]
fn document_that_is_not_genuine_is_told_with_its_reason() {
    let received = Received::new();
    let flipped = received.rsa2048.replacen('A', "B", 1);
    for (arguments, input, reason) in [
        ("--certificate host-2.crt --rsa2048 rsa2048", "", "UnknownSigner"),
        ("--certificate host-1.crt --dsa2048 dsa2048", "", "UnknownSigner"),
        (
            "--certificate host-1-dsa.crt --dsa2048 dsa2048 --document other",
            "",
            "OtherDocument",
        ),
        (
            "--certificate host-2.crt --signature signature --document document",
            "",
            "BadSignature",
        ),
        (
            "--certificate host-1.crt --signature signature --document other",
            "",
            "BadSignature",
        ),
        (
            "--certificate host-1.crt --rsa2048 rsa2048 --document other",
            "",
            "OtherDocument",
        ),
        (
            "--certificate host-1.crt --rsa2048 signature",
            "",
            "NotSignedData",
        ),
        ("--certificate host-1.crt --rsa2048 document", "", "NotBase64"),
        ("--certificate host-1.crt", "", "NotBase64"),
        ("--certificate host-1.crt", &flipped, "NotSignedData"),
    ] {
        let (code, output) = received.imdsctl(&format!("identity verify --json {arguments}"), input);
        assert_eq!(code, NO, "{arguments}: {output:?}");
        assert_eq!(json(&output)["verified"], false, "{arguments}");
        assert_eq!(json(&output)["code"], reason, "{arguments}");

        let (code, output) = received.imdsctl(&format!("identity verify {arguments}"), input);
        assert_eq!(code, NO, "{arguments}");
        assert!(
            output.stdout.is_empty(),
            "{arguments}: claims nobody vouches for are not printed"
        );
        assert!(
            String::from_utf8_lossy(&output.stderr).starts_with("imdsctl: NOT verified: "),
            "{arguments}"
        );
    }
}

#[test]
fn signature_before_the_certificate_is_valid_is_refused() {
    let received = Received::new();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let keys = identity_files::load_or_create(&received.path().join("host-2"), "host-2", now);
    let rsa2048 = text(&keys.unwrap(), "{}", Part::Rsa2048);
    let (code, output) = received.imdsctl("identity verify --json --certificate host-2.crt", &rsa2048);
    assert_eq!((code, &json(&output)["code"]), (NO, &json!("OutsideValidity")));
}

#[test]
fn what_cannot_be_found_out_is_neither_yes_nor_no() {
    let received = Received::new();
    for arguments in [
        "--certificate missing --rsa2048 rsa2048",
        "--certificate host-1.crt --rsa2048 missing",
        "--certificate document --rsa2048 rsa2048",
        "--certificate host-1/identity.key --rsa2048 rsa2048",
    ] {
        let (code, output) = received.imdsctl(&format!("identity verify {arguments}"), "");
        assert_eq!(code, FAILURE, "{arguments}: {output:?}");
        assert!(output.stderr.starts_with(b"imdsctl: "), "{arguments}");
    }
    for arguments in [
        "identity verify --rsa2048 rsa2048",
        "identity verify --certificate host-1.crt --signature signature",
        "identity verify --certificate host-1.crt --pkcs7 rsa2048 --rsa2048 rsa2048",
        "identity verify --certificate host-1.crt --dsa2048 dsa2048 --rsa2048 rsa2048",
        "identity",
    ] {
        assert_eq!(received.imdsctl(arguments, "").0, USAGE, "{arguments}");
    }
}

/// The fingerprint is the one that `openssl` shows, so that two people can compare over the telephone.
#[test]
fn certificate_is_described() {
    let received = Received::new();
    let (code, output) = received.imdsctl("identity certificate host-1.crt --json", "");
    assert_eq!(code, YES);
    let told = json(&output);
    assert_eq!(told[0]["subject"], "CN=host-1,OU=instance identity");
    assert_eq!(told[0]["notAfter"], "never");
    let openssl = Command::new("openssl")
        .args(["x509", "-in", "host-1.crt", "-noout", "-fingerprint", "-sha256"])
        .current_dir(received.path())
        .output()
        .expect("the program `openssl` has to be installed");
    let fingerprint = String::from_utf8(openssl.stdout).unwrap();
    assert_eq!(
        fingerprint.trim().split_once('=').unwrap().1,
        told[0]["sha256Fingerprint"]
    );
}
