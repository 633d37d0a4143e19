//! Roles and instance profiles, in IAM's own JSON shapes (`aws iam get-role`, `aws iam get-instance-profile`).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::instance::text_id;

text_id! {
    /// A twelve-digit account, or whatever a private cloud uses.
    AccountId
}

text_id! {
    /// Names a role within its account, and its credentials in the metadata tree.
    RoleName check_name
}

text_id! {
    /// Names an instance profile within its account.
    InstanceProfileName
}

/// A role, and *ours*: where its credentials come from.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(
    missing_docs,
    reason = "the names and meanings are those of the IAM API reference"
)]
pub struct Role {
    pub role_name: RoleName,
    pub role_id: Option<String>,
    /// `arn:<partition>:iam::<account>:role/<path><name>`; private clouds leave the account out.
    pub arn: String,
    pub path: Option<String>,
    /// The trust policy: an object, or text that holds one (IAM's API gives it percent-encoded).
    #[serde(default, deserialize_with = "policy_document")]
    pub assume_role_policy_document: Option<serde_json::Value>,
    /// Seconds.
    pub max_session_duration: Option<u32>,
    /// *Ours*: the source of this role's credentials, where it is not the host's default one.
    pub credentials: Option<RoleSource>,
}

/// *Ours*: where a role's credentials come from.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(
    rename_all_fields = "PascalCase",
    rename_all = "lowercase",
    tag = "Source",
    deny_unknown_fields
)]
pub enum RoleSource {
    /// The agent mints them itself.
    Issuer,
    /// A program prints them, by the contract of the AWS SDKs' `credential_process`.
    Process {
        /// The program's absolute path and its arguments; no shell is involved.
        command: Vec<String>,
        /// How long the program may take.
        timeout_seconds: Option<u64>,
    },
    /// A security token service is asked, with the host's own identity.
    Sts(StsRole),
}

/// What can stand behind a role's credentials.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceKind {
    /// The agent itself.
    Issuer,
    /// A program.
    Process,
    /// A security token service.
    Sts,
}

impl SourceKind {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Issuer, Self::Process, Self::Sts];

    /// The word in records and in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Issuer => "issuer",
            Self::Process => "process",
            Self::Sts => "sts",
        }
    }
}

impl RoleSource {
    /// What stands behind.
    pub fn kind(&self) -> SourceKind {
        match self {
            Self::Issuer => SourceKind::Issuer,
            Self::Process { .. } => SourceKind::Process,
            Self::Sts(_) => SourceKind::Sts,
        }
    }

    /// Who is asked: the program, or the service's URL.
    pub fn whom(&self) -> &str {
        match self {
            Self::Issuer => "",
            Self::Process { command, .. } => command.first().map_or("", String::as_str),
            Self::Sts(own) => own.endpoint.as_deref().unwrap_or_default(),
        }
    }

    /// Whether both give the same, however they are asked.
    fn is_same_as(&self, other: &Self) -> bool {
        self.kind() == other.kind()
            && self.whom() == other.whom()
            && match (self, other) {
                (Self::Process { command: ours, .. }, Self::Process { command: theirs, .. }) => {
                    ours == theirs
                }
                (Self::Sts(ours), Self::Sts(theirs)) => ours.role_arn == theirs.role_arn,
                _ => true,
            }
    }
}

/// *Ours*: what a role's record says about the security token service, where it is not what the host's configuration
/// says.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct StsRole {
    /// The service's URL.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: Option<String>,
    /// The role as the service calls it, if that is not the record's own ARN.
    pub role_arn: Option<String>,
    /// The external id that the role's trust policy asks for.
    pub external_id: Option<String>,
    /// The source identity; `{instance-id}` stands for the instance's id.
    pub source_identity: Option<String>,
}

/// An instance profile: the container through which an instance gets its role.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(
    missing_docs,
    reason = "the names and meanings are those of the IAM API reference"
)]
pub struct InstanceProfile {
    pub instance_profile_name: InstanceProfileName,
    pub instance_profile_id: Option<String>,
    pub arn: String,
    pub path: Option<String>,
    /// IAM allows at most one.
    #[serde(default)]
    pub roles: Vec<InstanceProfileRole>,
}

/// The role that an instance profile names; the role's own record says the rest.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(
    missing_docs,
    reason = "the names and meanings are those of the IAM API reference"
)]
pub struct InstanceProfileRole {
    pub role_name: RoleName,
    /// Absent means: the role of that name in the instance profile's account.
    pub arn: Option<String>,
}

/// The parts of `arn:<partition>:iam::<account>:<kind><path><name>`. The account may be empty: private clouds leave it out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are those of the IAM user guide")]
pub struct IamArn<'a> {
    pub partition: &'a str,
    pub account: &'a str,
    /// Begins and ends with `/`.
    pub path: &'a str,
    pub name: &'a str,
}

impl Role {
    /// Whether this is another version of `other`, and not another role that has come to its name: IAM's id would differ, or
    /// the ARN, which has the path, or who gives the credentials.
    pub fn is_version_of(&self, other: &Self) -> bool {
        let is_source_same = match (&self.credentials, &other.credentials) {
            (Some(ours), Some(theirs)) => ours.is_same_as(theirs),
            (None, None) => true,
            _ => false,
        };
        self.arn == other.arn && self.role_id == other.role_id && is_source_same
    }
}

impl<'a> IamArn<'a> {
    /// The parts of `text`, if it names something of `kind`: `role`, `instance-profile`.
    pub fn parse(text: &'a str, kind: &str) -> Option<Self> {
        let mut parts = text.splitn(6, ':');
        let mut next = || parts.next();
        let (arn, partition, service, region, account) = (next()?, next()?, next()?, next()?, next()?);
        let path_and_name = next()?.strip_prefix(kind)?;
        let (path, name) = path_and_name.split_at(path_and_name.rfind('/')? + 1);
        let legal = arn == "arn"
            && service == "iam"
            && region.is_empty()
            && !partition.is_empty()
            && path.starts_with('/')
            && !name.is_empty()
            && text.len() <= 2048
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        legal.then_some(Self {
            partition,
            account,
            path,
            name,
        })
    }
}

fn policy_document<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<serde_json::Value>, D::Error> {
    let document = Option::<serde_json::Value>::deserialize(deserializer)?;
    let Some(serde_json::Value::String(text)) = document else {
        return Ok(document);
    };
    let text = percent_encoding::percent_decode_str(&text)
        .decode_utf8()
        .map_err(de::Error::custom)?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| de::Error::custom(format_args!("the text is no policy document: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iam_arns() {
        let arn = IamArn::parse("arn:aws-cn:iam::123456789012:role/a/b/web", "role").unwrap();
        assert_eq!(
            (arn.partition, arn.account, arn.path, arn.name),
            ("aws-cn", "123456789012", "/a/b/", "web")
        );
        let accountless = IamArn::parse("arn:aws:iam:::role/x", "role").unwrap();
        assert_eq!(
            (accountless.account, accountless.path, accountless.name),
            ("", "/", "x")
        );
        for wrong in [
            "",
            "role/x",
            "arn:aws:iam::1:role",
            "arn:aws:iam::1:role/",
            "arn:aws:iam::1:roles/x",
            "arn:aws:iam::1:user/x",
            "arn:aws:iam:eu:1:role/x",
            "arn::iam::1:role/x",
            "arn:aws:sts::1:role/x",
            "arn:aws:iam::1:role/x y",
        ] {
            assert_eq!(IamArn::parse(wrong, "role"), None, "{wrong}");
        }
    }

    #[test]
    fn trust_policy_as_object_text_or_percent_encoded() {
        let role = |document: &str| -> Role {
            serde_json::from_str(&format!(
                r#"{{"RoleName":"x","Arn":"arn:aws:iam::1:role/x","AssumeRolePolicyDocument":{document}}}"#
            ))
            .unwrap()
        };
        let expected = Some(serde_json::json!({"Statement": "100%"}));
        assert_eq!(
            role(r#"{"Statement":"100%"}"#).assume_role_policy_document,
            expected
        );
        assert_eq!(
            role(r#""{\"Statement\":\"100%\"}""#).assume_role_policy_document,
            expected
        );
        assert_eq!(
            role(r#""%7B%22Statement%22%3A%22100%25%22%7D""#).assume_role_policy_document,
            expected
        );
        assert_eq!(role("null").assume_role_policy_document, None);
    }
}
