//! A decorator that encrypts what it stores and opens what it reads; docs/formats/encryption.md.
//!
//! Encrypts every object that [`Protection`] says must be, with a data key that lies beside it, wrapped, in a key document. Names, and the sizes of contents,
//! stay visible. Makes no call of its own but for key documents, which it keeps once it has opened them; whoever wraps holds no lock: the first one to
//! store a key document has made it.

pub mod envelope;
mod hex;
pub mod keyring;
pub mod protection;
pub mod rekey;
pub mod stream;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use self::envelope::{DataKey, KeyDocument};
use self::keyring::Keyring;
use self::protection::Protection;
use self::stream::{CHUNK, Damage, HEADER, Header, NewObject, ObjectKey, Sealing};
use super::about::About;
use super::{
    BoxFuture, Key, Level, Listed, Put, Repo, RepoError, RepoErrorKind, Result, SharedRepo, Upload, Version,
    Versioned,
};
use crate::topology::model::ObjectLock;
use crate::units::ByteCount;

/// Keys of objects that are kept, of those that are read in ranges.
const KEPT: usize = 1000;
/// How often an object that is replaced while it is read is read anew.
const TRIES: u32 = 8;
/// Chunks that are read at once to find out where an object ends.
const STRIDE: u64 = 64;

/// A repository of which nobody reads the contents who has no key.
#[derive(Debug)]
pub struct Encrypted {
    inner: SharedRepo,
    keyring: Keyring,
    protection: fn(&Key) -> Protection,
    /// By the name of their key document.
    data_keys: Mutex<HashMap<Key, DataKey>>,
    /// Of objects that are read in ranges.
    object_keys: Mutex<HashMap<Key, Arc<ObjectKey>>>,
}

/// Some chunks of an object, as they are stored.
struct Window {
    header: Header,
    bytes: Vec<u8>,
    /// Where in `bytes` the first chunk begins.
    from: usize,
    /// Whether the header was read in another moment than the chunks.
    is_apart: bool,
}

/// What some chunks of an object gave.
enum Content {
    /// It goes on behind them.
    Inner(Vec<u8>),
    /// It ends with them, and has so many bytes in all.
    End(Vec<u8>, u64),
    /// It ends before them.
    Beyond,
}

impl Encrypted {
    /// Encrypts what is stored in `inner`, which says `about` itself that it is encrypted.
    ///
    /// # Errors
    /// As [`About::expect_encrypted`].
    pub fn new(inner: SharedRepo, about: &About, keyring: Keyring) -> Result<Self> {
        about.expect_encrypted(inner.url())?;
        Ok(Self::with_protection(inner, keyring, Protection::of))
    }

    /// Encrypts by other rules than those of the layout: for tests of what holds under every name.
    pub fn with_protection(inner: SharedRepo, keyring: Keyring, protection: fn(&Key) -> Protection) -> Self {
        let (data_keys, object_keys) = (Mutex::default(), Mutex::default());
        Self { inner, keyring, protection, data_keys, object_keys }
    }

    fn error(&self, kind: RepoErrorKind, doing: &str, why: impl Into<String>) -> RepoError {
        RepoError { kind, url: self.url().to_owned(), doing: doing.to_owned(), why: why.into() }
    }

    fn damaged(&self, key: &Key, damage: &Damage) -> RepoError {
        self.error(RepoErrorKind::Damaged, &reading(key), damage.to_string())
    }

    fn no_chance(&self, key: &Key, error: getrandom::Error) -> RepoError {
        let why = format!("the operating system has no randomness to give: {error}");
        self.error(RepoErrorKind::Other, &storing(key), why)
    }

    /// Returns the key document of an object that is to be read; `None` if it lies in the clear.
    fn to_read(&self, key: &Key) -> Result<Option<Key>> {
        match (self.protection)(key) {
            Protection::Clear | Protection::KeyDocument => Ok(None),
            Protection::By(document) => Ok(Some(document)),
            Protection::Stray => {
                Err(self.error(RepoErrorKind::Other, &reading(key), "pgherd stores nothing of such a name"))
            }
        }
    }

    /// Returns the key document of an object that is to be stored; `None` if it lies in the clear.
    fn to_store(&self, key: &Key) -> Result<Option<Key>> {
        let refused = |why: &str| Err(self.error(RepoErrorKind::Other, &storing(key), why));
        match (self.protection)(key) {
            Protection::Clear => Ok(None),
            Protection::By(document) => Ok(Some(document)),
            Protection::KeyDocument => {
                refused("a key document is made where it is needed, and is never one of another repository")
            }
            Protection::Stray => refused("pgherd stores nothing of such a name, and would not know its key"),
        }
    }

    fn kept_data_key(&self, document: &Key) -> Option<DataKey> {
        self.data_keys.lock().unwrap_or_else(PoisonError::into_inner).get(document).cloned()
    }

    fn keep_data_key(&self, document: &Key, data_key: &DataKey) {
        let mut kept = self.data_keys.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(document.clone(), data_key.clone());
    }

    /// Reads a data key, for `doing`; `None` if there is no such key document.
    async fn read_data_key(&self, document: &Key, doing: &str) -> Result<Option<DataKey>> {
        let Some(bytes) = self.inner.read(document).await? else { return Ok(None) };
        let opened = KeyDocument::read(&bytes, document).and_then(|found| found.open(&self.keyring));
        let data_key = opened.map_err(|error| error.at(self.url(), doing, document))?;
        self.keep_data_key(document, &data_key);
        Ok(Some(data_key))
    }

    /// Returns the data key to store `key` with; makes it unless there is one.
    async fn data_key_to_store(&self, document: &Key, key: &Key) -> Result<DataKey> {
        if let Some(kept) = self.kept_data_key(document) {
            return Ok(kept);
        }
        let doing = storing(key);
        for _ in 0..TRIES {
            if let Some(found) = self.read_data_key(document, &doing).await? {
                return Ok(found);
            }
            let made = DataKey::generate().map_err(|error| self.no_chance(key, error))?;
            let wrapped = KeyDocument::new(document.clone(), &made, &self.keyring);
            let wrapped = wrapped.map_err(|error| self.no_chance(key, error))?;
            // Whoever was first, its data key is used once it was read back: all that it encrypts hangs on this one object.
            self.inner.create(document, &wrapped.write()).await?;
        }
        Err(self.error(RepoErrorKind::Passing, &doing, format!("{document} comes and goes")))
    }

    async fn new_object(&self, document: &Key, key: &Key) -> Result<NewObject> {
        let data_key = self.data_key_to_store(document, key).await?;
        NewObject::generate(&data_key, key).map_err(|error| self.no_chance(key, error))
    }

    /// Returns what is to be stored under `key`: `bytes` themselves where they lie in the clear.
    async fn sealed<'b>(&self, key: &Key, bytes: &'b [u8]) -> Result<Cow<'b, [u8]>> {
        match self.to_store(key)? {
            None => Ok(bytes.into()),
            Some(document) => Ok(self.new_object(&document, key).await?.seal(bytes).into()),
        }
    }

    /// Returns the key of an object that was read; `None` if it was removed meanwhile, and its key document with it.
    async fn object_key(&self, key: &Key, document: &Key, header: &Header) -> Result<Option<ObjectKey>> {
        if let Some(kept) = self.kept_data_key(document) {
            match ObjectKey::of(&kept, key, header) {
                // It may be of another key document than we know, under the same name.
                Err(Damage::Name) => {}
                made => return made.map(Some).map_err(|damage| self.damaged(key, &damage)),
            }
        }
        match self.read_data_key(document, &reading(key)).await? {
            Some(data_key) => {
                ObjectKey::of(&data_key, key, header).map(Some).map_err(|damage| self.damaged(key, &damage))
            }
            None if self.inner.read_range(key, 0, 1).await?.is_none() => Ok(None),
            None => {
                let why = format!("its key document {document} is missing");
                Err(self.error(RepoErrorKind::Damaged, &reading(key), why))
            }
        }
    }

    /// Opens a whole object; `None` as [`Encrypted::object_key`].
    async fn open(&self, key: &Key, document: &Key, object: Vec<u8>) -> Result<Option<Vec<u8>>> {
        let damaged = |damage: Damage| self.damaged(key, &damage);
        let header = stream::header_of(&object).map_err(damaged)?;
        let Some(object_key) = self.object_key(key, document, &header).await? else { return Ok(None) };
        object_key.open(object).map(Some).map_err(damaged)
    }

    fn kept_object_key(&self, key: &Key) -> Option<Arc<ObjectKey>> {
        self.object_keys.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn keep_object_key(&self, key: &Key, object_key: Arc<ObjectKey>) {
        let mut kept = self.object_keys.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(key.clone(), object_key);
    }

    fn forget(&self, key: &Key) {
        self.data_keys.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        self.object_keys.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Reads `chunks` chunks from `first` on, as they are stored, and so much more that their end shows whether they are the last.
    async fn window(
        &self,
        key: &Key,
        first: u64,
        chunks: u64,
        known: Option<&Header>,
    ) -> Result<Option<Window>> {
        let length = stream::window_of(chunks);
        if first == 0 {
            let bytes = self.inner.read_range(key, 0, HEADER.saturating_add(length)).await?;
            let Some(bytes) = bytes else { return Ok(None) };
            let header = stream::header_of(&bytes).map_err(|damage| self.damaged(key, &damage))?;
            return Ok(Some(Window { header, bytes, from: header.len(), is_apart: false }));
        }
        let header = match known {
            Some(known) => *known,
            None => match self.header(key).await? {
                Some(header) => header,
                None => return Ok(None),
            },
        };
        let bytes = self.inner.read_range(key, stream::begin_of(first), length).await?;
        Ok(bytes.map(|bytes| Window { header, bytes, from: 0, is_apart: true }))
    }

    async fn header(&self, key: &Key) -> Result<Option<Header>> {
        let begin = self.inner.read_range(key, 0, HEADER).await?;
        begin.map(|begin| stream::header_of(&begin).map_err(|damage| self.damaged(key, &damage))).transpose()
    }

    /// Reads and opens `chunks` chunks from `first` on.
    async fn chunks(&self, key: &Key, document: &Key, first: u64, chunks: u64) -> Result<Option<Content>> {
        let mut known = self.kept_object_key(key);
        for _ in 0..TRIES {
            let header = known.as_deref().map(ObjectKey::header);
            let Some(window) = self.window(key, first, chunks, header).await? else {
                self.forget(key);
                return Ok(None);
            };
            let (header, is_apart) = (window.header, window.is_apart);
            let object_key = match known.take().filter(|known| *known.header() == header) {
                Some(known) => known,
                None => match self.object_key(key, document, &header).await? {
                    Some(made) => Arc::new(made),
                    None => return Ok(None),
                },
            };
            match opened(&object_key, window, first, chunks) {
                Ok(content) => {
                    self.keep_object_key(key, object_key);
                    return Ok(Some(content));
                }
                // Whoever replaces the object may have come between its header and its chunks.
                Err(damage) if is_apart => {
                    self.forget(key);
                    match self.header(key).await? {
                        None => return Ok(None),
                        Some(now) if now == header => return Err(self.damaged(key, &damage)),
                        Some(_) => {}
                    }
                }
                Err(damage) => return Err(self.damaged(key, &damage)),
            }
        }
        Err(self.changing(key))
    }

    fn changing(&self, key: &Key) -> RepoError {
        self.error(RepoErrorKind::Passing, &reading(key), "it is replaced again and again")
    }

    async fn range(&self, key: &Key, document: &Key, offset: u64, length: u64) -> Result<Option<Vec<u8>>> {
        // Of nothing it is all the same where it lies; that the object is there is to be found out.
        let offset = if length == 0 { 0 } else { offset };
        let first = offset / CHUNK;
        let last = offset.saturating_add(length.saturating_sub(1)) / CHUNK;
        for _ in 0..TRIES {
            let mut bytes = match self.chunks(key, document, first, last - first + 1).await? {
                None => return Ok(None),
                Some(Content::Inner(bytes) | Content::End(bytes, _)) => bytes,
                Some(Content::Beyond) => match self.end(key, document).await? {
                    None => return Ok(None),
                    Some(end) if end <= offset => return Ok(Some(Vec::new())),
                    Some(_) => continue,
                },
            };
            let skipped = usize::try_from(offset % CHUNK).map_or(bytes.len(), |skip| skip.min(bytes.len()));
            bytes.drain(..skipped);
            bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
            return Ok(Some(bytes));
        }
        Err(self.changing(key))
    }

    /// Proves where an object ends, for whoever asks for what lies behind it.
    async fn end(&self, key: &Key, document: &Key) -> Result<Option<u64>> {
        let mut first = 0;
        loop {
            match self.chunks(key, document, first, STRIDE).await? {
                None => return Ok(None),
                Some(Content::End(_, end)) => return Ok(Some(end)),
                Some(Content::Inner(_)) => first += STRIDE,
                // The last chunk that was read was not marked as the last one.
                Some(Content::Beyond) => return Err(self.damaged(key, &Damage::CutOff)),
            }
        }
    }

    /// Puts the sizes of contents into a listing.
    fn show(&self, objects: &mut [Listed]) {
        for object in objects {
            if let Protection::By(_) = (self.protection)(&object.key) {
                object.size = ByteCount(stream::content_size(object.size.0));
            }
        }
    }
}

fn reading(key: &Key) -> String {
    format!("read {key}")
}

fn storing(key: &Key) -> String {
    format!("store {key}")
}

/// Opens what was read of an object.
fn opened(object_key: &ObjectKey, window: Window, first: u64, chunks: u64) -> Result<Content, Damage> {
    let Window { mut bytes, from, .. } = window;
    let found = (bytes.len() - from) as u64;
    if found == stream::window_of(chunks) {
        stream::leave_what_is_behind(&mut bytes);
        object_key.open_chunks(&mut bytes, from, first, false)?;
        return Ok(Content::Inner(bytes));
    }
    if found == 0 && first > 0 {
        return Ok(Content::Beyond);
    }
    let stored = stream::begin_of(first) + found;
    let extent = stream::Extent::of_stored(stored).ok_or(Damage::CutOff)?;
    if extent.chunks <= first {
        return Ok(Content::Beyond);
    }
    stream::take_trailer(&mut bytes, stored)?;
    object_key.open_chunks(&mut bytes, from, first, true)?;
    Ok(Content::End(bytes, extent.content))
}

impl Repo for Encrypted {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn read<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(async move {
            let document = self.to_read(key)?;
            match (self.inner.read(key).await?, document) {
                (Some(object), Some(document)) => self.open(key, &document, object).await,
                (found, _) => Ok(found),
            }
        })
    }

    fn read_versioned<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>>> {
        Box::pin(async move {
            let document = self.to_read(key)?;
            match (self.inner.read_versioned(key).await?, document) {
                (Some((object, version)), Some(document)) => {
                    Ok(self.open(key, &document, object).await?.map(|bytes| (bytes, version)))
                }
                (found, _) => Ok(found),
            }
        })
    }

    fn read_range<'a>(
        &'a self,
        key: &'a Key,
        offset: u64,
        length: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(async move {
            match self.to_read(key)? {
                None => self.inner.read_range(key, offset, length).await,
                Some(document) => self.range(key, &document, offset, length).await,
            }
        })
    }

    fn create<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, Result<Put>> {
        Box::pin(async move { self.inner.create(key, &self.sealed(key, bytes).await?).await })
    }

    fn replace_if<'a>(
        &'a self,
        key: &'a Key,
        bytes: &'a [u8],
        version: &'a Version,
    ) -> BoxFuture<'a, Result<Put>> {
        Box::pin(async move { self.inner.replace_if(key, &self.sealed(key, bytes).await?, version).await })
    }

    fn store<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.inner.store(key, &self.sealed(key, bytes).await?).await })
    }

    fn upload<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Box<dyn Upload>>> {
        Box::pin(async move {
            let Some(document) = self.to_store(key)? else { return self.inner.upload(key).await };
            let object = self.new_object(&document, key).await?;
            let inner = self.inner.upload(key).await?;
            Ok(Box::new(EncryptedUpload { inner, sealing: Sealing::begin(object) }) as Box<dyn Upload>)
        })
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> BoxFuture<'a, Result<Level>> {
        Box::pin(async move {
            let mut level = self.inner.list(folder).await?;
            self.show(&mut level.objects);
            Ok(level)
        })
    }

    fn list_all<'a>(&'a self, folder: &'a Key) -> BoxFuture<'a, Result<Vec<Listed>>> {
        Box::pin(async move {
            let mut found = self.inner.list_all(folder).await?;
            self.show(&mut found);
            Ok(found)
        })
    }

    fn remove<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool>> {
        self.forget(key);
        self.inner.remove(key)
    }

    fn sweep<'a>(&'a self, before: Timestamp) -> BoxFuture<'a, Result<u64>> {
        self.inner.sweep(before)
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        self.inner.object_lock()
    }

    fn free_space<'a>(&'a self) -> BoxFuture<'a, Result<Option<ByteCount>>> {
        self.inner.free_space()
    }
}

struct EncryptedUpload {
    inner: Box<dyn Upload>,
    sealing: Sealing,
}

impl Upload for EncryptedUpload {
    fn write<'a>(&'a mut self, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        let Self { inner, sealing } = self;
        Box::pin(async move {
            let mut rest = bytes;
            while !rest.is_empty() {
                rest = sealing.take(rest);
                if let sealed @ [_, ..] = sealing.sealed() {
                    inner.write(sealed).await?;
                }
            }
            Ok(())
        })
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        let Self { mut inner, sealing } = *self;
        Box::pin(async move {
            inner.write(&sealing.end()).await?;
            inner.finish().await
        })
    }
}
