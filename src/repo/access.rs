//! What it takes to open a repository beside its URL: a file on each host, which only the os-user reads; docs/formats/access.md.
//!
//! It holds secrets in the clear: whoever reads it reads the repository.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::location::Location;
use super::{RepoError, RepoErrorKind, Result};
use crate::secret::Secret;
use crate::topology::model::ObjectLock;

/// The format that this pgherd reads and writes.
pub const FORMAT: u32 = 1;

/// What it takes to open a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    pub format: u32,
    /// Whose it is.
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Access>,
    /// The repository keys: the one that encrypts, and those that were replaced and still open.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "revealed_all")]
    pub keys: Vec<Secret>,
}

/// How an S3 server is reached, and who one is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Access {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// `https://HOST:PORT` of a server that is not AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Whether the bucket is a part of the path, and not of the host's name.
    #[serde(default, skip_serializing_if = "is_false")]
    pub path_style: bool,
    /// The authorities that are believed, as PEM; the system's if none is stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorities: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// The profile of the host's own `~/.aws` to take where no credentials are stated; else what the SDK finds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// `AES256`, `aws:kms` or `aws:kms:dsse`: how the server encrypts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_side_encryption: Option<String>,
    /// The key of KMS that it encrypts with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_key: Option<String>,
    /// For how long nobody can remove what was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_lock: Option<ObjectLock>,
}

/// An access key with its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    #[serde(with = "revealed")]
    pub access_key: Secret,
    #[serde(with = "revealed")]
    pub secret_key: Secret,
}

/// Secrets in a file that nobody else reads.
mod revealed {
    use super::*;

    pub fn serialize<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(secret.reveal())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }

    type Result<T, E> = std::result::Result<T, E>;
}

/// The same of several.
mod revealed_all {
    use super::*;

    pub fn serialize<S: Serializer>(secrets: &[Secret], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(secrets.iter().map(Secret::reveal))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Secret>, D::Error> {
        Ok(Vec::<String>::deserialize(deserializer)?.into_iter().map(Secret::new).collect())
    }

    type Result<T, E> = std::result::Result<T, E>;
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Access {
    /// Writes it, with a last newline.
    pub fn write(&self) -> Secret {
        let text = serde_json::to_string_pretty(self).expect("it holds only text and numbers");
        Secret::new(format!("{text}\n"))
    }

    /// Reads what [`Access::write`] has written.
    ///
    /// # Errors
    /// Why it cannot be used, as a fragment that shows nothing of it.
    pub fn read(bytes: &[u8]) -> std::result::Result<Self, String> {
        // What serde says of a wrong value may hold the value.
        let damaged = |error: serde_json::Error| format!("it is damaged at line {}", error.line());
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(damaged)?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(found) if found == u64::from(FORMAT) => serde_json::from_slice(bytes).map_err(damaged),
            Some(found) => Err(format!("it has format {found}, this pgherd reads format {FORMAT}")),
            None => Err("it has no format number".to_owned()),
        }
    }

    /// Reads the file that a location names.
    ///
    /// # Errors
    /// When it is not there, others than its owner can read it, or it is of another repository.
    pub fn load(location: &Location, file: &Path) -> Result<Self> {
        let shown = file.display();
        let failed = |kind, why: String| RepoError {
            kind,
            url: location.url.clone(),
            doing: format!("read {shown}"),
            why,
        };
        let unread = |error: std::io::Error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                return failed(
                    RepoErrorKind::Other,
                    "it is not there; \"pgherd apply\" writes it".to_owned(),
                );
            }
            failed(RepoErrorKind::Denied, error.to_string())
        };
        let found = fs::metadata(file).map_err(unread)?;
        if found.mode() & 0o077 != 0 {
            let why = format!("others than its owner can read it: its mode is {:04o}", found.mode() & 0o7777);
            return Err(failed(RepoErrorKind::Denied, why));
        }
        let bytes = fs::read(file).map_err(unread)?;
        let access = Self::read(&bytes).map_err(|why| failed(RepoErrorKind::Other, why))?;
        if access.url != location.url {
            let why = format!("it is of the repository {}", access.url);
            return Err(failed(RepoErrorKind::Other, why));
        }
        Ok(access)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const GOLDEN: &str = include_str!("../../tests/golden/access-v1.json");

    #[test]
    fn the_golden_access_reads_and_writes_byte_for_byte_and_prints_no_secret() {
        let access = Access::read(GOLDEN.as_bytes()).unwrap();
        assert_eq!(access.write().reveal(), GOLDEN);
        let shown = format!("{access:?}");
        assert!(shown.contains("eu-west-1") && !shown.contains("known-to-s3"), "{shown}");
    }

    #[test]
    fn what_others_can_read_or_is_of_another_repository_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("main.json");
        let location = Location { url: "s3://shop-pg/v1".to_owned(), access: Some(file.clone()) };
        let why = |location: &Location| Access::load(location, &file).unwrap_err().why;
        assert!(why(&location).contains("pgherd apply"));
        fs::write(&file, GOLDEN).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(why(&location).contains("0640"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Access::load(&location, &file).unwrap().url, location.url);
        assert!(why(&Location::plain("s3://other/v1")).contains("s3://shop-pg/v1"));
    }

    #[test]
    fn what_is_wrong_in_it_is_told_without_a_word_of_it() {
        let wrong = GOLDEN.replace("\"known-to-s3\"", "[\"known-to-s3\"]");
        let why = Access::read(wrong.as_bytes()).unwrap_err();
        assert!(why.contains("line") && !why.contains("known"), "{why}");
        assert!(
            Access::read(GOLDEN.replace("\"format\": 1", "\"format\": 2").as_bytes())
                .unwrap_err()
                .contains("format 2")
        );
    }
}
