//! Repositories, and that no two of them lie in each other.

use super::super::decode::Spanned;
use super::super::model::{Addressing, ObjectLock, Repository, S3, S3Credentials, SecretReference, Sse};
use super::super::problem::Position;
use super::super::raw;
use super::super::yaml::{Node as Tree, Value};
use super::{Checker, DeclaredRepository};
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

/// How many seconds an object may be locked for.
const LOCKS: RangeInclusive<u32> = 86_400..=3650 * 86_400;

impl Checker<'_> {
    pub(super) fn repositories(&mut self, topology: &raw::Topology, tree: &Tree) {
        // The names come from the tree, so that a repository whose URL is wrong is still a known one.
        let Some(Tree { value: Value::Mapping(entries), .. }) = tree.find("repositories") else {
            return;
        };
        let raw = topology.repositories.as_ref().map(|raw| raw.value.0.as_slice()).unwrap_or_default();
        for entry in entries {
            let named = self.name(entry.at, "repository", &entry.key);
            let path = format!("repositories.{}", entry.key);
            if entry.value.find("url").is_none() && matches!(entry.value.value, Value::Mapping(_)) {
                self.missing(entry.at, &path, "url", "url: file:///var/lib/pgherd/repository");
            }
            let raw = raw.iter().find(|raw| raw.name == entry.key).map(|raw| &raw.value);
            let url = raw.and_then(|raw| raw.url.as_ref());
            let checked = url.and_then(|url| self.repository_url(url, &format!("{path}.url")));
            let s3 = raw.and_then(|raw| self.s3(raw, checked.as_deref(), &path, entry.at));
            let keys = raw.map(|raw| self.keys(raw, &path)).unwrap_or_default();
            self.repositories.push(DeclaredRepository {
                name: entry.key.clone(),
                at: url.map_or(entry.at, |url| url.at),
                repository: checked.filter(|_| named).map(|url| Repository {
                    name: entry.key.clone(),
                    url,
                    access: s3.is_some() || !keys.is_empty(),
                    s3,
                    keys,
                }),
            });
        }
    }

    /// Checks the URL of a repository and writes it without what does not matter. A URL may hold a password: only its scheme
    /// is shown.
    fn repository_url(&mut self, url: &Spanned<String>, path: &str) -> Option<String> {
        const HINT: &str = "Write the whole path of a directory: url: file:///var/lib/pgherd/repository, or a bucket: url: s3://BUCKET/PREFIX.";
        let must = format!("{path} must be file:///ABSOLUTE/PATH or s3://BUCKET/PREFIX");
        let Some((scheme, rest)) = url.value.split_once("://") else {
            self.report.add(url.at, must).hint(HINT);
            return None;
        };
        if scheme == "s3" {
            return self.bucket(url, rest, path);
        }
        if scheme != "file" {
            self.report
                .add(url.at, format!("{must}, found the scheme {scheme:?}"))
                .detail("This version keeps backups and WAL in directories and in buckets of S3.")
                .hint(HINT);
            return None;
        }
        // What a URL and a path would read differently is not taken.
        let odd = rest.chars().find(|c| matches!(c, '%' | '?' | '#') || c.is_control());
        let components: Vec<Component<'_>> = Path::new(rest).components().collect();
        let plain = components.iter().skip(1).all(|part| matches!(part, Component::Normal(_)));
        if let Some(odd) = odd {
            self.report
                .add(url.at, format!("{path} holds the character {odd:?}"))
                .detail("In a URL it does not mean itself.")
                .hint("Choose a directory without it.");
            return None;
        }
        if components.first() != Some(&Component::RootDir) || components.len() < 2 || !plain {
            self.report
                .add(url.at, format!("{path} must be file:///ABSOLUTE/PATH, with no host and no \"..\""))
                .hint(HINT);
            return None;
        }
        let directory: PathBuf = components.iter().collect();
        Some(format!("file://{}", directory.display()))
    }

    /// Checks a bucket and what all keys in it begin with. "S3 User Guide, Bucket naming rules"; the prefix holds what a key of ours may hold.
    fn bucket(&mut self, url: &Spanned<String>, rest: &str, path: &str) -> Option<String> {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ends = |end: Option<u8>| end.is_some_and(lower);
        let named = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(|b| lower(b) || b == b'-' || b == b'.')
            && ends(bucket.bytes().next())
            && ends(bucket.bytes().last())
            && !bucket.contains("..");
        let part = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let plain = prefix.is_empty() || (prefix.len() <= 200 && prefix.split('/').all(part));
        if !named || !plain {
            self.report
                .add(url.at, format!("{path} must be s3://BUCKET/PREFIX"))
                .detail(if named {
                    "The prefix is made of at most 200 letters, digits, \".\", \"_\" and \"-\", with \"/\" between its parts."
                } else {
                    "The name of a bucket has 3 to 63 lower-case letters, digits, \".\" and \"-\". Credentials do not stand in the URL."
                })
                .hint("Write url: s3://shop-pg-west/v1.");
            return None;
        }
        let slash = if prefix.is_empty() { "" } else { "/" };
        Some(format!("s3://{bucket}{slash}{prefix}"))
    }

    /// Returns where the keys of a repository are.
    fn keys(&mut self, raw: &raw::Repository, path: &str) -> Vec<SecretReference> {
        if let (None, Some(before)) = (&raw.encrypt, &raw.encrypt_before) {
            self.missing(before.at, path, "encrypt", "encrypt: {env: PGHERD_REPO_KEY}");
        }
        let stated = raw.encrypt.iter().chain(&raw.encrypt_before);
        stated.map(|reference| self.reference(&reference.value)).collect()
    }

    /// Checks what only a bucket has.
    fn s3(&mut self, raw: &raw::Repository, url: Option<&str>, path: &str, at: Position) -> Option<Box<S3>> {
        let stated: [(&str, Option<Position>); 12] = [
            ("region", raw.region.as_ref().map(|it| it.at)),
            ("endpoint", raw.endpoint.as_ref().map(|it| it.at)),
            ("addressing", raw.addressing.as_ref().map(|it| it.at)),
            ("ca", raw.ca.as_ref().map(|it| it.at)),
            ("access-key", raw.access_key.as_ref().map(|it| it.at)),
            ("secret-key", raw.secret_key.as_ref().map(|it| it.at)),
            ("profile", raw.profile.as_ref().map(|it| it.at)),
            ("storage-class", raw.storage_class.as_ref().map(|it| it.at)),
            ("sse", raw.sse.as_ref().map(|it| it.at)),
            ("kms-key", raw.kms_key.as_ref().map(|it| it.at)),
            ("object-lock", raw.object_lock.as_ref().map(|it| it.at)),
            ("object-lock-mode", raw.object_lock_mode.as_ref().map(|it| it.at)),
        ];
        if !url?.starts_with("s3://") {
            for (key, at) in stated.iter().filter_map(|(key, at)| Some((key, (*at)?))) {
                self.report
                    .add(at, format!("{path}.{key} means nothing for a directory"))
                    .hint("Remove it, or keep the repository in a bucket: url: s3://BUCKET/PREFIX.");
            }
            return None;
        }
        let endpoint = raw.endpoint.as_ref().and_then(|endpoint| self.endpoint(endpoint, path));
        let ca = raw.ca.as_ref().and_then(|ca| {
            if ca.value.file.is_none() {
                self.missing(ca.at, &format!("{path}.ca"), "file", "file: s3-ca.pem");
            }
            Some(self.base.join(&ca.value.file.as_ref()?.value))
        });
        let credentials = match (&raw.access_key, &raw.secret_key) {
            (Some(access), Some(secret)) => Some(S3Credentials {
                access_key: self.reference(&access.value),
                secret_key: self.reference(&secret.value),
            }),
            (Some(_), None) => {
                self.missing(at, path, "secret-key", "secret-key: {env: PGHERD_S3_SECRET_KEY}");
                None
            }
            (None, Some(_)) => {
                self.missing(at, path, "access-key", "access-key: {env: PGHERD_S3_ACCESS_KEY}");
                None
            }
            (None, None) => None,
        };
        if let (Some(profile), Some(_)) = (&raw.profile, &credentials) {
            self.report
                .add(profile.at, format!("{path} has keys and a profile"))
                .detail("A profile of the hosts is asked only where no keys are given.")
                .hint("Remove one of them.");
        }
        let kms = |sse: Sse| matches!(sse, Sse::Kms | Sse::KmsDsse);
        if let Some(key) =
            raw.kms_key.as_ref().filter(|_| !raw.sse.as_ref().is_some_and(|sse| kms(sse.value)))
        {
            self.report
                .add(key.at, format!("{path}.kms-key means nothing without KMS"))
                .hint("Write sse: \"aws:kms\" beside it.");
        }
        let text = |stated: &Option<Spanned<String>>| stated.as_ref().map(|stated| stated.value.clone());
        let usual = if raw.endpoint.is_some() { Addressing::Path } else { Addressing::Host };
        Some(Box::new(S3 {
            region: text(&raw.region),
            endpoint,
            addressing: raw.addressing.as_ref().map_or(usual, |stated| stated.value),
            ca,
            credentials,
            profile: text(&raw.profile),
            storage_class: text(&raw.storage_class),
            sse: raw.sse.as_ref().map(|sse| sse.value),
            kms_key: text(&raw.kms_key),
            lock: self.lock(raw, path),
        }))
    }

    /// What is locked stays for as long as it says, whatever somebody wishes later: a slip of the pen must not be paid for for a hundred years.
    fn lock(&mut self, raw: &raw::Repository, path: &str) -> Option<ObjectLock> {
        if let (None, Some(mode)) = (&raw.object_lock, &raw.object_lock_mode) {
            self.missing(mode.at, path, "object-lock", "object-lock: 30 days");
        }
        let stated = raw.object_lock.as_ref()?;
        let seconds = u32::try_from(stated.value.as_secs()).ok().filter(|seconds| LOCKS.contains(seconds));
        if seconds.is_none() {
            self.report
                .add(stated.at, format!("{path}.object-lock must be between 1 day and 3650 days"))
                .detail("Nobody can take it back: what was stored is locked, and paid for, until that time is over.")
                .hint("Write a span of time such as \"30 days\".");
        }
        let mode = raw.object_lock_mode.as_ref().map(|mode| mode.value).unwrap_or_default();
        Some(ObjectLock { seconds: seconds?, mode })
    }

    /// Backups go over this: without TLS they are read on the way. What stands there is not shown, it may hold a password.
    fn endpoint(&mut self, endpoint: &Spanned<String>, path: &str) -> Option<String> {
        let rest = endpoint.value.strip_prefix("https://").or_else(|| {
            let rest = endpoint.value.strip_prefix("http://")?;
            let here = ["127.0.0.1", "localhost", "[::1]"];
            here.iter()
                .any(|host| {
                    rest.strip_prefix(host).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
                })
                .then_some(rest)
        });
        let whole = rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', '?', '#', '/', ' ']));
        if !whole {
            self.report
                .add(endpoint.at, format!("{path}.endpoint must be https://HOST:PORT"))
                .detail("Without TLS the backups would be read on the way; http is taken at a host's own loopback address alone.")
                .hint("Write endpoint: https://s3.example.com.");
        }
        whole.then(|| endpoint.value.clone())
    }

    /// No repository may lie in or over a data directory or another repository: one of the two would be backed up, counted or
    /// removed with the other.
    pub(super) fn repository_directories(&mut self) {
        let overlap = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
        let buckets: Vec<(&str, Position, &str)> = self
            .repositories
            .iter()
            .filter_map(|declared| {
                let url = declared.repository.as_ref()?.url.as_str();
                url.starts_with("s3://").then_some((declared.name.as_str(), declared.at, url))
            })
            .collect();
        let below = |a: &str, b: &str| a == b || a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
        for (index, (name, at, url)) in buckets.iter().enumerate() {
            let other = buckets[..index].iter().find(|(_, _, other)| below(url, other) || below(other, url));
            if let Some((other, first, shared)) = other {
                self.report
                    .add(*at, format!("the repositories {other} and {name} overlap"))
                    .detail(format!("{other} is at {shared} (given at {first}), {name} at {url}."))
                    .hint("Give each a prefix of its own; clusters may share a repository.");
            }
        }
        let declared: Vec<(&str, Position, &Path)> = self
            .repositories
            .iter()
            .filter_map(|declared| {
                Some((declared.name.as_str(), declared.at, declared.repository.as_ref()?.directory()?))
            })
            .collect();
        for (index, (name, at, directory)) in declared.iter().enumerate() {
            if let Some((other, first, shared)) =
                declared[..index].iter().find(|(_, _, other)| overlap(directory, other))
            {
                self.report
                    .add(*at, format!("the repositories {other} and {name} overlap"))
                    .detail(format!(
                        "{other} is at {} (given at {first}), {name} at {}.",
                        shared.display(),
                        directory.display()
                    ))
                    .hint("Give each a directory of its own; clusters may share a repository.");
            }
            if let Some(data) = self.directories.iter().find(|data| overlap(directory, &data.path)) {
                self.report
                    .add(*at, format!("the repository {name} overlaps the data directory of {}", data.owner))
                    .detail(format!(
                        "The repository is at {}, the data directory at {}: whoever loses or removes one loses the other.",
                        directory.display(),
                        data.path.display()
                    ))
                    .hint("Give the repository a directory of its own, best on another disk.");
            }
        }
    }
}
