//! A decorator for tests: calls that fail before or after their effect, answers that are damaged, calls that never end.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::{
    BoxFuture, Key, Level, Listed, Put, Repo, RepoError, RepoErrorKind, Result, SharedRepo, Upload, Version,
    Versioned,
};
use crate::topology::model::ObjectLock;
use crate::units::ByteCount;

/// What befalls a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails and has had no effect.
    Before(RepoErrorKind),
    /// It fails and has had its effect.
    After(RepoErrorKind),
    /// Of the bytes that it reads or stores only so many are there; of a listing only so many entries.
    CutTo(usize),
    /// Of the bytes that it reads or stores one bit is another one: this one, counted around their end.
    Flip(usize),
    /// It never ends, and has no effect.
    Hang,
}

type Decide = dyn Fn(u64, &str) -> Option<Fault> + Send + Sync;

/// A repository that fails where it is told to.
#[derive(Clone)]
pub struct Faulty {
    inner: SharedRepo,
    state: Arc<State>,
}

struct State {
    calls: AtomicU64,
    decide: Mutex<Box<Decide>>,
    url: String,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Faulty {
    /// Puts faults around `inner`. `decide` is asked before each call with its number, from 1, and what it is: `read KEY`, `store KEY`,
    /// `create KEY`, `replace KEY`, `upload KEY`, `write KEY`, `finish KEY`, `list KEY`, `remove KEY`, `sweep`, `measure`.
    pub fn new(
        inner: SharedRepo,
        decide: impl Fn(u64, &str) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let url = inner.url().to_owned();
        let state = State { calls: AtomicU64::new(0), decide: Mutex::new(Box::new(decide)), url };
        Self { inner, state: Arc::new(state) }
    }

    /// Returns how many calls were made.
    pub fn calls(&self) -> u64 {
        self.state.calls.load(Ordering::SeqCst)
    }

    /// Decides otherwise from now on; the calls are counted on.
    pub fn now_decide(&self, decide: impl Fn(u64, &str) -> Option<Fault> + Send + Sync + 'static) {
        *self.state.decide.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(decide);
    }
}

impl State {
    /// Counts a call, and makes it unless it is to fail. `make` is told how the bytes are to be damaged on their way.
    async fn around<'c, T>(
        &self,
        call: String,
        make: impl FnOnce(Damage) -> BoxFuture<'c, Result<T>> + Send,
    ) -> Result<T> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let fault = (self.decide.lock().unwrap_or_else(PoisonError::into_inner))(number, &call);
        let failed = |kind, why: &str| RepoError {
            kind,
            url: self.url.clone(),
            doing: call.clone(),
            why: format!("injected fault: call {number} {why}"),
        };
        match fault {
            None => make(Damage::None).await,
            Some(Fault::Before(kind)) => Err(failed(kind, "was not made")),
            Some(Fault::After(kind)) => {
                make(Damage::None).await?;
                Err(failed(kind, "was made and its answer was lost"))
            }
            Some(Fault::CutTo(length)) => make(Damage::CutTo(length)).await,
            Some(Fault::Flip(bit)) => make(Damage::Flip(bit)).await,
            Some(Fault::Hang) => std::future::pending().await,
        }
    }
}

/// What happens to bytes on their way.
#[derive(Debug, Clone, Copy)]
enum Damage {
    None,
    CutTo(usize),
    Flip(usize),
}

impl Damage {
    fn to(self, mut bytes: Vec<u8>) -> Vec<u8> {
        match self {
            Self::None => {}
            Self::CutTo(length) => bytes.truncate(length),
            Self::Flip(_) if bytes.is_empty() => {}
            Self::Flip(bit) => {
                let bit = bit % (bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        bytes
    }

    fn to_list<T>(self, list: &mut Vec<T>) {
        match self {
            Self::CutTo(length) => list.truncate(length),
            Self::None | Self::Flip(_) => {}
        }
    }
}

impl Repo for Faulty {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn read<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(self.state.around(format!("read {key}"), move |damage| {
            Box::pin(async move { Ok(self.inner.read(key).await?.map(|bytes| damage.to(bytes))) })
        }))
    }

    fn read_versioned<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>>> {
        Box::pin(self.state.around(format!("read {key}"), move |damage| {
            Box::pin(async move {
                let found = self.inner.read_versioned(key).await?;
                Ok(found.map(|(bytes, version)| (damage.to(bytes), version)))
            })
        }))
    }

    fn read_range<'a>(
        &'a self,
        key: &'a Key,
        offset: u64,
        length: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(self.state.around(format!("read {key}"), move |damage| {
            Box::pin(async move {
                Ok(self.inner.read_range(key, offset, length).await?.map(|bytes| damage.to(bytes)))
            })
        }))
    }

    fn create<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, Result<Put>> {
        Box::pin(self.state.around(format!("create {key}"), move |damage| {
            Box::pin(async move { self.inner.create(key, &damage.to(bytes.to_vec())).await })
        }))
    }

    fn replace_if<'a>(
        &'a self,
        key: &'a Key,
        bytes: &'a [u8],
        version: &'a Version,
    ) -> BoxFuture<'a, Result<Put>> {
        Box::pin(self.state.around(format!("replace {key}"), move |damage| {
            Box::pin(async move { self.inner.replace_if(key, &damage.to(bytes.to_vec()), version).await })
        }))
    }

    fn store<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.state.around(format!("store {key}"), move |damage| {
            Box::pin(async move { self.inner.store(key, &damage.to(bytes.to_vec())).await })
        }))
    }

    fn upload<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Box<dyn Upload>>> {
        Box::pin(self.state.around(format!("upload {key}"), move |_| {
            Box::pin(async move {
                let inner = self.inner.upload(key).await?;
                let state = self.state.clone();
                Ok(Box::new(FaultyUpload { inner, key: key.clone(), state }) as Box<dyn Upload>)
            })
        }))
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> BoxFuture<'a, Result<Level>> {
        let call = folder.map_or_else(|| "list the root".to_owned(), |folder| format!("list {folder}"));
        Box::pin(self.state.around(call, move |damage| {
            Box::pin(async move {
                let mut level = self.inner.list(folder).await?;
                damage.to_list(&mut level.objects);
                damage.to_list(&mut level.folders);
                Ok(level)
            })
        }))
    }

    fn list_all<'a>(&'a self, folder: &'a Key) -> BoxFuture<'a, Result<Vec<Listed>>> {
        Box::pin(self.state.around(format!("list {folder}"), move |damage| {
            Box::pin(async move {
                let mut found = self.inner.list_all(folder).await?;
                damage.to_list(&mut found);
                Ok(found)
            })
        }))
    }

    fn remove<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool>> {
        Box::pin(self.state.around(format!("remove {key}"), move |_| self.inner.remove(key)))
    }

    fn sweep<'a>(&'a self, before: Timestamp) -> BoxFuture<'a, Result<u64>> {
        Box::pin(self.state.around("sweep".to_owned(), move |_| self.inner.sweep(before)))
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        self.inner.object_lock()
    }

    fn free_space<'a>(&'a self) -> BoxFuture<'a, Result<Option<ByteCount>>> {
        Box::pin(self.state.around("measure".to_owned(), move |_| self.inner.free_space()))
    }
}

struct FaultyUpload {
    inner: Box<dyn Upload>,
    key: Key,
    state: Arc<State>,
}

impl Upload for FaultyUpload {
    fn write<'a>(&'a mut self, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        let Self { inner, key, state } = self;
        Box::pin(async move {
            let make = move |damage: Damage| -> BoxFuture<'_, Result<()>> {
                Box::pin(async move { inner.write(&damage.to(bytes.to_vec())).await })
            };
            state.around(format!("write {key}"), make).await
        })
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        let Self { inner, key, state } = *self;
        Box::pin(async move { state.around(format!("finish {key}"), move |_| inner.finish()).await })
    }
}
