use super::*;

/// AWS's form, and that of Ceph, which is S3's.
const AWS: &str = "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <Error>\n    <Type>Sender</Type>\n    \
                   <Code>AccessDenied</Code>\n    <Message>User: arn:aws:iam::1:user/host is not authorized</Message>\n  \
                   </Error>\n</ErrorResponse>";
const CEPH: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>SignatureDoesNotMatch</Code>\
                    <RequestId>tx0</RequestId></Error>";

fn complaint(status: u16, body: &str) -> Complaint {
    Complaint {
        status,
        code: element(body.as_bytes(), "Code"),
        message: element(body.as_bytes(), "Message"),
    }
}

fn role() -> Role {
    serde_json::from_str(r#"{"RoleName":"web","Arn":"arn:aws:iam::1:role/web"}"#).unwrap()
}

#[test]
fn errors_of_both_kinds_are_read() {
    assert_eq!(
        complaint(403, AWS),
        Complaint {
            status: 403,
            code: Some("AccessDenied".to_owned()),
            message: Some("User: arn:aws:iam::1:user/host is not authorized".to_owned()),
        }
    );
    assert_eq!(
        complaint(403, CEPH).code.as_deref(),
        Some("SignatureDoesNotMatch")
    );
    for nothing in [
        "",
        "<Code>",
        "<Code>a<b/></Code>",
        "<Code>a\nb</Code>",
        "{\"Code\": 1}",
    ] {
        assert_eq!(complaint(403, nothing).code, None, "{nothing}");
    }
}

#[test]
fn who_is_meant_decides_between_refused_and_unavailable() {
    let is_refused = |status, code: &str| {
        let complaint = complaint(status, &format!("<Code>{code}</Code>"));
        matches!(complaint.into_error(&role()), FetchError::Refused { .. })
    };
    for (status, code) in [
        (403, "AccessDenied"),
        (403, ""),
        (404, "NoSuchEntity"),
        (400, "NoSuchEntityException"),
    ] {
        assert!(is_refused(status, code), "{status} {code}");
    }
    for (status, code) in [
        (403, "SignatureDoesNotMatch"),
        (403, "InvalidClientTokenId"),
        (403, "ExpiredToken"),
        (400, "ValidationError"),
        (400, "Throttling"),
        (429, "SlowDown"),
        (500, "InternalFailure"),
        (503, "ServiceUnavailable"),
    ] {
        assert!(!is_refused(status, code), "{status} {code}");
    }
}

#[test]
fn guest_is_told_nothing_of_the_host() {
    let error = complaint(403, AWS).into_error(&role());
    assert!(error.to_string().contains("user/host"), "{error}");
    let FetchError::Refused { code, message, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(code, "AssumeRoleUnauthorizedAccess");
    assert!(!message.contains("host"), "{message}");
}

#[test]
fn session_tags_are_what_the_host_says_and_what_it_lets_through() {
    let settings = Settings {
        session_tags: [
            ("cloud".to_owned(), "ours".to_owned()),
            ("team".to_owned(), "red".to_owned()),
        ]
        .into(),
        instance_tags: vec!["team".to_owned(), "tier".to_owned()],
        ..Settings::default()
    };
    let mut request = RoleSessionRequest::of(r#"{"RoleName":"web","Arn":"arn:aws:iam::1:role/web"}"#);
    for (key, value) in [("team", "blue"), ("tier", "front"), ("secret", "x")] {
        let tag = serde_json::json!({"Key": key, "Value": value});
        request.tags.push(serde_json::from_value(tag).unwrap());
    }
    let tags = session_tags(&settings, &request).unwrap();
    let tags: Vec<_> = tags.iter().map(|tag| (tag.key(), tag.value())).collect();
    assert_eq!(tags, [("cloud", "ours"), ("team", "red"), ("tier", "front")]);
    assert_eq!(session_tags(&Settings::default(), &request), None);
}
