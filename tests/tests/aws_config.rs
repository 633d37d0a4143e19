//! AWS's SDK for Rust: the metadata client, the credentials provider and the region provider of `aws-config`.
//!
//! It speaks IMDSv2 only, asks for its tokens without a word about a body, and wants a token's lifetime in the answer.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use aws_config::{
    imds::{self, client::error::ImdsError},
    provider_config::ProviderConfig,
};
use aws_credential_types::provider::{ProvideCredentials as _, error::CredentialsError};
use imds_tests::{
    host::{Host, INSTANCE_ID},
    kernel_guest::KernelGuest,
    records::{self, ACCOUNT, ROLE, USER_DATA},
};

/// Runs what a program in the guest does.
fn run<T: Send>(guest: &KernelGuest, program: impl AsyncFnOnce(ProviderConfig) -> T + Send) -> Result<T> {
    guest.namespace.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let http = aws_smithy_http_client::Builder::new().build_http();
        let config = ProviderConfig::without_region().with_http_client(http);
        Ok(runtime.block_on(program(config)))
    })
}

#[test]
fn the_metadata_client_reads_text_and_user_data() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let (id, user_data, absent) = run(&guest, async |config| {
        let client = imds::Client::builder().configure(&config).build();
        let get = async |path| client.get(path).await.map(String::from);
        (
            get("/latest/meta-data/instance-id").await,
            get("/latest/user-data").await,
            get("/latest/meta-data/nowhere").await,
        )
    })?;
    assert_eq!(id?, INSTANCE_ID);
    assert_eq!(user_data?, USER_DATA);
    let absent = absent.expect_err("there is nothing at nowhere");
    assert!(
        matches!(&absent, ImdsError::ErrorResponse(error) if error.response().status().as_u16() == 404),
        "{absent:?}"
    );
    Ok(())
}

#[test]
fn the_credentials_provider_finds_the_role() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let found = run(&guest, async |config| {
        let provider = imds::credentials::ImdsCredentialsProvider::builder()
            .configure(&config)
            .build();
        provider.provide_credentials().await
    })?;
    let credentials = found?;
    assert!(credentials.access_key_id().starts_with("ASIA"));
    assert!(credentials.session_token().is_some_and(|token| !token.is_empty()));
    let expiry = credentials.expiry().expect("a role's credentials expire");
    assert!(expiry > SystemTime::now() + Duration::from_secs(15 * 60));
    Ok(())
}

#[test]
fn the_extended_path_adds_the_account() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let (provided, roles, document) = run(&guest, async |config| {
        let client = imds::Client::builder().configure(&config).build();
        let provider = imds::credentials::ImdsCredentialsProvider::builder()
            .imds_client(client.clone())
            .build();
        let provided = provider.provide_credentials().await;
        let path = "/latest/meta-data/iam/security-credentials-extended/";
        let roles = client.get(path).await.map(String::from);
        let document = client.get(format!("{path}{ROLE}")).await.map(String::from);
        (provided, roles, document)
    })?;
    assert_eq!(roles?, ROLE);
    let document: serde_json::Value = serde_json::from_str(&document?)?;
    assert_eq!(document["AccountId"], ACCOUNT);
    assert_eq!(document["AccessKeyId"], provided?.access_key_id());
    Ok(())
}

#[test]
fn the_region_provider_finds_the_region() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let region = run(&guest, async |config| {
        imds::region::ImdsRegionProvider::builder()
            .configure(&config)
            .build()
            .region()
            .await
    })?;
    assert_eq!(region.expect("there is a region").as_ref(), "eu-central-1");
    Ok(())
}

#[test]
fn an_instance_without_a_profile_is_told_apart_from_trouble() -> Result<()> {
    let (_host, guest) = Host::with_guest(|record| {
        record
            .as_object_mut()
            .expect("a record is an object")
            .remove("IamInstanceProfile");
    })?;
    let found = run(&guest, async |config| {
        let provider = imds::credentials::ImdsCredentialsProvider::builder()
            .configure(&config)
            .build();
        provider.provide_credentials().await
    })?;
    let error = found.expect_err("there is no role");
    assert!(
        matches!(error, CredentialsError::CredentialsNotLoaded(_)),
        "{error:?}"
    );
    Ok(())
}

#[test]
fn a_disabled_endpoint_is_told_apart_from_trouble() -> Result<()> {
    let (_host, guest) = Host::with_guest(|record| {
        record["MetadataOptions"]["HttpEndpoint"] = "disabled".into();
    })?;
    let found = run(&guest, async |config| {
        let client = imds::Client::builder().configure(&config).build();
        client.get("/latest/meta-data/instance-id").await
    })?;
    let error = found.expect_err("the endpoint is disabled");
    let ImdsError::FailedToLoadToken(context) = &error else {
        panic!("not about the token: {error:?}");
    };
    assert!(!context.is_dispatch_failure(), "{error:?}");
    Ok(())
}

#[test]
fn one_client_reads_a_hundred_paths_with_one_token() -> Result<()> {
    let (_host, guest) = Host::with_guest(|_| ())?;
    let answers = run(&guest, async |config| {
        let client = imds::Client::builder().configure(&config).build();
        let mut answers = Vec::new();
        for _ in 0..100 {
            answers.push(client.get("/latest/meta-data/mac").await.map(String::from));
        }
        answers
    })?;
    for answer in answers {
        assert_eq!(answer?, records::guest_mac(2).to_string());
    }
    Ok(())
}

#[test]
fn everything_is_there_over_ipv6_too() -> Result<()> {
    let (_host, guest) = Host::with_guest(|record| {
        record["MetadataOptions"]["HttpProtocolIpv6"] = "enabled".into();
    })?;
    guest.add_ipv6()?;
    guest.lose_ipv4()?;
    let (id, provided) = run(&guest, async |config| {
        let client = imds::Client::builder()
            .configure(&config)
            .endpoint_mode(imds::client::EndpointMode::IpV6)
            .build();
        let id = client
            .get("/latest/meta-data/instance-id")
            .await
            .map(String::from);
        let provider = imds::credentials::ImdsCredentialsProvider::builder()
            .imds_client(client)
            .build();
        (id, provider.provide_credentials().await)
    })?;
    assert_eq!(id?, INSTANCE_ID);
    assert!(provided?.access_key_id().starts_with("ASIA"));
    Ok(())
}
