//! Credentials from a security token service: `AssumeRole` with the host's own identity, at AWS or at any endpoint that
//! speaks the same Query API.
//!
//! Read first: STS API reference, "AssumeRole"; AWS SDKs and Tools reference guide, "Standardized credential providers", for
//! where the host's identity is looked for.

use std::{collections::BTreeMap, error::Error, fmt::Write as _, path::PathBuf, time::Duration};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_sts::{
    Client, config, error::ProvideErrorMetadata as _, error::SdkError, operation::assume_role,
    types::Tag as SessionTag,
};
use aws_smithy_http_client::{Builder, tls};
use jiff::Timestamp;
use tokio::sync::OnceCell;

use super::{Deliveries, FetchError, RoleCredentials, RoleSessionRequest, whole_seconds};
use crate::registry::{Role, role::StsRole};

/// Where the host's configuration and environment say no region.
const REGION: &str = "us-east-1";

/// All tries of a request together.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The service may be on another continent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// One more than the first: for a connection that was closed while it was kept. The schedule does the rest.
const ATTEMPTS: u32 = 2;

/// What every role allows, and all that the sessions of a host that is in a role itself may last.
const DURATION_SECONDS_SAFE: u32 = 3600;

/// What the host's configuration says about the service.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Settings {
    /// The service's URL, if it is not that of AWS in the region.
    pub endpoint: Option<String>,
    /// Certificates, in PEM, that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The region that requests are signed for.
    pub region: Option<String>,
    /// The profile of the host's identity.
    pub profile: Option<String>,
    /// Holds the profile, if it is not in the usual place.
    pub shared_credentials_file: Option<PathBuf>,
    /// The external id, where the role does not say.
    pub external_id: Option<String>,
    /// The source identity, where the role does not say; `{instance-id}` stands for the instance's id.
    pub source_identity: Option<String>,
    /// Session tags that every session gets.
    pub session_tags: BTreeMap<String, String>,
    /// Keys of instance tags that become session tags.
    pub instance_tags: Vec<String>,
}

/// The service as this host uses it. The host's identity is looked for when the first role needs it.
#[derive(Debug)]
pub struct Sts {
    settings: Settings,
    client: OnceCell<Client>,
}

impl Sts {
    /// Asks as `settings` say.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            client: OnceCell::new(),
        }
    }

    /// Assumes a role, about which its record says `own`.
    pub async fn fetch(
        &self,
        own: &StsRole,
        request: &RoleSessionRequest,
    ) -> Result<RoleCredentials, FetchError> {
        let client = self.client.get_or_try_init(|| connect(&self.settings)).await?;
        let asked_seconds = request.duration_seconds;
        let mut answer = self.assume(client, own, request, asked_seconds).await;
        // The record need not say how long the service lets a session of the role last.
        if asked_seconds > DURATION_SECONDS_SAFE
            && answer
                .as_ref()
                .is_err_and(|error| Complaint::of(error).is_some_and(|complaint| complaint.status == 400))
        {
            answer = self.assume(client, own, request, DURATION_SECONDS_SAFE).await;
        }
        match answer {
            Ok(output) => read(output, request.now),
            Err(error) => Err(match Complaint::of(&error) {
                Some(complaint) => complaint.into_error(&request.role),
                None => FetchError::Unavailable(told(&error)),
            }),
        }
    }

    async fn assume(
        &self,
        client: &Client,
        own: &StsRole,
        request: &RoleSessionRequest,
        duration_seconds: u32,
    ) -> Result<assume_role::AssumeRoleOutput, AssumeRoleError> {
        let settings = &self.settings;
        let external_id = own.external_id.as_ref().or(settings.external_id.as_ref());
        let source_identity = own
            .source_identity
            .as_ref()
            .or(settings.source_identity.as_ref())
            .map(|identity| identity.replace("{instance-id}", request.instance.as_str()));
        let mut target = config::Builder::default();
        if let Some(endpoint) = &own.endpoint {
            target = target.endpoint_url(endpoint);
        }
        if let Some(region) = &own.region {
            target = target.region(Region::new(region.clone()));
        }
        client
            .assume_role()
            .role_arn(own.role_arn.as_ref().unwrap_or(&request.role.arn))
            .role_session_name(request.instance.as_str())
            .duration_seconds(i32::try_from(duration_seconds).unwrap_or(i32::MAX))
            .set_external_id(external_id.cloned())
            .set_source_identity(source_identity)
            .set_tags(session_tags(settings, request))
            .customize()
            .config_override(target)
            .send()
            .await
    }
}

type AssumeRoleError = SdkError<assume_role::AssumeRoleError>;

async fn connect(settings: &Settings) -> Result<Client, FetchError> {
    let mut trusted = tls::TrustStore::default();
    if let Some(path) = &settings.ca_file {
        let pem = tokio::task::spawn_blocking({
            let path = path.clone();
            move || std::fs::read(path)
        });
        match pem.await {
            Ok(Ok(pem)) => trusted = trusted.with_pem_certificate(pem),
            Ok(Err(error)) => return unavailable(format!("{} cannot be read: {error}", path.display())),
            Err(error) => return unavailable(format!("{} cannot be read: {error}", path.display())),
        }
    }
    let tls_context = match tls::TlsContext::builder().with_trust_store(trusted).build() {
        Ok(context) => context,
        Err(error) => return unavailable(told(&error)),
    };
    let http_client = Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
        .tls_context(tls_context)
        .build_https();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http_client)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .operation_timeout(TIMEOUT)
                .build(),
        );
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(file) = &settings.shared_credentials_file {
        let files = EnvConfigFiles::builder()
            .include_default_config_file(true)
            .with_file(EnvConfigFileKind::Credentials, file)
            .build();
        loader = loader.profile_files(files);
    }
    Ok(client(&loader.load().await, settings))
}

/// The endpoint is that of the roles alone: the host's identity may come from another service.
fn client(host: &SdkConfig, settings: &Settings) -> Client {
    let mut builder = config::Builder::from(host);
    if host.region().is_none() {
        builder = builder.region(Region::from_static(REGION));
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.endpoint_url(endpoint);
    }
    Client::from_conf(builder.build())
}

fn session_tags(settings: &Settings, request: &RoleSessionRequest) -> Option<Vec<SessionTag>> {
    let of_instance = request
        .tags
        .iter()
        .filter(|tag| settings.instance_tags.iter().any(|key| *key == *tag.key))
        .map(|tag| (&*tag.key, &*tag.value));
    // What the configuration says of every session, no instance's record says otherwise.
    let of_all = settings.session_tags.iter();
    let of_all = of_all.map(|(key, value)| (key.as_str(), value.as_str()));
    let tags: BTreeMap<_, _> = of_instance.chain(of_all).collect();
    let tags: Vec<_> = tags
        .into_iter()
        .filter_map(|(key, value)| SessionTag::builder().key(key).value(value).build().ok())
        .collect();
    (!tags.is_empty()).then_some(tags)
}

fn read(output: assume_role::AssumeRoleOutput, now: Timestamp) -> Result<RoleCredentials, FetchError> {
    let Some(set) = output.credentials else {
        return unavailable("the service gave no credentials");
    };
    let Ok(expiration) = Timestamp::from_second(set.expiration.secs()) else {
        return unavailable("the service gave a set that expires at no time");
    };
    Ok(RoleCredentials {
        access_key_id: set.access_key_id,
        secret_access_key: set.secret_access_key.into(),
        session_token: set.session_token.into(),
        without_token: None,
        deliveries: Deliveries::default(),
        last_updated: whole_seconds(now),
        expiration,
    })
}

/// What the service itself has against a request.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Complaint {
    /// The one thing that all services agree on.
    status: u16,
    /// `AccessDenied`. Ceph's errors are those of S3, in which the SDK finds no code.
    code: Option<String>,
    message: Option<String>,
}

impl Complaint {
    fn of(error: &AssumeRoleError) -> Option<Self> {
        let (response, code, message) = match error {
            SdkError::ServiceError(error) => {
                let (code, message) = (error.err().code(), error.err().message());
                (error.raw(), code.map(str::to_owned), message.map(str::to_owned))
            }
            SdkError::ResponseError(error) => (error.raw(), None, None),
            _ => return None,
        };
        let body = response.body().bytes().unwrap_or_default();
        Some(Self {
            status: response.status().as_u16(),
            code: code.or_else(|| element(body, "Code")),
            message: message
                .or_else(|| element(body, "Message"))
                .filter(|message| !message.is_empty()),
        })
    }

    /// By status first. Who denies a role denies it to its guests; who does not know the host, or wants to be left alone for a
    /// while, has nothing against the role.
    fn into_error(self, role: &Role) -> FetchError {
        let why = format!(
            "the service answers {} {}{}",
            self.status,
            self.code.as_deref().unwrap_or("without a code"),
            self.message
                .as_ref()
                .map(|message| format!(": {message}"))
                .unwrap_or_default()
        );
        let about_the_host = matches!(
            self.code.as_deref(),
            Some(
                "ExpiredToken"
                    | "ExpiredTokenException"
                    | "IncompleteSignature"
                    | "InvalidAccessKeyId"
                    | "InvalidClientTokenId"
                    | "MissingAuthenticationToken"
                    | "RequestExpired"
                    | "RequestTimeTooSkewed"
                    | "SignatureDoesNotMatch"
                    | "Throttling"
                    | "ThrottlingException"
                    | "UnrecognizedClientException"
            )
        );
        match self.status {
            403 | 404 if !about_the_host => FetchError::unauthorized(role, why),
            400 if self
                .code
                .as_deref()
                .is_some_and(|code| code.starts_with("NoSuchEntity")) =>
            {
                FetchError::unauthorized(role, why)
            }
            _ => FetchError::Unavailable(why),
        }
    }
}

/// The text of the first `<name>` in an XML document, if it is short and holds no markup.
fn element(body: &[u8], name: &str) -> Option<String> {
    let body = str::from_utf8(body).ok()?;
    let (_, after) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = after.split_once("</")?;
    let is_plain = text.len() <= 512 && !text.contains('<') && !text.contains(char::is_control);
    is_plain.then(|| text.to_owned())
}

/// An error with all that caused it: the SDK's own words say little.
fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

fn unavailable<T>(why: impl Into<String>) -> Result<T, FetchError> {
    Err(FetchError::Unavailable(why.into()))
}

#[cfg(test)]
mod tests;
