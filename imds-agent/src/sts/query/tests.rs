use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{self, SignableBody, SignableRequest, SignatureLocation, SigningSettings},
    sign::v4,
};
use hyper::Request;
use secrecy::ExposeSecret as _;

use super::*;
use crate::keys::IssuerKey;

const CALL: &str = "Action=GetCallerIdentity&Version=2011-06-15";

/// A service, a set that it knows, and what the set's holder sends. Time stands still.
struct World {
    service: Service,
    set: RoleCredentials,
    registry: Snapshot,
    now: Timestamp,
    service_name: &'static str,
}

impl World {
    fn new() -> Self {
        let now: Timestamp = "2026-11-21T08:00:00Z".parse().unwrap();
        let issuer = Arc::new(Issuer::new(&IssuerKey::new([1; 4], [1; 32]), &[]));
        let claims = Claims {
            account: "123456789012".to_owned(),
            role: "arn:aws:iam::123456789012:role/web".to_owned(),
            role_id: None,
            session: "i-1".to_owned(),
            instance: "i-1".parse().unwrap(),
            address: None,
            delivery: Delivery::ImdsV2,
            issued: now,
            expires: now + SignedDuration::from_hours(1),
        };
        Self {
            set: issuer.issue(&claims).unwrap(),
            service: Service::new(issuer),
            registry: Snapshot::default(),
            now,
            service_name: "sts",
        }
    }

    /// A request signed by the SDK's own signer.
    fn signed(
        &self,
        method: &str,
        query: &str,
        body: &'static str,
        location: SignatureLocation,
    ) -> Request<&'static str> {
        let credentials = Credentials::new(
            &self.set.access_key_id,
            self.set.secret_access_key.expose_secret(),
            Some(self.set.session_token.expose_secret().to_owned()),
            None,
            "test",
        );
        let identity = credentials.into();
        let mut settings = SigningSettings::default();
        settings.signature_location = location;
        if location == SignatureLocation::QueryParams {
            settings.expires_in = Some(Duration::from_secs(60));
        }
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region("eu-central-1")
            .name(self.service_name)
            .time(SystemTime::from(self.now))
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let uri = format!("http://sts.internal:8980/?{query}");
        let mut request = Request::builder()
            .method(method)
            .uri(&uri)
            .header("host", "sts.internal:8980")
            .header("x-custom", "  many   words ")
            .body(body)
            .unwrap();
        let headers = [("host", "sts.internal:8980"), ("x-custom", "  many   words ")];
        let signable = SignableRequest::new(
            method,
            uri,
            headers.into_iter(),
            SignableBody::Bytes(body.as_bytes()),
        );
        let (instructions, _) = http_request::sign(signable.unwrap(), &parameters)
            .unwrap()
            .into_parts();
        instructions.apply_to_request_http1x(&mut request);
        request
    }

    fn post(&self) -> Request<&'static str> {
        self.signed("POST", "", CALL, SignatureLocation::Headers)
    }

    fn presigned(&self) -> Request<&'static str> {
        self.signed("GET", CALL, "", SignatureLocation::QueryParams)
    }

    fn ask_at(&self, request: &Request<&'static str>, now: Timestamp) -> Told {
        let received = Received {
            method: request.method(),
            query: request.uri().query().unwrap_or_default(),
            headers: request.headers(),
            body: request.body().as_bytes(),
        };
        self.service.respond(&received, &self.registry, now, "r-1")
    }

    fn code(&self, request: &Request<&'static str>) -> &'static str {
        let told = self.ask_at(request, self.now);
        told.error.map_or("", |(code, _)| code)
    }
}

fn with_query(mut request: Request<&'static str>, change: impl Fn(&str) -> String) -> Request<&'static str> {
    let query = change(request.uri().query().unwrap_or_default());
    *request.uri_mut() = format!("/?{query}").parse().unwrap();
    request
}

#[test]
fn who_signs_right_is_told_who_it_is() {
    let world = World::new();
    for request in [
        world.post(),
        world.presigned(),
        // What has to be encoded has to be encoded alike on both sides.
        world.signed(
            "GET",
            &format!("{CALL}&z=%C3%A9%20%2B*~&a=&a-b=1&A=%2F"),
            "",
            SignatureLocation::Headers,
        ),
        world.signed("POST", CALL, "", SignatureLocation::QueryParams),
    ] {
        let told = world.ask_at(&request, world.now);
        assert_eq!(told.status, 200, "{request:?}: {:?}", told.error);
        assert!(
            told.body
                .contains("<Arn>arn:aws:sts::123456789012:assumed-role/web/i-1</Arn>")
        );
        assert!(told.body.contains("<UserId>web:i-1</UserId>"));
        assert_eq!(told.action, Some("GetCallerIdentity"));
        assert_eq!(told.access_key_id.as_ref(), Some(&world.set.access_key_id));
    }
}

#[test]
fn whatever_is_changed_afterwards_spoils_the_signature() {
    let world = World::new();
    let mut body = world.post();
    *body.body_mut() = "Action=GetCallerIdentity&Version=2011-06-16";
    assert_eq!(world.code(&body), "SignatureDoesNotMatch");
    let mut method = world.post();
    *method.method_mut() = hyper::Method::PUT;
    assert_eq!(world.code(&method), "SignatureDoesNotMatch");
    for (name, value) in [
        ("host", "other:8980"),
        ("x-custom", "few words"),
        ("x-amz-date", "20261121T080001Z"),
    ] {
        let mut header = world.post();
        header.headers_mut().insert(name, value.try_into().unwrap());
        assert_eq!(world.code(&header), "SignatureDoesNotMatch", "{name}");
    }
    let query = with_query(world.post(), |_| "a=b".to_owned());
    assert_eq!(world.code(&query), "SignatureDoesNotMatch");
    let more = with_query(world.presigned(), |query| format!("{query}&a=b"));
    assert_eq!(world.code(&more), "SignatureDoesNotMatch");
    let longer = with_query(world.presigned(), |query| {
        query.replace("X-Amz-Expires=60", "X-Amz-Expires=61")
    });
    assert_eq!(world.code(&longer), "SignatureDoesNotMatch");
    let signature = with_query(world.presigned(), |query| {
        let (start, signature) = query.split_once("X-Amz-Signature=").unwrap();
        let digit = if signature.starts_with('0') { '1' } else { '0' };
        format!("{start}X-Amz-Signature={digit}{}", &signature[1..])
    });
    assert_eq!(world.code(&signature), "SignatureDoesNotMatch");
}

#[test]
fn a_signature_is_good_about_its_date_only() {
    let world = World::new();
    let after = |seconds| world.now + SignedDuration::from_secs(seconds);
    let code = |request: &Request<&'static str>, at| {
        let told = world.ask_at(request, at);
        told.error.map_or("", |(code, _)| code)
    };
    let signed = world.post();
    for (seconds, expected) in [
        (-901, "SignatureDoesNotMatch"),
        (-900, ""),
        (900, ""),
        (901, "SignatureDoesNotMatch"),
    ] {
        assert_eq!(code(&signed, after(seconds)), expected, "{seconds}");
    }
    let presigned = world.presigned();
    for (seconds, expected) in [
        (-901, "SignatureDoesNotMatch"),
        (-900, ""),
        (60, ""),
        (61, "SignatureDoesNotMatch"),
    ] {
        assert_eq!(code(&presigned, after(seconds)), expected, "{seconds}");
    }
    let told = world.ask_at(&signed, after(901));
    let (_, message) = told.error.unwrap();
    assert!(
        message.starts_with("Signature expired: 20261121T080000Z"),
        "{message}"
    );
}

#[test]
fn what_belongs_to_a_signature_has_to_be_there_once_and_make_sense() {
    let world = World::new();
    let unsigned = Request::builder().uri("/").body("").unwrap();
    assert_eq!(world.code(&unsigned), "MissingAuthenticationToken");
    for name in ["x-amz-date", "authorization"] {
        let mut request = world.post();
        request.headers_mut().remove(name);
        let expected = if name == "authorization" {
            "MissingAuthenticationToken"
        } else {
            "IncompleteSignature"
        };
        assert_eq!(world.code(&request), expected, "{name}");
        let mut request = world.post();
        let value = request.headers()[name].clone();
        request.headers_mut().append(name, value);
        assert_eq!(world.code(&request), "IncompleteSignature", "{name}");
    }
    for (from, to) in [
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
        ("/aws4_request", ""),
        ("SignedHeaders=host;", "SignedHeaders="),
        ("Signature=", "Signatur="),
    ] {
        let mut request = world.post();
        let authorization = request.headers()["authorization"]
            .to_str()
            .unwrap()
            .replace(from, to);
        let authorization = authorization.try_into().unwrap();
        request.headers_mut().insert("authorization", authorization);
        assert_eq!(world.code(&request), "IncompleteSignature", "{from}");
    }
    for name in [
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-SignedHeaders",
        "X-Amz-Signature",
    ] {
        let request = with_query(world.presigned(), |query| query.replace(name, "X-Amz-Other"));
        assert_eq!(world.code(&request), "IncompleteSignature", "{name}");
    }
    for expires in ["0", "604801", "-1", "x"] {
        let request = with_query(world.presigned(), |query| {
            query.replace("X-Amz-Expires=60", &format!("X-Amz-Expires={expires}"))
        });
        assert_eq!(world.code(&request), "IncompleteSignature", "{expires}");
    }
    let twice = with_query(world.presigned(), |query| format!("{query}&Action=AssumeRole"));
    assert_eq!(world.code(&twice), "MalformedQueryString");
}

#[test]
fn sets_of_others_of_yesterday_and_for_elsewhere_are_refused() {
    let mut world = World::new();
    let request = world.post();
    let told = world.ask_at(&request, world.now + SignedDuration::from_hours(2));
    assert_eq!(told.error.unwrap().0, "ExpiredToken");

    let mut other_key = world.post();
    let authorization = other_key.headers()["authorization"].to_str().unwrap();
    let authorization = authorization.replace(&world.set.access_key_id, "ASIAQAAAAAAAAAAAAAAA");
    other_key
        .headers_mut()
        .insert("authorization", authorization.try_into().unwrap());
    assert_eq!(world.code(&other_key), "InvalidClientTokenId");

    let mut no_token = world.post();
    no_token.headers_mut().remove("x-amz-security-token");
    assert_eq!(world.code(&no_token), "InvalidClientTokenId");
    no_token
        .headers_mut()
        .insert("x-amz-security-token", "AQAB".try_into().unwrap());
    assert_eq!(world.code(&no_token), "InvalidClientTokenId");

    world.service_name = "s3";
    assert_eq!(world.code(&world.post()), "SignatureDoesNotMatch");
    world.service_name = "sts";
    let stranger = World::new();
    // Whoever has the key knows every set, whoever minted it.
    world.service = Service::new(Arc::new(Issuer::new(&IssuerKey::new([1; 4], [1; 32]), &[])));
    assert_eq!(world.code(&stranger.post()), "");
    world.service = Service::new(Arc::new(Issuer::new(&IssuerKey::new([1; 4], [2; 32]), &[])));
    assert_eq!(world.code(&stranger.post()), "InvalidClientTokenId");
}

#[test]
fn actions_that_are_not_there_are_named() {
    let world = World::new();
    let request = world.signed(
        "POST",
        "",
        "Action=GetFederationToken",
        SignatureLocation::Headers,
    );
    let told = world.ask_at(&request, world.now);
    assert_eq!(told.status, 400);
    let (code, message) = told.error.unwrap();
    assert_eq!(code, "InvalidAction");
    assert_eq!(
        message,
        "Could not find operation GetFederationToken for version 2011-06-15"
    );
}

#[test]
fn names_of_sessions_are_those_of_iam() {
    for legal in ["ab", "i-0123456789abcdef0", "a_b+c=d,e.f@g-h", &"x".repeat(64)] {
        assert!(is_session_name(legal), "{legal}");
    }
    for illegal in ["", "a", "a/b", "a b", "a:b", "é", &"x".repeat(65)] {
        assert!(!is_session_name(illegal), "{illegal}");
    }
}
