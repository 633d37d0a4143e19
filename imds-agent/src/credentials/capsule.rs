//! Session tokens that say themselves who they are for: sealed under the issuer's key, so that whoever holds that key can
//! verify a signature made with the credentials, on any host and without a database.
//!
//! `base64url(version ‖ key id ‖ nonce ‖ XChaCha20-Poly1305(claims))`. The access key id and the secret access key follow from
//! the issuer's key and the nonce.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

use std::{fmt, net::IpAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305,
    aead::{Aead as _, Payload},
};
use hmac::{Hmac, Mac as _};
use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::{keys::IssuerKey, registry::InstanceId};

const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 4;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_BYTES;

/// Bytes of a capsule's nonce: long enough to be drawn at random for ever.
pub const NONCE_BYTES: usize = 24;

/// Longest session token that is looked at. Role ARN, session name and instance id are 2048, 64 and 255 bytes at most.
pub const SESSION_TOKEN_BYTES_MAX: usize = 4096;

/// What a capsule says. Fields are added as the service learns to say more; an unknown one is passed over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Claims {
    /// The account of the role; empty where a private cloud has none.
    pub account: String,
    /// The ARN of the role.
    pub role: String,
    /// The unique id of the role, `AROA...`, as far as its record says one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_id: Option<String>,
    /// The name of the role session.
    pub session: String,
    /// The instance that the set was made for, or whose set was used to assume the role.
    pub instance: InstanceId,
    /// The instance's private address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// How the set gets to the instance.
    #[serde(default)]
    pub delivery: Delivery,
    /// When it was made.
    pub issued: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
}

/// How a set reaches whoever uses it: what `ec2:RoleDelivery` says on EC2.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub enum Delivery {
    /// Handed out without a session token.
    #[serde(rename = "1.0")]
    ImdsV1,
    /// Handed out for a session token.
    #[default]
    #[serde(rename = "2.0")]
    ImdsV2,
    /// Not through the metadata service: the role was assumed with another role's credentials.
    #[serde(rename = "sts")]
    Sts,
}

impl Claims {
    /// `arn:aws:sts::<account>:assumed-role/<role>/<session>`: who carries this.
    pub fn session_arn(&self) -> String {
        let partition = self.role.split(':').nth(1).unwrap_or("aws");
        format!(
            "arn:{partition}:sts::{}:assumed-role/{}/{}",
            self.account,
            self.role_name(),
            self.session
        )
    }

    /// The role's unique id, else its name, and the session's name.
    pub fn user_id(&self) -> String {
        let role = self.role_id.as_deref().unwrap_or_else(|| self.role_name());
        format!("{role}:{}", self.session)
    }

    fn role_name(&self) -> &str {
        match self.role.split_once(":assumed-role/") {
            // The instance identity role, whose ARN is that of its session.
            Some((_, rest)) => rest.split('/').next().unwrap_or(rest),
            None => self.role.rsplit('/').next().unwrap_or(&self.role),
        }
    }
}

/// The three strings of a set.
#[derive(Debug)]
pub struct Sealed {
    /// `ASIA...`.
    pub access_key_id: String,
    /// 40 characters.
    pub secret_access_key: SecretString,
    /// The capsule.
    pub session_token: SecretString,
}

/// A capsule that was opened: enough to verify a signature.
#[derive(Debug)]
pub struct Opened {
    /// What it says.
    pub claims: Claims,
    /// The access key id that belongs to it.
    pub access_key_id: String,
    /// The secret access key that belongs to it.
    pub secret_access_key: SecretString,
}

/// Why a session token is not good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// Not the shape of a capsule.
    #[error("the session token is malformed")]
    Malformed,
    /// Sealed with a key that is not held here.
    #[error("the session token was sealed with another key")]
    UnknownKey,
    /// Not what the key's holder sealed.
    #[error("the session token is forged or damaged")]
    Forged,
    /// Past its end.
    #[error("the session token has expired")]
    Expired,
}

/// Seals and opens under one issuer key.
pub struct CapsuleKey {
    id: [u8; KEY_ID_BYTES],
    cipher: XChaCha20Poly1305,
    /// For what follows from the nonce.
    derivation: Zeroizing<[u8; 32]>,
}

impl CapsuleKey {
    /// Derives the working keys, so that no key does two things.
    pub fn new(key: &IssuerKey) -> Self {
        let sealing = hmac(key.secret(), &[b"imds-agent capsule 1: seal"]);
        Self {
            id: key.id,
            cipher: XChaCha20Poly1305::new((&*sealing).into()),
            derivation: hmac(key.secret(), &[b"imds-agent capsule 1: derive"]),
        }
    }

    /// Makes a set. A `nonce` is used once: draw it at random.
    pub fn seal(&self, claims: &Claims, nonce: [u8; NONCE_BYTES]) -> Result<Sealed, SealError> {
        let mut capsule = Vec::with_capacity(512);
        capsule.push(VERSION);
        capsule.extend(self.id);
        capsule.extend(nonce);
        let message = serde_json::to_vec(claims).map_err(|_| SealError)?;
        let payload = Payload {
            msg: &message,
            aad: &capsule,
        };
        let sealed = self
            .cipher
            .encrypt(&nonce.into(), payload)
            .map_err(|_| SealError)?;
        capsule.extend(sealed);
        let session_token = URL_SAFE_NO_PAD.encode(&capsule);
        if session_token.len() > SESSION_TOKEN_BYTES_MAX {
            return Err(SealError);
        }
        Ok(Sealed {
            access_key_id: self.access_key_id(&nonce, &claims.account),
            secret_access_key: self.secret_access_key(&nonce),
            session_token: session_token.into(),
        })
    }

    fn open(&self, capsule: &[u8], now: Timestamp) -> Result<Opened, OpenError> {
        let (header, sealed) = capsule
            .split_at_checked(HEADER_BYTES)
            .ok_or(OpenError::Malformed)?;
        let nonce: &[u8; NONCE_BYTES] = header.last_chunk().ok_or(OpenError::Malformed)?;
        let payload = Payload {
            msg: sealed,
            aad: header,
        };
        let message = self
            .cipher
            .decrypt(&(*nonce).into(), payload)
            .map_err(|_| OpenError::Forged)?;
        let claims: Claims = serde_json::from_slice(&message).map_err(|_| OpenError::Malformed)?;
        if claims.expires <= now {
            return Err(OpenError::Expired);
        }
        let access_key_id = self.access_key_id(nonce, &claims.account);
        Ok(Opened {
            access_key_id,
            secret_access_key: self.secret_access_key(nonce),
            claims,
        })
    }

    fn access_key_id(&self, nonce: &[u8; NONCE_BYTES], account: &str) -> String {
        let tag = hmac(&self.derivation, &[b"access key id", nonce]);
        let random = tag.first_chunk().map_or(0, |bytes| u128::from_be_bytes(*bytes));
        access_key_id(account, random)
    }

    fn secret_access_key(&self, nonce: &[u8; NONCE_BYTES]) -> SecretString {
        let tag = hmac(&self.derivation, &[b"secret access key", nonce]);
        // 30 bytes are 40 characters.
        let [thirty @ .., _, _] = &*tag;
        STANDARD.encode(thirty).into()
    }
}

/// A claim set that does not fit into a session token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the role session's names do not fit into a session token")]
pub struct SealError;

impl fmt::Debug for CapsuleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CapsuleKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Opens `session_token` with whichever of `keys` sealed it.
pub fn open(keys: &[CapsuleKey], session_token: &str, now: Timestamp) -> Result<Opened, OpenError> {
    if session_token.len() > SESSION_TOKEN_BYTES_MAX {
        return Err(OpenError::Malformed);
    }
    let capsule = URL_SAFE_NO_PAD
        .decode(session_token)
        .map_err(|_| OpenError::Malformed)?;
    let Some(([VERSION], rest)) = capsule.split_first_chunk() else {
        return Err(OpenError::Malformed);
    };
    let id: &[u8; KEY_ID_BYTES] = rest.first_chunk().ok_or(OpenError::Malformed)?;
    let key = keys
        .iter()
        .find(|key| key.id == *id)
        .ok_or(OpenError::UnknownKey)?;
    key.open(&capsule, now)
}

/// `ASIA` and 16 characters of base32, built as AWS builds them: one set bit, 40 bits of account, 39 bits of chance. Tools
/// that read the account out of an access key id get it right.
fn access_key_id(account: &str, random: u128) -> String {
    const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let chance = random & ((1 << 39) - 1);
    let account = match account.parse::<u128>() {
        Ok(account) if account < 1 << 40 => account,
        _ => (random >> 39) & ((1 << 40) - 1),
    };
    let bits = (1 << 79) | (account << 39) | chance;
    #[expect(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        reason = "places end below bit 80, and five bits are one of 32 digits"
    )]
    let digits = (0..16)
        .rev()
        .map(|place| char::from(BASE32[(bits >> (place * 5)) as usize & 31]));
    "ASIA".chars().chain(digits).collect()
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    // HMAC itself pads a key to its block with zeros.
    let mut block = Zeroizing::new([0; 64]);
    for (room, byte) in block.iter_mut().zip(key) {
        *room = *byte;
    }
    let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new((&*block).into());
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    use super::*;

    fn key(number: u8) -> CapsuleKey {
        CapsuleKey::new(&IssuerKey::new([number; 4], [number; 32]))
    }

    fn time(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn claims() -> Claims {
        Claims {
            account: "123456789012".to_owned(),
            role: "arn:aws:iam::123456789012:role/web".to_owned(),
            role_id: Some("AROAABCDEFGHIJKLMNOPQ".to_owned()),
            session: "i-0123456789abcdef0".to_owned(),
            instance: "i-0123456789abcdef0".parse().unwrap(),
            address: Some([10, 0, 0, 2].into()),
            delivery: Delivery::ImdsV1,
            issued: time(1000),
            expires: time(4600),
        }
    }

    #[test]
    fn opened_capsule_gives_back_all_that_was_sealed() {
        let sealed = key(1).seal(&claims(), [7; NONCE_BYTES]).unwrap();
        let opened = open(
            &[key(2), key(1)],
            sealed.session_token.expose_secret(),
            time(4599),
        )
        .unwrap();
        assert_eq!(opened.claims, claims());
        assert_eq!(opened.access_key_id, sealed.access_key_id);
        assert_eq!(
            opened.secret_access_key.expose_secret(),
            sealed.secret_access_key.expose_secret()
        );
        assert_eq!(sealed.secret_access_key.expose_secret().len(), 40);
        assert_eq!(sealed.access_key_id.len(), 20);
    }

    #[test]
    fn session_is_named_as_sts_names_it() {
        let mut claims = claims();
        assert_eq!(
            claims.session_arn(),
            "arn:aws:sts::123456789012:assumed-role/web/i-0123456789abcdef0"
        );
        assert_eq!(claims.user_id(), "AROAABCDEFGHIJKLMNOPQ:i-0123456789abcdef0");
        claims.role = "arn:aws-cn:iam:::role/a/b/web".to_owned();
        claims.account = String::new();
        claims.role_id = None;
        assert_eq!(
            claims.session_arn(),
            "arn:aws-cn:sts:::assumed-role/web/i-0123456789abcdef0"
        );
        assert_eq!(claims.user_id(), "web:i-0123456789abcdef0");
    }

    #[test]
    fn capsule_of_an_older_agent_is_understood() {
        let old = r#"{"account":"1","role":"arn:aws:iam::1:role/x","session":"s","instance":"i-1",
            "issued":"2026-11-21T08:00:00Z","expires":"2026-11-21T09:00:00Z","more":true}"#;
        let claims: Claims = serde_json::from_str(old).unwrap();
        assert_eq!((claims.delivery, claims.address), (Delivery::ImdsV2, None));
    }

    #[test]
    fn another_nonce_or_key_makes_another_set() {
        let first = key(1).seal(&claims(), [7; NONCE_BYTES]).unwrap();
        for other in [
            key(1).seal(&claims(), [8; NONCE_BYTES]).unwrap(),
            key(2).seal(&claims(), [7; NONCE_BYTES]).unwrap(),
        ] {
            assert_ne!(other.access_key_id, first.access_key_id);
            assert_ne!(
                other.secret_access_key.expose_secret(),
                first.secret_access_key.expose_secret()
            );
            assert_ne!(
                other.session_token.expose_secret(),
                first.session_token.expose_secret()
            );
        }
    }

    #[test]
    fn open_refuses_expired_foreign_and_forged() {
        let sealed = key(1).seal(&claims(), [7; NONCE_BYTES]).unwrap();
        let token = sealed.session_token.expose_secret();
        let error = |keys: &[CapsuleKey], token: &str, now| open(keys, token, time(now)).unwrap_err();
        assert_eq!(error(&[key(1)], token, 4600), OpenError::Expired);
        assert_eq!(error(&[key(2)], token, 2000), OpenError::UnknownKey);
        assert_eq!(error(&[], token, 2000), OpenError::UnknownKey);
        let impostor = CapsuleKey::new(&IssuerKey::new([1; 4], [9; 32]));
        assert_eq!(error(&[impostor], token, 2000), OpenError::Forged);
        for malformed in [
            "",
            "x",
            "AQ",
            "====",
            &"A".repeat(SESSION_TOKEN_BYTES_MAX + 1),
            &token[..30],
        ] {
            assert_eq!(
                error(&[key(1)], malformed, 2000),
                OpenError::Malformed,
                "{malformed}"
            );
        }
        // Every bit counts: version, key id, nonce, text, tag.
        let capsule = URL_SAFE_NO_PAD.decode(token).unwrap();
        for at in 0..capsule.len() {
            let mut damaged = capsule.clone();
            damaged[at] ^= 1;
            assert!(
                open(&[key(1)], &URL_SAFE_NO_PAD.encode(damaged), time(2000)).is_err(),
                "byte {at}"
            );
        }
    }

    #[test]
    fn names_that_fit_into_no_token_are_refused() {
        let long = Claims {
            role: "r".repeat(SESSION_TOKEN_BYTES_MAX),
            ..claims()
        };
        assert_eq!(key(1).seal(&long, [0; NONCE_BYTES]).unwrap_err(), SealError);
    }

    /// As published tools do it: decode ten bytes, mask the first six.
    fn account_in(access_key_id: &str) -> u64 {
        let bits = access_key_id[4..].bytes().fold(0_u128, |bits, byte| {
            let digit = if byte.is_ascii_digit() {
                byte - b'2' + 26
            } else {
                byte - b'A'
            };
            bits << 5 | u128::from(digit)
        });
        (u64::try_from(bits >> 32).unwrap() & 0x7fff_ffff_ff80) >> 7
    }

    #[test]
    fn access_key_id_tells_its_account_as_those_of_aws_do() {
        // A known pair from AWS, to trust the reader first.
        assert_eq!(account_in("ASIAQNZGKIQY56JQ7WML"), 29_608_264_753);
        for account in ["000000000000", "029608264753", "999999999999"] {
            let id = access_key_id(account, u128::MAX / 3);
            assert_eq!(account_in(&id), account.parse::<u64>().unwrap(), "{id}");
        }
        let id = access_key_id("a-private-cloud", 0);
        assert_eq!(id, "ASIAQAAAAAAAAAAAAAAA");
    }

    #[test]
    fn debug_shows_no_secret() {
        let sealed = key(1).seal(&claims(), [7; NONCE_BYTES]).unwrap();
        let shown = format!("{sealed:?} {:?}", key(1));
        assert!(
            !shown.contains(sealed.secret_access_key.expose_secret()),
            "{shown}"
        );
        assert!(!shown.contains(sealed.session_token.expose_secret()), "{shown}");
    }

    proptest! {
        #[test]
        fn any_text_is_refused(text in "[ -~]{0,200}") {
            prop_assert!(open(&[key(1)], &text, time(0)).is_err());
        }
    }
}
