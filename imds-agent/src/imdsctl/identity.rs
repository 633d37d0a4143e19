//! `imdsctl identity`: for whoever is shown an identity document and asks whether to believe it.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use der::Encode as _;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use x509_cert::{Certificate, time::Time};

use super::{
    Verdict,
    print::{self, printable, printable_json},
};
use crate::imds::identity::verify::{Verified, VerifyError, verify_signature, verify_signed_data};

/// More than any document, signature or set of certificates has.
const INPUT_BYTES_MAX: u64 = 16 << 20;

/// `imdsctl identity`
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Check that a document is genuine, and print what it claims.
    ///
    /// Give what the instance got from instance-identity/rsa2048 (or pkcs7, the same, or dsa2048, which the host's
    /// other certificate goes with), which has the document inside; or its signature together with the document. Each FILE may be "-" for standard input, and without any of them
    /// rsa2048 is read from there.
    Verify(Verify),
    /// Print what a certificate says, to compare it with the one that a host's operator published.
    Certificate {
        /// The certificate, in PEM.
        #[arg(value_name = "FILE")]
        certificate: PathBuf,
    },
}

#[derive(Args, Debug)]
struct Verify {
    /// The certificates that are trusted, in PEM: one, or several in a row for several hosts.
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
    /// The document, as instance-identity/document serves it.
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    /// The signature in base64; needs --document.
    #[arg(long, value_name = "FILE", requires = "document", conflicts_with_all = ["pkcs7", "rsa2048", "dsa2048"])]
    signature: Option<PathBuf>,
    /// Signed data, with or without the lines BEGIN and END.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rsa2048", "dsa2048"])]
    pkcs7: Option<PathBuf>,
    /// Signed data, with or without the lines BEGIN and END.
    #[arg(long, value_name = "FILE", conflicts_with = "dsa2048")]
    rsa2048: Option<PathBuf>,
    /// Signed data, with or without the lines BEGIN and END.
    #[arg(long, value_name = "FILE")]
    dsa2048: Option<PathBuf>,
}

/// Runs one of the commands.
pub fn run(arguments: Arguments, is_json: bool) -> Result<Verdict> {
    match arguments.command {
        Command::Verify(verify) => {
            let pinned = read_certificates(&verify.certificate)?;
            let outcome = check(&verify, &pinned)?;
            print_outcome(outcome, is_json)
        }
        Command::Certificate { certificate } => {
            let certificates = read_certificates(&certificate)?;
            let facts = certificates.iter().map(facts).collect::<Result<Vec<_>>>()?;
            if is_json {
                print::json(&facts.into_iter().map(Value::Object).collect());
            } else {
                facts.iter().for_each(print_table);
            }
            Ok(Verdict::Yes)
        }
    }
}

/// A document that was believed, or why it was not.
type Outcome<'c> = Result<(Map<String, Value>, Verified<'c>), (&'static str, String)>;

fn check<'c>(verify: &Verify, pinned: &'c [Certificate]) -> Result<Outcome<'c>> {
    let document = verify.document.as_deref().map(read).transpose()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let verified = match (&verify.signature, &document) {
        (Some(signature), Some(document)) => {
            verify_signature(pinned, now, document, &String::from_utf8_lossy(&read(signature)?))
        }
        _ => {
            let files = [&verify.rsa2048, &verify.pkcs7, &verify.dsa2048];
            let file = files.into_iter().find_map(Option::as_deref);
            let file = file.unwrap_or(Path::new("-"));
            let verified = verify_signed_data(pinned, now, &String::from_utf8_lossy(&read(file)?));
            match (verified, document) {
                (Ok(verified), Some(document)) if verified.document != document => {
                    Err(VerifyError::OtherDocument)
                }
                (verified, _) => verified,
            }
        }
    };
    Ok(match verified {
        Err(error) => Err((error.code(), error.to_string())),
        Ok(verified) => match serde_json::from_slice(&verified.document) {
            Ok(Value::Object(claims)) => Ok((claims, verified)),
            _ => Err((
                "NotAnObject",
                "the document is signed, but it is not a JSON object".to_owned(),
            )),
        },
    })
}

fn print_outcome(outcome: Outcome<'_>, is_json: bool) -> Result<Verdict> {
    match outcome {
        Ok((claims, verified)) => {
            if is_json {
                let certificate = facts(verified.certificate)?;
                print::json(&json!({ "verified": true, "claims": claims, "certificate": certificate }));
            } else {
                print_table(&claims);
                let signer = &verified.certificate.tbs_certificate.subject;
                eprintln!("imdsctl: verified, signed by {signer}");
            }
            Ok(Verdict::Yes)
        }
        Err((code, reason)) => {
            if is_json {
                print::json(&json!({ "verified": false, "code": code, "reason": reason }));
            } else {
                eprintln!("imdsctl: NOT verified: {reason}");
            }
            Ok(Verdict::No)
        }
    }
}

/// What tells one certificate from another.
fn facts(certificate: &Certificate) -> Result<Map<String, Value>> {
    let signed = &certificate.tbs_certificate;
    let fingerprint = Sha256::digest(
        certificate
            .to_der()
            .context("the certificate cannot be encoded")?,
    );
    let facts = [
        ("subject", signed.subject.to_string()),
        ("issuer", signed.issuer.to_string()),
        ("serialNumber", colons(signed.serial_number.as_bytes())),
        ("notBefore", date(&signed.validity.not_before)?),
        ("notAfter", date(&signed.validity.not_after)?),
        ("sha256Fingerprint", colons(&fingerprint)),
    ];
    Ok(facts
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Value::String(value)))
        .collect())
}

fn date(time: &Time) -> Result<String> {
    let seconds =
        i64::try_from(time.to_unix_duration().as_secs()).context("the certificate's time is out of range")?;
    // The last second of the year 9999, "never", is a little beyond what a `Timestamp` holds in every time zone.
    Ok(Timestamp::from_second(seconds).map_or_else(|_| "never".to_owned(), |time| time.to_string()))
}

/// As `openssl x509 -fingerprint` writes it.
fn colons(bytes: &[u8]) -> String {
    let hexadecimal: Vec<_> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    hexadecimal.join(":")
}

fn print_table(claims: &Map<String, Value>) {
    let width = claims.keys().map(String::len).max().unwrap_or_default();
    for (name, value) in claims {
        let text = match value {
            Value::Null => "-".to_owned(),
            // Who may sign may still not write to the terminal as he likes.
            Value::String(text) if !text.chars().any(char::is_control) => text.clone(),
            value => printable_json(&value.to_string()),
        };
        print::line(format_args!("{:width$}  {text}", printable(name)));
    }
}

fn read_certificates(path: &Path) -> Result<Vec<Certificate>> {
    let pem = read(path)?;
    // `load_pem_chain` wants to find one.
    let is_pem = pem.windows(10).any(|window| window == b"-----BEGIN");
    ensure!(is_pem, "{} holds no certificate in PEM", path.display());
    Certificate::load_pem_chain(&pem)
        .with_context(|| format!("{} cannot be read as certificates in PEM", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(INPUT_BYTES_MAX).read_to_end(&mut bytes)
    } else {
        fs::File::open(path).and_then(|file| file.take(INPUT_BYTES_MAX).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}
