//! A client of an S3 server.

use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Builder, Credentials, Region, StalledStreamProtectionConfig};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};

use crate::repo::access::S3Access;

const CONNECT: Duration = Duration::from_secs(5);
/// Until the first byte of an answer; a server may store a part before it gives one.
const ANSWER: Duration = Duration::from_secs(30);
/// How long nothing may move in the middle of a body.
const STALL: Duration = Duration::from_secs(15);
/// What servers that are not AWS take for the region, whatever they are told.
const ANY_REGION: &str = "us-east-1";

/// Makes a client. It asks the SDK's chain for credentials only where none are stated, and tries nothing again by itself.
pub(super) async fn make(access: &S3Access) -> Client {
    let region = access.region.clone().or_else(|| access.endpoint.is_some().then(|| ANY_REGION.to_owned()));
    let config = match &access.credentials {
        Some(stated) => {
            let keys = Credentials::new(
                stated.access_key.reveal(),
                stated.secret_key.reveal(),
                None,
                None,
                "pgherd",
            );
            Builder::new()
                .behavior_version(BehaviorVersion::latest())
                .credentials_provider(keys)
                .region(Region::new(region.unwrap_or_else(|| ANY_REGION.to_owned())))
        }
        None => {
            let mut loader = aws_config::defaults(BehaviorVersion::latest());
            if let Some(region) = region {
                loader = loader.region(Region::new(region));
            }
            if let Some(profile) = &access.profile {
                loader = loader.profile_name(profile);
            }
            Builder::from(&loader.load().await)
        }
    };
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT).read_timeout(ANSWER).build();
    let stalls = StalledStreamProtectionConfig::enabled().grace_period(STALL).build();
    let mut config = config
        .timeout_config(timeouts)
        .stalled_stream_protection(stalls)
        .retry_config(RetryConfig::disabled())
        .force_path_style(access.path_style);
    if let Some(endpoint) = &access.endpoint {
        config = config.endpoint_url(endpoint);
    }
    if let Some(authorities) = &access.authorities {
        config = config.http_client(trusting(authorities));
    }
    Client::from_conf(config.build())
}

/// Believes these authorities, and no others.
fn trusting(authorities: &str) -> aws_sdk_s3::config::SharedHttpClient {
    let store = TrustStore::empty().with_pem_certificate(authorities.as_bytes());
    let context =
        TlsContext::builder().with_trust_store(store).build().expect("a trust store is a whole context");
    aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::rustls(CryptoMode::AwsLc))
        .tls_context(context)
        .build_https()
}
