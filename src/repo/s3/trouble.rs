//! What an S3 server, or the way to it, says is wrong, in our words.

use std::error::Error as StdError;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::repo::RepoErrorKind;

/// A call that failed.
#[derive(Debug)]
pub(super) struct Trouble {
    pub kind: RepoErrorKind,
    pub status: Option<u16>,
    code: Option<String>,
    pub why: String,
}

impl Trouble {
    /// Reads what the SDK gives.
    pub fn of<E>(error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let code = error.as_service_error().and_then(|error| error.code()).map(str::to_owned);
        let message = error.as_service_error().and_then(|error| error.message()).map(str::to_owned);
        let kind = match &error {
            SdkError::TimeoutError(_) | SdkError::ResponseError(_) => RepoErrorKind::Passing,
            SdkError::DispatchFailure(failure) if failure.is_user() => RepoErrorKind::Other,
            SdkError::DispatchFailure(_) => RepoErrorKind::Passing,
            SdkError::ServiceError(_) => kind(status, code.as_deref()),
            // A closed list to us, an open one to the SDK.
            SdkError::ConstructionFailure(_) | _ => RepoErrorKind::Other,
        };
        let why = match (&code, status) {
            (Some(code), Some(status)) => told(code, status, message.as_deref()),
            (None, Some(status)) => format!("the server answered {status}, {}", chain(&error)),
            _ => chain(&error),
        };
        Self { kind, status, code, why }
    }

    pub fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }
}

/// What the codes of "S3 API Reference, Error responses" mean for us.
fn kind(status: Option<u16>, code: Option<&str>) -> RepoErrorKind {
    match (code, status) {
        (Some("NoSuchBucket"), _) => RepoErrorKind::Missing,
        (Some("RequestTimeTooSkewed"), _) => RepoErrorKind::Other,
        (Some("RequestTimeout" | "SlowDown" | "InternalError" | "ServiceUnavailable" | "Throttling"), _)
        | (Some("ConditionalRequestConflict" | "OperationAborted" | "IncompleteBody" | "BadDigest"), _) => {
            RepoErrorKind::Passing
        }
        (Some("QuotaExceeded" | "InsufficientStorage" | "StorageFull"), _) | (_, Some(507)) => {
            RepoErrorKind::Full
        }
        (_, Some(408 | 409 | 429 | 500..=599)) => RepoErrorKind::Passing,
        (_, Some(401 | 403)) => RepoErrorKind::Denied,
        // A server that answers well and says in the body that it failed.
        (_, Some(200..=299)) => RepoErrorKind::Passing,
        _ => RepoErrorKind::Other,
    }
}

/// Says what the server said, and what it means where that is not plain.
fn told(code: &str, status: u16, message: Option<&str>) -> String {
    let message = message.map_or_else(String::new, |message| format!(": {}", message.trim_end_matches('.')));
    let meaning = match code {
        "RequestTimeTooSkewed" => "; the clock of this host or of the server is wrong",
        "PermanentRedirect" | "AuthorizationHeaderMalformed" => {
            "; the bucket is in another region than declared"
        }
        "SignatureDoesNotMatch" => "; the secret key is another one than the server has",
        "InvalidAccessKeyId" => "; the server knows no such access key",
        "ExpiredToken" => "; the credentials of this host have expired",
        _ => "",
    };
    format!("the server answered {status} {code}{message}{meaning}")
}

/// Tells an error with all its causes.
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        cause = next.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        for (status, code, expected) in [
            (503, Some("SlowDown"), RepoErrorKind::Passing),
            (500, None, RepoErrorKind::Passing),
            (429, None, RepoErrorKind::Passing),
            (400, Some("RequestTimeout"), RepoErrorKind::Passing),
            (409, Some("ConditionalRequestConflict"), RepoErrorKind::Passing),
            (200, Some("InternalError"), RepoErrorKind::Passing),
            (403, Some("AccessDenied"), RepoErrorKind::Denied),
            (403, Some("RequestTimeTooSkewed"), RepoErrorKind::Other),
            (404, Some("NoSuchBucket"), RepoErrorKind::Missing),
            (507, None, RepoErrorKind::Full),
            (400, Some("InvalidArgument"), RepoErrorKind::Other),
        ] {
            assert_eq!(kind(Some(status), code), expected, "{status} {code:?}");
        }
        assert!(
            told("RequestTimeTooSkewed", 403, Some("no."))
                .ends_with("the clock of this host or of the server is wrong")
        );
    }
}
