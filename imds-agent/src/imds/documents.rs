//! The JSON documents of the tree, in EC2's own layout: two spaces, and a space on either side of every colon.
//!
//! Read first: section B.5 of the wire contract. Clients parse JSON, but some read it with a regular expression, so
//! the layout and the order of the members are kept. A document ends without a newline.

pub(super) mod accelerators;
pub(super) mod events;

use std::io::Write as _;

use jiff::Timestamp;
use secrecy::ExposeSecret as _;

use super::tree::View;
use crate::{
    credentials::{self, RoleCredentials, RoleState},
    registry::{InstanceProfile, Role},
};

/// Where EC2's messages point to.
const TROUBLESHOOTING: &str = "Please see documentation at \
                               https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_iam-ec2.html.";

/// `iam/info`. Without a profile of the recorded name it says so, with HTTP 200, as on EC2.
pub(super) fn iam_info(view: &View<'_>, out: &mut Vec<u8>) -> Option<Timestamp> {
    let recorded = view.instance.iam_instance_profile.as_ref();
    let last_updated = match view.role_state {
        Some(RoleState::Ready(credentials)) => credentials.last_updated,
        Some(RoleState::Refused(refusal)) => refusal.last_updated,
        None => view.member.last_modified,
    };
    match (view.member.instance_profile.as_deref(), recorded) {
        (Some(profile), _) => instance_profile(view, profile, last_updated, out),
        (None, Some(recorded)) => {
            let message = format_args!(
                "Instance Profile {} cannot be found.  {TROUBLESHOOTING}",
                recorded.arn
            );
            failure("InstanceProfileNotFound", message, last_updated, out);
        }
        (None, None) => return None,
    }
    Some(last_updated)
}

fn instance_profile(view: &View<'_>, profile: &InstanceProfile, last_updated: Timestamp, out: &mut Vec<u8>) {
    let recorded = view.instance.iam_instance_profile.as_ref();
    let id = profile.instance_profile_id.as_deref();
    let mut document = Document::begin(out);
    document.text("Code", "Success");
    if view.member.role.is_none() {
        let message = format_args!("Instance Profile does not contain a role.  {TROUBLESHOOTING}");
        document.text("Message", message);
    }
    document.time("LastUpdated", last_updated);
    document.text("InstanceProfileArn", &profile.arn);
    if let Some(id) = id.or_else(|| recorded.and_then(|recorded| recorded.id.as_deref())) {
        document.text("InstanceProfileId", id);
    }
    document.end();
}

/// The credentials of a role session, with the role's account for those who ask for the extended form.
pub(super) fn role_credentials(credentials: &RoleCredentials, account: Option<&str>, out: &mut Vec<u8>) {
    let mut document = Document::begin(out);
    document.text("Code", "Success");
    document.time("LastUpdated", credentials.last_updated);
    document.text("Type", "AWS-HMAC");
    document.text("AccessKeyId", &credentials.access_key_id);
    document.text("SecretAccessKey", credentials.secret_access_key.expose_secret());
    document.text("Token", credentials.session_token.expose_secret());
    document.time("Expiration", credentials.expiration);
    if let Some(account) = account {
        document.text("AccountId", account);
    }
    document.end();
}

/// The account in a role's ARN, which private clouds leave out.
pub(super) fn account_of(role: &Role) -> Option<&str> {
    role.arn.split(':').nth(4).filter(|account| !account.is_empty())
}

/// What takes the place of credentials that the source refuses: with HTTP 200, as on EC2.
pub(super) fn refused(refusal: &credentials::Refusal, out: &mut Vec<u8>) {
    failure(refusal.code, &refusal.message, refusal.last_updated, out);
}

fn failure(code: &str, message: impl std::fmt::Display, last_updated: Timestamp, out: &mut Vec<u8>) {
    let mut document = Document::begin(out);
    document.text("Code", code);
    document.text("Message", message);
    document.time("LastUpdated", last_updated);
    document.end();
}

/// `identity-credentials/ec2/info`.
pub(super) fn identity_credentials_info(account: &str, last_updated: Timestamp, out: &mut Vec<u8>) {
    let mut document = Document::begin(out);
    document.text("Code", "Success");
    document.time("LastUpdated", last_updated);
    document.text("AccountId", account);
    document.end();
}

/// `tags/instance-index`: every tag, whatever its key. *Ours*.
pub(super) fn tags(view: &View<'_>, out: &mut Vec<u8>) {
    let mut document = Document::begin(out);
    for tag in &view.instance.tags {
        document.name(&tag.key);
        document.string(&tag.value);
    }
    document.end();
}

/// `instance-identity/document`. Its members are always all there; what is not known is `null`.
pub(super) fn identity(view: &View<'_>, out: &mut Vec<u8>) {
    let instance = view.instance;
    let codes = |kind: &'static str| {
        let codes = instance.product_codes.iter();
        codes
            .filter(move |code| code.product_code_type.as_deref() == Some(kind))
            .map(|code| code.product_code_id.as_str())
    };
    let mut document = Document::begin(out);
    document.text_or_null("accountId", view.account());
    document.text_or_null("architecture", instance.architecture.as_deref());
    document.text_or_null("availabilityZone", view.availability_zone());
    document.texts_or_null("billingProducts", std::iter::empty());
    document.texts_or_null("devpayProductCodes", codes("devpay"));
    document.texts_or_null("marketplaceProductCodes", codes("marketplace"));
    document.text_or_null("imageId", instance.image_id.as_deref());
    document.text("instanceId", &instance.instance_id);
    document.text_or_null("instanceType", instance.instance_type.as_deref());
    document.text_or_null("kernelId", instance.kernel_id.as_deref());
    match instance.launch_time {
        Some(time) => document.time("pendingTime", time),
        None => document.null("pendingTime"),
    }
    match view.local_ipv4() {
        Some(address) => document.text("privateIp", address),
        None => document.null("privateIp"),
    }
    document.text_or_null("ramdiskId", instance.ramdisk_id.as_deref());
    document.text_or_null("region", view.region());
    document.text("version", "2017-09-30");
    document.end();
}

/// One JSON object on its way out.
struct Document<'o> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
}

impl<'o> Document<'o> {
    fn begin(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, is_empty: true }
    }

    fn end(self) {
        self.out.extend_from_slice(b"\n}");
    }

    fn text(&mut self, name: &str, value: impl std::fmt::Display) {
        self.name(name);
        self.string(value);
    }

    fn text_or_null(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) if !value.is_empty() => self.text(name, value),
            _ => self.null(name),
        }
    }

    fn texts_or_null<'t>(&mut self, name: &str, values: impl Iterator<Item = &'t str>) {
        self.name(name);
        let mut before = "[ ";
        for value in values {
            self.out.extend_from_slice(before.as_bytes());
            self.string(value);
            before = ", ";
        }
        let end = if before == "[ " { "null" } else { " ]" };
        self.out.extend_from_slice(end.as_bytes());
    }

    fn null(&mut self, name: &str) {
        self.name(name);
        self.out.extend_from_slice(b"null");
    }

    /// As clients parse it: whole seconds and `Z`, whatever the source gave.
    fn time(&mut self, name: &str, time: Timestamp) {
        self.text(name, time.strftime("%Y-%m-%dT%H:%M:%SZ"));
    }

    fn name(&mut self, name: &str) {
        let before: &[u8] = if self.is_empty { b"\n  " } else { b",\n  " };
        self.is_empty = false;
        self.out.extend_from_slice(before);
        self.string(name);
        self.out.extend_from_slice(b" : ");
    }

    fn string(&mut self, value: impl std::fmt::Display) {
        self.out.push(b'"');
        _ = std::fmt::write(&mut Escaped(self.out), format_args!("{value}"));
        self.out.push(b'"');
    }
}

/// Writes text as the inside of a JSON string.
struct Escaped<'o>(&'o mut Vec<u8>);

impl std::fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            match byte {
                b'"' | b'\\' => self.0.extend_from_slice(&[b'\\', byte]),
                0..=0x1f => _ = write!(self.0, "\\u{byte:04x}"),
                _ => self.0.push(byte),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let mut out = Vec::new();
        let mut document = Document::begin(&mut out);
        document.text("a", "b");
        document.null("c");
        document.texts_or_null("d", ["e", "f"].into_iter());
        document.texts_or_null("g", std::iter::empty());
        document.time("h", "2026-11-21T08:00:00.999+01:00".parse().unwrap());
        document.end();
        assert_eq!(
            str::from_utf8(&out).unwrap(),
            "{\n  \"a\" : \"b\",\n  \"c\" : null,\n  \"d\" : [ \"e\", \"f\" ],\n  \"g\" : null,\n  \
             \"h\" : \"2026-11-21T07:00:00Z\"\n}"
        );
    }

    #[test]
    fn any_text_stays_json() {
        for text in ["", "\"quoted\\\"", "line\nbreak\u{1}", "é\u{2028}"] {
            let mut out = Vec::new();
            let mut document = Document::begin(&mut out);
            document.text(text, text);
            document.end();
            let parsed: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(parsed[text], text);
        }
    }
}
