//! The herd as the operations see it: every default filled in, every reference resolved, every rule checked.
//!
//! [`Herd`] is built only by `topology::load`, so what is here is valid. It is serializable since a journal keeps the
//! [`Cluster`] that an operation was planned for; secrets are references and never values.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::checks::DeclaredChecks;
use super::custom::CustomCheck;
use super::hooks::Hook;
use super::jobs::{Job, Scheduler};
use super::notices::Occasion;
use super::partitions::PartitionSet;
use crate::units::ByteCount;

/// Where nodes and poolers of a machine listen for that machine itself, and all of them on a host without an address.
pub const LOOPBACK: &str = "127.0.0.1";

/// A valid topology.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Herd {
    pub name: String,
    /// IANA name of the zone of every clock time in the file.
    pub timezone: String,
    /// Absolute path of the file that it was read from.
    pub file: PathBuf,
    /// Hosts by name, in the order of the file.
    pub hosts: Vec<Host>,
    /// Repositories in the order of the file.
    pub repositories: Vec<Repository>,
    /// Clusters in the order of the file.
    pub clusters: Vec<Cluster>,
    pub scheduler: Scheduler,
    /// What has a schedule: cluster by cluster, then what is of the whole herd.
    pub jobs: Vec<Job>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub name: String,
    pub region: String,
    pub reach: Reach,
}

/// How pgherd gets to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// This machine.
    Local,
    /// This machine, which its peers reach by an address.
    Here {
        address: String,
    },
    Ssh(Ssh),
}

/// How a host is reached by ssh; what is not stated is the business of OpenSSH's own configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ssh {
    /// What pgherd and the host's peers reach it by.
    pub address: String,
    pub port: Option<u16>,
    /// Who logs in.
    pub user: Option<String>,
    /// Absolute path of the private key.
    pub key: Option<PathBuf>,
    /// Absolute path of the file of known host keys.
    pub host_keys: Option<PathBuf>,
    /// Absolute path of an ssh_config(5).
    pub config: Option<PathBuf>,
}

impl Reach {
    /// Returns the address of a host that others can reach.
    pub fn address(&self) -> Option<&str> {
        match self {
            Self::Local => None,
            Self::Here { address } | Self::Ssh(Ssh { address, .. }) => Some(address),
        }
    }

    /// Tells whether it is the machine that pgherd runs on.
    pub fn is_here(&self) -> bool {
        match self {
            Self::Local | Self::Here { .. } => true,
            Self::Ssh(_) => false,
        }
    }
}

/// Where backups and WAL are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    pub name: String,
    /// `file:///ABSOLUTE/PATH` or `s3://BUCKET/PREFIX`, without a slash at the end.
    pub url: String,
    /// How the server of a bucket is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<Box<S3>>,
    /// Where its keys are: the one that encrypts, then the one that did before; none if it is not encrypted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<SecretReference>,
    /// Whether it takes a file of secrets on each host to open it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub access: bool,
}

/// How the server of a bucket is reached, and who one is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    pub region: Option<String>,
    /// `https://HOST:PORT` of a server that is not AWS; without TLS only at the loopback address.
    pub endpoint: Option<String>,
    pub addressing: Addressing,
    /// Absolute path of the authorities that are believed; the system's if none is stated.
    pub ca: Option<PathBuf>,
    pub credentials: Option<S3Credentials>,
    /// The profile of the hosts' own `~/.aws`.
    pub profile: Option<String>,
    pub storage_class: Option<String>,
    pub sse: Option<Sse>,
    pub kms_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<ObjectLock>,
}

/// For how long nobody can remove what was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectLock {
    pub seconds: u32,
    pub mode: LockMode,
}

impl ObjectLock {
    /// Returns until when what is stored at `stored` is locked.
    pub fn until(self, stored: Timestamp) -> Timestamp {
        stored.checked_add(SignedDuration::from_secs(self.seconds.into())).unwrap_or(Timestamp::MAX)
    }
}

/// Who can remove it all the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum LockMode {
    /// Nobody.
    #[default]
    Compliance,
    /// Whom the account permits to.
    Governance,
}

impl LockMode {
    /// Returns the word of the S3 API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Compliance => "COMPLIANCE",
            Self::Governance => "GOVERNANCE",
        }
    }
}

/// Where a request names the bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addressing {
    Path,
    #[default]
    Host,
}

/// How a server of S3 encrypts what it stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sse {
    Aes256,
    Kms,
    KmsDsse,
}

impl Sse {
    /// Returns the word of the S3 API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Aes256 => "AES256",
            Self::Kms => "aws:kms",
            Self::KmsDsse => "aws:kms:dsse",
        }
    }
}

/// An access key with its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Credentials {
    pub access_key: SecretReference,
    pub secret_key: SecretReference,
}

/// One cluster: a primary and its standbys, with one system identifier, and what stands in front of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub name: String,
    pub postgres: Postgres,
    /// Nodes in the order of the file; at least one.
    pub nodes: Vec<Node>,
    pub synchronous: Option<Synchronous>,
    /// Databases in the order of the file; at least one.
    pub databases: Vec<String>,
    pub schemas: Vec<Schema>,
    pub roles: Vec<Role>,
    /// Tables that are partitioned by time, in the order of the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PartitionSet>,
    pub poolers: Option<Poolers>,
    /// Objectives by scenario.
    pub objectives: BTreeMap<String, Objective>,
    /// `None`: no WAL is archived and no backup is made.
    pub backups: Option<Backups>,
    /// The rehearsal of a restore.
    pub drills: Option<RestoreDrill>,
    /// Those of its hosts that are more than this machine under another name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
    /// What is said of the checks of `health`.
    #[serde(default, skip_serializing_if = "DeclaredChecks::is_empty")]
    pub health: DeclaredChecks,
    /// Checks of `health` that the file declares itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CustomCheck>,
    /// What is run at the points of a role change, one a point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Where role changes are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// Major version, 14 to 19.
    pub version: u32,
    /// Where the server's programs are, if the file says so; else they are looked for on each host.
    pub bin_directory: Option<PathBuf>,
    /// Owner of the data directories, if the file says so (else design.md §3 decides).
    pub os_user: Option<String>,
    /// Who starts and stops the servers.
    #[serde(default, skip_serializing_if = "Service::is_default")]
    pub service: Service,
    /// Where the certificates of servers and poolers come from; `None`: nothing is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Memory to tune one node for, if the file says so; else the host's memory is shared by the nodes on it.
    pub tune_memory: Option<ByteCount>,
    /// Server settings by name, with PostgreSQL's own spelling; they win over what tuning derives.
    /// A value is what stands in postgresql.conf, unquoted: `60`, `4MB`, `on`, `pg_stat_statements`.
    pub settings: BTreeMap<String, String>,
}

/// Where certificates come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Tls {
    /// The herd's own authority, on the station.
    Own { herd: String },
    /// Files of the station, absolute; [`Tls::HOST`] in a path stands for the name of a host.
    Given { ca: PathBuf, certificate: PathBuf, key: PathBuf },
}

impl Tls {
    /// What stands in a path for the name of a host.
    pub const HOST: &str = "{host}";
}

/// Who starts and stops the servers of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// pgherd itself, with pg_ctl; nothing starts them when their host boots.
    #[default]
    PgCtl,
    /// A unit of systemd for each node.
    Systemd,
    /// Debian's wrapper pg_ctlcluster.
    Debian,
}

impl Service {
    /// Tells whether a file need not say it; journals from before it was a key do not.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Name within the cluster: `a`.
    pub name: String,
    /// The host's name.
    pub host: String,
    pub port: u16,
    /// Absolute path.
    pub data_directory: PathBuf,
    /// Absolute path of where its configuration files are, if not in the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_directory: Option<PathBuf>,
    /// Absolute path of where its Unix socket is, if not where pgherd has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_directory: Option<PathBuf>,
    /// Absolute path of where its log is, if not where pgherd has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_directory: Option<PathBuf>,
    /// Whether it was taken over as it ran: what the file does not declare is then left as it is. Observed, never declared.
    #[serde(default, skip_serializing_if = "is_false")]
    pub adopted: bool,
    /// Primary at birth, and the one that `failback` returns to. Exactly one node of a cluster has it.
    pub preferred: bool,
    pub promote: Promote,
    /// Server connections that the poolers may open to this node in all, if stated.
    pub pool_connections: Option<u32>,
    /// What is said of the checks of this node alone.
    #[serde(default, skip_serializing_if = "DeclaredChecks::is_empty")]
    pub health: DeclaredChecks,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Node {
    /// Returns where postgresql.conf, pg_hba.conf and pg_ident.conf are, and what pgherd writes beside them.
    pub fn configuration(&self) -> &Path {
        self.config_directory.as_deref().unwrap_or(&self.data_directory)
    }
}

/// Who may choose a node as the new primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Promote {
    Automatic,
    ByHand,
}

/// `ANY wait_for (of)`: a commit waits for so many of these nodes; whoever of them is primary is skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Synchronous {
    pub wait_for: u32,
    /// Node names, in the order of the file.
    pub of: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    pub name: String,
    pub database: String,
    /// A role that need not be in `roles`: it is made without LOGIN.
    pub owner: String,
    pub write: Vec<String>,
    pub read: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    pub name: String,
    /// A role without a password cannot log in.
    pub password: Option<SecretReference>,
    /// Names of the pools that the role may use.
    pub pools: Vec<String>,
    /// CONNECTION LIMIT, if stated.
    pub connections: Option<u32>,
}

/// Where role changes are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// Whoever knows such an address may often write there, so it is kept like a password.
    pub url: SecretReference,
    /// At least one.
    pub events: Vec<Occasion>,
    /// Absolute path of the authorities that are believed; the system's if none is stated.
    pub ca: Option<PathBuf>,
}

/// Where a secret is; never the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum SecretReference {
    /// An environment variable.
    Env(String),
    /// A file, absolute here; in the YAML a relative path counts from the topology file.
    File(PathBuf),
    /// A program and its arguments; its standard output without the last newline is the secret.
    Command(Vec<String>),
    /// A field of a secret in a HashiCorp Vault.
    Vault(Box<VaultReference>),
}

/// Where a secret is in a HashiCorp Vault, and how one gets in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultReference {
    /// `https://HOST:PORT`; without TLS only at the loopback address.
    pub url: String,
    /// As the API has it, after `/v1/`: `secret/data/pg/app` in version 2 of the store, `secret/pg/app` in version 1.
    pub path: String,
    pub field: String,
    /// Not in a Vault itself.
    pub token: SecretReference,
    pub namespace: Option<String>,
    /// Absolute path of the authorities that are believed; the system's if none is stated.
    pub ca: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Poolers {
    /// Names of the hosts that run a PgBouncer for this cluster.
    pub hosts: Vec<String>,
    pub port: u16,
    pub mode: PoolMode,
    pub max_clients: u32,
    /// Processes on each host, which share its port.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub processes: u32,
    #[serde(default, skip_serializing_if = "PoolerAuth::is_default")]
    pub auth: PoolerAuth,
    /// Limits by role, in the order of the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<PoolUser>,
    /// Pools in the order of the file.
    pub pools: Vec<Pool>,
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_one(count: &u32) -> bool {
    *count == 1
}

impl Poolers {
    /// Returns when a server connection of a pool goes back to it.
    pub fn mode_of(&self, pool: &Pool) -> PoolMode {
        pool.mode.unwrap_or(self.mode)
    }
}

/// How PgBouncer knows what its clients must prove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolerAuth {
    /// From a file with the verifiers of the roles, which `apply` writes.
    #[default]
    Userlist,
    /// It asks the server, through a function of pgherd's.
    Query,
}

impl PoolerAuth {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Limits of one role in every PgBouncer of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolUser {
    pub name: String,
    pub mode: Option<PoolMode>,
    /// Server connections over all pools.
    pub connections: Option<u32>,
    /// Server connections in each pool.
    pub size: Option<u32>,
    /// Client connections.
    pub clients: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolMode {
    Transaction,
    Session,
    Statement,
}

impl PoolMode {
    /// Returns it as the topology and PgBouncer write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Session => "session",
            Self::Statement => "statement",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// `rw` has the alias DB, every other pool `x` has the alias `DB_x`.
    pub name: String,
    pub to: PoolTarget,
    pub size: u32,
    pub reserve: u32,
    /// A standby further behind than this is not used, if stated.
    pub max_lag: Option<Duration>,
    /// What to use when no standby can be used: the primary, or nothing.
    pub fallback_to_primary: bool,
    /// When a server connection goes back to this pool, where that is not as in the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<PoolMode>,
    /// The nodes that it may lead to, most wanted first; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolTarget {
    Primary,
    Standbys,
}

/// How much may be lost and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    pub rpo: Duration,
    pub rto: Duration,
}

/// The WAL archive and the backups of a cluster.
///
/// A backup is kept if `window` or `keep_full` wants it, or if neither is stated; the newest `minimum_full` always stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backups {
    /// Holds the lock and the primary record as well.
    pub repository: Repository,
    /// Further ones, in the order of the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<Repository>,
    pub from: BackupSource,
    pub window: Option<Duration>,
    pub keep_full: Option<u32>,
    /// At least 1.
    pub minimum_full: u32,
    #[serde(default, skip_serializing_if = "Compression::is_default")]
    pub compression: Compression,
}

/// How the chunks of a backup are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Compression {
    Zstd { level: i32 },
    Lz4 {},
    None {},
}

impl Compression {
    /// The levels of zstd that are worth something for files of a server that works.
    pub const LEVELS: std::ops::RangeInclusive<u32> = 1..=19;

    /// Tells whether it is what is meant where nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub const fn codec(self) -> Codec {
        match self {
            Self::Zstd { .. } => Codec::Zstd,
            Self::Lz4 {} => Codec::Lz4,
            Self::None {} => Codec::None,
        }
    }

    /// Returns the level of zstd; 0 for what has none.
    pub const fn level(self) -> i32 {
        match self {
            Self::Zstd { level } => level,
            Self::Lz4 {} | Self::None {} => 0,
        }
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd { level: 3 }
    }
}

/// Which program a chunk is decompressed with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Codec {
    /// A frame of RFC 8878.
    #[default]
    Zstd,
    /// A frame of the LZ4 frame format.
    Lz4,
    /// It is stored as it is.
    None,
}

impl Codec {
    /// Returns the word for it in the file; "none" would take the key away there.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::None => "off",
        }
    }

    /// Tells whether it is the one that is meant where none is named.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Which node a backup is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackupSource {
    /// A standby where there is one that can give it, else the primary.
    Standby,
    Primary,
}

/// What a restore drill restores, and what it must prove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreDrill {
    pub to: DrillTarget,
    /// At least one.
    pub prove: Vec<RestoreProof>,
    /// In the order of the file.
    pub assertions: Vec<Assertion>,
}

/// The moment that a restore drill goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrillTarget {
    /// The end of the archive.
    Newest,
    /// Some second that can be restored.
    RandomSecond,
}

/// What a restore drill checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreProof {
    Checksums,
    Amcheck,
    Assertions,
}

/// A query that must yield one row with one `true` on the restored cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assertion {
    pub name: String,
    pub database: String,
    pub sql: String,
}

impl Backups {
    /// Returns every repository of the cluster, the first one first.
    pub fn repositories(&self) -> impl Iterator<Item = &Repository> {
        std::iter::once(&self.repository).chain(&self.copies)
    }
}

impl Repository {
    /// Returns the directory of the repository; `None` if it is in a bucket.
    pub fn directory(&self) -> Option<&Path> {
        self.url.strip_prefix("file://").map(Path::new)
    }

    /// Returns the directory of a repository that whoever may read its files can read; `None` if it takes more.
    pub fn plain_directory(&self) -> Option<&Path> {
        self.directory().filter(|_| !self.access)
    }

    pub fn is_encrypted(&self) -> bool {
        !self.keys.is_empty()
    }
}

impl Herd {
    /// Finds a cluster by name.
    pub fn cluster(&self, name: &str) -> Option<&Cluster> {
        self.clusters.iter().find(|cluster| cluster.name == name)
    }

    /// Finds a host by name.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|host| host.name == name)
    }
}

impl Cluster {
    /// Returns it as if this one of its repositories were the only one; `None` if it has none of that name.
    pub fn with_repository(&self, name: &str) -> Option<Self> {
        let backups = self.backups.as_ref()?;
        let repository = backups.repositories().find(|repository| repository.name == name)?.clone();
        let backups = Backups { repository, copies: Vec::new(), ..backups.clone() };
        Some(Self { backups: Some(backups), ..self.clone() })
    }

    /// Returns the names of the hosts that run a PgBouncer for it.
    pub fn pooler_hosts(&self) -> impl Iterator<Item = &String> {
        self.poolers.iter().flat_map(|poolers| &poolers.hosts)
    }

    /// Returns the names of all hosts that it uses.
    pub fn used_hosts(&self) -> BTreeSet<&String> {
        self.nodes.iter().map(|node| &node.host).chain(self.pooler_hosts()).collect()
    }

    /// Returns how a host is reached.
    pub fn reach(&self, host: &str) -> &Reach {
        self.hosts.iter().find(|known| known.name == host).map_or(&Reach::Local, |known| &known.reach)
    }

    /// Returns what clients, poolers and standbys reach a host by.
    pub fn address(&self, host: &str) -> &str {
        self.reach(host).address().unwrap_or(LOOPBACK)
    }

    /// Tells whether what comes from other machines must be encrypted.
    pub fn has_tls(&self) -> bool {
        self.postgres.tls.is_some()
    }

    /// Finds a node by its name within the cluster.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Returns the region of a node's host; `None` where it is this machine under its only name.
    pub fn region(&self, node: &Node) -> Option<&str> {
        self.hosts.iter().find(|host| host.name == node.host).map(|host| host.region.as_str())
    }

    /// Returns the node that is primary at birth.
    pub fn preferred(&self) -> &Node {
        self.nodes.iter().find(|node| node.preferred).expect("load gives every cluster one preferred node")
    }

    /// Tells whether any of its nodes was taken over as it ran.
    pub fn is_adopted(&self) -> bool {
        self.nodes.iter().any(|node| node.adopted)
    }

    /// Returns the same cluster with these nodes, by name, taken over as they ran.
    #[must_use]
    pub fn with_adopted(&self, names: &BTreeSet<String>) -> Self {
        let mut cluster = self.clone();
        for node in &mut cluster.nodes {
            node.adopted = names.contains(&node.name);
        }
        cluster
    }

    /// Returns `inventory-a`: the name of a node in the whole herd, and its `cluster_name`.
    pub fn full_name(&self, node: &str) -> String {
        format!("{}-{node}", self.name)
    }

    /// Returns the replication slot of a node: `inventory_a`.
    pub fn slot_name(&self, node: &str) -> String {
        format!("{}_{node}", self.name).replace('-', "_")
    }
}

impl Pool {
    /// Returns the name under which clients reach `database` through this pool.
    pub fn alias(&self, database: &str) -> String {
        if self.name == "rw" { database.to_owned() } else { format!("{database}_{}", self.name) }
    }
}
