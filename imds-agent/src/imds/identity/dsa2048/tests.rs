//! Against the `openssl` program, which makes and verifies the same structures on its own.

use std::fs;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use sha2::{Digest as _, Sha256};

use super::{
    super::{
        Algorithm, IdentityKey, IdentityKeysError,
        tests::{DOCUMENT, HOST, HOST_DSA, NOW, armoured, in_lines, keys, openssl, pinned, texts},
        verify::{VerifyError, verify_signature, verify_signed_data},
    },
    PARAMETERS,
};

/// Whoever doubts the parameters can do this with a shell: nothing in them was chosen.
#[test]
fn parameters_come_from_their_seed() {
    let seed = Sha256::digest(b"imds-agent dsa2048 35");
    let seed: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    let directory = tempfile::tempdir().unwrap();
    let made = openssl(
        directory.path(),
        &format!(
            "genpkey -genparam -quiet -algorithm DSA -pkeyopt type:fips186_4 -pkeyopt pbits:2048 -pkeyopt qbits:256 \
             -pkeyopt digest:SHA256 -pkeyopt gindex:1 -pkeyopt hexseed:{seed}"
        ),
    );
    assert_eq!(
        String::from_utf8(made.stdout).unwrap(),
        PARAMETERS,
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
}

#[test]
fn openssl_verifies_dsa2048() {
    let signed = texts(&keys(), DOCUMENT);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(path.join("dsa2048"), armoured(&signed.dsa2048)).unwrap();
    fs::write(path.join("certificate"), &HOST_DSA.certificate).unwrap();
    fs::write(path.join("other"), &HOST.certificate).unwrap();
    for command in ["smime", "cms"] {
        for trust in ["-noverify", "-noverify -nointern", "-CAfile certificate"] {
            let output = openssl(
                path,
                &format!("{command} -verify -in dsa2048 -inform PEM -certfile certificate {trust}"),
            );
            assert!(
                output.status.success(),
                "{command} {trust}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert_eq!(output.stdout, DOCUMENT, "{command} {trust}");
        }
        let output = openssl(
            path,
            &format!("{command} -verify -in dsa2048 -inform PEM -certfile other -noverify"),
        );
        assert!(!output.status.success(), "{command}: it is not the RSA key's");
    }
    let checked = openssl(path, "verify -CAfile certificate -check_ss_sig certificate");
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
}

#[test]
fn we_verify_what_we_and_openssl_sign() {
    let signed = texts(&keys(), DOCUMENT);
    let both = pinned(&[&HOST, &HOST_DSA]);
    let verified = verify_signed_data(&both, NOW, &signed.dsa2048).unwrap();
    assert_eq!(
        (verified.document.as_slice(), verified.certificate),
        (DOCUMENT, &both[1])
    );
    let rsa_alone = verify_signed_data(&both[..1], NOW, &signed.dsa2048);
    assert!(
        matches!(rsa_alone, Err(VerifyError::UnknownSigner { .. })),
        "{rsa_alone:?}"
    );
    // A certificate of the wrong kind beside the right one does no harm.
    let reversed = pinned(&[&HOST_DSA, &HOST]);
    let verified = verify_signature(&reversed, NOW, DOCUMENT, &signed.signature).unwrap();
    assert_eq!(verified.certificate, &reversed[1]);

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(path.join("document"), DOCUMENT).unwrap();
    fs::write(path.join("key"), &HOST_DSA.key).unwrap();
    fs::write(path.join("signer"), &HOST_DSA.certificate).unwrap();
    for command in ["smime", "cms"] {
        let arguments =
            "-sign -binary -nodetach -md sha256 -in document -signer signer -inkey key -outform PEM";
        let made = openssl(path, &format!("{command} {arguments}"));
        let theirs = String::from_utf8(made.stdout).unwrap();
        let verified = verify_signed_data(&both, NOW, &theirs);
        assert_eq!(
            verified.map(|verified| verified.document),
            Ok(DOCUMENT.to_vec()),
            "{command}"
        );
    }
}

/// The document and the signature; the bytes between are those of RSA's signed data too, and tried there.
#[test]
fn each_changed_byte_of_document_and_signature_is_noticed() {
    let signed = texts(&keys(), DOCUMENT);
    let der = BASE64.decode(signed.dsa2048.replace('\n', "")).unwrap();
    let host = pinned(&[&HOST_DSA]);
    let document = der
        .windows(DOCUMENT.len())
        .position(|window| window == DOCUMENT)
        .unwrap();
    // A SEQUENCE of two INTEGERs of 256 bits at the end.
    let signature = der.len() - 70..der.len();
    for at in (document..document + DOCUMENT.len()).step_by(16).chain(signature) {
        let mut changed = der.clone();
        changed[at] ^= 0x01;
        let refused = verify_signed_data(&host, NOW, &in_lines(&changed));
        assert!(refused.is_err(), "byte {at}");
    }
}

/// An operator's own pair has parameters of its own; other sizes are not what the name says.
#[test]
fn keys_made_by_openssl_are_taken_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
    let make = |bits: u32, subgroup_bits: u32| {
        let parameters = format!(
            "genpkey -genparam -quiet -algorithm DSA -pkeyopt dsa_paramgen_bits:{bits} \
             -pkeyopt dsa_paramgen_q_bits:{subgroup_bits} -out parameters"
        );
        for arguments in [
            &parameters,
            "genpkey -paramfile parameters -out key",
            "req -x509 -new -key key -sha256 -subj /O=Fleet/CN=fleet -days 3 -out certificate",
        ] {
            let output = openssl(path, arguments);
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        IdentityKey::from_pem(Algorithm::Dsa, &read("key"), &read("certificate"))
    };
    let refused = make(2048, 224).unwrap_err();
    assert!(matches!(refused, IdentityKeysError::DsaPrivateKey), "{refused}");

    let mut fleet = keys();
    fleet.dsa = make(2048, 256).unwrap();
    let signed = texts(&fleet, DOCUMENT);
    fs::write(path.join("dsa2048"), armoured(&signed.dsa2048)).unwrap();
    let arguments = "smime -verify -in dsa2048 -inform PEM -certfile certificate -noverify -nointern";
    assert_eq!(openssl(path, arguments).stdout, DOCUMENT);

    let from_pem =
        |key: &str, certificate: &str| IdentityKey::from_pem(Algorithm::Dsa, key, certificate).unwrap_err();
    let wrong_kind = from_pem(&HOST.key, &HOST.certificate);
    assert!(
        matches!(wrong_kind, IdentityKeysError::DsaPrivateKey),
        "{wrong_kind}"
    );
    let wrong_certificate = from_pem(&HOST_DSA.key, &read("certificate"));
    assert!(
        matches!(wrong_certificate, IdentityKeysError::Mismatch),
        "{wrong_certificate}"
    );
}
