//! Session tokens: minted and checked without any state.
//!
//! A token is 40 bytes, written as 56 characters like EC2's:
//!
//! ```text
//!  version  key id   expiry                nonce      tag
//!  1        3        8, Unix milliseconds  12         16
//! ```
//!
//! The tag is HMAC-SHA256, cut to 128 bits, over the 24 bytes before it, the instance id behind its length, and the
//! interface's MAC. So a token is good for nobody else, and nobody can make one or stretch its life. A guest fills no
//! memory by asking for more of them, and they outlive a restart of the agent.

use std::{fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use hmac::{Hmac, KeyInit as _, Mac as _};
use imds_ebpf::abi::MacAddr;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::registry::InstanceId;

/// The longest life of a token, six hours, in seconds.
pub const TTL_SECONDS_MAX: u32 = 21_600;

/// How much the clock by which a token is verified may be behind the one by which it was minted.
const CLOCKS_DIFFER_BY: Duration = Duration::from_secs(60);

/// No token has so much left.
const LEFT_MILLISECONDS_END: u64 = (TTL_SECONDS_MAX as u64 + CLOCKS_DIFFER_BY.as_secs()) * 1000 + 1;

/// Characters of a token.
pub const TOKEN_CHARS: usize = 56;

const VERSION: u8 = 1;
const TOKEN_BYTES: usize = 40;
const SIGNED_BYTES: usize = 24;
/// What base64 says 56 characters may hold; two of them are padding.
const DECODED_BYTES_MAX: usize = 42;

/// Why an offered token is worth nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum TokenError {
    /// Not 56 characters of base64, or of an unknown version.
    #[error("the session token is malformed")]
    Malformed,
    /// Minted with a key that is not held (any more).
    #[error("the session token's key is unknown")]
    UnknownKey,
    /// Altered, or minted for another instance or interface.
    #[error("the session token is forged or another interface's")]
    Forged,
    /// Its life is over.
    #[error("the session token has expired")]
    Expired,
}

/// Whom a token is for. Both halves are told by the tap, not by the guest.
#[derive(Clone, Copy, Debug)]
pub struct Bearer<'a> {
    /// The instance.
    pub instance: &'a InstanceId,
    /// The interface.
    pub mac: MacAddr,
}

/// One key, with the id that a token names it by.
pub struct TokenKey {
    id: [u8; 3],
    /// The MAC before its first byte: half of what one costs is to work the key into it. Wiped in the end.
    keyed: Hmac<Sha256>,
}

impl TokenKey {
    /// A key of 256 random bits.
    pub fn new(id: [u8; 3], secret: [u8; 32]) -> Self {
        let secret = Zeroizing::new(secret);
        // HMAC fills a key up to its block with zeroes itself; done here it cannot fail.
        let mut block = Zeroizing::new([0; 64]);
        block
            .iter_mut()
            .zip(secret.iter())
            .for_each(|(byte, secret)| *byte = *secret);
        Self {
            id,
            keyed: Hmac::new((&*block).into()),
        }
    }

    fn mac(&self, signed: &[u8], bearer: Bearer<'_>) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        let instance = bearer.instance.as_str().as_bytes();
        mac.update(signed);
        mac.update(&u64::try_from(instance.len()).unwrap_or(u64::MAX).to_be_bytes());
        mac.update(instance);
        mac.update(&bearer.mac.0);
        mac
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenKey({:02x?}, ...)", self.id)
    }
}

/// The keys of this host or fleet.
#[derive(Debug)]
pub struct TokenKeys {
    current: TokenKey,
    others: Vec<TokenKey>,
}

impl TokenKeys {
    /// Tokens are minted with `current`; those of `others` are still good.
    pub fn new(current: TokenKey, others: Vec<TokenKey>) -> Self {
        Self { current, others }
    }

    /// A token for `bearer` that ends `ttl_seconds` after `now`, the time since the Unix epoch.
    ///
    /// # Errors
    /// None that can happen: the text is as long as its bytes make it.
    pub(super) fn mint(
        &self,
        now: Duration,
        ttl_seconds: u32,
        bearer: Bearer<'_>,
        nonce: [u8; 12],
    ) -> Result<[u8; TOKEN_CHARS], TokenError> {
        let expiry = milliseconds(now).saturating_add(u64::from(ttl_seconds).saturating_mul(1000));
        let mut token = [0; TOKEN_BYTES];
        let (signed, tag) = token.split_at_mut(SIGNED_BYTES);
        let fields = [VERSION]
            .into_iter()
            .chain(self.current.id)
            .chain(expiry.to_be_bytes())
            .chain(nonce);
        signed
            .iter_mut()
            .zip(fields)
            .for_each(|(byte, field)| *byte = field);
        let full_tag = self.current.mac(signed, bearer).finalize().into_bytes();
        tag.iter_mut().zip(full_tag).for_each(|(byte, tag)| *byte = tag);

        let mut text = [0; TOKEN_CHARS];
        URL_SAFE
            .encode_slice(token, &mut text)
            .map_err(|_| TokenError::Malformed)?;
        Ok(text)
    }

    /// The seconds that `token` has left, the begun one included, if `bearer` holds it rightly.
    ///
    /// # Errors
    /// Why it is worth nothing.
    pub(super) fn verify(&self, now: Duration, token: &[u8], bearer: Bearer<'_>) -> Result<u32, TokenError> {
        if token.len() != TOKEN_CHARS {
            return Err(TokenError::Malformed);
        }
        let mut decoded = [0; DECODED_BYTES_MAX];
        let length = URL_SAFE
            .decode_slice(token, &mut decoded)
            .map_err(|_| TokenError::Malformed)?;
        let token = decoded.get(..length).unwrap_or_default();
        let (signed, tag) = token
            .split_at_checked(SIGNED_BYTES)
            .ok_or(TokenError::Malformed)?;
        let [
            VERSION,
            id_0,
            id_1,
            id_2,
            expiry_0,
            expiry_1,
            expiry_2,
            expiry_3,
            expiry_4,
            expiry_5,
            expiry_6,
            expiry_7,
            ..,
        ] = *signed
        else {
            return Err(TokenError::Malformed);
        };
        if tag.len() != TOKEN_BYTES.saturating_sub(SIGNED_BYTES) {
            return Err(TokenError::Malformed);
        }
        let key = self.key([id_0, id_1, id_2]).ok_or(TokenError::UnknownKey)?;
        // Compares in constant time.
        key.mac(signed, bearer)
            .verify_truncated_left(tag)
            .map_err(|_| TokenError::Forged)?;
        let expiry = u64::from_be_bytes([
            expiry_0, expiry_1, expiry_2, expiry_3, expiry_4, expiry_5, expiry_6, expiry_7,
        ]);
        match expiry.saturating_sub(milliseconds(now)) {
            // So much was never left of any: the clock was put back, and how old it is nobody knows.
            0 | LEFT_MILLISECONDS_END.. => Err(TokenError::Expired),
            left => Ok(u32::try_from(left.div_ceil(1000)).unwrap_or(u32::MAX)),
        }
    }

    fn key(&self, id: [u8; 3]) -> Option<&TokenKey> {
        std::iter::once(&self.current)
            .chain(&self.others)
            .find(|key| key.id == id)
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn keys() -> TokenKeys {
        TokenKeys::new(
            TokenKey::new([0, 0, 2], [7; 32]),
            vec![TokenKey::new([0, 0, 1], [9; 32])],
        )
    }

    fn instance(id: &str) -> InstanceId {
        id.parse().unwrap()
    }

    fn check(
        keys: &TokenKeys,
        now: Duration,
        token: &[u8],
        id: &str,
        mac: MacAddr,
    ) -> Result<u32, TokenError> {
        let instance = &instance(id);
        keys.verify(now, token, Bearer { instance, mac })
    }

    fn mint(keys: &TokenKeys, ttl_seconds: u32) -> [u8; TOKEN_CHARS] {
        let instance = &instance("i-1");
        keys.mint(NOW, ttl_seconds, Bearer { instance, mac: MAC }, [5; 12])
            .unwrap()
    }

    #[test]
    fn has_the_form_of_ec2s() {
        let token = mint(&keys(), 60);
        assert!(token.ends_with(b"=="));
        assert!(
            token[..54]
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
        );
    }

    #[test]
    fn lives_exactly_as_long_as_asked() {
        let keys = keys();
        let token = mint(&keys, 60);
        let after = |millis| check(&keys, NOW + Duration::from_millis(millis), &token, "i-1", MAC);
        assert_eq!(after(0), Ok(60));
        assert_eq!(after(1), Ok(60));
        assert_eq!(after(1000), Ok(59));
        assert_eq!(after(59_999), Ok(1));
        assert_eq!(after(60_000), Err(TokenError::Expired));
    }

    /// For longer than any lives none is worth anything again.
    #[test]
    fn a_clock_that_is_put_back_makes_no_token_younger() {
        let keys = keys();
        let token = mint(&keys, TTL_SECONDS_MAX);
        let at = |now| check(&keys, now, &token, "i-1", MAC);
        assert_eq!(at(NOW - CLOCKS_DIFFER_BY), Ok(TTL_SECONDS_MAX + 60));
        for now in [
            Duration::ZERO,
            NOW - Duration::from_hours(24),
            NOW - CLOCKS_DIFFER_BY - Duration::from_millis(1),
        ] {
            assert_eq!(at(now), Err(TokenError::Expired), "{now:?}");
        }
    }

    #[test]
    fn is_good_for_one_instance_and_interface() {
        let keys = keys();
        let token = mint(&keys, 60);
        assert_eq!(check(&keys, NOW, &token, "i-2", MAC), Err(TokenError::Forged));
        let other = MacAddr([2, 0, 0, 0, 0, 2]);
        assert_eq!(check(&keys, NOW, &token, "i-1", other), Err(TokenError::Forged));
    }

    #[test]
    fn older_keys_stay_good_until_they_are_gone() {
        let token = mint(&TokenKeys::new(TokenKey::new([0, 0, 1], [9; 32]), vec![]), 60);
        assert_eq!(check(&keys(), NOW, &token, "i-1", MAC), Ok(60));
        let rotated = TokenKeys::new(TokenKey::new([0, 0, 2], [7; 32]), vec![]);
        assert_eq!(
            check(&rotated, NOW, &token, "i-1", MAC),
            Err(TokenError::UnknownKey)
        );
    }

    #[test]
    fn debug_shows_no_secret() {
        let keys = TokenKeys::new(TokenKey::new([1, 2, 3], [0xee; 32]), vec![]);
        let shown = format!("{keys:?}");
        assert!(!shown.contains("ee") && !shown.contains("238"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_altered_character_is_refused(position in 0..TOKEN_CHARS, byte: u8) {
            let keys = keys();
            let mut token = mint(&keys, 60);
            prop_assume!(token[position] != byte);
            token[position] = byte;
            prop_assert!(check(&keys, NOW, &token, "i-1", MAC).is_err());
        }

        #[test]
        fn any_bytes_are_refused(token: Vec<u8>) {
            prop_assert!(check(&keys(), NOW, &token, "i-1", MAC).is_err());
        }
    }
}
