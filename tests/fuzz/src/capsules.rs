//! Session tokens of the embedded issuer, which anybody may offer to its security token service.

use std::sync::LazyLock;

use imds_agent::{
    credentials::capsule::{self, CapsuleKey, Claims, Delivery, NONCE_BYTES, Sealed},
    keys::IssuerKey,
};
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;

/// With an even first byte the rest of `data` is offered; with an odd one, the good token is, changed at places that three
/// bytes each tell. Only the good one opens.
pub fn run(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else {
        return;
    };
    let good = sealed().session_token.expose_secret();
    let mut offered = rest.to_vec();
    if how & 1 == 1 {
        offered = good.as_bytes().to_vec();
        for [high, low, change] in rest.as_chunks().0 {
            let place = usize::from(u16::from_be_bytes([*high, *low])) % offered.len();
            offered[place] ^= change;
        }
    }
    let Ok(offered) = str::from_utf8(&offered) else {
        return;
    };
    match capsule::open(&[CapsuleKey::new(&key())], offered, now()) {
        Ok(opened) => {
            assert_eq!(offered, good);
            assert_eq!(
                (opened.claims, opened.access_key_id),
                (claims(), sealed().access_key_id.clone())
            );
        }
        Err(_) => assert_ne!(offered, good),
    }
}

/// When every request is made.
pub fn now() -> Timestamp {
    "2026-11-21T08:00:00Z".parse().expect("a time")
}

/// The issuer's key.
pub fn key() -> IssuerKey {
    IssuerKey::new([1; 4], [1; 32])
}

/// A set that the issuer made.
pub fn sealed() -> &'static Sealed {
    static SEALED: LazyLock<Sealed> = LazyLock::new(|| {
        let key = CapsuleKey::new(&key());
        key.seal(&claims(), [7; NONCE_BYTES])
            .expect("it fits into a token")
    });
    &SEALED
}

fn claims() -> Claims {
    Claims {
        account: "123456789012".to_owned(),
        role: "arn:aws:iam::123456789012:role/web".to_owned(),
        role_id: None,
        session: "i-0123456789abcdef0".to_owned(),
        instance: "i-0123456789abcdef0".parse().expect("an id"),
        address: None,
        delivery: Delivery::ImdsV2,
        issued: now(),
        expires: now() + SignedDuration::from_hours(1),
    }
}
