//! The embedded issuer: credentials that the agent mints itself, for clouds without an STS of their own.

use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};

use super::{
    Deliveries, Fetch, FetchError, IssuerKeys, RoleCredentials, RoleSessionRequest, Source,
    capsule::{self, CapsuleKey, Claims, Delivery, NONCE_BYTES, OpenError, Opened},
    whole_seconds,
};
use crate::{
    keys::IssuerKey,
    registry::{HttpTokens, Role, role::SourceKind},
};

/// Mints sets under its newest key, and opens what any of its keys sealed.
#[derive(Debug)]
pub struct Issuer {
    /// The first one mints.
    keys: ArcSwap<Vec<CapsuleKey>>,
}

impl Issuer {
    /// An issuer that mints under `newest`. `older` keys go on opening until their sets have expired.
    pub fn new(newest: &IssuerKey, older: &[IssuerKey]) -> Self {
        Self {
            keys: ArcSwap::from_pointee(capsule_keys(newest, older)),
        }
    }

    /// From now on mints under other keys, and opens what these sealed.
    pub fn replace_keys(&self, keys: &IssuerKeys) {
        self.keys
            .store(Arc::new(capsule_keys(&keys.newest, &keys.accepted)));
    }

    /// What a session token of this issuer says, and the keys that belong to it.
    pub fn open(&self, session_token: &str, now: Timestamp) -> Result<Opened, OpenError> {
        capsule::open(&self.keys.load(), session_token, now)
    }

    /// Makes a set that says `claims`.
    pub fn issue(&self, claims: &Claims) -> Result<RoleCredentials, FetchError> {
        let unavailable = |error: &dyn std::error::Error| FetchError::Unavailable(error.to_string());
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce)
            .map_err(|error| FetchError::Unavailable(format!("the kernel gives no random bytes: {error}")))?;
        let keys = self.keys.load();
        let key = keys
            .first()
            .ok_or_else(|| FetchError::Unavailable("the issuer has no key".to_owned()))?;
        let sealed = key.seal(claims, nonce).map_err(|error| unavailable(&error))?;
        Ok(RoleCredentials {
            access_key_id: sealed.access_key_id,
            secret_access_key: sealed.secret_access_key,
            session_token: sealed.session_token,
            without_token: None,
            deliveries: Deliveries::default(),
            last_updated: claims.issued,
            expiration: claims.expires,
        })
    }
}

fn capsule_keys(newest: &IssuerKey, older: &[IssuerKey]) -> Vec<CapsuleKey> {
    std::iter::once(newest)
        .chain(older)
        .map(CapsuleKey::new)
        .collect()
}

impl Source for Issuer {
    fn kind(&self, _: &Role) -> SourceKind {
        SourceKind::Issuer
    }

    fn fetch<'a>(&'a self, request: &'a RoleSessionRequest) -> Fetch<'a> {
        let issued = whole_seconds(request.now);
        let account = request.role.arn.split(':').nth(4).unwrap_or_default();
        let claims = Claims {
            account: account.to_owned(),
            role: request.role.arn.clone(),
            role_id: request.role.role_id.clone(),
            session: request.instance.to_string(),
            instance: request.instance.clone(),
            address: request.address,
            delivery: Delivery::ImdsV2,
            issued,
            expires: issued + SignedDuration::from_secs(request.duration_seconds.into()),
        };
        let set = self.issue(&claims).and_then(|set| match request.http_tokens {
            // One set more is what an instance costs most for in memory.
            HttpTokens::Required => Ok(RoleCredentials {
                deliveries: Deliveries::with_token_alone(),
                ..set
            }),
            // When a guest asks is too late to seal, and how it will ask is not known before.
            HttpTokens::Optional => {
                let delivery = Delivery::ImdsV1;
                let without_token = self.issue(&Claims { delivery, ..claims })?;
                Ok(RoleCredentials {
                    without_token: Some(Box::new(without_token)),
                    ..set
                })
            }
        });
        Box::pin(std::future::ready(set))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::credentials::deliveries::Asked;

    fn request(role_arn: &str) -> RoleSessionRequest {
        let role = format!(r#"{{"RoleName":"web","Arn":"{role_arn}"}}"#);
        RoleSessionRequest {
            instance: "i-0123456789abcdef0".parse().unwrap(),
            now: "2026-11-21T08:00:00.75Z".parse().unwrap(),
            ..RoleSessionRequest::of(&role)
        }
    }

    #[tokio::test]
    async fn minted_set_is_well_formed_and_opens() {
        let issuer = Issuer::new(&IssuerKey::new([1; 4], [1; 32]), &[]);
        let request = request("arn:aws:iam::123456789012:role/web");
        let set = issuer.fetch(&request).await.unwrap();
        assert!(set.access_key_id.starts_with("ASIA") && set.access_key_id.len() == 20);
        assert_eq!(set.secret_access_key.expose_secret().len(), 40);
        assert_eq!(set.last_updated.to_string(), "2026-11-21T08:00:00Z");
        assert_eq!(set.expiration.to_string(), "2026-11-21T09:00:00Z");
        let opened = issuer
            .open(set.session_token.expose_secret(), request.now)
            .unwrap();
        assert_eq!(opened.access_key_id, set.access_key_id);
        assert_eq!(
            opened.secret_access_key.expose_secret(),
            set.secret_access_key.expose_secret()
        );
        assert_eq!(opened.claims.account, "123456789012");
        assert_eq!(opened.claims.session, "i-0123456789abcdef0");
        assert_eq!(opened.claims.expires, set.expiration);
        let without_token = set.for_guest_that(Asked::WithoutToken).unwrap();
        let opened = issuer
            .open(without_token.session_token.expose_secret(), request.now)
            .unwrap();
        assert_eq!(opened.claims.delivery, Delivery::ImdsV1);
        let request = RoleSessionRequest {
            http_tokens: HttpTokens::Required,
            ..request
        };
        let next = issuer.fetch(&request).await.unwrap();
        assert_ne!(next.access_key_id, set.access_key_id, "every set is a new one");
        assert!(next.for_guest_that(Asked::WithToken).is_some());
        assert!(
            next.for_guest_that(Asked::WithoutToken).is_none(),
            "it says that it went against a token"
        );
    }

    #[tokio::test]
    async fn account_less_role_is_served_and_an_old_key_still_opens() {
        let (old, new) = (IssuerKey::new([1; 4], [1; 32]), IssuerKey::new([2; 4], [2; 32]));
        let request = request("arn:aws:iam:::role/web");
        let set = Issuer::new(&old, &[]).fetch(&request).await.unwrap();
        let rotated = Issuer::new(&new, std::slice::from_ref(&old));
        let opened = rotated
            .open(set.session_token.expose_secret(), request.now)
            .unwrap();
        assert_eq!(opened.claims.account, "");
        let set = rotated.fetch(&request).await.unwrap();
        let error = Issuer::new(&old, &[])
            .open(set.session_token.expose_secret(), request.now)
            .unwrap_err();
        assert_eq!(error, OpenError::UnknownKey);
    }
}
