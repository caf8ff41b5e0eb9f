//! What can be put around a door: [`Gated`], [`Timeout`], [`Traced`] and [`DryRun`].
//!
//! Each is a [`Layer`] in a [`Layered`] host. Nothing here knows how a call is made.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{BoxFuture, Command, DiskSpace, Effect, FileStat, Host, HostError, LineSink, Output, Tunnel};
use crate::error::Error;
use crate::gate::{Blocked, Gate};
use crate::units::{ByteCount, human_duration};

/// One call through a door, before it is made.
#[derive(Debug)]
pub struct Call<'a> {
    pub host: &'a str,
    /// `pg_ctl start`, or `write /srv/a/pgherd.conf`.
    pub what: String,
    /// The whole argv of a program; secrets are never in it.
    pub argv: Option<(&'a Path, &'a [String])>,
    pub effect: Effect,
}

/// Stands around every call of a [`Layered`] host.
pub trait Layer: Send + Sync + std::fmt::Debug {
    /// Makes the call by awaiting `inner`, or does not.
    fn around<'a, T: Send + 'a>(
        &'a self,
        call: Call<'a>,
        inner: BoxFuture<'a, Result<T, HostError>>,
    ) -> BoxFuture<'a, Result<T, HostError>>;
}

/// A host with a layer around it.
#[derive(Debug, Clone)]
pub struct Layered<L> {
    inner: Arc<dyn Host>,
    layer: L,
}

impl<L: Layer> Layered<L> {
    pub fn new(inner: Arc<dyn Host>, layer: L) -> Self {
        Self { inner, layer }
    }

    fn program<'a>(
        &'a self,
        command: &'a Command,
        inner: BoxFuture<'a, Result<Output, HostError>>,
    ) -> BoxFuture<'a, Result<Output, HostError>> {
        let argv = Some((command.program.as_path(), command.args.as_slice()));
        let call = Call { host: self.inner.name(), what: command.title(), argv, effect: command.effect };
        self.layer.around(call, inner)
    }

    fn file<'a, T: Send + 'a>(
        &'a self,
        effect: Effect,
        doing: &str,
        path: &Path,
        inner: BoxFuture<'a, Result<T, HostError>>,
    ) -> BoxFuture<'a, Result<T, HostError>> {
        self.other(effect, format!("{doing} {}", path.display()), inner)
    }

    fn other<'a, T: Send + 'a>(
        &'a self,
        effect: Effect,
        what: String,
        inner: BoxFuture<'a, Result<T, HostError>>,
    ) -> BoxFuture<'a, Result<T, HostError>> {
        self.layer.around(Call { host: self.inner.name(), what, argv: None, effect }, inner)
    }
}

impl<L: Layer> Host for Layered<L> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn os_user(&self) -> &str {
        self.inner.os_user()
    }

    fn caller(&self) -> &str {
        self.inner.caller()
    }

    fn tunnel(&self) -> Option<Arc<dyn Tunnel>> {
        self.inner.tunnel()
    }

    fn reach<'a>(&'a self) -> BoxFuture<'a, Result<(), Vec<Error>>> {
        // It has its own deadline, and changes nothing.
        self.inner.reach()
    }

    fn run<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Result<Output, HostError>> {
        self.program(command, self.inner.run(command))
    }

    fn stream<'a>(
        &'a self,
        command: &'a Command,
        lines: LineSink,
    ) -> BoxFuture<'a, Result<Output, HostError>> {
        self.program(command, self.inner.stream(command, lines))
    }

    fn read<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Option<Vec<u8>>, HostError>> {
        self.file(Effect::Reads, "read", path, self.inner.read(path))
    }

    fn write_atomic<'a>(
        &'a self,
        path: &'a Path,
        bytes: &'a [u8],
        mode: u32,
    ) -> BoxFuture<'a, Result<(), HostError>> {
        self.file(Effect::Changes, "write", path, self.inner.write_atomic(path, bytes, mode))
    }

    fn append<'a>(
        &'a self,
        path: &'a Path,
        at: u64,
        bytes: &'a [u8],
    ) -> BoxFuture<'a, Result<u64, HostError>> {
        self.file(Effect::Changes, "append to", path, self.inner.append(path, at, bytes))
    }

    fn make_directory<'a>(&'a self, path: &'a Path, mode: u32) -> BoxFuture<'a, Result<(), HostError>> {
        self.file(Effect::Changes, "make the directory", path, self.inner.make_directory(path, mode))
    }

    fn remove_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<(), HostError>> {
        self.file(Effect::Changes, "remove", path, self.inner.remove_file(path))
    }

    fn remove_tree<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<(), HostError>> {
        self.file(Effect::Changes, "remove", path, self.inner.remove_tree(path))
    }

    fn stat<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Option<FileStat>, HostError>> {
        self.file(Effect::Reads, "look at", path, self.inner.stat(path))
    }

    fn list<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Option<Vec<String>>, HostError>> {
        self.file(Effect::Reads, "list", path, self.inner.list(path))
    }

    fn disk<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<DiskSpace, HostError>> {
        self.file(Effect::Reads, "measure the disk of", path, self.inner.disk(path))
    }

    fn process_exists<'a>(&'a self, pid: u32) -> BoxFuture<'a, Result<bool, HostError>> {
        self.other(Effect::Reads, format!("look for process {pid}"), self.inner.process_exists(pid))
    }

    fn memory<'a>(&'a self) -> BoxFuture<'a, Result<ByteCount, HostError>> {
        self.other(Effect::Reads, "measure the memory".to_owned(), self.inner.memory())
    }
}

/// Passes each call through a [`Gate`], as `HOST: WHAT`.
#[derive(Debug, Clone)]
pub struct Gated(pub Arc<dyn Gate>);

impl Layer for Gated {
    fn around<'a, T: Send + 'a>(
        &'a self,
        call: Call<'a>,
        inner: BoxFuture<'a, Result<T, HostError>>,
    ) -> BoxFuture<'a, Result<T, HostError>> {
        Box::pin(async move {
            let text = format!("{}: {}", call.host, call.what);
            let blocked = |blocked: Blocked| {
                let (host, what, why) = (call.host.to_owned(), call.what.clone(), blocked.to_string());
                match blocked {
                    Blocked::Before(_) => HostError::NotStarted { host, what, why },
                    Blocked::After(_) => HostError::Lost { host, what, why },
                }
            };
            self.0.before(&text).await.map_err(blocked)?;
            let ended = inner.await;
            self.0.after(&text).await.map_err(blocked)?;
            ended
        })
    }
}

/// Gives no call longer than this; a program that takes longer is killed, and its outcome is [`HostError::Lost`].
#[derive(Debug, Clone, Copy)]
pub struct Timeout(pub Duration);

impl Layer for Timeout {
    fn around<'a, T: Send + 'a>(
        &'a self,
        call: Call<'a>,
        inner: BoxFuture<'a, Result<T, HostError>>,
    ) -> BoxFuture<'a, Result<T, HostError>> {
        Box::pin(async move {
            match tokio::time::timeout(self.0, inner).await {
                Ok(ended) => ended,
                Err(_) => Err(HostError::Lost {
                    host: call.host.to_owned(),
                    what: call.what,
                    why: format!("no answer within {}", human_duration(self.0)),
                }),
            }
        })
    }
}

/// Tells the log of each call: argv, how it ended and how long it took; never what went into standard input or a file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Traced;

impl Layer for Traced {
    fn around<'a, T: Send + 'a>(
        &'a self,
        call: Call<'a>,
        inner: BoxFuture<'a, Result<T, HostError>>,
    ) -> BoxFuture<'a, Result<T, HostError>> {
        Box::pin(async move {
            let begun = Instant::now();
            let ended = inner.await;
            let took = human_duration(begun.elapsed());
            let result = match &ended {
                Ok(_) => "done".to_owned(),
                Err(error) => error.to_string(),
            };
            match call.argv {
                Some((program, args)) => {
                    tracing::debug!(host = call.host, program = %program.display(), ?args, %took, %result);
                }
                None => tracing::debug!(host = call.host, what = call.what, %took, %result),
            }
            ended
        })
    }
}

/// Lets pgherd look and refuses every call that could change the host, by name.
#[derive(Debug, Clone, Copy, Default)]
pub struct DryRun;

impl Layer for DryRun {
    fn around<'a, T: Send + 'a>(
        &'a self,
        call: Call<'a>,
        inner: BoxFuture<'a, Result<T, HostError>>,
    ) -> BoxFuture<'a, Result<T, HostError>> {
        match call.effect {
            Effect::Reads => inner,
            Effect::Changes => Box::pin(std::future::ready(Err(HostError::NotStarted {
                host: call.host.to_owned(),
                what: call.what,
                why: "it could change the host, and pgherd is only looking".to_owned(),
            }))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Mutex;

    use super::super::local::LocalHost;
    use super::*;

    fn here() -> Arc<dyn Host> {
        let own = rustix::process::geteuid().as_raw();
        // The caller's own door: a number is a name that getent knows too.
        Arc::new(LocalHost::new("here", Some(&own.to_string())).unwrap())
    }

    /// Blocks the call whose text contains a word, at one of its two sides, and remembers all of them.
    #[derive(Debug)]
    struct Faulty {
        word: &'static str,
        after: bool,
        seen: Mutex<Vec<String>>,
    }

    impl Faulty {
        fn on(word: &'static str, after: bool) -> Arc<Self> {
            Arc::new(Self { word, after, seen: Mutex::default() })
        }
    }

    impl Gate for Faulty {
        fn before<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
            self.seen.lock().unwrap().push(call.to_owned());
            let blocked = !self.after && call.contains(self.word);
            Box::pin(std::future::ready(if blocked { Err(Blocked::Before(call.to_owned())) } else { Ok(()) }))
        }

        fn after<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
            let blocked = self.after && call.contains(self.word);
            Box::pin(std::future::ready(if blocked { Err(Blocked::After(call.to_owned())) } else { Ok(()) }))
        }
    }

    #[tokio::test]
    async fn a_call_that_the_gate_stops_has_no_effect() {
        let directory = tempfile::tempdir().unwrap();
        let gate = Faulty::on("write", false);
        let host = Layered::new(here(), Gated(gate.clone()));
        let path = directory.path().join("f");
        let error = host.write_atomic(&path, b"x", 0o600).await.unwrap_err();
        assert!(matches!(error, HostError::NotStarted { .. }), "{error}");
        assert_eq!(host.read(&path).await.unwrap(), None);
        let seen = gate.seen.lock().unwrap().clone();
        assert_eq!(
            seen,
            [format!("here: write {}", path.display()), format!("here: read {}", path.display())]
        );
    }

    #[tokio::test]
    async fn a_call_whose_answer_the_gate_loses_has_happened() {
        let directory = tempfile::tempdir().unwrap();
        let host = Layered::new(here(), Gated(Faulty::on("write", true)));
        let path = directory.path().join("f");
        let error = host.write_atomic(&path, b"x", 0o600).await.unwrap_err();
        assert!(matches!(error, HostError::Lost { .. }), "{error}");
        assert_eq!(host.read(&path).await.unwrap().as_deref(), Some(b"x".as_slice()));
    }

    #[tokio::test]
    async fn a_dry_run_reads_and_refuses_each_change_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, "kept").unwrap();
        let host = Layered::new(here(), DryRun);
        assert_eq!(host.read(&path).await.unwrap().as_deref(), Some(b"kept".as_slice()));
        assert_eq!(host.list(directory.path()).await.unwrap().unwrap(), ["f"]);
        assert!(host.run(&Command::new("true").reads()).await.is_ok());
        let new = directory.path().join("d");
        let refused = [
            host.write_atomic(&path, b"new", 0o600).await.unwrap_err(),
            host.make_directory(&new, 0o700).await.unwrap_err(),
            host.remove_file(&path).await.unwrap_err(),
            host.remove_tree(directory.path()).await.unwrap_err(),
            host.run(&Command::new("rm").arg(path.to_str().unwrap())).await.unwrap_err(),
        ];
        for error in &refused {
            assert!(matches!(error, HostError::NotStarted { .. }), "{error}");
        }
        assert!(
            refused[4].to_string().starts_with("rm on host here was not started: it could change the host")
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");
        assert!(!new.exists());
    }

    #[tokio::test]
    async fn a_call_over_its_time_is_lost() {
        let host = Layered::new(here(), Timeout(Duration::from_millis(50)));
        let begun = Instant::now();
        let error = host.run(&Command::new("sleep").arg("60")).await.unwrap_err();
        assert!(matches!(error, HostError::Lost { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_trace_shows_argv_and_never_standard_input() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let writer = Log(log.clone());
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let secret = crate::secret::Secret::new("hunter2");
        tracing::subscriber::with_default(subscriber, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let host = Layered::new(here(), Traced);
                host.run(&Command::new("cat").arg("-u").stdin(super::super::Stdin::Secret(secret)))
                    .await
                    .unwrap();
                host.write_atomic(&PathBuf::from("/nowhere/f"), b"hunter2", 0o600).await.unwrap_err();
            });
        });
        let text = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        assert!(text.contains("program=cat") && text.contains("[\"-u\"]"), "{text}");
        assert!(text.contains("could not write /nowhere/f"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[derive(Clone)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
