//! What the herd is right now: every node looked at side by side, each fact known or unknown with its reason.
//!
//! Reads only. An unreachable node is a fact about that node and never hides the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::OnceCell;

use crate::db::queries::{self, ServerFacts, ServerRole, Setting, Slot, WalSender};
use crate::db::{Conn, Connector, DbError, Endpoint, Login, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::gate::Gate;
use crate::host::decorate::{DryRun, Gated, Layered, Timeout, Traced};
use crate::host::local::LocalHost;
use crate::host::programs::{self, Programs};
use crate::host::sockets;
use crate::host::ssh::{SshHost, Target};
use crate::host::{Command, DiskSpace, Host, HostError};
use crate::ops::service::{self, UnitSeen};
use crate::pg::control_file::{ClusterState, ControlFile};
use crate::repo::Location;
use crate::secret::Secret;
use crate::topology::claim::{self, FenceMark, Marker, Profile};
use crate::topology::declared;
use crate::topology::model::{Cluster, Node, Reach, Repository};
use crate::topology::places::{NodePlaces, Places};
use crate::topology::unit::Unit;
use crate::units::{ByteCount, human_duration};

/// How long one node may take to answer before its facts are unknown.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long the way to a host may take before what is behind it is unknown.
const WAY: Duration = Duration::from_secs(5);
/// Who owns the nodes' files on a host that is reached by ssh, if nobody says otherwise.
const DEFAULT_OS_USER: &str = "postgres";

/// The doors to one cluster: its hosts and its servers.
#[derive(Debug, Clone)]
pub struct Doors {
    /// Those of the machine that pgherd runs on.
    pub station: Places,
    /// By host.
    places: BTreeMap<String, Places>,
    hosts: BTreeMap<String, Arc<dyn Host>>,
    pub connector: Connector,
    /// That of the machine that pgherd runs on, on the caller's own behalf.
    own: Arc<dyn Host>,
    /// Who asks in place of the superuser; for looks alone.
    asker: Option<(String, Option<Secret>)>,
    /// The programs of each host, looked for once.
    programs: Arc<BTreeMap<String, OnceCell<Programs>>>,
    /// How long a look at a node or a pooler may take as a whole, the way to it included.
    whole: Option<Duration>,
}

impl Doors {
    /// Opens the door of every host that `cluster` uses, to change what is behind it.
    ///
    /// # Errors
    /// When the user that should own the nodes' files does not exist or cannot be acted for.
    pub fn open(cluster: &Cluster, places: Places, gate: &Arc<dyn Gate>) -> Result<Self> {
        Self::through(cluster, places, gate, None)
    }

    /// Opens the same doors only to look: what could change a host is refused, and no call takes longer than [`PATIENCE`].
    ///
    /// # Errors
    /// As [`Doors::open`].
    pub fn look(cluster: &Cluster, places: Places, gate: &Arc<dyn Gate>) -> Result<Self> {
        Self::through(cluster, places, gate, Some(PATIENCE))
    }

    fn through(
        cluster: &Cluster,
        places: Places,
        gate: &Arc<dyn Gate>,
        looking: Option<Duration>,
    ) -> Result<Self> {
        let mut hosts: BTreeMap<String, Arc<dyn Host>> = BTreeMap::new();
        let mut places_of = BTreeMap::new();
        for name in cluster.used_hosts() {
            let reach = cluster.reach(name);
            let door = open_door(name, reach, cluster.postgres.os_user.as_deref(), looking)?;
            let traced = Layered::new(door, Traced);
            let gated: Arc<dyn Host> = Arc::new(Layered::new(Arc::new(traced), Gated(Arc::clone(gate))));
            hosts.insert(
                name.clone(),
                if looking.is_some() { Arc::new(Layered::new(gated, DryRun)) } else { gated },
            );
            places_of.insert(name.clone(), places.on(reach));
        }
        let programs = Arc::new(hosts.keys().map(|name| (name.clone(), OnceCell::new())).collect());
        Ok(Self {
            station: places,
            places: places_of,
            hosts,
            connector: Connector::new(Arc::clone(gate)),
            own: match looking {
                Some(_) => Arc::new(Layered::new(open_own_door(gate), DryRun)),
                None => open_own_door(gate),
            },
            asker: None,
            programs,
            whole: None,
        })
    }

    /// Returns the places on a host that the cluster uses.
    pub fn places(&self, host: &str) -> &Places {
        self.places.get(host).expect("Doors::open opens every host that the cluster names")
    }

    /// Returns where a repository is for whoever works on a host that the cluster uses.
    pub fn location(&self, host: &str, repository: &Repository) -> Location {
        Location { url: repository.url.clone(), access: self.places(host).access(repository) }
    }

    /// Returns the places of a node of the cluster.
    pub fn node_places(&self, cluster: &Cluster, node: &Node) -> NodePlaces {
        self.places(&node.host).of_node(cluster, node)
    }

    /// Returns the same doors with other places on all hosts.
    #[must_use]
    pub fn with_places(mut self, places: &Places) -> Self {
        self.places.values_mut().for_each(|own| own.clone_from(places));
        self
    }

    /// Returns the same doors, through which a look at a node or a pooler takes no longer than this, the way to it included.
    #[must_use]
    pub fn within(mut self, whole: Duration) -> Self {
        self.whole = Some(whole);
        self
    }

    /// Returns how long something may take that would get `limit` if nobody was in a hurry.
    pub fn at_most(&self, limit: Duration) -> Duration {
        self.whole.map_or(limit, |whole| whole.min(limit))
    }

    /// Returns the same doors with another role that asks the servers, by its password where one is known.
    #[must_use]
    pub fn asking_as(mut self, role: &str, password: Option<Secret>) -> Self {
        self.asker = Some((role.to_owned(), password));
        self
    }

    /// Returns the door of a host that the cluster uses.
    pub fn host(&self, name: &str) -> &dyn Host {
        &**self.hosts.get(name).expect("Doors::open opens every host that the cluster names")
    }

    /// Returns the door of the machine that pgherd runs on, on the caller's own behalf.
    pub fn own(&self) -> &dyn Host {
        &*self.own
    }

    /// Returns the same door to keep.
    pub fn shared_host(&self, name: &str) -> Arc<dyn Host> {
        Arc::clone(self.hosts.get(name).expect("Doors::open opens every host that the cluster names"))
    }

    /// Returns how pgherd's own work logs in to a node: as the superuser, or as whoever asks in its place, over the Unix socket.
    pub fn superuser(&self, cluster: &Cluster, node: &Node, database: &str) -> Login {
        let name = cluster.full_name(&node.name);
        let (user, password) = match &self.asker {
            Some((role, password)) => (role.clone(), password.clone()),
            None => (declared::SUPERUSER.to_owned(), None),
        };
        Login {
            endpoint: Endpoint::Socket { directory: self.node_places(cluster, node).socket, port: node.port },
            tunnel: self.host(&node.host).tunnel(),
            server: name,
            user,
            database: database.to_owned(),
            password,
            tls: None,
            session: Session::Tool,
        }
    }

    /// Finds the server's programs on a host that the cluster uses; looks once.
    ///
    /// # Errors
    /// When they are missing or of another major version.
    pub async fn programs(&self, cluster: &Cluster, host: &str) -> Result<&Programs> {
        let found = self.programs.get(host).expect("Doors::open opens every host that the cluster names");
        let bin = cluster.postgres.bin_directory.as_deref();
        found
            .get_or_try_init(|| async {
                programs::find_postgres(self.host(host), cluster.postgres.version, bin).await
            })
            .await
    }
}

/// Opens the door of one host, whose calls take no longer than `patience` each; without `os_user` for `postgres` where root works here or ssh leads there, else for the caller.
///
/// # Errors
/// As [`Doors::open`].
pub fn open_door(
    name: &str,
    reach: &Reach,
    os_user: Option<&str>,
    patience: Option<Duration>,
) -> Result<Arc<dyn Host>> {
    Ok(match reach {
        Reach::Local | Reach::Here { .. } => {
            let local: Arc<dyn Host> = Arc::new(LocalHost::new(name, os_user)?);
            match patience {
                Some(patience) => Arc::new(Layered::new(local, Timeout(patience))),
                None => local,
            }
        }
        Reach::Ssh(ssh) => {
            let target = Target {
                address: ssh.address.clone(),
                port: ssh.port,
                user: ssh.user.clone(),
                key: ssh.key.clone(),
                host_keys: ssh.host_keys.clone(),
                config: ssh.config.clone(),
            };
            let host = SshHost::new(name, &target, os_user.unwrap_or(DEFAULT_OS_USER))?;
            Arc::new(match patience {
                Some(patience) => host.patience(patience),
                None => host,
            })
        }
    })
}

/// Opens the door of the machine that pgherd runs on, on the caller's own behalf.
pub fn open_own_door(gate: &Arc<dyn Gate>) -> Arc<dyn Host> {
    let traced = Layered::new(Arc::new(LocalHost::own("here")), Traced);
    Arc::new(Layered::new(Arc::new(traced), Gated(Arc::clone(gate))))
}

/// Everything that was seen of one cluster.
#[derive(Debug, Clone)]
pub struct ClusterObserved {
    pub cluster: String,
    /// In the order of the file.
    pub nodes: Vec<NodeObserved>,
    /// Profiles of this cluster's nodes that the file no longer names.
    pub left: Vec<Profile>,
}

/// Everything that was seen of one node.
#[derive(Debug, Clone)]
pub struct NodeObserved {
    pub node: String,
    pub marker: Claim,
    /// What it was made as; `None` if it was not, or that cannot be read.
    pub profile: Option<Profile>,
    pub fence: Fence,
    pub directory: Directory,
    pub server: Server,
    /// Text of the files of which pgherd writes a part; `None` where the directory holds no cluster of ours.
    pub files: Option<Files>,
    pub disk: Option<Disk>,
}

/// Whether a marker claims the node's data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    None,
    Ours(Marker),
    /// A marker under this node's name claims another directory or host.
    Other(Marker),
    Unknown {
        why: String,
    },
}

/// Whether the node must not come up as a primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fence {
    Open,
    Fenced(FenceMark),
    Unknown { why: String },
}

/// Says how a fenced node that was primary gets back into its cluster.
pub fn ways_out_of_a_fence(node: &str) -> String {
    format!(
        "If another node is primary: pgherd rejoin {node}. If none is and this one is to go on: pgherd unfence {node}."
    )
}

/// What is in the node's data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directory {
    Missing,
    Empty,
    /// A PostgreSQL cluster, or what is left of one.
    Cluster {
        /// The text of PG_VERSION.
        version: String,
        owner: String,
        control: Option<Box<ControlFile>>,
        /// Whether `standby.signal` is there: it would start as a standby.
        standby_signal: bool,
    },
    /// Something else.
    Foreign {
        names: Vec<String>,
    },
    Unknown {
        why: String,
    },
}

/// Whether a server answers for the node.
#[derive(Debug, Clone)]
pub enum Server {
    Up(Box<Running>),
    Starting,
    Stopped,
    /// Another server answers on the node's port.
    Foreign {
        what: String,
    },
    Unknown {
        why: String,
    },
}

/// What a running server told.
#[derive(Debug, Clone)]
pub struct Running {
    pub facts: ServerFacts,
    pub senders: Vec<WalSender>,
    pub slots: Vec<Slot>,
    /// By name: those that are declared, and all that come from a file.
    pub settings: BTreeMap<String, Setting>,
}

/// Text of the files of which pgherd writes all or a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    pub shared: Option<String>,
    pub node: Option<String>,
    pub postgresql_conf: String,
    pub pg_hba: String,
    pub pg_ident: String,
    /// What ALTER SYSTEM left.
    pub auto_conf: String,
    /// The node's profile, which is not in its data directory.
    pub profile: Option<String>,
    pub unit: UnitSeen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    pub total: ByteCount,
    pub free: ByteCount,
}

impl From<DiskSpace> for Disk {
    fn from(space: DiskSpace) -> Self {
        Self { total: space.total, free: space.free }
    }
}

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What the servers themselves say, and nothing of files: who leads and who streams, while clients wait.
    Roles,
    /// Servers, processes and disks: what `status` shows.
    Servers,
    /// Also the files that `plan` compares.
    Files,
}

impl Running {
    /// Tells whether it is out of recovery.
    pub fn is_primary(&self) -> bool {
        matches!(self.facts.role, ServerRole::Primary { .. })
    }
}

impl NodeObserved {
    /// Returns what the running server told, if one answered.
    pub fn running(&self) -> Option<&Running> {
        match &self.server {
            Server::Up(running) => Some(running),
            Server::Starting | Server::Stopped | Server::Foreign { .. } | Server::Unknown { .. } => None,
        }
    }

    /// Tells whether it was taken over as it ran.
    pub fn is_adopted(&self) -> bool {
        match &self.marker {
            Claim::Ours(marker) => marker.adopted.is_some(),
            Claim::None | Claim::Other(_) | Claim::Unknown { .. } => false,
        }
    }

    /// Tells whether a server that does not run was a standby when it ended, whatever it would start as.
    pub fn ended_as_standby(&self) -> bool {
        let state = self.control().map(|control| &control.state);
        matches!(self.server, Server::Stopped)
            && matches!(state, Some(ClusterState::ShutDownInRecovery | ClusterState::InArchiveRecovery))
    }

    /// Returns the control file, if the directory holds a cluster and it could be read.
    pub fn control(&self) -> Option<&ControlFile> {
        match &self.directory {
            Directory::Cluster { control, .. } => control.as_deref(),
            Directory::Missing | Directory::Empty | Directory::Foreign { .. } | Directory::Unknown { .. } => {
                None
            }
        }
    }
}

impl ClusterObserved {
    /// Finds what was seen of a node.
    pub fn node(&self, name: &str) -> Option<&NodeObserved> {
        self.nodes.iter().find(|node| node.node == name)
    }
}

/// Looks at all nodes of `cluster` side by side.
pub async fn observe(doors: &Doors, cluster: &Cluster, depth: Depth) -> ClusterObserved {
    observe_and_stay(doors, cluster, depth).await.0
}

/// Looks at all nodes of `cluster` side by side but these, which are unknown: nobody waits for what is known not to answer.
pub async fn observe_but(
    doors: &Doors,
    cluster: &Cluster,
    depth: Depth,
    left_out: &BTreeSet<String>,
) -> ClusterObserved {
    let nodes = join_all(cluster.nodes.iter().map(async |node| {
        if left_out.contains(&node.name) {
            return unknown(node, "it was left out");
        }
        observe_node(doors, cluster, node, depth).await.0
    }));
    ClusterObserved { cluster: cluster.name.clone(), nodes: nodes.await, left: Vec::new() }
}

/// Looks at all nodes of `cluster` side by side, and stays logged in to those that answer; in the order of the file.
pub async fn observe_and_stay(
    doors: &Doors,
    cluster: &Cluster,
    depth: Depth,
) -> (ClusterObserved, Vec<Option<Conn>>) {
    let nodes = join_all(cluster.nodes.iter().map(|node| observe_node(doors, cluster, node, depth)));
    let (nodes, left) = futures_util::join!(nodes, observe_left(doors, cluster));
    let (nodes, conns) = nodes.into_iter().unzip();
    (ClusterObserved { cluster: cluster.name.clone(), nodes, left }, conns)
}

async fn observe_node(
    doors: &Doors,
    cluster: &Cluster,
    node: &Node,
    depth: Depth,
) -> (NodeObserved, Option<Conn>) {
    let begun = Instant::now();
    let host = doors.host(&node.host);
    let places = doors.node_places(cluster, node);
    let seen = async {
        if depth == Depth::Roles {
            let (server, conn) = observe_server(doors, cluster, node, &places).await;
            return (NodeObserved { server, ..unknown(node, "it was not looked at") }, conn);
        }
        let (marker, profile, fence, directory, disk, (server, conn)) = futures_util::join!(
            observe_claim(host, &places, node),
            host.read(&places.profile),
            observe_fence(host, &places),
            observe_directory(doors, cluster, node),
            host.disk(&node.data_directory),
            observe_server(doors, cluster, node, &places),
        );
        let ours = matches!(marker, Claim::Ours(_)) && matches!(directory, Directory::Cluster { .. });
        let files = if depth == Depth::Files && ours {
            observe_files(host, &cluster.full_name(&node.name), node, &places).await.ok()
        } else {
            None
        };
        let seen = NodeObserved {
            node: node.name.clone(),
            marker,
            profile: profile.ok().flatten().and_then(|bytes| claim::read(&bytes).ok()),
            fence,
            directory,
            server,
            files,
            disk: disk.ok().map(Disk::from),
        };
        (seen, conn)
    };
    let silent =
        |limit: Duration| format!("host {} did not answer within {}", node.host, human_duration(limit));
    let way = doors.at_most(WAY);
    match tokio::time::timeout(way, host.reach()).await {
        Ok(Ok(())) => {}
        Ok(Err(missing)) => {
            let why = |error: &Error| match error.detail_text() {
                Some(detail) => format!("{error}: {}", detail.trim_end_matches('.')),
                None => error.to_string(),
            };
            let why = missing.iter().map(why).collect::<Vec<_>>().join("; ");
            return (unknown(node, &why), None);
        }
        Err(_) => return (unknown(node, &silent(way)), None),
    }
    // The doors have their own deadlines; this one holds whatever they do.
    let whole = match depth {
        Depth::Roles | Depth::Servers => PATIENCE * 2,
        // Many calls one after the other: a host that is far or busy is no reason to plan nothing.
        Depth::Files => PATIENCE * 10,
    };
    let left = doors.whole.map_or(whole, |all| whole.min(all.saturating_sub(begun.elapsed())));
    tokio::time::timeout(left, seen)
        .await
        .unwrap_or_else(|_| (unknown(node, &silent(doors.at_most(whole))), None))
}

/// What is seen of a node whose host cannot be asked.
fn unknown(node: &Node, why: &str) -> NodeObserved {
    NodeObserved {
        node: node.name.clone(),
        marker: Claim::Unknown { why: why.to_owned() },
        profile: None,
        fence: Fence::Unknown { why: why.to_owned() },
        directory: Directory::Unknown { why: why.to_owned() },
        server: Server::Unknown { why: why.to_owned() },
        files: None,
        disk: None,
    }
}

/// Reads the marker of a node.
pub async fn observe_claim(host: &dyn Host, places: &NodePlaces, node: &Node) -> Claim {
    match host.read(&places.marker).await {
        Ok(None) => Claim::None,
        Ok(Some(bytes)) => match claim::read::<Marker>(&bytes) {
            Ok(marker) if marker.host == node.host && marker.data_directory == node.data_directory => {
                Claim::Ours(marker)
            }
            Ok(marker) => Claim::Other(marker),
            Err(error) => Claim::Unknown { why: format!("{}: {error}", places.marker.display()) },
        },
        Err(error) => Claim::Unknown { why: error.to_string() },
    }
}

/// Reads whether a node is fenced.
pub async fn observe_fence(host: &dyn Host, places: &NodePlaces) -> Fence {
    match host.read(&places.fence).await {
        Ok(None) => Fence::Open,
        Ok(Some(bytes)) => match claim::read::<FenceMark>(&bytes) {
            Ok(mark) => Fence::Fenced(mark),
            Err(error) => Fence::Unknown { why: format!("{}: {error}", places.fence.display()) },
        },
        Err(error) => Fence::Unknown { why: error.to_string() },
    }
}

async fn observe_directory(doors: &Doors, cluster: &Cluster, node: &Node) -> Directory {
    let host = doors.host(&node.host);
    match directory_contents(host, &node.data_directory).await {
        Ok(Directory::Cluster { version, owner, standby_signal, .. }) => {
            let control = match doors.programs(cluster, &node.host).await {
                Ok(programs) => read_control_file(host, programs, &node.data_directory).await.ok(),
                Err(_) => None,
            };
            Directory::Cluster { version, owner, control: control.map(Box::new), standby_signal }
        }
        Ok(other) => other,
        Err(error) => Directory::Unknown { why: error.to_string() },
    }
}

async fn directory_contents(host: &dyn Host, path: &Path) -> Result<Directory, HostError> {
    let Some(stat) = host.stat(path).await? else { return Ok(Directory::Missing) };
    let names = match host.list(path).await {
        Ok(names) => names.unwrap_or_default(),
        Err(HostError::File { kind: std::io::ErrorKind::PermissionDenied, .. }) => {
            return Ok(Directory::Unknown {
                why: format!(
                    "{} belongs to {} and {} may not read it",
                    path.display(),
                    stat.owner,
                    host.os_user()
                ),
            });
        }
        Err(error) => return Err(error),
    };
    if names.is_empty() {
        return Ok(Directory::Empty);
    }
    let holds = |name: &str| names.iter().any(|found| found == name);
    if !holds("PG_VERSION") {
        return Ok(Directory::Foreign { names });
    }
    let version = host.read(&path.join("PG_VERSION")).await?.unwrap_or_default();
    Ok(Directory::Cluster {
        version: String::from_utf8_lossy(&version).trim().to_owned(),
        owner: stat.owner,
        control: None,
        standby_signal: holds("standby.signal"),
    })
}

/// Reads pg_control with `pg_controldata`, so that each major version's layout is its own program's business.
///
/// # Errors
/// When the program fails or prints something that it should not.
pub async fn read_control_file(
    host: &dyn Host,
    programs: &Programs,
    directory: &Path,
) -> Result<ControlFile> {
    let command = Command::new(programs.path("pg_controldata"))
        .args(["-D", &directory.display().to_string()])
        .reads()
        .timeout(PATIENCE);
    let output = host.run(&command).await.map_err(|error| {
        Error::failed(format!("could not read pg_control in {}", directory.display())).source(error)
    })?;
    ControlFile::parse(&output.text()).map_err(|error| {
        Error::failed(format!("could not read pg_control in {}", directory.display())).source(error)
    })
}

/// Reads the files of which pgherd writes all or a part.
///
/// # Errors
/// [`HostError`] as told by the host.
pub async fn observe_files(
    host: &dyn Host,
    name: &str,
    node: &Node,
    places: &NodePlaces,
) -> Result<Files, HostError> {
    let read = |path: PathBuf| async move {
        let bytes = host.read(&path).await?;
        Ok::<_, HostError>(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    let text = |name: &'static str| read(node.configuration().join(name));
    let unit = Unit::of_node(name, &node.data_directory);
    let (profile, shared, own, conf, hba, ident, auto, unit) = futures_util::join!(
        read(places.profile.clone()),
        text(declared::SHARED_FILE),
        text(declared::NODE_FILE),
        text(declared::CONF_FILE),
        text(declared::HBA_FILE),
        text(declared::IDENT_FILE),
        read(node.data_directory.join(declared::AUTO_FILE)),
        service::look_at_unit(host, &unit),
    );
    Ok(Files {
        shared: shared?,
        node: own?,
        postgresql_conf: conf?.unwrap_or_default(),
        pg_hba: hba?.unwrap_or_default(),
        pg_ident: ident?.unwrap_or_default(),
        auto_conf: auto?.unwrap_or_default(),
        profile: profile?,
        unit: unit?,
    })
}

async fn observe_server(
    doors: &Doors,
    cluster: &Cluster,
    node: &Node,
    places: &NodePlaces,
) -> (Server, Option<Conn>) {
    let connector = doors.connector.clone().timeouts(PATIENCE, PATIENCE);
    let server = match connector.connect(&doors.superuser(cluster, node, "postgres")).await {
        Ok(conn) => match running(&conn, cluster, node, places).await {
            Ok(running) => return (Server::Up(Box::new(running)), Some(conn)),
            Err(DbError::Timeout { .. }) => Server::Unknown {
                why: format!("it accepted the connection and did not answer within {} s", PATIENCE.as_secs()),
            },
            Err(error) => Server::Unknown { why: error.to_string() },
        },
        Err(DbError::Starting { .. }) => Server::Starting,
        Err(DbError::NotListening { .. }) => not_listening(doors, node).await,
        Err(DbError::Timeout { .. }) => {
            Server::Unknown { why: format!("it did not answer within {} s", PATIENCE.as_secs()) }
        }
        Err(error) => Server::Unknown { why: error.to_string() },
    };
    (server, None)
}

/// "Connection refused" alone does not mean stopped: the postmaster's own file and process say so.
async fn not_listening(doors: &Doors, node: &Node) -> Server {
    match postmaster(doors.host(&node.host), &node.data_directory).await {
        Ok(Some(pid)) => Server::Unknown {
            why: format!("process {pid} runs for the data directory, its socket does not answer"),
        },
        Ok(None) if listens(doors.host(&node.host), node.port).await => Server::Foreign {
            what: format!("something else listens on {}:{}", declared::LOOPBACK, node.port),
        },
        Ok(None) => Server::Stopped,
        Err(error) => Server::Unknown { why: error.to_string() },
    }
}

/// Tells whether anything accepts connections on a port of the host's loopback address; what the host does not tell is no.
pub async fn listens(host: &dyn Host, port: u16) -> bool {
    if host.tunnel().is_none() {
        return crate::db::connect::listens(declared::LOOPBACK, port).await;
    }
    sockets::listens(host, Ipv4Addr::LOCALHOST.into(), port).await.unwrap_or(false)
}

/// Returns the postmaster's process number if one runs for `directory`.
///
/// A process number alone can belong to somebody else after a crash, so the process must name the directory.
///
/// # Errors
/// When the host cannot tell.
pub async fn postmaster(host: &dyn Host, directory: &Path) -> Result<Option<u32>, HostError> {
    let Some(bytes) = host.read(&directory.join("postmaster.pid")).await? else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes);
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok()) else {
        return Ok(None);
    };
    let Some(cmdline) = host.read(&PathBuf::from(format!("/proc/{pid}/cmdline"))).await? else {
        return Ok(None);
    };
    let names_it =
        cmdline.split(|byte| *byte == 0).any(|word| word == directory.as_os_str().as_encoded_bytes());
    Ok((names_it || works_in(host, pid, directory).await?).then_some(pid))
}

/// Returns the processes of PostgreSQL that work in `directory`: the postmaster, and its children, which a postmaster that was killed leaves
/// behind until they notice.
///
/// # Errors
/// When the host cannot tell.
pub async fn processes(host: &dyn Host, directory: &Path) -> Result<Vec<u32>, HostError> {
    let look = Command::new("pgrep").args(["-u", host.os_user(), "-x", "postgres"]).reads();
    let pids: Vec<u32> = match host.run(&look).await {
        Ok(output) => output.text().split_whitespace().filter_map(|word| word.parse().ok()).collect(),
        // pgrep ends with 1 when it found nothing.
        Err(HostError::Exited { status: 1, .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // Of a process that has ended in the meantime it prints the path as it was given.
    let paths = pids.iter().map(|pid| format!("/proc/{pid}/cwd"));
    let resolve =
        Command::new("readlink").args(["-m", "--", &directory.display().to_string()]).args(paths).reads();
    let text = host.run(&resolve).await?.text();
    let mut lines = text.lines();
    let wanted = lines.next();
    Ok(pids.into_iter().zip(lines).filter(|(_, path)| Some(*path) == wanted).map(|(pid, _)| pid).collect())
}

/// Tells whether a process works in a directory. A postmaster does (`ChangeToDataDir` in `main.c`), whatever its arguments name: a path with
/// a slash at the end, the directory of its configuration, or nothing where PGDATA did.
async fn works_in(host: &dyn Host, pid: u32, directory: &Path) -> Result<bool, HostError> {
    let (own, wanted) = (format!("/proc/{pid}/cwd"), directory.display().to_string());
    match host.run(&Command::new("readlink").args(["-f", "--", &own, &wanted]).reads()).await {
        Ok(output) => {
            let text = output.text();
            let mut paths = text.lines();
            Ok(matches!((paths.next(), paths.next()), (Some(own), Some(wanted)) if own == wanted))
        }
        // There is no such process any more, or it is another user's.
        Err(HostError::Exited { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn running(
    conn: &Conn,
    cluster: &Cluster,
    node: &Node,
    places: &NodePlaces,
) -> Result<Running, DbError> {
    let wish = declared::NodeWish { upstream: None, synchronous: String::new(), memory: ByteCount(0) };
    let names: Vec<String> = declared::shared_settings(cluster)
        .into_iter()
        .chain(declared::node_settings(cluster, node, &wish, places))
        .map(|(name, _)| name)
        .collect();
    let facts = queries::server_facts(conn).await?;
    let senders = queries::replication(conn).await?;
    let slots = queries::slots(conn).await?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let settings = queries::settings_and_files(conn, &names).await?;
    Ok(Running {
        facts,
        senders,
        slots,
        settings: settings.into_iter().map(|row| (row.name.clone(), row)).collect(),
    })
}

async fn observe_left(doors: &Doors, cluster: &Cluster) -> Vec<Profile> {
    // All local hosts are one machine, whose profiles one look tells.
    let mut machines: Vec<&str> = Vec::new();
    for node in &cluster.nodes {
        let known = |other: &&str| {
            **other == node.host || (cluster.reach(other).is_here() && cluster.reach(&node.host).is_here())
        };
        if !machines.iter().any(known) {
            machines.push(&node.host);
        }
    }
    let looks = machines.iter().map(|host| async {
        // A machine may hold the nodes of many clusters.
        let name = cluster.full_name("");
        let look = profiles_named(doors.host(host), doors.places(host), &name);
        tokio::time::timeout(PATIENCE, look).await.map_or_else(|_| Vec::new(), Result::unwrap_or_default)
    });
    join_all(looks)
        .await
        .into_iter()
        .flatten()
        .filter(|profile| profile.cluster == cluster.name && cluster.node(&profile.node).is_none())
        .collect()
}

/// Reads every node profile on a host; one that cannot be read is passed over, since it names no directory.
///
/// # Errors
/// When the directory of profiles cannot be listed.
pub async fn profiles(host: &dyn Host, places: &Places) -> Result<Vec<Profile>> {
    profiles_named(host, places, "").await
}

async fn profiles_named(host: &dyn Host, places: &Places, prefix: &str) -> Result<Vec<Profile>> {
    let names = host
        .list(&places.nodes())
        .await
        .map_err(|error| Error::new(ErrorKind::NotFound, "could not list the node profiles").source(error))?
        .unwrap_or_default();
    let read = join_all(names.iter().filter(|name| name.starts_with(prefix)).map(|name| async move {
        let bytes = host.read(&places.node(name).profile).await.ok().flatten()?;
        claim::read::<Profile>(&bytes).ok()
    }))
    .await;
    Ok(read.into_iter().flatten().collect())
}
