//! Requests to the security token service: as they come, and signed with a good set.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4,
};
use hyper::{
    HeaderMap, Method,
    header::{HeaderName, HeaderValue},
};
use imds_agent::{
    credentials::Issuer,
    registry::{Role, Snapshot},
    sts::{query::Service, sigv4::Received},
};
use secrecy::ExposeSecret as _;

use crate::capsules::{key, now, sealed};

/// A role that the set's own role may assume.
const ROLE: &str = r#"{ "RoleName": "other", "Arn": "arn:aws:iam::123456789012:role/other", "AssumeRolePolicyDocument": {
    "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": "sts:AssumeRole",
    "Principal": { "AWS": "arn:aws:iam::123456789012:role/web" } }] } }"#;

/// The first byte of `data` says what is done; then come a query, a body and, each on a line, header fields, with an empty line
/// between them.
///
/// - 0: the request is made as it is. Nobody has signed it, so nobody is told anything.
/// - 1, 2: it is signed in its header or in its query, and then it is the query and the body that decide.
/// - 3: it is signed, and then one byte of the body or of the signature is another. It is refused.
pub fn run(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else {
        return;
    };
    let mut parts = rest.splitn(3, |byte| *byte == b'\n');
    let (query, body, fields) = (
        parts.next(),
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let Some(query) = query.and_then(|query| str::from_utf8(query).ok()) else {
        return;
    };
    let mut request = Signed {
        method: Method::POST,
        query: query.to_owned(),
        headers: HeaderMap::new(),
        body: body.to_vec(),
    };
    for line in fields.split(|byte| *byte == b'\n') {
        let mut words = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            request.headers.append(name, value);
        }
    }
    match how % 4 {
        0 => {
            let told = request.tell();
            assert!(told.0 == 400 || told.0 == 403, "{told:?}");
        }
        location @ (1 | 2) => {
            let location = match location {
                1 => SignatureLocation::Headers,
                _ => SignatureLocation::QueryParams,
            };
            // Signers disagree about a plus sign that is not encoded, so none is sent.
            let is_sure = !request.query.contains('+');
            if is_sure && request.sign(location).is_some() {
                assert_ne!(request.tell().1, Some("SignatureDoesNotMatch"));
            }
        }
        _ => {
            if request.sign(SignatureLocation::Headers).is_some() {
                request.change(how);
                let told = request.tell();
                assert!(told.0 == 400 || told.0 == 403, "{told:?}");
            }
        }
    }
}

struct Signed {
    method: Method,
    query: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Signed {
    /// Signs it by the SDK's own signer, unless that finds it no request at all.
    fn sign(&mut self, location: SignatureLocation) -> Option<()> {
        // What would be a second signature, and what the signer leaves out of its own.
        self.headers.clear();
        self.headers
            .insert("host", HeaderValue::from_static("sts.internal"));
        let set = sealed();
        let secret = set.secret_access_key.expose_secret();
        let token = set.session_token.expose_secret().to_owned();
        let identity = Credentials::new(&set.access_key_id, secret, Some(token), None, "fuzz").into();
        let mut settings = SigningSettings::default();
        settings.signature_location = location;
        settings.expires_in = (location == SignatureLocation::QueryParams).then_some(Duration::from_secs(60));
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region("eu-central-1")
            .name("sts")
            .time(SystemTime::from(now()))
            .settings(settings)
            .build()
            .ok()?
            .into();
        let uri = format!("http://sts.internal/?{}", self.query);
        let uri: hyper::Uri = uri.parse().ok()?;
        let text = uri.to_string();
        let signable = SignableRequest::new(
            "POST",
            text.clone(),
            [("host", "sts.internal")].into_iter(),
            SignableBody::Bytes(&self.body),
        );
        let (instructions, _) = sign(signable.ok()?, &parameters).ok()?.into_parts();
        let mut request = hyper::Request::builder().method("POST").uri(uri).body(()).ok()?;
        instructions.apply_to_request_http1x(&mut request);
        request
            .uri()
            .query()
            .unwrap_or_default()
            .clone_into(&mut self.query);
        for (name, value) in request.headers() {
            self.headers.insert(name, value.clone());
        }
        Some(())
    }

    /// Changes what is signed, or the signature.
    fn change(&mut self, how: u8) {
        let place = usize::from(how / 4);
        match self.body.get_mut(place) {
            Some(byte) => *byte ^= 1,
            None => {
                let signed = self.headers["authorization"].as_bytes();
                let mut changed = signed.to_vec();
                // One of the 64 digits at its end: another digit, never the same in another case.
                let at = changed.len() - 1 - place % 64;
                changed[at] ^= 1;
                self.headers
                    .insert("authorization", HeaderValue::from_bytes(&changed).expect("text"));
            }
        }
    }

    fn tell(&self) -> (u16, Option<&'static str>) {
        static SERVICE: LazyLock<(Service, Snapshot)> = LazyLock::new(|| {
            let role: Role = serde_json::from_str(ROLE).expect("a role");
            let mut registry = Snapshot::default();
            registry.roles.insert(role.arn.clone(), Arc::new(role));
            (Service::new(Arc::new(Issuer::new(&key(), &[]))), registry)
        });
        let (service, registry) = &*SERVICE;
        let received = Received {
            method: &self.method,
            query: &self.query,
            headers: &self.headers,
            body: &self.body,
        };
        let told = service.respond(&received, registry, now(), "r-1");
        assert!(
            (200..500).contains(&told.status),
            "{}: {:?}",
            told.status,
            told.error
        );
        assert_eq!(told.status == 200, told.error.is_none());
        assert_eq!(
            told.status == 200,
            told.caller.is_some() && told.action.is_some() && told.error.is_none()
        );
        (told.status, told.error.map(|(code, _)| code))
    }
}
