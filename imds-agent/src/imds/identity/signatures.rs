//! The signatures of one document, and the texts that are made of them when a guest asks.
//!
//! Kept are the signatures alone: with the texts around them an instance would cost ten times as much memory as with
//! its signatures, for what takes microseconds to write.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::{
    IdentityKey, IdentityKeys, SignError,
    signed_data::{Digest, Envelope, into_lines, signed_attributes},
};

/// What can be had of a signed document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// `signature`: RSA PKCS #1 v1.5 with SHA-256 over the document, in base64.
    Signature,
    /// `rsa2048` and `pkcs7`: CMS signed data around the document, the inside of a PEM block `PKCS7`.
    Rsa2048,
    /// `dsa2048`: the same, signed with DSA.
    Dsa2048,
}

/// Signatures of one document, which is not among them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signatures {
    digest: Digest,
    of_document: Box<[u8]>,
    rsa2048: Signed,
    dsa2048: Option<Signed>,
}

/// A signature over signed attributes, and what stands around it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Signed {
    envelope: Arc<Envelope>,
    signature: Box<[u8]>,
}

impl Signatures {
    /// Signs `document` with RSA, twice: some 1.2 ms, so not for the request path.
    pub fn new(keys: &IdentityKeys, document: &[u8]) -> Result<Self, SignError> {
        let digest = Sha256::digest(document).into();
        Ok(Self {
            digest,
            of_document: keys.rsa.sign(document)?.into(),
            rsa2048: Signed::new(&keys.rsa, &digest)?,
            dsa2048: None,
        })
    }

    /// The same with a signature for `dsa2048`, which takes five times as long as the others together.
    pub fn with_dsa2048(&self, keys: &IdentityKeys) -> Result<Self, SignError> {
        Ok(Self {
            dsa2048: Some(Signed::new(&keys.dsa, &self.digest)?),
            ..self.clone()
        })
    }

    /// Whether they are those of `document`.
    pub fn are_of(&self, document: &[u8]) -> bool {
        *Sha256::digest(document) == self.digest
    }

    /// Whether `part` can be had.
    pub fn have(&self, part: Part) -> bool {
        part != Part::Dsa2048 || self.dsa2048.is_some()
    }

    /// Puts the text of `part` in the place of the document, which is what `out` holds from `start` on. Nothing if it is not
    /// signed yet.
    pub fn put(&self, part: Part, start: usize, out: &mut Vec<u8>) -> Option<()> {
        let document = start..out.len();
        let signed = match part {
            Part::Signature => {
                out.truncate(start);
                out.extend_from_slice(&self.of_document);
                into_lines(out, start);
                return Some(());
            }
            Part::Rsa2048 => &self.rsa2048,
            Part::Dsa2048 => self.dsa2048.as_ref()?,
        };
        let written = signed
            .envelope
            .write(document.clone(), &self.digest, &signed.signature, out);
        written.ok()?;
        out.drain(document);
        into_lines(out, start);
        Some(())
    }
}

impl Signed {
    fn new(key: &IdentityKey, digest: &Digest) -> Result<Self, SignError> {
        Ok(Self {
            envelope: Arc::clone(&key.envelope),
            signature: key.sign(&signed_attributes(digest)?)?.into(),
        })
    }
}
