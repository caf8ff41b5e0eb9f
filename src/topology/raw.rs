//! The topology file as it is written: every key of the format with what it means. `pgherd schema` prints this.
//!
//! Has no defaults and checks nothing that takes two values to see: `super::check` makes the model from it.

use std::time::Duration;

use super::checks::{Measure, Report};
use super::custom::On;
use super::decode::{
    Address, CopyGrants, Count, HookWish, Major, Named, OwnOr, Percent, Port, SettingText, Spanned, Text,
    ThePrimary, record,
};
use super::jobs::Starter;
use super::model::{
    Addressing, BackupSource, Codec, DrillTarget, LockMode, PoolMode, PoolTarget, PoolerAuth, Promote,
    RestoreProof, SecretReference, Service, Sse,
};
use super::notices::Occasion;
use super::partitions::{DefaultPolicy, Every, Then};
use super::schedule::Schedule;
use crate::units::ByteCount;

record! {
    /// A herd of PostgreSQL clusters.
    Topology {
        /// Version of the format: 1.
        pgherd: Count = "pgherd",
        /// Name of the herd.
        herd: Text = "herd",
        /// The zone of every clock time in the file; UTC if it is not said.
        timezone: Text = "timezone",
        /// Where the hosts are.
        regions: Named<Region> = "regions",
        /// How hosts are reached that are not this machine; what is not said is the business of OpenSSH's own configuration.
        ssh: Ssh = "ssh",
        /// Where backups and WAL are kept, by name.
        repositories: Named<Repository> = "repositories",
        /// How what has a schedule is started.
        scheduler: Scheduler = "scheduler",
        /// What every cluster starts from; a cluster overrides it key by key, and "none" takes a key away.
        defaults: Cluster = "defaults",
        /// The clusters by name.
        clusters: Named<Cluster> = "clusters",
    }
}

record! {
    /// How hosts are reached that are not this machine.
    Ssh {
        /// Who logs in.
        user: Text = "user",
        /// Port of sshd.
        port: Count = "port",
        /// The private key.
        key: FilePlace = "key",
        /// The known host keys, in place of the user's and the system's.
        host_keys: FilePlace = "host-keys",
        /// An ssh_config(5), in place of the user's and the system's: jump hosts and whatever else OpenSSH can do.
        config: FilePlace = "config",
    }
}

record! {
    /// How what has a schedule is started: by "pgherd run", which cron or systemd calls.
    Scheduler {
        /// A job begins up to so much later than its time, drawn by chance; not at all if it is not said.
        #[schemars(schema_with = "super::decode::duration_schema")]
        jitter: Duration = "jitter",
        /// When the herd is judged; everything that is not OK is told.
        health: Schedule = "health",
        /// The hosts that start the jobs: operator stations, which hold this file; several of them need "lease".
        hosts: Vec<Spanned<Text>> = "hosts",
        /// The repository in which several hosts tell each other who runs a job, so that none runs twice.
        lease: Text = "lease",
        /// What "pgherd apply" installs on each of the hosts, when it runs there.
        install: Starter = "install",
    }
}

record! {
    /// A file of this machine.
    FilePlace {
        /// Its path; a relative one counts from the topology.
        file: Text = "file",
    }
}

record! {
    /// Hosts that are lost together.
    Region {
        /// The hosts by name, with how each is reached.
        hosts: Named<Spanned<Address>> = "hosts",
    }
}

record! {
    /// Where backups and WAL are kept; several clusters may share one.
    Repository {
        /// A directory, as "file:///ABSOLUTE/PATH", or a bucket of S3 or of a server like it, as "s3://BUCKET/PREFIX".
        url: Text = "url",
        /// The region of the bucket; what the hosts' own configuration says if it is not said.
        region: Text = "region",
        /// The address of a server that is not AWS, as "https://HOST:PORT"; without TLS only on this machine.
        endpoint: Text = "endpoint",
        /// Where a request names the bucket: in its "path", as with an endpoint if it is not said, or in the name of the "host".
        addressing: Addressing = "addressing",
        /// The authorities that are believed; the system's if it is not said.
        ca: FilePlace = "ca",
        /// Where the access key is; with "secret-key". Without both, what the SDK finds on each host: its role, its environment, its files.
        access_key: SecretReference = "access-key",
        /// Where the secret of the access key is.
        secret_key: SecretReference = "secret-key",
        /// The profile of each host's own ~/.aws, where no keys are given.
        profile: Text = "profile",
        /// The storage class of what is stored: "STANDARD_IA".
        storage_class: Text = "storage-class",
        /// For how long nobody can remove what was stored: "30 days". The bucket must have been made with object lock.
        #[schemars(schema_with = "super::decode::duration_schema")]
        object_lock: Duration = "object-lock",
        /// Who can remove it all the same: nobody ("compliance", the default), or whom the account lets ("governance").
        object_lock_mode: LockMode = "object-lock-mode",
        /// How the server encrypts what it stores; as the bucket says if it is not said.
        sse: Sse = "sse",
        /// The key of KMS that it does that with.
        kms_key: Text = "kms-key",
        /// Where the repository key is that encrypts what is stored before it leaves the host: 64 hexadecimal digits or 44 characters of base64. Only of a
        /// repository that was made with one.
        encrypt: SecretReference = "encrypt",
        /// Where the key is that it was before: it opens what "repo rekey" has not wrapped anew yet.
        encrypt_before: SecretReference = "encrypt-before",
    }
}

record! {
    /// One primary with its standbys, and what stands in front of them.
    Cluster {
        /// What its nodes and its poolers listen on where they do not say it themselves.
        ports: Ports = "ports",
        /// The server.
        postgres: Postgres = "postgres",
        /// Its nodes by name: the node "a" of the cluster "orders" is orders-a.
        nodes: Named<Node> = "nodes",
        /// Which standbys a commit waits for.
        synchronous: Synchronous = "synchronous",
        /// Its databases; one named like the cluster if none is named.
        databases: Named<Database> = "databases",
        /// Schemas with the roles that own, write and read them.
        schemas: Named<Schema> = "schemas",
        /// The roles that log in.
        roles: Named<Role> = "roles",
        /// Tables that are partitioned by time, by their names with the schema: "orders.order_events".
        partitions: Named<Partitions> = "partitions",
        /// Its PgBouncers.
        poolers: Poolers = "poolers",
        /// How much may be lost and how long it may take.
        objectives: Objectives = "objectives",
        /// Its WAL archive and its backups; without it neither is made.
        backups: Backups = "backups",
        /// What is rehearsed, and what it must prove.
        drills: Drills = "drills",
        /// What is dumped by itself into the repository, for those who must hand it out; a job a name.
        dumps: Named<DumpJob> = "dumps",
        /// What is done by itself to keep it fit.
        maintenance: Maintenance = "maintenance",
        /// Thresholds of the checks of "pgherd health", by the name of the check.
        health: Named<Health> = "health",
        /// Checks of your own, by name: a query whose first column is held against thresholds.
        checks: Named<CustomCheck> = "checks",
        /// Programs of your own that are run at points of a role change.
        hooks: Hooks = "hooks",
        /// Who is told over HTTP of role changes.
        notify: Notify = "notify",
    }
}

record! {
    /// An address that role changes are told to, as JSON by POST.
    Notify {
        /// Where the address is: whoever knows it may often write there, so it is a secret.
        url: SecretReference = "url",
        /// What is told: "started", "done", "stuck"; all of them if it is not said.
        events: Vec<Spanned<Occasion>> = "events",
        /// The authorities that are believed, in PEM; the system's if it is not said.
        ca: FilePlace = "ca",
    }
}

record! {
    /// Programs of your own by the point of a role change that they are run at; each is an argv, or a mapping with "run".
    Hooks {
        /// First of all of a switchover, while clients still write; its failure stops the switchover.
        before_switchover: HookWish = "before-switchover",
        /// Keeps the old primary from writing by what lies outside of PostgreSQL: power, network, cloud. Its success counts as proof.
        fence: HookWish = "fence",
        /// Last of all before a node is promoted, while clients wait; its failure stops the operation.
        before_promote: HookWish = "before-promote",
        /// As soon as the new primary is one: where DNS records and addresses move.
        after_promote: HookWish = "after-promote",
        /// Last of all of a switchover.
        after_switchover: HookWish = "after-switchover",
        /// Last of all of a failover.
        after_failover: HookWish = "after-failover",
        /// When an operation was taken back, after everything is as it was.
        after_undo: HookWish = "after-undo",
    }
}

record! {
    /// Ports of a cluster.
    Ports {
        /// Port of PostgreSQL on each node that does not state its own.
        postgres: Port = "postgres",
        /// Port of PgBouncer on each pooler host.
        pooler: Port = "pooler",
    }
}

record! {
    /// The server.
    Postgres {
        /// Major version.
        version: Major = "version",
        /// Where the server's programs are; looked for if it is not said.
        bin_directory: Text = "bin-directory",
        /// Owner of the data directories.
        os_user: Text = "os-user",
        /// Who starts and stops the servers: "pg_ctl" (the default), "systemd", or "debian" for clusters of pg_createcluster.
        service: Service = "service",
        /// TLS of servers and poolers: "own" for an authority of the herd's own, or given files. Without it nothing is encrypted.
        tls: OwnOr<TlsFiles> = "tls",
        /// What the settings are derived from.
        tune: Tune = "tune",
        /// Server settings in PostgreSQL's own spelling; they win over what is derived.
        settings: Named<Spanned<SettingText>> = "settings",
    }
}

record! {
    /// Certificates from elsewhere, on the machine that pgherd runs on; "{host}" in a path stands for the name of the host that it is for.
    TlsFiles {
        /// The authorities that are believed, in PEM.
        ca: FilePlace = "ca",
        /// The certificate of a host and those between it and its authority, in PEM.
        certificate: FilePlace = "certificate",
        /// Its key, in PEM and not encrypted; a file that only its owner can read.
        key: FilePlace = "key",
    }
}

record! {
    /// What the settings are derived from.
    Tune {
        /// Memory of one node; the host's memory shared by its nodes if it is not said.
        memory: ByteCount = "memory",
    }
}

record! {
    /// One data directory on one host.
    Node {
        /// Name of its host.
        host: Text = "host",
        /// "primary": the primary at birth, and the one that failback returns to.
        prefer: ThePrimary = "prefer",
        /// "by-hand": never chosen as the new primary by itself.
        promote: Promote = "promote",
        /// Port, where nodes of a cluster share a host.
        port: Port = "port",
        /// Absolute path, where nodes of a cluster share a host.
        data_directory: Text = "data-directory",
        /// Where postgresql.conf, pg_hba.conf and pg_ident.conf are, if not in the data directory.
        config_directory: Text = "config-directory",
        /// Where the Unix socket of a cluster that was adopted is; pgherd's own place if it is not said.
        socket_directory: Text = "socket-directory",
        /// Where the log of a cluster that was adopted is; pgherd's own place if it is not said.
        log_directory: Text = "log-directory",
        /// Server connections that the poolers may open to it in all.
        pool_connections: Count = "pool-connections",
        /// Thresholds of its own; they win over those of the cluster.
        health: Named<Health> = "health",
    }
}

record! {
    /// From where on a check warns; "pgherd health explain" lists the checks and what each is measured in.
    Health {
        /// From here on it is a warning: "80 %", "30 s", "64 MiB", "12".
        warn: SettingText = "warn",
        /// From here on it is critical.
        crit: SettingText = "crit",
        /// A breach counts from so many looks in a row on.
        after: Count = "after",
        /// The worst that it may be called; "never": it is not made.
        report: Report = "report",
    }
}

record! {
    /// Which standbys a commit waits for.
    Synchronous {
        /// How many of them.
        wait_for: Count = "wait-for",
        /// The nodes to choose from; whoever of them is primary is skipped.
        of: Vec<Spanned<Text>> = "of",
    }
}

record! {
    /// A database; it has no keys of its own yet.
    Database {}
}

record! {
    /// A schema with the roles that own, write and read it.
    Schema {
        /// Its owner; made without LOGIN if it is not among the roles.
        owner: Text = "owner",
        /// Roles that may change rows.
        write: Vec<Spanned<Text>> = "write",
        /// Roles that may only read.
        read: Vec<Spanned<Text>> = "read",
        /// Its database; required where the cluster has several.
        database: Text = "database",
    }
}

record! {
    /// The partitions of a table: which there are ahead of time, and what becomes of old ones.
    Partitions {
        /// Its database; required where the cluster has several.
        database: Text = "database",
        /// The column that the table is partitioned by: a date, timestamp or timestamptz.
        by: Text = "by",
        /// The time of one partition; a week begins on Monday.
        every: Every = "every",
        /// How many periods after the present one have a partition; 3 if it is not said.
        ahead: Count = "ahead",
        /// A partition stays until its last moment is so long ago; for ever if it is not said.
        #[schemars(schema_with = "super::decode::calendar_schema")]
        keep: Text = "keep",
        /// What becomes of it then: "detach" (the default), "drop", or "export and drop", which stores its rows in the repository first.
        then: Then = "then",
        /// Exported rows stay in the repository until their last moment is so long ago; for ever if it is not said.
        #[schemars(schema_with = "super::decode::calendar_schema")]
        keep_exports: Text = "keep-exports",
        /// The zone whose midnights are the bounds; that of the file if it is not said.
        timezone: Text = "timezone",
        /// A default partition: "leave" (the default: none is made, one that is there stays), "create", or "refuse".
        default_partition: DefaultPolicy = "default-partition",
        /// Tablespace of new partitions; that of the table if it is not said.
        tablespace: Text = "tablespace",
        /// "copy": a new partition is given the privileges that the table has.
        grants: CopyGrants = "grants",
        /// How partitions are called, with {table}, {year}, {quarter}, {month}, {week} and {day} of the first day.
        names: Text = "names",
    }
}

record! {
    /// A role that logs in.
    Role {
        /// Where its password is.
        password: SecretReference = "password",
        /// The pools that it may use.
        pools: Vec<Spanned<Text>> = "pools",
        /// How many connections it may have.
        connections: Count = "connections",
    }
}

record! {
    /// The PgBouncers of a cluster: one on each of these hosts.
    Poolers {
        /// Names of the hosts.
        hosts: Vec<Spanned<Text>> = "hosts",
        /// When a server connection goes back to the pool.
        mode: PoolMode = "mode",
        /// Client connections that one PgBouncer takes.
        max_clients: Count = "max-clients",
        /// Processes on each host, which share its port and one another's cancel requests; needs PgBouncer 1.19.
        processes: Count = "processes",
        /// How it knows what clients must prove: "userlist", a file that apply writes (the default), or "query": it asks the server.
        auth: PoolerAuth = "auth",
        /// Limits by role.
        users: Named<PoolUser> = "users",
        /// The pools by name: "rw" is reached under the database's name, "x" under DATABASE_x.
        pools: Named<Pool> = "pools",
    }
}

record! {
    /// A pool of server connections; sizes are totals per target node, divided among the poolers.
    Pool {
        /// Where it leads.
        to: PoolTarget = "to",
        /// Server connections.
        size: Count = "size",
        /// More of them when clients have to wait.
        reserve: Count = "reserve",
        /// A standby further behind than this is not used.
        #[schemars(schema_with = "super::decode::duration_schema")]
        max_lag: Duration = "max-lag",
        /// "primary": use it when no standby can be used.
        fallback: ThePrimary = "fallback",
        /// When a server connection goes back to this pool, if not as in the others.
        mode: PoolMode = "mode",
        /// The nodes that it may lead to, most wanted first; all if it is not said.
        of: Vec<Spanned<Text>> = "of",
    }
}

record! {
    /// What one role may take of every PgBouncer.
    PoolUser {
        /// When a server connection of its goes back to the pool.
        mode: PoolMode = "mode",
        /// Server connections in all its pools together.
        connections: Count = "connections",
        /// Server connections in each of its pools, in place of the pool's; needs PgBouncer 1.23.
        size: Count = "size",
        /// Client connections; needs PgBouncer 1.24.
        clients: Count = "clients",
    }
}

record! {
    /// Objectives by what happens.
    Objectives {
        /// The primary's host is lost.
        lose_primary: Objective = "lose-primary",
        /// A whole region is lost.
        lose_region: Objective = "lose-region",
        /// Rows were deleted that should not have been.
        undo_mistake: Objective = "undo-mistake",
    }
}

record! {
    /// How much may be lost and how long it may take.
    Objective {
        /// Recovery point objective: what may be lost, as a span of time.
        #[schemars(schema_with = "super::decode::duration_schema")]
        rpo: Duration = "rpo",
        /// Recovery time objective: until clients write again.
        #[schemars(schema_with = "super::decode::duration_schema")]
        rto: Duration = "rto",
    }
}

record! {
    /// The WAL archive and the backups of a cluster.
    Backups {
        /// Name of the repository that holds them.
        repository: Text = "repository",
        /// Further repositories, in another region above all: every node's WAL goes there as well, and backups are copied there.
        copies: Named<BackupCopy> = "copies",
        /// Where a backup is read: "standby" where there is one, or "primary".
        from: BackupSource = "from",
        /// Keep what it takes to restore any second of this span of time before now.
        #[schemars(schema_with = "super::decode::duration_schema")]
        window: Duration = "window",
        /// Keep so many of the newest full backups.
        keep_full: Count = "keep-full",
        /// So many of the newest full backups always stay.
        minimum_full: Count = "minimum-full",
        /// How backups are compressed: "zstd" (the default), "lz4" or "off".
        compression: Codec = "compression",
        /// Level of zstd, from 1 to 19: 3 if it is not stated.
        compression_level: Count = "compression-level",
        /// When a full backup is made: "daily 02:00".
        full: Schedule = "full",
        /// When the backups are checked, and chunks and WAL by chance.
        verify: Schedule = "verify",
        /// When every byte of the backups and of the WAL is read.
        verify_full: Schedule = "verify-full",
        /// When backups and WAL that no rule keeps are removed.
        expire: Schedule = "expire",
    }
}

record! {
    /// A further repository of a cluster.
    BackupCopy {
        /// When the backups that it lacks are copied there, with the WAL that they need: "daily 05:00".
        when: Schedule = "when",
        /// After this long a copy ends; the next one goes on. A day if it is not said.
        #[schemars(schema_with = "super::decode::duration_schema")]
        timeout: Duration = "timeout",
    }
}

record! {
    /// Rehearsals.
    Drills {
        /// Restore a backup to a scratch directory.
        restore: RestoreDrill = "restore",
    }
}

record! {
    /// What is done by itself to keep a cluster fit; each takes no longer than its timeout, an hour if it is not said.
    Maintenance {
        /// Make partitions ahead of time and let old ones go, as "partitions" declares.
        partitions: PartitionsJob = "partitions",
        /// Vacuum and analyze tables that autovacuum has neglected.
        vacuum: VacuumJob = "vacuum",
        /// Build invalid and bloated indexes anew, without keeping writers waiting.
        reindex: ReindexJob = "reindex",
        /// Refresh materialized views; a job a name.
        refresh: Named<RefreshJob> = "refresh",
        /// Remove old log files of the servers.
        clean: CleanJob = "clean",
    }
}

record! {
    /// Dumps a database, or some of its schemas, by pg_dump into the repository.
    DumpJob {
        /// When it begins.
        when: Schedule = "when",
        /// After this long it ends and nothing is stored; 6 h if it is not said.
        #[schemars(schema_with = "super::decode::duration_schema")]
        timeout: Duration = "timeout",
        /// The database; required where the cluster has several.
        database: Text = "database",
        /// Only these schemas; all of them if it is not said.
        schemas: Vec<Spanned<Text>> = "schemas",
        /// For how long a dump is kept, but the newest always stays; 30 days if it is not said.
        #[schemars(schema_with = "super::decode::duration_schema")]
        keep: Duration = "keep",
    }
}

record! {
    /// Maintains the declared partitions.
    PartitionsJob {
        /// When it begins.
        when: Schedule = "when",
        /// After this long it ends; the next run goes on.
        #[schemars(schema_with = "super::decode::duration_schema")]
        timeout: Duration = "timeout",
    }
}

record! {
    /// Vacuums and analyzes neglected tables, the worst first.
    VacuumJob {
        /// When it begins.
        when: Schedule = "when",
        /// After this long it ends; the next run goes on.
        #[schemars(schema_with = "super::decode::duration_schema")]
        timeout: Duration = "timeout",
        /// A table of which this share of rows is dead is vacuumed; 20 % if it is not said.
        dead: Percent = "dead",
        /// A table of which this share of rows has changed since it was analyzed is analyzed; 20 % if it is not said.
        changed: Percent = "changed",
        /// Tables with fewer rows are left alone; 1000 if it is not said.
        rows: Count = "rows",
    }
}

record! {
    /// Builds invalid indexes anew, then bloated ones, the worst first.
    ReindexJob {
        /// When it begins.
        when: Schedule = "when",
        /// After this long it ends; the next run goes on.
        #[schemars(schema_with = "super::decode::duration_schema")]
        timeout: Duration = "timeout",
        /// An index of which this share is wasted is built anew; 50 % if it is not said.
        bloat: Percent = "bloat",
        /// Smaller indexes are left alone unless they are invalid; 16 MiB if it is not said.
        at_least: ByteCount = "at-least",
    }
}

record! {
    /// Refreshes materialized views one after the other: concurrently where a unique index allows it.
    RefreshJob {
        /// When it begins.
        when: Schedule = "when",
        /// After this long it ends.
        #[schemars(schema_with = "super::decode::duration_schema")]
        timeout: Duration = "timeout",
        /// Their database; required where the cluster has several.
        database: Text = "database",
        /// The views as SCHEMA.NAME, in the order in which they are refreshed.
        views: Vec<Spanned<Text>> = "views",
    }
}

record! {
    /// Removes old files of the servers.
    CleanJob {
        /// When it begins.
        when: Schedule = "when",
        /// After this long it ends.
        #[schemars(schema_with = "super::decode::duration_schema")]
        timeout: Duration = "timeout",
        /// Log files that were not written for so long are removed; 14 days if it is not said.
        #[schemars(schema_with = "super::decode::duration_schema")]
        logs: Duration = "logs",
    }
}

record! {
    /// A check of your own. It reads only; what it may not do, the server refuses.
    CustomCheck {
        /// Its database; required where the cluster has several.
        database: Text = "database",
        /// A query that yields one row: the first column is judged, the others are told.
        sql: Text = "sql",
        /// From here on it is a warning: "12", "80 %", "30 s", "64 MiB", as "measure" says.
        warn: SettingText = "warn",
        /// From here on it is critical; less than "warn" where less is worse.
        crit: SettingText = "crit",
        /// What the first column is: "count", "share" (percent), "time" (seconds) or "size" (bytes).
        measure: Measure = "measure",
        /// How long it may take, on the server too.
        #[schemars(schema_with = "super::decode::duration_schema")]
        timeout: Duration = "timeout",
        /// Who is asked: "primary", "standbys" or "all".
        on: On = "on",
    }
}

record! {
    /// What a restore drill restores, and what it must prove.
    RestoreDrill {
        /// When it runs by itself: "weekly Sun 04:00".
        when: Schedule = "when",
        /// "newest": the end of the archive; "random-second": some second that can be restored.
        to: DrillTarget = "to",
        /// What is checked on the restored cluster.
        prove: Vec<Spanned<RestoreProof>> = "prove",
        /// Questions by name, each answered by one "true".
        assertions: Named<Assertion> = "assertions",
    }
}

record! {
    /// A question to the restored cluster.
    Assertion {
        /// Its database; required where the cluster has several.
        database: Text = "database",
        /// A query that yields one row with one "true".
        sql: Text = "sql",
    }
}
