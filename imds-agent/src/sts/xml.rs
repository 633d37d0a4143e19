//! The XML of the STS Query API.

use std::fmt::Write as _;

use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use crate::credentials::{RoleCredentials, capsule::Claims};

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// A response on its way out: it may hold secrets.
pub type Body = Zeroizing<String>;

/// `GetCallerIdentityResponse`.
pub fn caller_identity(caller: &Claims, request_id: &str) -> Body {
    let result = format!(
        "    <Arn>{}</Arn>\n    <UserId>{}</UserId>\n    <Account>{}</Account>\n",
        escaped(&caller.session_arn()),
        escaped(&caller.user_id()),
        escaped(&caller.account)
    );
    response("GetCallerIdentity", &result, request_id)
}

/// `AssumeRoleResponse`.
pub fn assumed_role(session: &Claims, set: &RoleCredentials, request_id: &str) -> Body {
    let result = Zeroizing::new(format!(
        "    <AssumedRoleUser>\n      <AssumedRoleId>{}</AssumedRoleId>\n      <Arn>{}</Arn>\n    </AssumedRoleUser>\n    \
         <Credentials>\n      <AccessKeyId>{}</AccessKeyId>\n      <SecretAccessKey>{}</SecretAccessKey>\n      \
         <SessionToken>{}</SessionToken>\n      <Expiration>{}</Expiration>\n    </Credentials>\n",
        escaped(&session.user_id()),
        escaped(&session.session_arn()),
        set.access_key_id,
        set.secret_access_key.expose_secret(),
        set.session_token.expose_secret(),
        set.expiration.strftime("%Y-%m-%dT%H:%M:%SZ"),
    ));
    response("AssumeRole", &result, request_id)
}

/// `ErrorResponse`.
pub fn error(is_sender: bool, code: &str, message: &str, request_id: &str) -> Body {
    Zeroizing::new(format!(
        "<ErrorResponse xmlns=\"{NAMESPACE}\">\n  <Error>\n    <Type>{}</Type>\n    <Code>{code}</Code>\n    \
         <Message>{}</Message>\n  </Error>\n  <RequestId>{request_id}</RequestId>\n</ErrorResponse>\n",
        if is_sender { "Sender" } else { "Receiver" },
        escaped(message)
    ))
}

fn response(action: &str, result: &str, request_id: &str) -> Body {
    Zeroizing::new(format!(
        "<{action}Response xmlns=\"{NAMESPACE}\">\n  <{action}Result>\n{result}  </{action}Result>\n  <ResponseMetadata>\n    \
         <RequestId>{request_id}</RequestId>\n  </ResponseMetadata>\n</{action}Response>\n"
    ))
}

/// Text as the content of an element. What XML cannot say at all becomes a question mark.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\t' | '\n' | '\r' => _ = write!(out, "&#{};", u32::from(character)),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('?'),
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(escaped("a<b>&\u{0}\n\"é"), "a&lt;b&gt;&amp;?&#10;\"é");
    }

    #[test]
    fn error_as_aws_writes_it() {
        assert_eq!(
            *error(true, "AccessDenied", "<no>", "r-1"),
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <Error>\n    <Type>Sender</Type>\n    \
             <Code>AccessDenied</Code>\n    <Message>&lt;no&gt;</Message>\n  </Error>\n  <RequestId>r-1</RequestId>\n\
             </ErrorResponse>\n"
        );
    }
}
