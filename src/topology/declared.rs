//! What should stand in a node's files: settings, access rules and the lines that pull them in.
//!
//! Pure: text in, text out. The user's own lines are never rewritten: in postgresql.conf only our marked lines move, in
//! pg_hba.conf and pg_ident.conf only our marked block changes.

use std::path::{Path, PathBuf};

use crate::pg::guc;
use crate::topology::claim::Peer;
pub use crate::topology::model::LOOPBACK;
use crate::topology::model::{Cluster, Node, PoolerAuth, Service};
use crate::topology::places::NodePlaces;
use crate::units::ByteCount;

/// Settings that every node of the cluster shares, beside [`CONF_FILE`].
pub const SHARED_FILE: &str = "pgherd.conf";
/// Settings that depend on the node or on its role, beside [`CONF_FILE`]; written anew after each clone.
pub const NODE_FILE: &str = "pgherd.node.conf";
/// The server's own file, which includes both.
pub const CONF_FILE: &str = "postgresql.conf";
/// Who may log in.
pub const HBA_FILE: &str = "pg_hba.conf";
/// Which users of the system may be which role.
pub const IDENT_FILE: &str = "pg_ident.conf";
/// What ALTER SYSTEM writes, always in the data directory; it wins over every other file.
pub const AUTO_FILE: &str = "postgresql.auto.conf";

/// The login role of standbys in a cluster that pgherd makes.
const REPLICATION_ROLE: &str = "replicator";
/// The same in a cluster that was taken over as it ran, where the other name may be somebody else's login.
const ADOPTED_REPLICATION_ROLE: &str = "pgherd_replicator";
/// The login role of the write proof.
pub const PROBE_ROLE: &str = "pgherd_probe";
/// How the logins of poolers that ask the server begin; the name of the host follows.
pub const POOLER_ROLE: &str = "pgherd_pooler";

/// Returns the login of the pooler on a host: each has its own, so that one can be taken away.
pub fn pooler_role(host: &str) -> String {
    let mut name = format!("{POOLER_ROLE}_{}", host.replace('-', "_"));
    name.truncate(63);
    name
}

/// Returns the logins of the poolers that ask the server; none where a file says what clients must prove.
pub fn pooler_roles(cluster: &Cluster) -> Vec<String> {
    let asking = cluster.poolers.iter().filter(|poolers| poolers.auth == PoolerAuth::Query);
    asking.flat_map(|poolers| &poolers.hosts).map(|host| pooler_role(host)).collect()
}
/// The bootstrap superuser of a cluster that pgherd makes.
pub const SUPERUSER: &str = "postgres";

const HEADER: &str = "# Written by pgherd from the topology file. A change made here is drift, and the next \"pgherd apply\" undoes it.\n";
const INCLUDE_MARK: &str = "# pgherd: these lines stay last, so that what the topology declares wins";
const BLOCK_BEGIN: &str =
    "# pgherd begin (written by pgherd; put your own lines below the end of this block)";
const BLOCK_END: &str = "# pgherd end";

/// The settings by which a server speaks TLS.
pub const TLS_SETTINGS: [&str; 5] =
    ["ssl", "ssl_ca_file", "ssl_cert_file", "ssl_key_file", "ssl_min_protocol_version"];

/// Returns the login role of standbys.
pub fn replication_role(cluster: &Cluster) -> &'static str {
    if cluster.is_adopted() { ADOPTED_REPLICATION_ROLE } else { REPLICATION_ROLE }
}

/// A setting and its value, unquoted.
pub type Setting = (String, String);

/// What a node should be right now, apart from what the topology says of it.
#[derive(Debug, Clone)]
pub struct NodeWish<'a> {
    /// The node that it streams from; `None` for the primary.
    pub upstream: Option<&'a Node>,
    /// The value of `synchronous_standby_names`; empty while a new cluster has no standby to wait for.
    pub synchronous: String,
    /// The memory to tune for.
    pub memory: ByteCount,
}

/// Returns what every node of the cluster shares, sorted by name.
///
/// Of a cluster that was taken over as it ran only what the topology declares: what could be derived stays as its owner has it.
pub fn shared_settings(cluster: &Cluster) -> Vec<Setting> {
    if cluster.is_adopted() {
        let mut settings: Vec<Setting> = Vec::new();
        settings.extend(cluster.backups.is_some().then(|| ("archive_mode".to_owned(), "on".to_owned())));
        settings.extend(speaks_tls(cluster));
        overlay(&mut settings, cluster);
        settings.sort();
        return settings;
    }
    let nodes = u32::try_from(cluster.nodes.len()).unwrap_or(u32::MAX);
    // Two senders a standby: one streams, one serves a clone or a backup.
    let senders = nodes.saturating_mul(2).max(10).to_string();
    let mut settings: Vec<Setting> = [
        ("hot_standby", "on"),
        ("wal_level", "replica"),
        // pg_rewind needs one of checksums and wal_log_hints; somebody may switch checksums off.
        ("wal_log_hints", "on"),
        ("max_wal_senders", senders.as_str()),
        ("max_replication_slots", senders.as_str()),
        ("password_encryption", "scram-sha-256"),
        ("logging_collector", "on"),
        ("log_filename", "postgresql-%a.log"),
        ("log_truncate_on_rotation", "on"),
        ("log_rotation_age", "1d"),
        ("log_rotation_size", "0"),
        ("log_line_prefix", "%m [%p] %q%u@%d/%a "),
        ("log_lock_waits", "on"),
        ("archive_mode", if cluster.backups.is_some() { "on" } else { "off" }),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    settings.extend(speaks_tls(cluster));
    overlay(&mut settings, cluster);
    settings.sort();
    settings
}

/// How every server of a cluster with TLS speaks it.
fn speaks_tls(cluster: &Cluster) -> Vec<Setting> {
    let settings = [("ssl", "on"), ("ssl_min_protocol_version", "TLSv1.2")];
    if cluster.has_tls() {
        settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    } else {
        Vec::new()
    }
}

/// Returns what depends on the node or its role, sorted by name.
pub fn node_settings(
    cluster: &Cluster,
    node: &Node,
    wish: &NodeWish<'_>,
    places: &NodePlaces,
) -> Vec<Setting> {
    let derives = !cluster.is_adopted() || cluster.postgres.tune_memory.is_some();
    let mut settings = if derives { tuned(wish.memory) } else { Vec::new() };
    settings.retain(|(name, _)| !cluster.postgres.settings.contains_key(name));
    let own = [
        (
            "primary_conninfo",
            wish.upstream.map(|up| primary_conninfo(cluster, node, up, places)).unwrap_or_default(),
        ),
        ("primary_slot_name", wish.upstream.map(|_| cluster.slot_name(&node.name)).unwrap_or_default()),
        ("synchronous_standby_names", wish.synchronous.clone()),
    ];
    settings.extend(own.map(|(name, value)| (name.to_owned(), value)));
    if cluster.has_tls() {
        // One file holds both, so that no crash leaves a certificate beside another one's key: the server would not start.
        let [authorities, pair] =
            [&places.authorities, &places.certificate].map(|path| path.display().to_string());
        settings.push(("ssl_ca_file".to_owned(), authorities));
        settings.push(("ssl_cert_file".to_owned(), pair.clone()));
        settings.push(("ssl_key_file".to_owned(), pair));
    }
    if !node.adopted {
        let place = [
            ("cluster_name", cluster.full_name(&node.name)),
            ("listen_addresses", listen_addresses(cluster, node)),
            ("log_directory", places.log.display().to_string()),
            ("port", node.port.to_string()),
            ("unix_socket_directories", places.socket.display().to_string()),
        ];
        settings.extend(place.map(|(name, value)| (name.to_owned(), value)));
    }
    if cluster.backups.is_some() {
        let call = |verb: &str, arguments: &str| {
            let [program, profile] = [&places.program, &places.profile].map(|path| shell_word(path));
            format!("{program} wal {verb} --profile {profile} {arguments}")
        };
        settings.push(("archive_command".to_owned(), call("push", "\"%p\"")));
        settings.push(("restore_command".to_owned(), call("fetch", "\"%f\" \"%p\"")));
    }
    settings.sort();
    settings
}

/// Quotes a path for the shell that PostgreSQL starts its commands with. There `%` begins an escape and `%%` means itself (PostgreSQL docs,
/// "archive_command").
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string().replace('%', "%%");
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-%".contains(&b)) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// Returns how a program that a command of PostgreSQL's calls stands in one of our settings files.
pub fn in_settings(program: &Path) -> String {
    let quoted = guc::quote_value(&shell_word(program));
    let inner = quoted.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    inner.unwrap_or(&quoted).to_owned()
}

fn overlay(settings: &mut Vec<Setting>, cluster: &Cluster) {
    settings.retain(|(name, _)| !cluster.postgres.settings.contains_key(name));
    settings.extend(cluster.postgres.settings.iter().map(|(name, value)| (name.clone(), value.clone())));
}

/// Memory settings for a node that may use `memory`: the shares that the PostgreSQL documentation starts from ("Resource
/// Consumption": 25 % shared_buffers; "Query Planning": effective_cache_size counts the page cache as well).
fn tuned(memory: ByteCount) -> Vec<Setting> {
    let mib = |bytes: u64, least: u64, most: u64| format!("{}MB", (bytes >> 20).clamp(least, most));
    vec![
        ("shared_buffers".to_owned(), mib(memory.0 / 4, 32, u64::MAX)),
        ("effective_cache_size".to_owned(), mib(memory.0 / 4 * 3, 64, u64::MAX)),
        ("maintenance_work_mem".to_owned(), mib(memory.0 / 16, 32, 2048)),
    ]
}

/// Its own machine reaches a node at the loopback address, everybody else at the host's.
fn listen_addresses(cluster: &Cluster, node: &Node) -> String {
    match cluster.address(&node.host) {
        LOOPBACK => LOOPBACK.to_owned(),
        address => format!("{LOOPBACK},{address}"),
    }
}

fn primary_conninfo(cluster: &Cluster, node: &Node, upstream: &Node, places: &NodePlaces) -> String {
    format!(
        "{} port={} user={} passfile={} application_name={} connect_timeout=5 keepalives_idle=10 \
         keepalives_interval=5 keepalives_count=3{}",
        server_of(cluster, upstream),
        upstream.port,
        replication_role(cluster),
        conninfo_value(&places.passfile.display().to_string()),
        cluster.full_name(&node.name),
        verified(cluster, places),
    )
}

/// Returns the other nodes of a node's cluster, as its start guard asks them: by a walsender, which a role that may replicate gets from every
/// node, and which knows who is primary (`IDENTIFY_SYSTEM`, `SHOW in_hot_standby`). None where no unit of pgherd's has a guard.
pub fn peers(cluster: &Cluster, node: &Node, places: &NodePlaces) -> Vec<Peer> {
    if cluster.postgres.service != Service::Systemd || cluster.backups.is_none() {
        return Vec::new();
    }
    let others = cluster.nodes.iter().filter(|other| other.name != node.name);
    others
        .map(|other| Peer { node: other.name.clone(), conninfo: peer_conninfo(cluster, node, other, places) })
        .collect()
}

fn peer_conninfo(cluster: &Cluster, node: &Node, peer: &Node, places: &NodePlaces) -> String {
    format!(
        "{} port={} user={} passfile={} dbname=replication replication=true application_name={}-guard connect_timeout=3 \
         tcp_user_timeout=3000{}",
        server_of(cluster, peer),
        peer.port,
        replication_role(cluster),
        conninfo_value(&places.passfile.display().to_string()),
        cluster.full_name(&node.name),
        verified(cluster, places),
    )
}

/// Returns how libpq makes sure of whom it speaks to, if the cluster speaks TLS.
fn verified(cluster: &Cluster, places: &NodePlaces) -> String {
    if !cluster.has_tls() {
        return String::new();
    }
    let [authorities, none] = [&places.authorities, &no_client_certificate(places)]
        .map(|path| conninfo_value(&path.display().to_string()));
    format!(" sslmode=verify-full sslrootcert={authorities} sslcert={none}")
}

/// Returns how PostgreSQL's programs find a node and whom it must prove to be: `host=10.0.0.1`.
pub fn server_of(cluster: &Cluster, node: &Node) -> String {
    let address = cluster.address(&node.host);
    if cluster.has_tls() && proves_names_only(cluster) {
        format!("host={} hostaddr={address}", node.host)
    } else {
        format!("host={address}")
    }
}

/// Tells whether its libpq finds no IP address in a certificate: 15 is the first that does (PostgreSQL 15 release notes, "libpq").
pub fn proves_names_only(cluster: &Cluster) -> bool {
    cluster.postgres.version < 15
}

/// Returns a file that is not there: libpq then shows no certificate of its own. Without it it looks for one in the home directory of whoever
/// started the server, and fails if it may not look there (`initialize_SSL` in `fe-secure-openssl.c`).
pub fn no_client_certificate(places: &NodePlaces) -> PathBuf {
    places.authorities.with_file_name("no-client-certificate.pem")
}

fn conninfo_value(text: &str) -> String {
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b)) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
    }
}

/// Returns `ANY 1 ("inventory-b", "inventory-c")` as it is right while `primary` is the primary; empty without synchronous standbys.
pub fn synchronous_names(cluster: &Cluster, primary: &Node) -> String {
    synchronous_names_for(cluster, primary, cluster.synchronous.as_ref().map_or(0, |of| of.wait_for))
}

/// Returns the same where commits wait for another number of them than is declared; empty for none.
pub fn synchronous_names_for(cluster: &Cluster, primary: &Node, wait_for: u32) -> String {
    let Some(synchronous) = cluster.synchronous.as_ref().filter(|_| wait_for > 0) else {
        return String::new();
    };
    let of: Vec<String> = synchronous
        .of
        .iter()
        .filter(|name| **name != primary.name)
        .map(|name| format!("\"{}\"", cluster.full_name(name)))
        .collect();
    format!("ANY {wait_for} ({})", of.join(", "))
}

/// Writes settings as a configuration file.
pub fn settings_file(settings: &[Setting]) -> String {
    let lines: String =
        settings.iter().map(|(name, value)| format!("{name} = {}\n", guc::quote_value(value))).collect();
    format!("{HEADER}{lines}")
}

/// Returns postgresql.conf with our two include lines last.
pub fn with_includes(postgresql_conf: &str) -> String {
    let ours = [format!("include '{SHARED_FILE}'"), format!("include '{NODE_FILE}'")];
    let mut text: String = postgresql_conf
        .split_inclusive('\n')
        .filter(|line| {
            let line = line.trim();
            line != INCLUDE_MARK && !ours.iter().any(|include| include == line)
        })
        .collect();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("{INCLUDE_MARK}\n{}\n{}\n", ours[0], ours[1]));
    text
}

/// Returns postgresql.auto.conf without what ALTER SYSTEM set of these settings; for a server that is stopped.
pub fn without_alter_system(auto_conf: &str, names: &[&str]) -> String {
    let of_them = |line: &str| {
        let set = guc::ConfFile::parse(line).settings();
        set.first().is_some_and(|(name, _)| names.iter().any(|other| name.eq_ignore_ascii_case(other)))
    };
    auto_conf.split_inclusive('\n').filter(|line| !of_them(line)).collect()
}

/// Returns pg_hba.conf with our block first: the superuser over the Unix socket, standbys from the cluster's hosts, and the declared
/// roles from poolers on other machines, whose addresses no file of initdb's lets in.
pub fn with_access(pg_hba: &str, cluster: &Cluster) -> String {
    with_access_lines(pg_hba, &access_lines(cluster))
}

/// Returns pg_hba.conf with these lines of [`access_lines`] in our block.
pub fn with_access_lines(pg_hba: &str, lines: &str) -> String {
    with_block(pg_hba, lines)
}

/// Returns pg_hba.conf with one more line at the end of our block, which must be there.
pub fn with_line_in_block(pg_hba: &str, line: &str) -> String {
    let without = without_line_in_block(pg_hba, line);
    without.replacen(&format!("{BLOCK_END}\n"), &format!("{line}\n{BLOCK_END}\n"), 1)
}

/// Returns pg_hba.conf without that line in our block.
pub fn without_line_in_block(pg_hba: &str, line: &str) -> String {
    let (Some(begin), Some(end)) = (pg_hba.find(BLOCK_BEGIN), pg_hba.find(BLOCK_END)) else {
        return pg_hba.to_owned();
    };
    let Some(block) = pg_hba.get(begin..end) else { return pg_hba.to_owned() };
    let kept: String = block.split_inclusive('\n').filter(|other| other.trim_end() != line).collect();
    format!("{}{kept}{}", &pg_hba[..begin], &pg_hba[end..])
}

/// Returns the line that lets the standbys' login into a database from an address; by a password, as in their own lines.
pub fn rewind_line(cluster: &Cluster, database: &str, address: &str) -> String {
    format!("host    {database}    {}    {}    scram-sha-256", replication_role(cluster), alone(address))
}

/// Returns what our block in pg_hba.conf says.
pub fn access_lines(cluster: &Cluster) -> String {
    lines_for(cluster, if cluster.has_tls() { "hostssl" } else { "host   " })
}

/// Returns the same lines with nobody forced to speak TLS: what stands there until everybody does.
pub fn plain_access_lines(cluster: &Cluster) -> String {
    lines_for(cluster, "host   ")
}

/// Tells whether our block in pg_hba.conf forces those of other machines to speak TLS.
pub fn forces_tls(pg_hba: &str) -> bool {
    let ours = pg_hba.split_once(BLOCK_BEGIN).and_then(|(_, rest)| rest.split_once(BLOCK_END));
    ours.is_some_and(|(block, _)| block.lines().any(|line| line.starts_with("hostssl")))
}

/// `remote` is the kind of the lines for other machines; whoever comes from the loopback address may do as before.
fn lines_for(cluster: &Cluster, remote: &str) -> String {
    let mut block = format!("local   all          {SUPERUSER}                     peer map=pgherd\n");
    let mut addresses = vec![LOOPBACK];
    addresses.extend(cluster.nodes.iter().map(|node| cluster.address(&node.host)));
    let mut seen: Vec<&str> = Vec::new();
    for address in addresses {
        if !seen.contains(&address) {
            let kind = if address == LOOPBACK { "host   " } else { remote };
            block.push_str(&format!(
                "{kind} replication  {}    {}    scram-sha-256\n",
                replication_role(cluster),
                alone(address)
            ));
            seen.push(address);
        }
    }
    let roles: Vec<String> = cluster
        .roles
        .iter()
        .filter(|role| role.password.is_some() && !role.pools.is_empty())
        .map(|role| format!("\"{}\"", role.name))
        .chain([PROBE_ROLE.to_owned()])
        .chain(pooler_roles(cluster).iter().map(|role| format!("\"{role}\"")))
        .collect();
    let databases: Vec<String> = cluster.databases.iter().map(|name| format!("\"{name}\"")).collect();
    // initdb's file lets everybody in from the machine itself; that of a cluster that was taken over may not.
    let (mut seen, here) =
        if cluster.is_adopted() { (Vec::new(), Some(LOOPBACK)) } else { (vec![LOOPBACK], None) };
    for address in here.into_iter().chain(cluster.pooler_hosts().map(|host| cluster.address(host))) {
        if !seen.contains(&address) {
            let kind = if address == LOOPBACK { "host   " } else { remote };
            block.push_str(&format!(
                "{kind} {}    {}    {}    scram-sha-256\n",
                databases.join(","),
                roles.join(","),
                alone(address)
            ));
            seen.push(address);
        }
    }
    block
}

/// Writes an address so that it means no other one.
fn alone(address: &str) -> String {
    if address.contains(':') { format!("{address}/128") } else { format!("{address}/32") }
}

/// Returns pg_ident.conf with our block first: who may be the superuser over the Unix socket.
pub fn with_users(pg_ident: &str, users: &[&str]) -> String {
    let mut unique: Vec<&str> = users.to_vec();
    unique.sort_unstable();
    unique.dedup();
    let lines: String = unique.iter().map(|user| format!("pgherd  \"{user}\"  {SUPERUSER}\n")).collect();
    with_block(pg_ident, &lines)
}

fn with_block(text: &str, block: &str) -> String {
    let mut rest = String::new();
    let mut inside = false;
    for line in text.split_inclusive('\n') {
        match line.trim_end() {
            BLOCK_BEGIN => inside = true,
            BLOCK_END if inside => inside = false,
            _ if inside => {}
            _ => rest.push_str(line),
        }
    }
    format!("{BLOCK_BEGIN}\n{block}{BLOCK_END}\n{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "local   all          postgres                     peer map=pgherd\n";

    #[test]
    fn include_lines_move_to_the_end_and_nothing_else_moves() {
        let once = with_includes("max_connections = 50\n# mine");
        assert_eq!(
            once,
            format!(
                "max_connections = 50\n# mine\n{INCLUDE_MARK}\ninclude 'pgherd.conf'\ninclude 'pgherd.node.conf'\n"
            )
        );
        assert_eq!(with_includes(&once), once);
        let edited = format!("{once}work_mem = '1GB'\n");
        assert!(with_includes(&edited).starts_with("max_connections = 50\n# mine\nwork_mem = '1GB'\n"));
        assert_eq!(with_includes(&edited).matches("include 'pgherd.conf'").count(), 1);
    }

    #[test]
    fn with_tls_a_standby_verifies_its_primary_and_other_machines_must_speak_it() {
        let text = "pgherd: 1\nherd: shop\nregions: {west: {hosts: {db1: 10.0.0.1, db2: 10.0.0.2}}}\nclusters:\n  inventory:\n    \
                    ports: {postgres: 5441}\n    postgres: {version: 15, tls: own}\n    nodes: {a: {host: db1}, b: {host: db2}}\n";
        let load = |text: &str| {
            let base = Path::new("/");
            crate::topology::load_text(Path::new("/pgherd.yml"), text, base).unwrap().clusters.remove(0)
        };
        let cluster = load(text);
        let places = crate::topology::places::Places::decide(true, |_| None).unwrap().node("inventory-b");
        let wish = |cluster: &Cluster| {
            let upstream = cluster.node("a");
            let wish = NodeWish { upstream, synchronous: String::new(), memory: ByteCount(1 << 30) };
            node_settings(cluster, cluster.node("b").unwrap(), &wish, &places)
        };
        let value = |settings: &[Setting], name: &str| {
            settings
                .iter()
                .find(|(found, _)| found == name)
                .map(|(_, value)| value.clone())
                .unwrap_or_default()
        };
        let settings = wish(&cluster);
        let conninfo = value(&settings, "primary_conninfo");
        assert!(conninfo.starts_with("host=10.0.0.1 port=5441 "), "{conninfo}");
        assert!(
            conninfo.ends_with(
                " sslmode=verify-full sslrootcert=/etc/pgherd/nodes/inventory-b/ca.pem \
                 sslcert=/etc/pgherd/nodes/inventory-b/no-client-certificate.pem"
            ),
            "{conninfo}"
        );
        assert_eq!(value(&settings, "ssl_key_file"), "/etc/pgherd/nodes/inventory-b/server.pem");
        // The libpq of 14 finds no addresses in a certificate.
        let older = value(&wish(&load(&text.replace("15", "14"))), "primary_conninfo");
        assert!(older.starts_with("host=db1 hostaddr=10.0.0.1 port=5441 "), "{older}");
        let lines = access_lines(&cluster);
        assert!(lines.contains("host    replication  replicator    127.0.0.1/32 "), "{lines}");
        assert!(lines.contains("hostssl replication  replicator    10.0.0.2/32 "), "{lines}");
        assert!(forces_tls(&with_access("", &cluster)));
        assert!(!forces_tls(&with_access_lines("hostssl all all all cert\n", &plain_access_lines(&cluster))));
    }

    #[test]
    fn the_access_block_is_first_and_once_and_the_users_lines_stay() {
        let mine = "host all all 10.0.0.0/8 scram-sha-256\n";
        let once = with_access_lines(mine, LINES);
        assert!(once.starts_with(BLOCK_BEGIN));
        assert!(once.ends_with(mine));
        assert_eq!(with_access_lines(&once, LINES), once);
        assert_eq!(with_access_lines(&once.replace("peer map=pgherd", "trust"), LINES), once);
    }

    #[test]
    fn a_line_of_a_moment_comes_into_the_block_and_goes_again() {
        let line = "host    postgres    replicator    10.0.0.2/32    scram-sha-256";
        let hba = with_access_lines("host all all 10.0.0.0/8 scram-sha-256\n", LINES);
        let open = with_line_in_block(&hba, line);
        assert!(open.contains(&format!("{LINES}{line}\n{BLOCK_END}\n")), "{open}");
        assert_eq!(with_line_in_block(&open, line), open);
        assert_eq!(without_line_in_block(&open, line), hba);
        assert_eq!(without_line_in_block("host all all all trust\n", line), "host all all all trust\n");
    }

    #[test]
    fn values_are_quoted_for_the_configuration_file() {
        let text = settings_file(&[("log_line_prefix".to_owned(), "it's %m".to_owned())]);
        assert!(text.ends_with("log_line_prefix = 'it''s %m'\n"));
    }

    #[test]
    fn a_path_is_one_word_for_the_shell_and_no_escape_for_the_server() {
        let word = |path: &str| shell_word(Path::new(path));
        assert_eq!(word("/usr/local/lib/pgherd/pgherd"), "/usr/local/lib/pgherd/pgherd");
        assert_eq!(word("/srv/100%/p"), "/srv/100%%/p");
        assert_eq!(word("/srv/it's \"x\" $y %p"), "'/srv/it'\\''s \"x\" $y %%p'");
    }

    #[test]
    fn memory_is_shared_out_in_the_documented_shares() {
        let small = tuned(ByteCount(1 << 30));
        assert_eq!(small[0].1, "256MB");
        assert_eq!(small[1].1, "768MB");
        assert_eq!(tuned(ByteCount(1 << 20))[0].1, "32MB");
    }
}
