use proptest::prelude::*;

use super::*;

#[test]
fn signing_key_and_canonical_request_of_the_documentation() {
    // IAM user guide, "Signature Version 4 request signature examples": the secret, and its key for this scope.
    let claim = Claim {
        access_key_id: "AKIDEXAMPLE".to_owned(),
        session_token: None,
        scope: "20150830/us-east-1/iam/aws4_request".to_owned(),
        day: "20150830".to_owned(),
        region: "us-east-1".to_owned(),
        signed_headers: ["content-type", "host", "x-amz-date"].map(str::to_owned).into(),
        signature: String::new(),
        date: "20150830T123600Z".to_owned(),
        signed_at: Timestamp::UNIX_EPOCH,
        good_until: Timestamp::UNIX_EPOCH,
        is_presigned: false,
    };
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
        ("host", "iam.amazonaws.com"),
        ("x-amz-date", "20150830T123600Z"),
    ] {
        headers.insert(name, value.try_into().unwrap());
    }
    let received = Received {
        method: &Method::GET,
        query: "Version=2010-05-08&Action=ListUsers",
        headers: &headers,
        body: b"",
    };
    let canonical = claim.canonical_request(&received).unwrap();
    assert_eq!(
        hex(&Sha256::digest(canonical.as_bytes())),
        "f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59"
    );
}

proptest! {
    #[test]
    fn any_header_and_query_are_read_or_refused(authorization in "[ -~]{0,200}", query in "[ -~]{0,200}") {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", authorization.try_into().unwrap());
        let received = Received { method: &Method::GET, query: &query, headers: &headers, body: b"" };
        prop_assert!(Claim::read(&received).is_err());
        let _ = Claim::in_query(&query);
        if let Ok(parameters) = Parameters::parse(&query) {
            let canonical = parameters.canonical(false);
            prop_assert_eq!(Parameters::parse(&canonical).unwrap().canonical(false), canonical);
        }
    }
}
