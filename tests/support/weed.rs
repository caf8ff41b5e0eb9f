//! A real S3 server for the tests: SeaweedFS on loopback ports of its own, one for each test process, a bucket for each test.
//!
//! It ends when this process ends, however that is: a shell waits on a pipe from here, and ends it when the pipe is closed.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use pgherd::repo::Location;
use pgherd::repo::access::{self, Access, S3Access};
use pgherd::secret::Secret;

pub const ACCESS_KEY: &str = "pgherd-tests";
pub const SECRET_KEY: &str = "known-to-the-s3-server";

/// The server; `None` on a machine for which there is none.
#[derive(Debug)]
pub struct Weed {
    directory: PathBuf,
    port: u16,
    _shell: Child,
}

static WEED: OnceLock<Option<Weed>> = OnceLock::new();
static BUCKETS: AtomicU32 = AtomicU32::new(0);

/// Returns the server of this process, which is started when it is asked for first. A machine that `scripts/setup` has none for says so and
/// has no tests of S3; one that is named and missing fails.
pub fn weed() -> Option<&'static Weed> {
    WEED.get_or_init(|| match std::env::var_os("PGHERD_TEST_WEED") {
        Some(program) => Some(Weed::start(Path::new(&program))),
        None if cfg!(target_arch = "x86_64") => {
            panic!("PGHERD_TEST_WEED is not set: eval \"$(scripts/setup --print-env)\"")
        }
        None => {
            eprintln!("there is no S3 server for this machine: nothing is tested against one");
            None
        }
    })
    .as_ref()
}

/// Eight free ports in a row, below those of the servers of the tests.
fn ports() -> Vec<u16> {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let first = u16::try_from(std::process::id() % 500).expect("it is below 500");
    let all = (0..500).map(|step| 12_000 + (first + step) % 500 * 8);
    all.map(|base| (base..base + 8).collect::<Vec<u16>>())
        .find(|ports| ports.iter().all(free))
        .expect("free ports")
}

impl Weed {
    fn start(program: &Path) -> Self {
        assert!(program.exists(), "{} is not there: scripts/setup --test", program.display());
        let directory = tempfile::Builder::new().prefix("pgh-s3-").tempdir().expect("a directory").keep();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("open the directory");
        let ports = ports();
        let [s3, ref others @ ..] = ports[..] else { unreachable!("there are eight") };
        let names = [
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
            "s3.port.grpc",
        ];
        let identities = serde_json::json!({"identities": [
            {"name": "test", "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
             "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
            {"name": "reader", "credentials": [{"accessKey": "reads-only", "secretKey": SECRET_KEY}], "actions": ["Read", "List"]},
        ]});
        fs::write(directory.join("s3.json"), identities.to_string()).expect("write the identities");
        let script =
            "\"$@\" >\"$LOG\" 2>&1 & server=$!; cat >/dev/null; kill -9 $server; wait; rm -rf \"$DIRECTORY\"";
        let shell = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(program)
            .args(["-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"])
            .arg(format!("-dir={}", directory.display()))
            .args([
                "-master.telemetry=false",
                "-master.electionTimeout=1s",
                "-master.volumeSizeLimitMB=64",
                // Each bucket takes volumes of its own, which grow as they are written.
                "-volume.max=5000",
            ])
            .args(names.iter().zip(others).map(|(name, port)| format!("-{name}={port}")))
            .args([
                "-s3",
                "-s3.autoCreateBucket=false",
                "-s3.allowDeleteBucketNotEmpty=false",
                "-s3.iam=false",
            ])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-s3.port={s3}"))
            .arg(format!("-s3.config={}", directory.join("s3.json").display()))
            .env("WEED_S3_SSE_KEY", "test-only")
            // One volume at a time, not seven for each bucket.
            .env("WEED_MASTER_VOLUME_GROWTH_COPY_1", "1")
            .env("GOMEMLIMIT", "300MiB")
            .env("LOG", directory.join("log"))
            .env("DIRECTORY", &directory)
            .stdin(Stdio::piped())
            .spawn()
            .expect("start the S3 server");
        let weed = Self { directory, port: s3, _shell: shell };
        weed.wait();
        weed
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let answers = || {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
            stream.write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
            let mut first = [0; 12];
            std::io::Read::read_exact(&mut stream, &mut first).ok()?;
            (&first == b"HTTP/1.1 200").then_some(())
        };
        while answers().is_none() {
            let log = || fs::read_to_string(self.directory.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the S3 server does not answer:\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns its address, as `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn client(&self) -> Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(self.endpoint())
            .force_path_style(true)
            .credentials_provider(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "tests"))
            .build();
        Client::from_conf(config)
    }

    /// Makes a bucket that nobody else has, and returns its name.
    pub fn bucket(&self) -> String {
        self.make_bucket(false)
    }

    /// The same of a bucket that locks what it is told to.
    #[allow(dead_code, reason = "not every test binary needs it")]
    pub fn locking_bucket(&self) -> String {
        self.make_bucket(true)
    }

    fn make_bucket(&self, locks: bool) -> String {
        let name = format!("pgherd-{}-{}", std::process::id(), BUCKETS.fetch_add(1, Ordering::Relaxed));
        let made = self.now(|client| {
            let name = name.clone();
            async move {
                // The first seconds of a server may see it elect itself.
                let deadline = Instant::now() + Duration::from_secs(30);
                loop {
                    match client
                        .create_bucket()
                        .bucket(&name)
                        .object_lock_enabled_for_bucket(locks)
                        .send()
                        .await
                    {
                        Ok(_) => return Ok(()),
                        Err(error) if Instant::now() > deadline => return Err(format!("{error:?}")),
                        Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    }
                }
            }
        });
        made.expect("make a bucket");
        name
    }

    /// Makes calls of the API itself, as somebody else would.
    pub fn now<F, T>(&self, call: impl FnOnce(Client) -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let call = call(self.client());
        let on_its_own = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(call)
        });
        on_its_own.join().expect("the call does not panic")
    }

    /// Returns how a client of pgherd's gets in, through an endpoint that may be another one than the server's own.
    pub fn access(&self, url: &str, endpoint: &str) -> Access {
        let credentials =
            access::Credentials { access_key: Secret::new(ACCESS_KEY), secret_key: Secret::new(SECRET_KEY) };
        let s3 = S3Access {
            endpoint: Some(endpoint.to_owned()),
            path_style: true,
            credentials: Some(credentials),
            ..S3Access::default()
        };
        Access { format: access::FORMAT, url: url.to_owned(), s3: Some(s3), keys: Vec::new() }
    }

    /// Writes the file that it takes to open a repository into a directory, and returns where that is.
    pub fn location(directory: &Path, access: &Access) -> Location {
        static FILES: AtomicU32 = AtomicU32::new(0);
        let file = directory.join(format!("access-{}.json", FILES.fetch_add(1, Ordering::Relaxed)));
        fs::write(&file, access.write().reveal()).expect("write the access");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("close the access");
        Location { url: access.url.clone(), access: Some(file) }
    }
}
