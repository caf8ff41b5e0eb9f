//! A repository in a bucket of S3, or of a server that speaks like it. The only room that knows the AWS SDK.
//!
//! Conditional puts are what makes it safe for several writers: a server without them is refused when the repository is made. Each call is
//! tried once here, [`super::retry::Retry`] stands around it; the parts of an upload are tried again by themselves.

mod client;
mod sweep;
mod trouble;
mod upload;

use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{Object, ObjectLockEnabled, ObjectLockMode, ServerSideEncryption, StorageClass};
use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::about::About;
use super::access::S3Access;
use super::location::Place;
use super::{
    BoxFuture, Key, Level, Listed, Put, Repo, RepoError, RepoErrorKind, Result, Upload, Version, Versioned,
    layout,
};
use crate::topology::model::ObjectLock;
use crate::units::ByteCount;
pub use client::Waits;
use trouble::Trouble;

/// How many parts of uploads are on their way at once, over all uploads of a process: each is held in memory.
const FLYING: usize = 12;
/// Metadata of an object that went up in parts: what tells it from one that another upload has made.
const UPLOAD: &str = "pgherd-upload";

/// A repository in a bucket. Its calls need tokio.
#[derive(Debug, Clone)]
pub struct S3Repo(Arc<Bucket>);

#[derive(Debug)]
struct Bucket {
    client: Client,
    url: String,
    bucket: String,
    /// What every key in the bucket begins with: empty, or with a slash at its end.
    prefix: String,
    storage_class: Option<StorageClass>,
    encryption: Option<ServerSideEncryption>,
    kms_key: Option<String>,
    lock: Option<ObjectLock>,
    /// Whether the server may keep the folders of objects that are gone, as those do that store files.
    keeps_folders: bool,
    flying: Semaphore,
    waits: Waits,
}

impl S3Repo {
    /// Opens the repository at `url`.
    ///
    /// # Errors
    /// [`RepoErrorKind::Missing`] when the bucket or its `repository.json` is not there, and what the server says.
    pub async fn open(url: &str, access: &S3Access, waits: Waits) -> Result<(Self, About)> {
        Self::reach(url, access, waits).await?.with_about().await
    }

    /// Returns it with what it says of itself.
    async fn with_about(self) -> Result<(Self, About)> {
        let doing = "read repository.json";
        match self.read(&layout::repository()).await? {
            Some(bytes) => {
                let damaged = |why: String| self.0.error(RepoErrorKind::Damaged, doing, why);
                let about = About::read(&bytes).map_err(|error| damaged(error.to_string()))?;
                Ok((self, about))
            }
            None => {
                let why = format!("there is no {} in the bucket", self.0.name(&layout::repository()));
                Err(self.0.error(RepoErrorKind::Missing, doing, why))
            }
        }
    }

    /// Makes the repository at `url` unless it is there, and opens it. The bucket must be there.
    ///
    /// # Errors
    /// When something that is no repository is there, when the server does not keep to conditions of puts, and what it says.
    pub async fn create(
        url: &str,
        access: &S3Access,
        waits: Waits,
        encrypted: bool,
    ) -> Result<(Self, About)> {
        let repo = Self::reach(url, access, waits).await?;
        let doing = "make repository.json";
        let key = layout::repository();
        repo.can_lock().await?;
        if repo.read(&key).await?.is_none() {
            if let Some(foreign) = repo.0.first_object().await? {
                let why = format!("the bucket holds {foreign:?} there, so it is not a new repository");
                return Err(repo.0.error(RepoErrorKind::Other, doing, why));
            }
            let about = About::new(Timestamp::now())
                .map_err(|error| repo.0.error(RepoErrorKind::Other, doing, error.to_string()))?;
            let about = if encrypted { about.encrypted() } else { about };
            repo.create(&key, &about.write()).await?;
        }
        repo.keeps_to_conditions().await?;
        repo.with_about().await
    }

    /// Opens it, and sees that what is stored can be locked, if it is to be.
    ///
    /// # Errors
    /// As [`S3Repo::open`]; when the bucket was made without object lock.
    pub async fn prove(url: &str, access: &S3Access, waits: Waits) -> Result<(Self, About)> {
        let repo = Self::reach(url, access, waits).await?;
        repo.can_lock().await?;
        repo.with_about().await
    }

    /// A bucket that locks nothing refuses what is to be locked: that is to be known before WAL comes.
    async fn can_lock(&self) -> Result<()> {
        if self.0.lock.is_none() {
            return Ok(());
        }
        let doing = "see whether the bucket locks objects";
        let asked = self.0.client.get_object_lock_configuration().bucket(&self.0.bucket).send().await;
        let enabled = match asked {
            Ok(found) => {
                let lock = found.object_lock_configuration.and_then(|lock| lock.object_lock_enabled);
                lock == Some(ObjectLockEnabled::Enabled)
            }
            Err(error) => match Trouble::of(error) {
                trouble if trouble.is("ObjectLockConfigurationNotFoundError") => false,
                trouble => return Err(self.0.failed(doing, trouble)),
            },
        };
        if enabled {
            return Ok(());
        }
        let why = "\"object-lock\" is declared, and the bucket was made without it";
        Err(self.0.error(RepoErrorKind::Other, doing, why))
    }

    async fn reach(url: &str, access: &S3Access, waits: Waits) -> Result<Self> {
        let Some(Place::Bucket { bucket, prefix }) = Place::of(url) else {
            return Err(RepoError {
                kind: RepoErrorKind::Other,
                url: url.to_owned(),
                doing: "read repository.json".to_owned(),
                why: "its URL is not s3://BUCKET/PREFIX".to_owned(),
            });
        };
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self(Arc::new(Bucket {
            client: client::make(access, waits).await,
            url: url.to_owned(),
            bucket: bucket.to_owned(),
            prefix,
            storage_class: access.storage_class.as_deref().map(StorageClass::from),
            encryption: access.server_side_encryption.as_deref().map(ServerSideEncryption::from),
            kms_key: access.kms_key.clone(),
            lock: access.object_lock,
            keeps_folders: access.endpoint.is_some(),
            flying: Semaphore::new(FLYING),
            waits,
        })))
    }

    /// A server that stores whatever the condition of a put says would let two of us be primary.
    async fn keeps_to_conditions(&self) -> Result<()> {
        let doing = "see whether it keeps to conditions of puts";
        let refuse = |what: &str| {
            let why = format!("it {what}, so that two writers would not see each other");
            Err(self.0.error(RepoErrorKind::Other, doing, why))
        };
        let key = layout::repository();
        if self.create(&key, b"{}").await? == Put::Stored {
            return refuse("stores over an object that is there although it is told not to");
        }
        let nobodys = Version("\"00000000000000000000000000000000\"".to_owned());
        if self.replace_if(&key, b"{}", &nobodys).await? == Put::Stored {
            return refuse("replaces an object of another version than it is told to");
        }
        Ok(())
    }
}

impl Bucket {
    /// Returns the name of an object in the bucket.
    fn name(&self, key: &Key) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Returns the key of an object of that name; `None` if it is none of ours.
    fn key(&self, name: &str) -> Option<Key> {
        Key::new(name.strip_prefix(&self.prefix)?).ok()
    }

    fn error(&self, kind: RepoErrorKind, doing: impl Into<String>, why: impl Into<String>) -> RepoError {
        RepoError { kind, url: self.url.clone(), doing: doing.into(), why: why.into() }
    }

    fn failed(&self, doing: impl Into<String>, trouble: Trouble) -> RepoError {
        self.error(trouble.kind, doing, trouble.why)
    }

    /// Returns the name of some object below the prefix.
    async fn first_object(&self) -> Result<Option<String>> {
        let listed =
            self.client.list_objects_v2().bucket(&self.bucket).prefix(&self.prefix).max_keys(1).send();
        let listed = listed.await.map_err(|error| self.failed("list it", Trouble::of(error)))?;
        Ok(listed.contents().first().and_then(|object| object.key()).map(str::to_owned))
    }

    /// Removes the folders above an object that have nothing left in them; what cannot be removed is shown as an empty folder.
    async fn remove_empty_folders(&self, key: &Key) {
        let mut folder = key.as_str();
        while let Some((above, _)) = folder.rsplit_once('/') {
            folder = above;
            let name = format!("{}{folder}/", self.prefix);
            let listed =
                self.client.list_objects_v2().bucket(&self.bucket).prefix(&name).max_keys(2).send().await;
            // A folder may be shown as an object of its own.
            let is_empty =
                listed.is_ok_and(|listed| listed.contents().iter().all(|object| object.key() == Some(&name)));
            if !is_empty || self.client.delete_object().bucket(&self.bucket).key(&name).send().await.is_err()
            {
                return;
            }
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        let doing = format!("read {key}");
        let sent = self.client.get_object().bucket(&self.bucket).key(self.name(key)).send();
        match sent.await {
            Ok(mut found) => {
                // Without it a later put would be on no condition.
                let tag = found.e_tag.take().filter(|tag| !tag.is_empty());
                let tag = tag.ok_or_else(|| self.odd(&doing, "gives the object no ETag"))?;
                Ok(Some((self.body(&doing, found).await?, Version(tag))))
            }
            Err(error) => {
                let trouble = Trouble::of(error);
                if trouble.is("NoSuchKey") { Ok(None) } else { Err(self.failed(doing, trouble)) }
            }
        }
    }

    /// Reads what there is of a range that is not empty.
    async fn get_range(&self, key: &Key, offset: u64, length: u64) -> Result<Option<Vec<u8>>> {
        let doing = format!("read {key}");
        let range = format!("bytes={offset}-{}", offset.saturating_add(length - 1));
        let sent = self.client.get_object().bucket(&self.bucket).key(self.name(key)).range(range).send();
        let trouble = match sent.await {
            Ok(found) => {
                let expected = found.content_range().and_then(|range| length_of(range, offset, length));
                let expected = expected.ok_or_else(|| self.odd(&doing, "answers with another range"))?;
                let bytes = self.body(&doing, found).await?;
                return if bytes.len() as u64 == expected {
                    Ok(Some(bytes))
                } else {
                    Err(self.odd(&doing, &format!("sends {} of {expected} bytes", bytes.len())))
                };
            }
            Err(error) => Trouble::of(error),
        };
        if trouble.is("NoSuchKey") {
            return Ok(None);
        }
        // It ends before the range begins.
        if trouble.status == Some(416) {
            match self.head(key).await? {
                Some(found) if found.size <= offset => return Ok(Some(Vec::new())),
                Some(_) | None => {}
            }
        }
        Err(self.failed(doing, trouble))
    }

    /// An answer that no server should give; another try may have a better one.
    fn odd(&self, doing: &str, what: &str) -> RepoError {
        self.error(RepoErrorKind::Passing, doing, format!("the server {what}"))
    }

    /// Takes what an answer holds, all of it: a connection that is cut must not pass for an object that ends.
    async fn body(&self, doing: &str, found: GetObjectOutput) -> Result<Vec<u8>> {
        let passing = |why: String| self.error(RepoErrorKind::Passing, doing, why);
        let expected = found.content_length;
        let collected = found.body.collect().await;
        let bytes = collected.map_err(|error| passing(trouble::chain(&error)))?.to_vec();
        match expected {
            Some(expected) if expected != bytes.len() as i64 => {
                Err(passing(format!("{} of {expected} bytes came", bytes.len())))
            }
            Some(_) | None => Ok(bytes),
        }
    }

    /// Looks at an object without reading it.
    async fn head(&self, key: &Key) -> Result<Option<Head>> {
        let doing = || format!("look at {key}");
        let sent = self.client.head_object().bucket(&self.bucket).key(self.name(key)).send();
        match sent.await {
            Ok(found) => {
                let size = found.content_length().and_then(|size| u64::try_from(size).ok());
                let size = size.ok_or_else(|| self.odd(&doing(), "does not say how large the object is"))?;
                let upload = found.metadata().and_then(|metadata| metadata.get(UPLOAD)).cloned();
                Ok(Some(Head { size, upload }))
            }
            Err(error) => {
                let trouble = Trouble::of(error);
                // An answer to HEAD has no body that could name what is missing.
                if trouble.status == Some(404) { Ok(None) } else { Err(self.failed(doing(), trouble)) }
            }
        }
    }

    /// Returns how an object is locked that is stored now.
    fn lock_of(&self, key: &Key) -> (Option<ObjectLockMode>, Option<DateTime>) {
        match self.lock.filter(|_| !layout::is_passing(key)) {
            Some(lock) => {
                let until = lock.until(Timestamp::now()).as_second();
                (Some(ObjectLockMode::from(lock.mode.word())), Some(DateTime::from_secs(until)))
            }
            None => (None, None),
        }
    }

    async fn put(&self, doing: &str, key: &Key, bytes: &[u8], condition: Condition<'_>) -> Result<Put> {
        let (mode, until) = self.lock_of(key);
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.name(key))
            .set_storage_class(self.storage_class.clone())
            .set_server_side_encryption(self.encryption.clone())
            .set_ssekms_key_id(self.kms_key.clone())
            .set_object_lock_mode(mode)
            .set_object_lock_retain_until_date(until)
            .body(ByteStream::from(bytes.to_vec()));
        let put = match condition {
            Condition::None => put,
            Condition::Absent => put.if_none_match("*"),
            Condition::Is(version) => put.if_match(&version.0),
        };
        let put = put.customize().config_override(self.waits.to_send(bytes.len()));
        let trouble = match put.send().await {
            Ok(_) => return Ok(Put::Stored),
            Err(error) => Trouble::of(error),
        };
        match (condition, trouble.status) {
            (Condition::Absent | Condition::Is(_), Some(412)) => Ok(Put::Refused),
            // Whoever wants to replace it finds it removed.
            (Condition::Is(_), Some(404)) if trouble.is("NoSuchKey") => Ok(Put::Refused),
            _ => Err(self.failed(doing, trouble)),
        }
    }

    /// Lists what begins with `prefix`, page by page.
    async fn pages(
        &self,
        doing: &str,
        prefix: &str,
        delimiter: Option<&str>,
    ) -> Result<(Vec<Listed>, Vec<String>)> {
        let (mut objects, mut folders) = (Vec::new(), Vec::new());
        let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
        let mut pages = request.set_delimiter(delimiter.map(str::to_owned)).into_paginator().send();
        let mut goes_on = false;
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.failed(doing, Trouble::of(error)))?;
            goes_on = page.is_truncated().unwrap_or_default();
            for object in page.contents() {
                let Some(key) = object.key().and_then(|name| self.key(name)) else { continue };
                let listed = listed(key, object);
                objects
                    .push(listed.ok_or_else(|| self.odd(doing, "lists an object without its size or time"))?);
            }
            let names = page.common_prefixes().iter().filter_map(|common| common.prefix());
            folders.extend(names.filter_map(|name| {
                let name = name.strip_prefix(prefix)?.strip_suffix('/')?;
                Key::new(name).ok().map(|key| key.as_str().to_owned())
            }));
        }
        if goes_on {
            return Err(self.odd(doing, "says that the listing goes on, and not where"));
        }
        objects.sort_by(|one, other| one.key.cmp(&other.key));
        folders.sort();
        Ok((objects, folders))
    }
}

/// Reads an object of a listing; `None` if the server leaves out what everybody states.
fn listed(key: Key, object: &Object) -> Option<Listed> {
    let size = u64::try_from(object.size()?).ok()?;
    let modified = Timestamp::from_second(object.last_modified()?.secs()).ok()?;
    Some(Listed { key, size: ByteCount(size), modified })
}

/// Returns how many bytes an answer must have that says `content_range`; `None` if that is not what was asked for.
fn length_of(content_range: &str, offset: u64, length: u64) -> Option<u64> {
    let (range, whole) = content_range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let whole: u64 = whole.parse().ok()?;
    let expected = length.min(whole.checked_sub(offset)?);
    (first == offset && last.checked_add(1)?.checked_sub(first)? == expected).then_some(expected)
}

/// What is seen of an object without reading it.
#[derive(Debug)]
struct Head {
    size: u64,
    /// What the upload that made it called itself.
    upload: Option<String>,
}

/// What must hold for a put.
#[derive(Debug, Clone, Copy)]
enum Condition<'a> {
    None,
    Absent,
    Is(&'a Version),
}

impl Repo for S3Repo {
    fn url(&self) -> &str {
        &self.0.url
    }

    fn read<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(async move { Ok(self.0.get(key).await?.map(|(bytes, _)| bytes)) })
    }

    fn read_versioned<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>>> {
        Box::pin(self.0.get(key))
    }

    fn read_range<'a>(
        &'a self,
        key: &'a Key,
        offset: u64,
        length: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(async move {
            if length == 0 {
                return Ok(self.0.head(key).await?.map(|_| Vec::new()));
            }
            self.0.get_range(key, offset, length).await
        })
    }

    fn create<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, Result<Put>> {
        Box::pin(async move { self.0.put(&format!("store {key}"), key, bytes, Condition::Absent).await })
    }

    fn replace_if<'a>(
        &'a self,
        key: &'a Key,
        bytes: &'a [u8],
        version: &'a Version,
    ) -> BoxFuture<'a, Result<Put>> {
        Box::pin(
            async move { self.0.put(&format!("replace {key}"), key, bytes, Condition::Is(version)).await },
        )
    }

    fn store<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(
            async move { self.0.put(&format!("store {key}"), key, bytes, Condition::None).await.map(drop) },
        )
    }

    fn upload<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Box<dyn Upload>>> {
        Box::pin(async move { Ok(Box::new(upload::Parts::begin(self, key)) as Box<dyn Upload>) })
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> BoxFuture<'a, Result<Level>> {
        Box::pin(async move {
            let doing =
                folder.map_or_else(|| "list the clusters".to_owned(), |folder| format!("list {folder}"));
            let prefix =
                folder.map_or_else(|| self.0.prefix.clone(), |folder| format!("{}/", self.0.name(folder)));
            let (objects, folders) = self.0.pages(&doing, &prefix, Some("/")).await?;
            Ok(Level { objects, folders })
        })
    }

    fn list_all<'a>(&'a self, folder: &'a Key) -> BoxFuture<'a, Result<Vec<Listed>>> {
        Box::pin(async move {
            let prefix = format!("{}/", self.0.name(folder));
            Ok(self.0.pages(&format!("list {folder}"), &prefix, None).await?.0)
        })
    }

    /// The server does not say whether there was anything.
    fn remove<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            if self.0.head(key).await?.is_none() {
                return Ok(false);
            }
            let sent = self.0.client.delete_object().bucket(&self.0.bucket).key(self.0.name(key)).send();
            sent.await.map_err(|error| self.0.failed(format!("remove {key}"), Trouble::of(error)))?;
            if self.0.keeps_folders {
                self.0.remove_empty_folders(key).await;
            }
            Ok(true)
        })
    }

    fn sweep<'a>(&'a self, before: Timestamp) -> BoxFuture<'a, Result<u64>> {
        Box::pin(self.0.abort_uploads(before))
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        self.0.lock
    }

    /// A bucket has no end that it would tell.
    fn free_space<'a>(&'a self) -> BoxFuture<'a, Result<Option<ByteCount>>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}
