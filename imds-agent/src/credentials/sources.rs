//! Which source a role's credentials come from, and whether they may be had at all.

use std::{sync::Arc, time::Duration};

use super::{
    Fetch, FetchError, Issuer, RoleSessionRequest, Source,
    process::{self, Environment, Program},
    sts::{self, Sts},
    trust,
};
use crate::registry::{
    Role,
    role::{RoleSource, SourceKind},
};

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
    /// Whom the host asks when it assumes roles itself, and how.
    pub sts: sts::Settings,
}

/// All sources of this host.
#[derive(Debug)]
pub struct Sources {
    settings: Settings,
    issuer: Arc<Issuer>,
    sts: Sts,
}

impl Sources {
    /// The sources by configuration.
    pub fn new(settings: Settings, issuer: Arc<Issuer>) -> Self {
        Self {
            sts: Sts::new(settings.sts.clone()),
            settings,
            issuer,
        }
    }
}

impl Sources {
    fn source_of<'a>(&'a self, role: &'a Role) -> &'a RoleSource {
        role.credentials.as_ref().unwrap_or(&self.settings.default_source)
    }
}

impl Source for Sources {
    fn kind(&self, role: &Role) -> SourceKind {
        self.source_of(role).kind()
    }

    fn fetch<'a>(&'a self, request: &'a RoleSessionRequest) -> Fetch<'a> {
        let role = &request.role;
        if role
            .assume_role_policy_document
            .as_ref()
            .is_some_and(|document| !trust::lets_ec2_assume(document))
        {
            let refused = FetchError::unauthorized(role, "its trust policy does not let EC2 assume it");
            return Box::pin(std::future::ready(Err(refused)));
        }
        match self.source_of(role) {
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
            RoleSource::Sts(own) => Box::pin(self.sts.fetch(own, request)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::IssuerKey;

    fn request(role: &str) -> RoleSessionRequest {
        RoleSessionRequest::of(role)
    }

    fn sources(default_source: RoleSource) -> Sources {
        let settings = Settings {
            default_source,
            duration_seconds: 3600,
            process_timeout: Duration::from_secs(30),
            process_environment: Environment::default(),
            sts: sts::Settings::default(),
        };
        let issuer = Issuer::new(&IssuerKey::new([0; 4], [0; 32]), &[]);
        Sources::new(settings, Arc::new(issuer))
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
        let FetchError::Refused { code, message, why } = error else {
            panic!("{error}")
        };
        assert_eq!(why, "its trust policy does not let EC2 assume it");
        assert_eq!(code, "AssumeRoleUnauthorizedAccess");
        assert!(
            message.starts_with("EC2 cannot assume the role x.  Please see documentation at https://"),
            "{message}"
        );
    }
}
