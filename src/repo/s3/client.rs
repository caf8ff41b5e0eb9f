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
use crate::repo::retry::Patience;
use crate::units::ByteCount;

/// What servers that are not AWS take for the region, whatever they are told.
const ANY_REGION: &str = "us-east-1";

/// How long a server is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// Until there is a connection.
    pub connect: Duration,
    /// Until an answer begins; a server may store a part before it gives one. What is sent gets time of its own beside it.
    pub answer: Duration,
    /// How much of what is sent must be gone in a second: a line that gives each of twelve parts so much is slow, and no stall.
    pub slowest: ByteCount,
    /// How long nothing may move in the middle of a body.
    pub stall: Duration,
    /// How often a call is made.
    pub patience: Patience,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(30),
            slowest: ByteCount(128 << 10),
            stall: Duration::from_secs(15),
            patience: Patience::default(),
        }
    }
}

impl Waits {
    /// Returns what a call gets that sends `bytes`.
    pub(super) fn to_send(self, bytes: usize) -> Builder {
        let sending = Duration::from_millis(bytes as u64 * 1000 / self.slowest.0.max(1));
        Builder::new().timeout_config(self.timeouts(self.answer + sending))
    }

    fn timeouts(self, call: Duration) -> TimeoutConfig {
        TimeoutConfig::builder().connect_timeout(self.connect).operation_attempt_timeout(call).build()
    }
}

/// Makes a client. It asks the SDK's chain for credentials only where none are stated, and tries nothing again by itself.
pub(super) async fn make(access: &S3Access, waits: Waits) -> Client {
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
    let stalls = StalledStreamProtectionConfig::enabled().grace_period(waits.stall).build();
    let mut config = config
        .timeout_config(waits.timeouts(waits.answer))
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
