//! DSA with 2048 bits, for `dsa2048`: making a key, and verifying with one.
//!
//! Read first: FIPS 186-4, sections 4 and A.1.1.2. What is slow about a DSA key are its domain parameters, which are not
//! secret and may be shared: they come with the program, so that a new key costs one exponentiation. They are verifiably
//! random: made by A.1.1.2 and A.2.3 from a seed, which is the SHA-256 of the text `imds-agent dsa2048 35`, the lowest number for
//! which the seed gives a prime q. A test lets `openssl` make them again. (The group of RFC 5114 tells nobody where it is from.)

use der::{Decode as _, Encode as _, SecretDocument, asn1::UintRef};
use dsa::{
    BoxedUint, Components, Signature, SigningKey, VerifyingKey,
    pkcs8::{EncodePrivateKey as _, der::Decode as _},
    signature::{Verifier as _, rand_core::CryptoRng},
};
use x509_cert::spki::SubjectPublicKeyInfoOwned;
use zeroize::Zeroizing;

/// In PEM, as `openssl dsaparam` writes it.
pub(super) const PARAMETERS: &str = include_str!("dsa2048.pem");

/// A new private key, in PEM; nothing if there is no memory for it.
pub fn generate(randomness: &mut impl CryptoRng) -> Option<Zeroizing<String>> {
    let (_, parameters) = der::Document::from_pem(PARAMETERS).ok()?;
    let parameters = Components::from_der(parameters.as_bytes()).ok()?;
    let Ok(key) = SigningKey::try_generate_from_rng_with_components(randomness, parameters);
    let key = SecretDocument::try_from(key.to_pkcs8_der().ok()?.as_bytes()).ok()?;
    key.to_pem("PRIVATE KEY", der::pem::LineEnding::LF).ok()
}

/// Whether it is what `dsa2048` says.
pub(super) fn is_of_size(parameters: &Components) -> bool {
    (parameters.p().bits(), parameters.q().bits()) == (2048, 256)
}

/// Whether `signature` is that of `message` by the owner of `public_key`.
pub(super) fn is_signed_by(public_key: &SubjectPublicKeyInfoOwned, message: &[u8], signature: &[u8]) -> bool {
    match (read(public_key), Signature::try_from(signature)) {
        (Some(key), Ok(signature)) => key.verify(message, &signature).is_ok(),
        _ => false,
    }
}

fn read(public_key: &SubjectPublicKeyInfoOwned) -> Option<VerifyingKey> {
    // By way of the bytes: the crate has another release of the same types.
    let parameters = public_key.algorithm.parameters.as_ref()?.to_der().ok()?;
    let parameters = Components::from_der(&parameters).ok().filter(is_of_size)?;
    let value = UintRef::from_der(public_key.subject_public_key.as_bytes()?).ok()?;
    let value = BoxedUint::from_be_slice(value.as_bytes(), parameters.p().bits_precision()).ok()?;
    VerifyingKey::from_components(parameters, value).ok()
}

#[cfg(test)]
mod tests;
