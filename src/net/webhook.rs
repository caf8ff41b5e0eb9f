//! One JSON document given to an HTTP address.
//!
//! No redirect is followed and no proxy of the environment is used: whoever knows such an address may often write there, so it is a secret
//! and in no error. Nothing that was answered is in one either.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderValue, USER_AGENT};
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};

use super::vault::untrusted;
use crate::error::{Error, ErrorKind, Result};
use crate::secret::Secret;
use crate::tls::Trust;
use crate::units::human_duration;

/// An address that takes JSON.
#[derive(Debug)]
pub struct Webhook {
    client: Client,
    url: Url,
    patience: Duration,
}

/// Why nobody took what was given.
#[derive(Debug)]
pub struct NotTaken {
    pub error: Error,
    /// Whether it may be taken when it is tried again.
    pub again: bool,
}

impl Webhook {
    /// Prepares a way to an address; `authorities` are believed, in PEM, in place of the system's. Each attempt may take `patience`.
    ///
    /// # Errors
    /// When it is no address over http or https, or the authorities are none.
    pub fn to(url: &Secret, authorities: Option<&str>, patience: Duration) -> Result<Self> {
        // Its error would show what it was given.
        let url = Url::parse(url.reveal())
            .ok()
            .filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
        let url = url.ok_or_else(|| {
            Error::usage("the address for notifications is no http or https URL")
                .detail("It is not shown, since it may be a secret.")
        })?;
        let builder =
            Client::builder().redirect(Policy::none()).no_proxy().connect_timeout(patience).timeout(patience);
        let builder = match authorities {
            None => builder,
            Some(pem) => {
                let trust = Trust::in_authorities(pem).map_err(|why| {
                    Error::usage("cannot use the authorities for notifications").detail(why)
                })?;
                builder.tls_backend_preconfigured((*trust.client()).clone())
            }
        };
        let client = builder.build().map_err(|error| {
            Error::failed("could not prepare a connection for notifications").source(error.without_url())
        })?;
        Ok(Self { client, url, patience })
    }

    /// Gives the address a document, once.
    ///
    /// # Errors
    /// When it does not answer, or not with a status from 200 to 299.
    pub async fn post(&self, json: &[u8]) -> Result<(), NotTaken> {
        let request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(USER_AGENT, HeaderValue::from_static(concat!("pgherd/", env!("CARGO_PKG_VERSION"))))
            .body(json.to_vec());
        let status = request.send().await.map_err(|error| self.not_answered(error))?.status();
        if status.is_success() {
            return Ok(());
        }
        // Who is overloaded or behind a broken gateway may take it later; who says that we are wrong will say so again.
        let again = status.is_server_error()
            || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
        Err(NotTaken {
            error: Error::failed(format!("the address for notifications answered {status}")),
            again,
        })
    }

    fn not_answered(&self, error: reqwest::Error) -> NotTaken {
        if let Some(why) = untrusted(&error) {
            let error = Error::failed("the address for notifications does not prove who it is")
                .detail(format!("Its certificate is not believed: {why}. Nothing was sent."))
                .hint("Give the authority that signed it: ca: {file: PATH}.");
            return NotTaken { error, again: false };
        }
        let error = if error.is_timeout() {
            Error::new(ErrorKind::NotFound, "the address for notifications did not answer")
                .detail(format!("It was waited for {}.", human_duration(self.patience)))
        } else {
            Error::new(ErrorKind::NotFound, "could not reach the address for notifications")
                .source(error.without_url())
        };
        NotTaken { error, again: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http::{Answer, TEXT, listen, serve};

    #[tokio::test]
    async fn what_is_refused_is_not_tried_again_and_who_is_away_is_and_no_error_shows_the_address() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // It takes no POST.
        let server = tokio::spawn(serve(listener, |_| Answer {
            status: 200,
            content_type: TEXT,
            body: String::new(),
        }));
        let url = Secret::new(format!("http://127.0.0.1:{port}/services/T0/hunter2"));
        let hook = Webhook::to(&url, None, Duration::from_secs(5)).unwrap();
        let refused = hook.post(b"{}").await.unwrap_err();
        assert_eq!(refused.error.what(), "the address for notifications answered 405 Method Not Allowed");
        assert!(!refused.again);
        server.abort();
        server.await.unwrap_err();
        let away = hook.post(b"{}").await.unwrap_err();
        assert!(away.again);
        for error in [refused.error, away.error] {
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
        let none = Webhook::to(&Secret::new("hunter2".to_owned()), None, Duration::from_secs(5)).unwrap_err();
        assert!(!format!("{none:?}").contains("hunter2"), "{none:?}");
    }
}
