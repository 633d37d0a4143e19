//! Which source a role's credentials come from, and whether they may be had at all.

use std::time::Duration;

use super::{
    Fetch, FetchError, Issuer, RoleSessionRequest, Source,
    process::{self, Environment, Program},
    trust,
};
use crate::registry::role::RoleSource;

/// What the host's configuration says about credentials.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The source of roles whose record names none.
    pub default_source: RoleSource,
    /// How long sets should live. A role's `MaxSessionDuration` caps it.
    pub duration_seconds: u32,
    /// How long a program may take where its role does not say.
    pub process_timeout: Duration,
    /// What every program gets in its environment.
    pub process_environment: Environment,
}

/// All sources of this host.
#[derive(Debug)]
pub struct Sources {
    settings: Settings,
    issuer: Issuer,
}

impl Sources {
    /// The sources by configuration.
    pub fn new(settings: Settings, issuer: Issuer) -> Self {
        Self { settings, issuer }
    }

    /// The embedded issuer, for whoever verifies its session tokens.
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }
}

impl Source for Sources {
    fn fetch<'a>(&'a self, request: &'a RoleSessionRequest) -> Fetch<'a> {
        let role = &request.role;
        if role
            .assume_role_policy_document
            .as_ref()
            .is_some_and(|document| !trust::lets_ec2_assume(document))
        {
            return Box::pin(std::future::ready(Err(unauthorized(role.role_name.as_str()))));
        }
        match role.credentials.as_ref().unwrap_or(&self.settings.default_source) {
            RoleSource::Issuer => self.issuer.fetch(request),
            RoleSource::Process {
                command,
                timeout_seconds,
            } => {
                let program = Program {
                    command,
                    timeout: timeout_seconds.map_or(self.settings.process_timeout, Duration::from_secs),
                    environment: &self.settings.process_environment,
                };
                Box::pin(process::fetch(program, request))
            }
        }
    }
}

/// EC2's words, as seen on instances whose role does not trust it. The two spaces are EC2's.
fn unauthorized(role: &str) -> FetchError {
    FetchError::Refused {
        code: "AssumeRoleUnauthorizedAccess",
        message: format!(
            "EC2 cannot assume the role {role}.  Please see documentation at \
             https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_iam-ec2.html#troubleshoot_iam-ec2_errors-info-doc."
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::keys::IssuerKey;

    fn request(role: &str) -> RoleSessionRequest {
        RoleSessionRequest {
            role: Arc::new(serde_json::from_str(role).unwrap()),
            instance: "i-1".parse().unwrap(),
            now: "2026-11-21T08:00:00Z".parse().unwrap(),
            duration_seconds: 3600,
        }
    }

    fn sources(default_source: RoleSource) -> Sources {
        let settings = Settings {
            default_source,
            duration_seconds: 3600,
            process_timeout: Duration::from_secs(30),
            process_environment: Environment::default(),
        };
        Sources::new(settings, Issuer::new(&IssuerKey::new([0; 4], [0; 32]), &[]))
    }

    #[tokio::test]
    async fn role_chooses_its_source_and_else_the_host_does() {
        let bare = request(r#"{"RoleName":"x","Arn":"arn:aws:iam::1:role/x"}"#);
        let own =
            request(r#"{"RoleName":"x","Arn":"arn:aws:iam::1:role/x","Credentials":{"Source":"issuer"}}"#);
        let absent_program = RoleSource::Process {
            command: vec!["/nonexistent".to_owned()],
            timeout_seconds: None,
        };
        let host = sources(absent_program);
        let error = host.fetch(&bare).await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent cannot be run"), "{error}");
        assert!(host.fetch(&own).await.unwrap().access_key_id.starts_with("ASIA"));
        assert!(sources(RoleSource::Issuer).fetch(&bare).await.is_ok());
    }

    #[tokio::test]
    async fn trust_policy_without_ec2_refuses_in_its_words() {
        let request = request(
            r#"{"RoleName":"x","Arn":"arn:aws:iam::1:role/x","AssumeRolePolicyDocument":{"Statement":[
                {"Effect":"Allow","Principal":{"Service":"lambda.amazonaws.com"},"Action":"sts:AssumeRole"}]}}"#,
        );
        let error = sources(RoleSource::Issuer).fetch(&request).await.unwrap_err();
        let FetchError::Refused { code, message } = error else {
            panic!("{error}")
        };
        assert_eq!(code, "AssumeRoleUnauthorizedAccess");
        assert!(
            message.starts_with("EC2 cannot assume the role x.  Please see documentation at https://"),
            "{message}"
        );
    }
}
