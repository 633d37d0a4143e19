//! Against the `openssl` program, in the very words of EC2's user guide.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::LazyLock,
    time::Duration,
};

use aws_lc_rs::{
    encoding::AsDer as _,
    rsa::{KeyPair, KeySize},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cms::{content_info::ContentInfo, signed_data::SignedData};
use der::{Any, Decode as _, Encode as _, pem::LineEnding};
use rand::SeedableRng as _;

use super::{
    certificate::{CertificateError, Subject, self_signed},
    verify::{VerifyError, verify_signature, verify_signed_data},
    *,
};

pub(super) const DOCUMENT: &[u8] =
    b"{\n  \"accountId\" : \"123456789012\",\n  \"instanceId\" : \"i-0123456789abcdef0\"\n}";

/// 2026-11-21T08:00:00Z.
const NOT_BEFORE: Duration = Duration::from_secs(1_795_248_000);
pub(super) const NOW: Duration = Duration::from_secs(1_795_248_000 + 3600);

pub(super) struct Pem {
    pub key: String,
    pub certificate: String,
}

fn rsa_pem(name: &str, serial: [u8; 16]) -> Pem {
    let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der = der::Document::try_from(key.as_der().unwrap().as_ref()).unwrap();
    let key = der.to_pem("PRIVATE KEY", LineEnding::LF).unwrap();
    certified(Algorithm::Rsa, key, name, serial)
}

fn dsa_pem(name: &str, serial: [u8; 16]) -> Pem {
    let mut randomness = rand::rngs::StdRng::from_seed([7; 32]);
    let key = dsa2048::generate(&mut randomness).unwrap().to_string();
    certified(Algorithm::Dsa, key, name, serial)
}

fn certified(algorithm: Algorithm, key: String, name: &str, serial: [u8; 16]) -> Pem {
    let subject = Subject {
        name,
        serial,
        not_before: NOT_BEFORE,
    };
    let certificate = self_signed(algorithm, &key, &subject).unwrap();
    Pem { key, certificate }
}

/// Keys take a while to make, so all tests share these.
pub(super) static HOST: LazyLock<Pem> = LazyLock::new(|| rsa_pem("host-1", [0xff; 16]));
pub(super) static HOST_DSA: LazyLock<Pem> = LazyLock::new(|| dsa_pem("host-1", [0x11; 16]));
static OTHER: LazyLock<Pem> = LazyLock::new(|| rsa_pem("host-2", [0; 16]));

pub(super) fn key(algorithm: Algorithm, pem: &Pem) -> IdentityKey {
    IdentityKey::from_pem(algorithm, &pem.key, &pem.certificate).unwrap()
}

pub(super) fn keys() -> IdentityKeys {
    IdentityKeys {
        rsa: key(Algorithm::Rsa, &HOST),
        dsa: key(Algorithm::Dsa, &HOST_DSA),
    }
}

/// What a guest reads.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Texts {
    pub signature: String,
    pub rsa2048: String,
    pub dsa2048: String,
}

pub(super) fn texts(keys: &IdentityKeys, document: &[u8]) -> Texts {
    let signatures = Signatures::new(keys, document)
        .unwrap()
        .with_dsa2048(keys)
        .unwrap();
    let text = |part| {
        let mut out = b"before".to_vec();
        out.extend_from_slice(document);
        signatures.put(part, 6, &mut out).unwrap();
        String::from_utf8(out)
            .unwrap()
            .strip_prefix("before")
            .unwrap()
            .to_owned()
    };
    Texts {
        signature: text(Part::Signature),
        rsa2048: text(Part::Rsa2048),
        dsa2048: text(Part::Dsa2048),
    }
}

pub(super) fn in_lines(bytes: &[u8]) -> String {
    let mut text = bytes.to_vec();
    signed_data::into_lines(&mut text, 0);
    String::from_utf8(text).unwrap()
}

pub(super) fn pinned(pems: &[&Pem]) -> Vec<Certificate> {
    pems.iter()
        .map(|pem| Certificate::from_pem(&pem.certificate).unwrap())
        .collect()
}

pub(super) fn openssl(directory: &Path, arguments: &str) -> Output {
    let mut command = Command::new("openssl");
    command.args(arguments.split_whitespace()).current_dir(directory);
    command
        .output()
        .expect("the program `openssl` has to be installed")
}

pub(super) fn armoured(text: &str) -> String {
    format!("-----BEGIN PKCS7-----\n{text}\n-----END PKCS7-----\n")
}

#[test]
fn openssl_smime_verifies_rsa2048() {
    let signed = texts(&keys(), DOCUMENT);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(path.join("rsa2048"), armoured(&signed.rsa2048)).unwrap();
    fs::write(path.join("certificate"), &HOST.certificate).unwrap();

    // The user guide's words; then with the certificate as the root of trust, too.
    for trust in ["-noverify", "-noverify -nointern", "-CAfile certificate"] {
        let output = openssl(
            path,
            &format!("smime -verify -in rsa2048 -inform PEM -certfile certificate {trust}"),
        );
        assert!(
            output.status.success(),
            "{trust}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.stdout, DOCUMENT, "{trust}");
    }

    // One bit of the document, which stands in the clear inside of the DER.
    let mut der = BASE64.decode(signed.rsa2048.replace('\n', "")).unwrap();
    let at = der
        .windows(DOCUMENT.len())
        .position(|window| window == DOCUMENT)
        .unwrap();
    der[at + 20] ^= 1;
    fs::write(path.join("rsa2048"), armoured(&in_lines(&der))).unwrap();
    let output = openssl(
        path,
        "smime -verify -in rsa2048 -inform PEM -certfile certificate -noverify",
    );
    assert!(!output.status.success());
    let host = pinned(&[&HOST]);
    let refused = verify_signed_data(&host, NOW, &in_lines(&der));
    assert_eq!(refused, Err(VerifyError::DocumentChanged));
}

#[test]
fn openssl_dgst_verifies_signature() {
    let signed = texts(&keys(), DOCUMENT);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(
        path.join("signature"),
        BASE64.decode(signed.signature.replace('\n', "")).unwrap(),
    )
    .unwrap();
    fs::write(path.join("document"), DOCUMENT).unwrap();
    fs::write(path.join("certificate"), &HOST.certificate).unwrap();
    let key = openssl(path, "x509 -pubkey -noout -in certificate");
    fs::write(path.join("key"), key.stdout).unwrap();

    let arguments = "dgst -sha256 -verify key -signature signature document";
    assert_eq!(openssl(path, arguments).stdout, b"Verified OK\n");
    fs::write(path.join("document"), DOCUMENT.to_ascii_lowercase()).unwrap();
    assert!(!openssl(path, arguments).status.success());
}

#[test]
fn openssl_reads_the_certificate() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("certificate"), &HOST.certificate).unwrap();
    let output = openssl(
        directory.path(),
        "verify -CAfile certificate -check_ss_sig certificate",
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = openssl(
        directory.path(),
        "x509 -in certificate -noout -subject -issuer -serial -dates -ext basicConstraints,keyUsage",
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        text,
        "subject=OU = instance identity, CN = host-1\n\
         issuer=OU = instance identity, CN = host-1\n\
         serial=7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF\n\
         notBefore=Nov 21 08:00:00 2026 GMT\n\
         notAfter=Dec 31 23:59:59 9999 GMT\n\
         X509v3 Basic Constraints: critical\n    CA:FALSE\n\
         X509v3 Key Usage: critical\n    Digital Signature\n"
    );
}

/// An operator's own pair, also with a key in PKCS #1, a certificate by a certificate authority and other extensions.
#[test]
fn keys_made_by_openssl_are_taken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let request =
        "req -x509 -newkey rsa:3072 -nodes -keyout key -out certificate -subj /O=Fleet/CN=fleet -days 3";
    assert!(openssl(path, request).status.success());
    assert!(
        openssl(path, "rsa -in key -traditional -out key1")
            .status
            .success()
    );
    let read = |name| fs::read_to_string(path.join(name)).unwrap();
    assert!(read("key1").starts_with("-----BEGIN RSA PRIVATE KEY-----"));

    let [pkcs8, pkcs1] = ["key", "key1"].map(|key| IdentityKeys {
        rsa: IdentityKey::from_pem(Algorithm::Rsa, &read(key), &read("certificate")).unwrap(),
        ..keys()
    });
    let signed = texts(&pkcs8, DOCUMENT);
    assert_eq!(signed, texts(&pkcs1, DOCUMENT));
    fs::write(path.join("rsa2048"), armoured(&signed.rsa2048)).unwrap();
    let output = openssl(
        path,
        "smime -verify -in rsa2048 -inform PEM -certfile certificate -noverify",
    );
    assert_eq!(output.stdout, DOCUMENT);
}

/// What is written byte by byte is what the crate would encode of the same structures, whatever number of octets lengths take.
#[test]
fn written_as_the_structures_are_encoded() {
    for document in [&b"{}"[..], DOCUMENT, &[b' '; 200], &[b' '; 70_000]] {
        let texts = texts(&keys(), document);
        for text in [&texts.rsa2048, &texts.dsa2048] {
            let der = BASE64.decode(text.replace('\n', "")).unwrap();
            let content = ContentInfo::from_der(&der).unwrap();
            assert_eq!(content.content_type, SIGNED_DATA);
            let signed_data: SignedData = content.content.decode_as().unwrap();
            let content = Any::encode_from(&signed_data).unwrap();
            let content_type = SIGNED_DATA;
            assert_eq!(
                ContentInfo {
                    content_type,
                    content
                }
                .to_der()
                .unwrap(),
                der
            );
        }
    }
}

/// A restart is another `IdentityKeys` from the same files.
#[test]
fn same_key_same_bytes() {
    let first = texts(&keys(), DOCUMENT);
    assert_eq!(first, texts(&keys(), DOCUMENT));
    let other = texts(&keys(), b"{}");
    assert_ne!(first.rsa2048, other.rsa2048);
    assert_ne!(first.dsa2048, other.dsa2048);
}

#[test]
fn text_is_in_lines_as_on_ec2() {
    let signed = texts(&keys(), DOCUMENT);
    // 256 bytes are 344 characters.
    assert_eq!(
        signed.signature.split('\n').map(str::len).collect::<Vec<_>>(),
        [76, 76, 76, 76, 40]
    );
    let (last, full) = signed
        .rsa2048
        .split('\n')
        .map(str::len)
        .collect::<Vec<_>>()
        .split_last()
        .map(|(l, f)| (*l, f.to_vec()))
        .unwrap();
    assert!(full.iter().all(|length| *length == 76) && (1..=76).contains(&last));
    assert_eq!(
        in_lines(&[0; 57]),
        "A".repeat(76),
        "a full last line has no line feed"
    );
}

#[test]
fn verified_with_the_signer_among_many() {
    let signed = texts(&keys(), DOCUMENT);
    let both = pinned(&[&OTHER, &HOST]);
    let verified = verify_signed_data(&both, NOW, &signed.rsa2048).unwrap();
    assert_eq!(
        (verified.document.as_slice(), verified.certificate),
        (DOCUMENT, &both[1])
    );
    assert_eq!(
        verify_signed_data(&both, NOW, &armoured(&signed.rsa2048)),
        Ok(verified)
    );
    let verified = verify_signature(&both, NOW, DOCUMENT, &signed.signature).unwrap();
    assert_eq!(
        (verified.document.as_slice(), verified.certificate),
        (DOCUMENT, &both[1])
    );
}

#[test]
fn refused_with_its_reason() {
    let signed = texts(&keys(), DOCUMENT);
    let host = pinned(&[&HOST]);
    let other = pinned(&[&OTHER]);
    let cms = |pinned, text: &str| verify_signed_data(pinned, NOW, text).unwrap_err();
    assert_eq!(cms(&host, "not base64!"), VerifyError::NotBase64);
    assert_eq!(cms(&host, ""), VerifyError::NotBase64);
    assert_eq!(cms(&host, "AAAA"), VerifyError::NotSignedData);
    assert_eq!(cms(&host, &signed.signature), VerifyError::NotSignedData);
    assert!(
        matches!(cms(&other, &signed.rsa2048), VerifyError::UnknownSigner { signer } if signer.contains("CN=host-1"))
    );

    let bare =
        |pinned, document: &[u8]| verify_signature(pinned, NOW, document, &signed.signature).unwrap_err();
    assert_eq!(bare(&host, b"{}"), VerifyError::BadSignature);
    assert_eq!(bare(&other, DOCUMENT), VerifyError::BadSignature);

    let early = NOT_BEFORE - Duration::from_secs(1);
    for refused in [
        verify_signed_data(&host, early, &signed.rsa2048),
        verify_signature(&host, early, DOCUMENT, &signed.signature),
    ] {
        assert!(
            matches!(refused, Err(VerifyError::OutsideValidity { .. })),
            "{refused:?}"
        );
    }
}

/// The user guide's command believes a signer whose certificate comes along. We do not, nor does it with `-nointern`.
#[test]
fn certificate_that_comes_along_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(path.join("document"), DOCUMENT).unwrap();
    fs::write(path.join("key"), &OTHER.key).unwrap();
    fs::write(path.join("signer"), &OTHER.certificate).unwrap();
    fs::write(path.join("certificate"), &HOST.certificate).unwrap();
    let arguments =
        "smime -sign -binary -nodetach -in document -signer signer -inkey key -outform PEM -out rsa2048";
    assert!(openssl(path, arguments).status.success());

    let guide = "smime -verify -in rsa2048 -inform PEM -certfile certificate -noverify";
    assert!(
        openssl(path, guide).status.success(),
        "then the documentation may be changed"
    );
    assert!(!openssl(path, &format!("{guide} -nointern")).status.success());
    let signed = fs::read_to_string(path.join("rsa2048")).unwrap();
    let refused = verify_signed_data(&pinned(&[&HOST]), NOW, &signed).map(|_| ());
    assert!(
        matches!(refused, Err(VerifyError::UnknownSigner { .. })),
        "{refused:?}"
    );

    // Pinned, it is believed: signed data that openssl made is understood.
    let other = pinned(&[&OTHER]);
    assert_eq!(
        verify_signed_data(&other, NOW, &signed).unwrap().document,
        DOCUMENT
    );
}

/// Whoever names another's certificate has to have its key.
#[test]
fn forged_signer_is_refused() {
    let mut forger = keys();
    forger.rsa = key(Algorithm::Rsa, &OTHER);
    forger.rsa.envelope = keys().rsa.envelope;
    let signed = texts(&forger, DOCUMENT);
    assert_eq!(
        verify_signed_data(&pinned(&[&HOST]), NOW, &signed.rsa2048),
        Err(VerifyError::BadSignature)
    );
}

/// No byte of the signed data can be changed without notice, and nothing that comes instead makes the verifier panic.
#[test]
fn each_changed_byte_is_noticed() {
    let signed = texts(&keys(), DOCUMENT);
    let der = BASE64.decode(signed.rsa2048.replace('\n', "")).unwrap();
    let host = pinned(&[&HOST]);
    for at in 0..der.len() {
        for bits in [0x01, 0x80, 0xff] {
            let mut changed = der.clone();
            changed[at] ^= bits;
            match verify_signed_data(&host, NOW, &in_lines(&changed)) {
                Err(_) => {}
                // What says how to verify is not itself signed; the document is.
                Ok(verified) => assert_eq!(verified.document, DOCUMENT, "byte {at}"),
            }
        }
        assert!(
            verify_signed_data(&host, NOW, &in_lines(&der[..at])).is_err(),
            "cut at {at}"
        );
    }
}

#[test]
fn unusable_keys_are_refused() {
    let error =
        |key: &str, certificate: &str| IdentityKey::from_pem(Algorithm::Rsa, key, certificate).unwrap_err();
    assert!(matches!(
        error("", &HOST.certificate),
        IdentityKeysError::PrivateKeyPem
    ));
    assert!(matches!(
        error(&HOST.certificate, &HOST.certificate),
        IdentityKeysError::PrivateKeyPem
    ));
    assert!(matches!(
        error(&HOST.key, &HOST.key),
        IdentityKeysError::Certificate(_)
    ));
    assert!(matches!(
        error(&HOST.key, &OTHER.certificate),
        IdentityKeysError::Mismatch
    ));

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let other_kinds = [
        "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out key",
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key",
    ];
    for arguments in other_kinds {
        assert!(openssl(path, arguments).status.success());
        let key = fs::read_to_string(path.join("key")).unwrap();
        assert!(
            matches!(error(&key, &HOST.certificate), IdentityKeysError::PrivateKey(_)),
            "{arguments}"
        );
    }

    for name in ["", &"x".repeat(65)] {
        let subject = Subject {
            name,
            serial: [1; 16],
            not_before: NOT_BEFORE,
        };
        assert!(matches!(
            self_signed(Algorithm::Rsa, &HOST.key, &subject),
            Err(CertificateError::Name(_))
        ));
    }
}

#[test]
fn debug_shows_no_key() {
    let key = "IdentityKey(CN=host-1,OU=instance identity)";
    assert_eq!(
        format!("{:?}", keys()),
        format!("IdentityKeys {{ rsa: {key}, dsa: {key} }}")
    );
}
