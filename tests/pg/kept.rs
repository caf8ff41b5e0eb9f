//! What lies in the repository of a herd, as its owner sees it without pgherd: in a directory or in a bucket, each object by its name.

use std::fs;
use std::future::Future;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;

use crate::weed::weed;

/// Which kind of repository a test has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    EncryptedDirectory,
    Bucket,
    EncryptedBucket,
    /// A directory, and a copy in another one: what is restored is the copy, and the first one is lost while it is.
    Copy,
}

impl Kind {
    /// Returns the kind that `PGHERD_TEST_REPOSITORY` names for this run, a directory without it.
    pub fn of_this_run() -> Self {
        match std::env::var("PGHERD_TEST_REPOSITORY").as_deref() {
            Ok("encrypted") => Self::EncryptedDirectory,
            Ok("s3") => Self::Bucket,
            Ok("s3-encrypted") => Self::EncryptedBucket,
            Ok("copy") => Self::Copy,
            Ok(other) => panic!("there is no kind of repository {other:?}"),
            Err(_) => Self::Directory,
        }
    }
}

/// A repository from outside. Objects are named from its root, such as `inventory/lock.json`.
#[derive(Debug, Clone)]
pub enum Kept {
    Directory(PathBuf),
    /// A bucket of the S3 server of the tests, below [`PREFIX`].
    Bucket(String),
}

/// What stands before each name in a bucket.
pub const PREFIX: &str = "v1";

fn key(name: &str) -> String {
    format!("{PREFIX}/{name}")
}

fn now<F, T>(call: impl FnOnce(Client) -> F) -> T
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    weed().expect("there is a bucket").now(call)
}

impl Kept {
    /// Returns every object with its size, sorted. Hidden files are none.
    pub fn objects(&self) -> Vec<(String, u64)> {
        let mut found = match self {
            Self::Directory(root) => files(root)
                .into_iter()
                .map(|(path, size)| {
                    let name = path.strip_prefix(root).expect("it is below").to_str().expect("UTF-8");
                    (name.to_owned(), size)
                })
                .collect(),
            Self::Bucket(bucket) => listed(bucket.clone()),
        };
        found.sort();
        found
    }

    pub fn names(&self) -> Vec<String> {
        self.objects().into_iter().map(|(name, _)| name).collect()
    }

    /// Returns the names that hold `part`.
    pub fn with(&self, part: &str) -> Vec<String> {
        self.names().into_iter().filter(|name| name.contains(part)).collect()
    }

    /// Returns the only name that ends with `end`.
    #[track_caller]
    pub fn only(&self, end: &str) -> String {
        let mut found = self.with(end);
        found.retain(|name| name.ends_with(end));
        assert_eq!(found.len(), 1, "{end}: {found:?}");
        found.remove(0)
    }

    /// Tells whether this WAL file is in the archive.
    pub fn has_wal(&self, file: &str) -> bool {
        let end = format!("/{file}.zst");
        self.names().iter().any(|name| name.ends_with(&end))
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        match self {
            Self::Directory(root) => fs::read(root.join(name)).expect("an object"),
            Self::Bucket(bucket) => {
                let (bucket, key) = (bucket.clone(), key(name));
                now(|client| async move {
                    let got = client.get_object().bucket(bucket).key(key).send().await.expect("an object");
                    got.body.collect().await.expect("all of it").to_vec()
                })
            }
        }
    }

    /// Writes an object, which belongs to whom the repository does.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        match self {
            Self::Directory(root) => write_file(root, name, bytes),
            Self::Bucket(bucket) => {
                let (bucket, key, body) = (bucket.clone(), key(name), ByteStream::from(bytes.to_vec()));
                now(|client| async move {
                    client.put_object().bucket(bucket).key(key).body(body).send().await.expect("stored");
                });
            }
        }
    }

    /// Changes one byte in the middle of an object.
    pub fn damage(&self, name: &str) {
        let mut bytes = self.read(name);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 8;
        self.write(name, &bytes);
    }

    /// Removes an object, and returns what it held.
    pub fn take(&self, name: &str) -> Vec<u8> {
        let bytes = self.read(name);
        match self {
            Self::Directory(root) => fs::remove_file(root.join(name)).expect("removed"),
            Self::Bucket(bucket) => {
                let (bucket, key) = (bucket.clone(), key(name));
                now(|client| async move {
                    client.delete_object().bucket(bucket).key(key).send().await.expect("removed");
                });
            }
        }
        bytes
    }

    /// Returns everything that is in it.
    pub fn copy(&self) -> Vec<(String, Vec<u8>)> {
        self.names().into_iter().map(|name| (name.clone(), self.read(&name))).collect()
    }

    /// Makes it hold what `copy` does, and nothing else.
    pub fn hold(&self, copy: &[(String, Vec<u8>)]) {
        for name in self.names().iter().filter(|name| !copy.iter().any(|(kept, _)| kept == *name)) {
            self.take(name);
        }
        copy.iter().for_each(|(name, bytes)| self.write(name, bytes));
    }

    /// Has the whole repository gone while `meanwhile` runs: a directory is moved aside, a bucket is empty.
    pub fn gone(&self, meanwhile: impl FnOnce()) {
        match self {
            Self::Directory(root) => {
                let aside = root.with_extension("gone");
                fs::rename(root, &aside).expect("it is ours");
                meanwhile();
                fs::rename(&aside, root).expect("it is ours");
            }
            Self::Bucket(_) => {
                let all = self.copy();
                self.hold(&[]);
                meanwhile();
                self.hold(&all);
            }
        }
    }
}

fn listed(bucket: String) -> Vec<(String, u64)> {
    now(|client| async move {
        let mut pages = client.list_objects_v2().bucket(bucket).prefix(key("")).into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            for object in page.expect("a listing").contents() {
                let name = object.key().and_then(|key| key.strip_prefix(PREFIX)?.strip_prefix('/'));
                let size = u64::try_from(object.size().unwrap_or_default()).expect("a size");
                found.push((name.expect("a name below the prefix").to_owned(), size));
            }
        }
        found
    })
}

fn files(root: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten() {
        let entry = entry.expect("readable");
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // What is renamed or removed meanwhile is none.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push((entry.path(), meta.len()));
        }
    }
    found
}

fn write_file(root: &Path, name: &str, bytes: &[u8]) {
    let file = root.join(name);
    let is_new = !file.exists();
    fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
    fs::write(&file, bytes).expect("stored");
    if is_new {
        let owner = fs::metadata(root).expect("it is there");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("ours");
        for path in file.ancestors().take_while(|path| *path != root) {
            chown(path, Some(owner.uid()), Some(owner.gid())).expect("ours, or we are root");
        }
    }
}
