//! Roles and instance profiles, in IAM's own JSON shapes (`aws iam get-role`, `aws iam get-instance-profile`).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::instance::text_id;

text_id! {
    /// A twelve-digit account, or whatever a private cloud uses.
    AccountId
}

text_id! {
    /// Names a role within its account.
    RoleName
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
    /// The trust policy.
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
}
