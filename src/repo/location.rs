//! Where a repository is, and what it takes to open it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where a repository is, as one host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// `file:///ABSOLUTE/PATH`, or `s3://BUCKET/PREFIX`.
    pub url: String,
    /// The file on that host that holds what else it takes: docs/formats/access.md. `None` where it takes nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<PathBuf>,
}

impl Location {
    /// Returns a repository that it takes nothing else to open.
    pub fn plain(url: impl Into<String>) -> Self {
        Self { url: url.into(), access: None }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// What a URL of a repository names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    Directory(&'a Path),
    /// A bucket, and what all keys in it begin with, which may be nothing; neither begins or ends with a slash.
    Bucket {
        bucket: &'a str,
        prefix: &'a str,
    },
}

impl<'a> Place<'a> {
    /// Reads a URL that the topology has checked; `None` if it is not one that pgherd writes.
    pub fn of(url: &'a str) -> Option<Self> {
        if let Some(path) = url.strip_prefix("file://") {
            return Some(Self::Directory(Path::new(path))).filter(|_| path.starts_with('/'));
        }
        let rest = url.strip_prefix("s3://")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        Some(Self::Bucket { bucket, prefix }).filter(|_| !bucket.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_directory_or_a_bucket() {
        assert_eq!(Place::of("file:///srv/wal"), Some(Place::Directory(Path::new("/srv/wal"))));
        let bucket = |bucket, prefix| Some(Place::Bucket { bucket, prefix });
        assert_eq!(Place::of("s3://shop-pg"), bucket("shop-pg", ""));
        assert_eq!(Place::of("s3://shop-pg/v1/inner"), bucket("shop-pg", "v1/inner"));
        for url in ["file://srv", "s3://", "s3:///v1", "https://x/y", "/srv"] {
            assert_eq!(Place::of(url), None, "{url}");
        }
    }
}
