//! One secret out of the KV store of a HashiCorp Vault, or of what speaks like one (OpenBao): versions 1 and 2 of its API.
//!
//! Reads and never writes. No redirect is followed, since the token would go with it; no proxy of the environment is used; nothing that
//! was answered is in an error.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::secret::Secret;
use crate::tls::{Trust, Untrusted};
use crate::units::human_duration;

/// How long the whole answer may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// A secret with its neighbours and its metadata; Vault itself takes 512 KiB a value or less.
const LARGEST: usize = 1 << 20;
const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// Vault refuses some requests without it, so that no form of a web page can make them.
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// `https://HOST:PORT`, with or without a path in front of the API.
    pub url: &'a str,
    /// As the API has it, after `/v1/`: `secret/data/pg/app` (version 2) or `secret/pg/app` (version 1).
    pub path: &'a str,
    pub field: &'a str,
    pub namespace: Option<&'a str>,
    /// Whom to believe, in PEM; `None` for the authorities of the system.
    pub authorities: Option<&'a str>,
    pub patience: Duration,
}

impl Wanted<'_> {
    fn shown(&self) -> String {
        format!("{} in Vault at {}", self.path, self.url)
    }
}

/// Reads a field of a secret.
///
/// # Errors
/// [`ErrorKind::NotFound`] if Vault does not answer or has no such secret; `Failed` if it is sealed, refuses the token, has no such field, does not
/// prove who it is, or sends us elsewhere.
pub async fn read(wanted: &Wanted<'_>, token: &Secret) -> Result<Secret> {
    let client = client(wanted, token)?;
    let request = client.get(address(wanted)?).send();
    let mut response = request.await.map_err(|error| not_answered(wanted, error))?;
    if response.status() != StatusCode::OK {
        return Err(refused(wanted, response).await);
    }
    let body = body(&mut response).await.map_err(|why| match why {
        Broken::Error(error) => not_answered(wanted, error),
        Broken::TooLarge => Error::failed(format!("what stands at {} is no secret", wanted.shown()))
            .detail(format!("The answer has more than {LARGEST} bytes.")),
    })?;
    field(wanted, &body)
}

fn client(wanted: &Wanted<'_>, token: &Secret) -> Result<Client> {
    // Its error would show what it was given.
    let mut token = HeaderValue::from_str(token.reveal())
        .map_err(|_| Error::failed(format!("the token for Vault at {} is no token", wanted.url)))?;
    token.set_sensitive(true);
    let mut headers = HeaderMap::new();
    headers.insert(TOKEN, token);
    headers.insert(REQUEST, HeaderValue::from_static("true"));
    if let Some(namespace) = wanted.namespace {
        let value = HeaderValue::from_str(namespace)
            .map_err(|_| Error::usage(format!("{namespace:?} is no namespace of Vault")))?;
        headers.insert(NAMESPACE, value);
    }
    let builder = Client::builder()
        .default_headers(headers)
        .redirect(Policy::none())
        .no_proxy()
        .connect_timeout(wanted.patience)
        .timeout(wanted.patience);
    let builder = match wanted.authorities {
        None => builder,
        Some(pem) => {
            let trust = Trust::in_authorities(pem).map_err(|why| {
                Error::usage(format!("cannot use the authorities for Vault at {}", wanted.url)).detail(why)
            })?;
            builder.tls_backend_preconfigured((*trust.client()).clone())
        }
    };
    builder.build().map_err(|error| {
        Error::failed(format!("could not prepare a connection to Vault at {}", wanted.url))
            .source(error.without_url())
    })
}

fn address(wanted: &Wanted<'_>) -> Result<Url> {
    let unusable = || Error::usage(format!("{} cannot be the address of Vault", wanted.url));
    let mut url = Url::parse(wanted.url).map_err(|_| unusable())?;
    url.path_segments_mut()
        .map_err(|()| unusable())?
        .pop_if_empty()
        .push("v1")
        .extend(wanted.path.split('/'));
    Ok(url)
}

enum Broken {
    Error(reqwest::Error),
    TooLarge,
}

async fn body(response: &mut Response) -> Result<Vec<u8>, Broken> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Broken::Error)? {
        body.extend_from_slice(&chunk);
        if body.len() > LARGEST {
            return Err(Broken::TooLarge);
        }
    }
    Ok(body)
}

/// Says why nothing came, without the text of what came.
fn not_answered(wanted: &Wanted<'_>, error: reqwest::Error) -> Error {
    if let Some(why) = untrusted(&error) {
        return Error::failed(format!("Vault at {} does not prove who it is", wanted.url))
            .detail(format!("Its certificate is not believed: {why}. The token was not sent."))
            .hint("Give the authority that signed it: ca: {file: PATH}.");
    }
    if error.is_timeout() {
        return Error::new(ErrorKind::NotFound, format!("Vault at {} did not answer", wanted.url))
            .detail(format!("It was waited for {}.", human_duration(wanted.patience)));
    }
    Error::new(ErrorKind::NotFound, format!("could not reach Vault at {}", wanted.url))
        .source(error.without_url())
}

/// Looks for what TLS said below the layers of the client.
pub(super) fn untrusted(error: &reqwest::Error) -> Option<Untrusted> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<rustls::Error>() {
            return Some(Untrusted::from(found));
        }
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Some(Untrusted::from(found));
        }
        next = match inner {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    None
}

async fn refused(wanted: &Wanted<'_>, mut response: Response) -> Error {
    let status = response.status();
    let shown = wanted.shown();
    if status.is_redirection() {
        let to = response
            .headers()
            .get(LOCATION)
            .and_then(|to| to.to_str().ok())
            .and_then(|to| Url::parse(to).ok());
        let to = to.and_then(|to| Some(format!("{}://{}", to.scheme(), to.host_str()?)));
        return Error::failed(format!("Vault at {} sends us elsewhere", wanted.url))
            .detail(format!(
                "It answered {status}{}. The token was not sent there.",
                to.map_or_else(String::new, |to| format!(" and names {to}"))
            ))
            .hint("Give the url of the active node, or of what stands in front of them.");
    }
    match status.as_u16() {
        403 | 401 => Error::failed(format!("Vault at {} refuses the token", wanted.url))
            .detail(format!("It answered {status} for {}.", wanted.path))
            .hint("See whether the token has ended, and whether its policy has \"read\" on that path: vault token lookup"),
        404 => {
            let versioned = body(&mut response).await.ok().is_some_and(|body| is_wrong_version(&body));
            let error = Error::new(ErrorKind::NotFound, format!("there is no secret {shown}"));
            if versioned {
                error.hint("It is a store of version 2, whose paths have \"data\" after the mount: secret/data/NAME.")
            } else {
                error.detail(format!("It answered {status}: there is none, or its newest version was deleted."))
                    .hint("Version 2 of the store has \"data\" after the mount: secret/data/NAME.")
            }
        }
        503 => Error::failed(format!("Vault at {} is sealed or down for maintenance", wanted.url))
            .detail(format!("It answered {status}."))
            .hint("Unseal it: vault operator unseal"),
        429 => Error::failed(format!("Vault at {} has too many requests", wanted.url)).detail(format!("It answered {status}.")),
        _ => Error::failed(format!("could not read {shown}")).detail(format!("It answered {status}.")),
    }
}

/// Vault says so in a warning, for a path of version 1 on a store of version 2.
fn is_wrong_version(body: &[u8]) -> bool {
    let answer: Option<Value> = serde_json::from_slice(body).ok();
    let warnings = answer.as_ref().and_then(|answer| answer.get("warnings")?.as_array());
    warnings
        .is_some_and(|all| all.iter().any(|one| one.as_str().is_some_and(|text| text.contains("versioned"))))
}

/// Takes the field out of an answer of version 2, whose data lie one level deeper beside their metadata, or of version 1.
fn field(wanted: &Wanted<'_>, body: &[u8]) -> Result<Secret> {
    let no_secret = || Error::failed(format!("what stands at {} is no secret", wanted.shown()));
    let answer: Value =
        serde_json::from_slice(body).map_err(|_| no_secret().detail("The answer is not JSON."))?;
    let outer = answer.get("data").ok_or_else(|| no_secret().detail("The answer has no data."))?;
    let is_second = outer.get("metadata").is_some_and(|metadata| metadata.get("version").is_some());
    let data = if is_second { outer.get("data").unwrap_or(&Value::Null) } else { outer };
    if is_second && data.is_null() {
        return Err(Error::new(ErrorKind::NotFound, format!("the secret {} was deleted", wanted.shown()))
            .hint("Bring it back with \"vault kv undelete\", or write it anew."));
    }
    match data.get(wanted.field) {
        Some(Value::String(text)) => Ok(Secret::new(text.clone())),
        Some(_) => Err(Error::failed(format!("field {} of {} is not a text", wanted.field, wanted.shown()))),
        None => Err(Error::failed(format!("the secret {} has no field {}", wanted.shown(), wanted.field))
            .hint("\"vault kv get\" shows which it has.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted<'_> = Wanted {
        url: "https://vault:8200/base/",
        path: "secret/data/pg app",
        field: "password",
        namespace: None,
        authorities: None,
        patience: PATIENCE,
    };

    #[test]
    fn the_address_has_the_path_behind_the_api_version() {
        assert_eq!(address(&WANTED).unwrap().as_str(), "https://vault:8200/base/v1/secret/data/pg%20app");
        let bare = Wanted { url: "https://vault:8200", path: "kv/app", ..WANTED };
        assert_eq!(address(&bare).unwrap().as_str(), "https://vault:8200/v1/kv/app");
    }

    #[test]
    fn both_versions_of_the_store_are_read() {
        let read = |body: &str| field(&WANTED, body.as_bytes()).map(|secret| secret.reveal().to_owned());
        assert_eq!(read(r#"{"data": {"password": "one"}}"#).unwrap(), "one");
        assert_eq!(
            read(r#"{"data": {"data": {"password": "two"}, "metadata": {"version": 3}}}"#).unwrap(),
            "two"
        );
        // A secret of version 1 may have fields of these names.
        assert_eq!(read(r#"{"data": {"password": "three", "data": {}, "metadata": {}}}"#).unwrap(), "three");
        let said = |body: &str| field(&WANTED, body.as_bytes()).unwrap_err().what().to_owned();
        assert_eq!(
            said(r#"{"data": {"data": null, "metadata": {"version": 3}}}"#),
            "the secret secret/data/pg app in Vault at https://vault:8200/base/ was deleted"
        );
        assert_eq!(
            said(r#"{"data": {"password": 7}}"#),
            "field password of secret/data/pg app in Vault at https://vault:8200/base/ is not a text"
        );
        assert!(said(r#"{"data": {"user": "x"}}"#).ends_with("has no field password"));
        assert!(said("hunter2").ends_with("is no secret"));
    }
}
