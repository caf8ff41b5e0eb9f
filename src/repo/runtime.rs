//! A decorator that has the calls of a backend that waits run on threads of its own, so that whoever makes them needs no tokio: a thread that
//! only stores and reads blocks on [`super::wait`], a task awaits.

use std::future::Future;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::runtime::{Builder, Runtime};

use super::{
    BoxFuture, Key, Level, Listed, Put, Repo, RepoError, RepoErrorKind, Result, SharedRepo, Upload, Version,
    Versioned,
};
use crate::topology::model::ObjectLock;
use crate::units::ByteCount;

/// They only wait for the network, sign and encrypt what goes over it.
const THREADS: usize = 2;

/// A repository whose calls run on threads of its own.
#[derive(Debug)]
pub struct OnRuntime {
    inner: SharedRepo,
    threads: Arc<Threads>,
}

#[derive(Debug)]
struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        // A runtime that is dropped in a task of another one would panic, as it waits for its threads.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Threads {
    fn start(url: &str) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("pgherd-repo")
            .enable_all()
            .build()
            .map_err(|error| lost(url, "start threads", error.to_string()))?;
        Ok(Self(Some(runtime)))
    }

    fn runtime(&self) -> &Runtime {
        self.0.as_ref().expect("it is taken only when it is dropped")
    }
}

fn lost(url: &str, doing: &str, why: String) -> RepoError {
    RepoError { kind: RepoErrorKind::Other, url: url.to_owned(), doing: doing.to_owned(), why }
}

impl OnRuntime {
    /// Starts the threads, and opens on them what `open` opens; what that returns beside it is returned too.
    ///
    /// # Errors
    /// As `open`; when no thread can be started.
    pub fn open<F, T>(url: &str, open: F) -> Result<(Self, T)>
    where
        F: Future<Output = Result<(SharedRepo, T)>> + Send + 'static,
        T: Send + 'static,
    {
        let threads = Threads::start(url)?;
        let opened = threads.runtime().spawn(open);
        let (inner, with) =
            pollster::block_on(opened).map_err(|error| lost(url, "open it", error.to_string()))??;
        Ok((Self { inner, threads: Arc::new(threads) }, with))
    }

    /// Runs a call on the threads; `doing` is what is said if it panics.
    fn run<'a, T, F>(&self, doing: &'static str, call: F) -> BoxFuture<'a, Result<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let url = self.url().to_owned();
        let running = self.threads.runtime().spawn(call);
        Box::pin(async move {
            running.await.unwrap_or_else(|error| Err(lost(&url, doing, format!("its thread ended: {error}"))))
        })
    }
}

impl Repo for OnRuntime {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn read<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        let (inner, key) = (Arc::clone(&self.inner), key.clone());
        self.run("read", async move { inner.read(&key).await })
    }

    fn read_versioned<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>>> {
        let (inner, key) = (Arc::clone(&self.inner), key.clone());
        self.run("read", async move { inner.read_versioned(&key).await })
    }

    fn read_range<'a>(
        &'a self,
        key: &'a Key,
        offset: u64,
        length: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        let (inner, key) = (Arc::clone(&self.inner), key.clone());
        self.run("read", async move { inner.read_range(&key, offset, length).await })
    }

    fn create<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, Result<Put>> {
        let (inner, key, bytes) = (Arc::clone(&self.inner), key.clone(), bytes.to_vec());
        self.run("store", async move { inner.create(&key, &bytes).await })
    }

    fn replace_if<'a>(
        &'a self,
        key: &'a Key,
        bytes: &'a [u8],
        version: &'a Version,
    ) -> BoxFuture<'a, Result<Put>> {
        let (inner, key, bytes) = (Arc::clone(&self.inner), key.clone(), bytes.to_vec());
        let version = version.clone();
        self.run("replace", async move { inner.replace_if(&key, &bytes, &version).await })
    }

    fn store<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        let (inner, key, bytes) = (Arc::clone(&self.inner), key.clone(), bytes.to_vec());
        self.run("store", async move { inner.store(&key, &bytes).await })
    }

    fn upload<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Box<dyn Upload>>> {
        let (inner, key) = (Arc::clone(&self.inner), key.clone());
        let threads = Arc::clone(&self.threads);
        let begun = self.run("store", async move { inner.upload(&key).await });
        Box::pin(async move {
            let inner = begun.await?;
            Ok(Box::new(Held { inner, _threads: threads }) as Box<dyn Upload>)
        })
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> BoxFuture<'a, Result<Level>> {
        let (inner, folder) = (Arc::clone(&self.inner), folder.cloned());
        self.run("list", async move { inner.list(folder.as_ref()).await })
    }

    fn list_all<'a>(&'a self, folder: &'a Key) -> BoxFuture<'a, Result<Vec<Listed>>> {
        let (inner, folder) = (Arc::clone(&self.inner), folder.clone());
        self.run("list", async move { inner.list_all(&folder).await })
    }

    fn remove<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool>> {
        let (inner, key) = (Arc::clone(&self.inner), key.clone());
        self.run("remove", async move { inner.remove(&key).await })
    }

    fn sweep<'a>(&'a self, before: Timestamp) -> BoxFuture<'a, Result<u64>> {
        let inner = Arc::clone(&self.inner);
        self.run("remove what is left of uploads", async move { inner.sweep(before).await })
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        self.inner.object_lock()
    }

    fn free_space<'a>(&'a self) -> BoxFuture<'a, Result<Option<ByteCount>>> {
        let inner = Arc::clone(&self.inner);
        self.run("see how much room is left", async move { inner.free_space().await })
    }
}

/// An upload that keeps the threads that it needs.
struct Held {
    inner: Box<dyn Upload>,
    _threads: Arc<Threads>,
}

impl Upload for Held {
    fn write<'a>(&'a mut self, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        self.inner.write(bytes)
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        let Self { inner, _threads } = *self;
        Box::pin(async move {
            let finished = inner.finish().await;
            drop(_threads);
            finished
        })
    }
}
