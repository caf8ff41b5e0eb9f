//! Logging in, and sending one statement at a time with a deadline.
//!
//! Every login and every statement passes the [`Gate`]. No pool of connections, no retry: who calls knows whether a second
//! try is safe, and [`DbError`] tells it the one fact that decides that: not sent, refused, or unknown.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Row, SimpleColumn, SimpleQueryMessage};

use super::tls::{self, Identity, Place, Trouble};
use crate::error::{Error, ErrorKind};
use crate::gate::{Blocked, Gate, Tunnel};
use crate::secret::Secret;
use crate::tls::Certificate;
use crate::units::human_duration;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The Unix socket `DIRECTORY/.s.PGSQL.PORT`.
    Socket { directory: PathBuf, port: u16 },
    /// A TCP address; a host name is resolved at each login.
    Tcp { host: String, port: u16 },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket { directory, port } => write!(f, "{}/.s.PGSQL.{port}", directory.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// What is set in a session from its first moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// pgherd's own work on a node: `search_path` pinned to `pg_catalog` (an operator or function that a user made is never
    /// found first), a statement deadline on the server's side too, and no waiting for a synchronous standby at commit, since
    /// a new primary may still name dead ones and the first catalog change would hang.
    Tool,
    /// Like [`Session::Tool`], and the server logs and shows nothing of the statements: for password verifiers.
    Quiet,
    /// Nothing set: what PgBouncer lets through, and what a commit needs that has to wait for the synchronous standbys.
    Plain,
}

/// One login.
#[derive(Debug, Clone)]
pub struct Login {
    /// How messages call the server: `inventory-a`.
    pub server: String,
    pub endpoint: Endpoint,
    pub user: String,
    pub database: String,
    pub password: Option<Secret>,
    pub session: Session,
    /// The way to the machine that `endpoint` is meant on; `None` for this one.
    pub tunnel: Option<Arc<dyn Tunnel>>,
    /// Whom a server behind a TCP endpoint must prove to be; `None`: what is said is not encrypted.
    pub tls: Option<Identity>,
}

/// Makes connections; holds what they all share.
#[derive(Debug, Clone)]
pub struct Connector {
    gate: Arc<dyn Gate>,
    connect_timeout: Duration,
    statement_timeout: Duration,
}

/// How long after the server's own deadline an answer may still come in before we stop listening.
const GRACE: Duration = Duration::from_secs(2);

impl Connector {
    /// Makes connections within 3 s, whose statements may take 30 s.
    pub fn new(gate: Arc<dyn Gate>) -> Self {
        Self { gate, connect_timeout: Duration::from_secs(3), statement_timeout: Duration::from_secs(30) }
    }

    /// Replaces both deadlines: for the whole login, and for each statement.
    #[must_use]
    pub fn timeouts(mut self, connect: Duration, statement: Duration) -> Self {
        self.connect_timeout = connect;
        self.statement_timeout = statement;
        self
    }

    /// Logs in.
    ///
    /// # Errors
    /// [`DbError`]; a login has no effect on the server, so that each of them may be tried again.
    pub async fn connect(&self, login: &Login) -> Result<Conn, DbError> {
        let call = format!("{}: connect", login.server);
        self.gate.before(&call).await.map_err(|blocked| blocked_error(&login.server, "connect", blocked))?;
        let attempt = async {
            let (socket, port) = through(login).await?;
            let mut config = self.config(login, socket.as_deref(), port);
            if let Some(identity) = &login.tls {
                let stream = encrypted(login, identity, socket.as_deref(), port).await?;
                // The stream is encrypted already; asked again inside of it, a server would not know what is meant.
                config.ssl_mode(SslMode::Disable);
                let made = config.connect_raw(stream, NoTls).await;
                made.map(|(client, connection)| (client, spawn(connection)))
            } else {
                config.connect(NoTls).await.map(|(client, connection)| (client, spawn(connection)))
            }
            .map_err(|error| login_error(login, &error))
        };
        let (client, task) = match tokio::time::timeout(self.connect_timeout, attempt).await {
            Ok(Ok(pair)) => pair,
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                return Err(DbError::Timeout {
                    server: login.server.clone(),
                    what: "connect".to_owned(),
                    after: self.connect_timeout,
                });
            }
        };
        let conn = Conn {
            client,
            task,
            gate: Arc::clone(&self.gate),
            server: login.server.clone(),
            database: login.database.clone(),
            given_up: AtomicBool::new(false),
            deadline: AtomicU64::new(millis(self.statement_timeout)),
            session: login.session,
        };
        self.gate.after(&call).await.map_err(|blocked| blocked_error(&login.server, "connect", blocked))?;
        Ok(conn)
    }

    /// Has a server show the certificate that it proves itself by, and logs nobody in.
    ///
    /// # Errors
    /// [`DbError::NotProved`] if it proves to be somebody else, and as [`Connector::connect`].
    pub async fn shown_certificate(
        &self,
        login: &Login,
        identity: &Identity,
    ) -> Result<Certificate, DbError> {
        let call = format!("{}: look at its certificate", login.server);
        let what = "look at its certificate";
        self.gate.before(&call).await.map_err(|blocked| blocked_error(&login.server, what, blocked))?;
        let attempt = async {
            let (socket, port) = through(login).await?;
            let stream = encrypted(login, identity, socket.as_deref(), port).await?;
            tls::certificate_of(&stream).map_err(|trouble| trouble_error(login, trouble))
        };
        let shown = tokio::time::timeout(self.connect_timeout, attempt).await.unwrap_or_else(|_| {
            Err(DbError::Timeout {
                server: login.server.clone(),
                what: what.to_owned(),
                after: self.connect_timeout,
            })
        });
        self.gate.after(&call).await.map_err(|blocked| blocked_error(&login.server, what, blocked))?;
        shown
    }

    fn config(&self, login: &Login, socket: Option<&Path>, port: u16) -> Config {
        let mut config = Config::new();
        config
            .user(&login.user)
            .dbname(&login.database)
            .application_name("pgherd")
            .connect_timeout(self.connect_timeout)
            // A peer that vanished without a word must not hold us for the kernel's default of two hours.
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(10));
        match (socket, &login.endpoint) {
            (Some(directory), _) => config.host_path(directory),
            (None, Endpoint::Socket { directory, .. }) => config.host_path(directory),
            (None, Endpoint::Tcp { host, .. }) => config.host(host),
        };
        config.port(port);
        if let Some(password) = &login.password {
            config.password(password.reveal());
        }
        let tool = format!(
            "-c search_path=pg_catalog,pg_temp -c synchronous_commit=local -c client_min_messages=warning -c statement_timeout={}",
            millis(self.statement_timeout)
        );
        match login.session {
            Session::Plain => &mut config,
            Session::Tool => config.options(tool),
            Session::Quiet => config.options(format!("{tool} {QUIET}")),
        };
        config
    }
}

/// Connects to where the login goes and has the server prove who it is.
async fn encrypted(
    login: &Login,
    identity: &Identity,
    socket: Option<&Path>,
    port: u16,
) -> Result<tls::Encrypted, DbError> {
    let place = match (socket, &login.endpoint) {
        (Some(directory), _) => Place::Socket(directory),
        (None, Endpoint::Socket { directory, .. }) => Place::Socket(directory),
        (None, Endpoint::Tcp { host, .. }) => Place::Tcp(host),
    };
    tls::handshake(place, port, identity).await.map_err(|trouble| trouble_error(login, trouble))
}

fn trouble_error(login: &Login, trouble: Trouble) -> DbError {
    let (server, at) = (login.server.clone(), login.endpoint.to_string());
    let error = match trouble {
        Trouble::NotProved(why) => return DbError::NotProved { server, at, why },
        Trouble::Wire(error) => error,
    };
    let why = error.to_string();
    let refused = matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
    // The near end of a tunnel always accepts; that nobody is at the far end shows as an end before the first answer.
    if refused || (login.tunnel.is_some() && was_ended(error.kind())) {
        DbError::NotListening { server, at, why }
    } else {
        DbError::Unreachable { server, at, why }
    }
}

fn was_ended(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

fn spawn<S, T>(connection: tokio_postgres::Connection<S, T>) -> JoinHandle<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended");
        }
    })
}

/// Returns the directory of the socket that leads to where the login goes, if it is not there itself, and the port.
async fn through(login: &Login) -> Result<(Option<PathBuf>, u16), DbError> {
    let (Endpoint::Socket { port, .. } | Endpoint::Tcp { port, .. }) = login.endpoint;
    let Some(tunnel) = &login.tunnel else { return Ok((None, port)) };
    let way = match &login.endpoint {
        Endpoint::Socket { directory, port } => tunnel.to_socket(directory, *port).await,
        Endpoint::Tcp { port, .. } => tunnel.to_port(*port).await,
    };
    way.map(|directory| (Some(directory), port)).map_err(|why| DbError::Unreachable {
        server: login.server.clone(),
        at: login.endpoint.to_string(),
        why,
    })
}

// A statement shows in the log through log_statement, the three ways of log_min_duration and, if it fails, log_min_error_statement;
// besides in pg_stat_activity, pg_stat_statements and pgaudit. The last two are placeholders where they are not loaded.
const QUIET: &str = "-c log_statement=none -c log_duration=off -c log_min_duration_statement=-1 -c log_min_duration_sample=-1 \
     -c log_transaction_sample_rate=0 -c log_min_error_statement=panic -c track_activities=off \
     -c pg_stat_statements.track_utility=off -c pgaudit.log=none";

/// A session on one server. Ends when it is dropped.
pub struct Conn {
    client: Client,
    task: JoinHandle<()>,
    gate: Arc<dyn Gate>,
    server: String,
    database: String,
    /// A statement stayed without an answer: the next answer could be its.
    given_up: AtomicBool,
    /// In milliseconds.
    deadline: AtomicU64,
    session: Session,
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn")
            .field("server", &self.server)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

/// A value for `$n`, with its type, so that a statement needs no preparation and one round trip.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

impl Conn {
    /// Returns how messages call the server.
    pub fn server(&self) -> &str {
        &self.server
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    /// Gives every later statement another deadline, here and on the server.
    ///
    /// # Errors
    /// [`DbError`] as for any statement.
    pub async fn set_deadline(&self, deadline: Duration) -> Result<(), DbError> {
        if self.session != Session::Plain {
            self.batch("set a deadline", &format!("SET statement_timeout = {}", millis(deadline))).await?;
        }
        self.deadline.store(millis(deadline), Ordering::Relaxed);
        Ok(())
    }

    /// Sends statements that take no parameters and return nothing. Several of them are one transaction.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn batch(&self, what: &str, sql: &str) -> Result<(), DbError> {
        self.within(what, self.client.batch_execute(sql)).await
    }

    /// Sends statements by the simple protocol, the only one that the PgBouncer console speaks, and returns the rows as text.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn simple(
        &self,
        what: &str,
        sql: &str,
    ) -> Result<Vec<BTreeMap<String, Option<String>>>, DbError> {
        let messages = self.within(what, self.client.simple_query(sql)).await?;
        Ok(messages.into_iter().filter_map(|message| text_row(&message)).collect())
    }

    pub(super) async fn query(
        &self,
        what: &str,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, DbError> {
        self.within(what, self.client.query_typed(sql, params)).await
    }

    /// Has rows streamed out of the server; `take` is given each piece. It has no deadline but the server's own.
    pub(super) async fn copy_out(
        &self,
        what: &str,
        sql: &str,
        mut take: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<Result<(), Error>, DbError> {
        let stream = self.within(what, self.client.copy_out(sql)).await?;
        let mut stream = std::pin::pin!(stream);
        while let Some(piece) = stream.next().await {
            let piece =
                piece.map_err(|error| self.statement_error(what, self.statement_deadline(), &error))?;
            if let Err(error) = take(&piece) {
                // What is left of the rows would be taken for the next answer.
                self.given_up.store(true, Ordering::Relaxed);
                self.task.abort();
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    /// Streams rows into the server; `give` returns pieces until there are no more. Returns how many rows the server has taken.
    pub(super) async fn copy_in(
        &self,
        what: &str,
        sql: &str,
        mut give: impl FnMut() -> Result<Option<Vec<u8>>, Error>,
    ) -> Result<Result<u64, Error>, DbError> {
        let sink = self.within(what, self.client.copy_in::<_, io::Cursor<Vec<u8>>>(sql)).await?;
        let mut sink = std::pin::pin!(sink);
        let failed =
            |error: &tokio_postgres::Error| self.statement_error(what, self.statement_deadline(), error);
        loop {
            match give() {
                // A sink that is dropped before its end has the server refuse what it was given.
                Err(error) => return Ok(Err(error)),
                Ok(None) => break,
                Ok(Some(piece)) => sink.send(io::Cursor::new(piece)).await.map_err(|error| failed(&error))?,
            }
        }
        sink.finish().await.map(Ok).map_err(|error| failed(&error))
    }

    fn statement_deadline(&self) -> Duration {
        Duration::from_millis(self.deadline.load(Ordering::Relaxed))
    }

    pub(super) async fn query_one(
        &self,
        what: &str,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<Row, DbError> {
        let mut rows = self.query(what, sql, params).await?;
        match (rows.pop(), rows.len()) {
            (Some(row), 0) => Ok(row),
            (_, more) => Err(self.unexpected(what, format!("expected one row, got {more}"))),
        }
    }

    pub(super) async fn execute(&self, what: &str, sql: &str, params: &[Param<'_>]) -> Result<u64, DbError> {
        self.within(what, self.client.execute_typed(sql, params)).await
    }

    /// Reads a column of a row.
    pub(super) fn field<'r, T: FromSql<'r>>(
        &self,
        what: &str,
        row: &'r Row,
        column: &str,
    ) -> Result<T, DbError> {
        row.try_get(column)
            .map_err(|error| self.unexpected(what, format!("column {column}: {}", chain(&error))))
    }

    pub(super) fn unexpected(&self, what: &str, why: String) -> DbError {
        DbError::Unexpected { server: self.server.clone(), what: what.to_owned(), why }
    }

    async fn within<T>(
        &self,
        what: &str,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, DbError> {
        let call = format!("{}: sql {what}", self.server);
        self.gate.before(&call).await.map_err(|blocked| blocked_error(&self.server, what, blocked))?;
        if self.given_up.load(Ordering::Relaxed) || self.client.is_closed() {
            return Err(DbError::NotSent {
                server: self.server.clone(),
                what: what.to_owned(),
                why: "the connection had ended before".to_owned(),
            });
        }
        let deadline = Duration::from_millis(self.deadline.load(Ordering::Relaxed));
        let result = match tokio::time::timeout(deadline + GRACE, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.statement_error(what, deadline, &error)),
            Err(_) => {
                self.given_up.store(true, Ordering::Relaxed);
                self.task.abort();
                let why = format!("no answer within {}", human_duration(deadline + GRACE));
                Err(DbError::Lost { server: self.server.clone(), what: what.to_owned(), why })
            }
        };
        self.gate.after(&call).await.map_err(|blocked| blocked_error(&self.server, what, blocked))?;
        result
    }

    fn statement_error(&self, what: &str, deadline: Duration, error: &tokio_postgres::Error) -> DbError {
        let (server, what) = (self.server.clone(), what.to_owned());
        let Some(db) = error.as_db_error() else {
            let broken = error.is_closed() || io_source(error).is_some();
            let why = chain(error);
            return if broken {
                DbError::Lost { server, what, why }
            } else {
                DbError::Unexpected { server, what, why }
            };
        };
        let message = db.message().to_owned();
        match db.code() {
            state if *state == SqlState::QUERY_CANCELED => DbError::Timeout { server, what, after: deadline },
            state if *state == SqlState::ADMIN_SHUTDOWN || *state == SqlState::CRASH_SHUTDOWN => {
                DbError::ShuttingDown { server, what, message }
            }
            _ => DbError::Sql { server, what, refusal: Refusal::of(db) },
        }
    }
}

/// A server that is not in recovery. Whatever writes takes this.
#[derive(Debug)]
pub struct PrimaryConn(Conn);

/// A server in recovery.
#[derive(Debug)]
pub struct StandbyConn(Conn);

/// A server, by what it said of itself.
#[derive(Debug)]
pub enum NodeConn {
    Primary(PrimaryConn),
    Standby(StandbyConn),
}

impl Deref for PrimaryConn {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        &self.0
    }
}

impl Deref for StandbyConn {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        &self.0
    }
}

impl Deref for NodeConn {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        match self {
            Self::Primary(conn) => conn,
            Self::Standby(conn) => conn,
        }
    }
}

/// Asks a server whether it is in recovery.
///
/// # Errors
/// [`DbError`] as for any statement.
pub async fn classify(conn: Conn) -> Result<NodeConn, DbError> {
    let what = "ask whether it is in recovery";
    let row = conn.query_one(what, "SELECT pg_is_in_recovery() AS in_recovery", &[]).await?;
    let in_recovery: bool = conn.field(what, &row, "in_recovery")?;
    Ok(if in_recovery { NodeConn::Standby(StandbyConn(conn)) } else { NodeConn::Primary(PrimaryConn(conn)) })
}

/// Tells whether anything accepts connections on a TCP port, a PostgreSQL server or not.
pub async fn listens(host: &str, port: u16) -> bool {
    let attempt = tokio::net::TcpStream::connect((host, port));
    matches!(tokio::time::timeout(GRACE, attempt).await, Ok(Ok(_)))
}

/// How a login or a statement ended without success. Never holds a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DbError {
    /// No socket file, or the connection was refused. Says nothing about whether the server's data is in use.
    #[error("could not connect to {server}: nothing listens at {at}")]
    NotListening { server: String, at: String, why: String },
    /// The way to the server failed before a login was answered.
    #[error("could not connect to {server} at {at}: {why}")]
    Unreachable { server: String, at: String, why: String },
    /// What answers does not prove to be the server, or does not speak TLS.
    #[error("{server} at {at} does not prove who it is: {why}")]
    NotProved { server: String, at: String, why: String },
    /// 57P03: it starts up, recovers from a crash or shuts down; PostgreSQL has one SQLSTATE for them. It is not gone.
    #[error("{server} does not accept connections now: {message}")]
    Starting { server: String, message: String },
    /// 57P01 or 57P02 ended the session during a statement, whose outcome is unknown: a commit that only waited for a
    /// synchronous standby has happened.
    #[error("{server} ended the session during {what}: {message}")]
    ShuttingDown { server: String, what: String, message: String },
    /// 28P01 or 28000: wrong password, no such role, role without LOGIN, no line in pg_hba.conf.
    #[error("{server} refused the login of {user} to database {database}: {why}")]
    Authentication { server: String, user: String, database: String, why: String },
    /// 3D000.
    #[error("{server} has no database {database}")]
    NoDatabase { server: String, database: String },
    /// The login did not end in time, or the server cancelled the statement (57014): it had no effect.
    #[error("{what} on {server} took longer than {}", human_duration(*after))]
    Timeout { server: String, what: String, after: Duration },
    /// The connection broke or fell silent after the statement was sent: its outcome is unknown.
    #[error("the outcome of {what} on {server} is unknown: {why}")]
    Lost { server: String, what: String, why: String },
    /// The statement was not sent.
    #[error("{what} on {server} was not sent: {why}")]
    NotSent { server: String, what: String, why: String },
    /// The server refused the statement.
    #[error("could not {what} on {server}: {}", refusal.message)]
    Sql { server: String, what: String, refusal: Box<Refusal> },
    /// The answer was not what the statement can give.
    #[error("{server} gave an unexpected answer to {what}: {why}")]
    Unexpected { server: String, what: String, why: String },
}

/// Why a server refused a statement, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// SQLSTATE.
    pub state: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl Refusal {
    fn of(db: &tokio_postgres::error::DbError) -> Box<Self> {
        Box::new(Self {
            state: db.code().code().to_owned(),
            message: db.message().to_owned(),
            detail: db.detail().map(str::to_owned),
            hint: db.hint().map(str::to_owned),
        })
    }
}

impl DbError {
    /// Tells whether the statement may have had its effect: probe before anything is done again.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::ShuttingDown { .. })
    }

    /// Tells whether the server refused the statement with this SQLSTATE, such as `42710`.
    pub fn is_state(&self, wanted: &str) -> bool {
        matches!(self, Self::Sql { refusal, .. } if refusal.state == wanted)
    }
}

impl From<DbError> for Error {
    fn from(error: DbError) -> Self {
        let kind = match &error {
            DbError::NotListening { .. }
            | DbError::Unreachable { .. }
            | DbError::Starting { .. }
            | DbError::NoDatabase { .. } => ErrorKind::NotFound,
            DbError::ShuttingDown { .. }
            | DbError::NotProved { .. }
            | DbError::Authentication { .. }
            | DbError::Timeout { .. }
            | DbError::Lost { .. }
            | DbError::NotSent { .. }
            | DbError::Sql { .. }
            | DbError::Unexpected { .. } => ErrorKind::Failed,
        };
        let said = Self::new(kind, error.to_string());
        match error {
            DbError::NotListening { why, .. } => said.detail(format!("The operating system says: {why}.")),
            DbError::NotProved { .. } => said
                .detail("Nothing was sent to it.")
                .hint("See what is declared under \"tls\" and what it shows: pgherd status"),
            DbError::Starting { .. } => said.hint("It is alive: wait until it accepts connections."),
            DbError::Lost { .. } | DbError::ShuttingDown { .. } => {
                said.hint("Look at what is there before the same is done again.")
            }
            DbError::Sql { refusal, .. } => {
                let state = refusal.state;
                let said = said.detail(match refusal.detail {
                    Some(detail) => format!("{detail} (SQLSTATE {state})"),
                    None => format!("SQLSTATE {state}."),
                });
                match refusal.hint {
                    Some(hint) => said.hint(hint),
                    None => said,
                }
            }
            DbError::Unreachable { .. }
            | DbError::Authentication { .. }
            | DbError::NoDatabase { .. }
            | DbError::Timeout { .. }
            | DbError::NotSent { .. }
            | DbError::Unexpected { .. } => said,
        }
    }
}

fn blocked_error(server: &str, what: &str, blocked: Blocked) -> DbError {
    let (server, what, why) = (server.to_owned(), what.to_owned(), blocked.to_string());
    match blocked {
        Blocked::Before(_) => DbError::NotSent { server, what, why },
        Blocked::After(_) => DbError::Lost { server, what, why },
    }
}

fn login_error(login: &Login, error: &tokio_postgres::Error) -> DbError {
    let (server, at) = (login.server.clone(), login.endpoint.to_string());
    if let Some(db) = error.as_db_error() {
        let message = db.message().to_owned();
        return match db.code() {
            state if *state == SqlState::CANNOT_CONNECT_NOW => DbError::Starting { server, message },
            state
                if *state == SqlState::INVALID_PASSWORD
                    || *state == SqlState::INVALID_AUTHORIZATION_SPECIFICATION =>
            {
                DbError::Authentication {
                    server,
                    user: login.user.clone(),
                    database: login.database.clone(),
                    why: message,
                }
            }
            state if *state == SqlState::INVALID_CATALOG_NAME => {
                DbError::NoDatabase { server, database: login.database.clone() }
            }
            _ => DbError::Sql { server, what: "connect".to_owned(), refusal: Refusal::of(db) },
        };
    }
    match io_source(error).map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
            DbError::NotListening { server, at, why: chain(error) }
        }
        // The near end of a tunnel always accepts; that nobody is at the far end shows as an end before the first answer.
        _ if login.tunnel.is_some() && ended_at_once(error) => {
            let why = "the connection was closed at once at the other end of the tunnel".to_owned();
            DbError::NotListening { server, at, why }
        }
        Some(_) => DbError::Unreachable { server, at, why: chain(error) },
        // What is neither the server's error nor the system's comes from our own side of the password exchange: none was given
        // where one was asked for, or the server could not prove that it knows the verifier.
        None if error.is_closed() || std::error::Error::source(error).is_none() => {
            DbError::Unreachable { server, at, why: chain(error) }
        }
        None => DbError::Authentication {
            server,
            user: login.user.clone(),
            database: login.database.clone(),
            why: chain(error),
        },
    }
}

fn ended_at_once(error: &tokio_postgres::Error) -> bool {
    error.is_closed() || io_source(error).is_some_and(|error| was_ended(error.kind()))
}

fn io_source(error: &tokio_postgres::Error) -> Option<&io::Error> {
    std::error::Error::source(error).and_then(|source| source.downcast_ref())
}

/// Joins an error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

fn text_row(message: &SimpleQueryMessage) -> Option<BTreeMap<String, Option<String>>> {
    let SimpleQueryMessage::Row(row) = message else {
        return None;
    };
    let text = |(index, column): (usize, &SimpleColumn)| {
        (column.name().to_owned(), row.get(index).map(str::to_owned))
    };
    Some(row.columns().iter().enumerate().map(text).collect())
}

fn millis(span: Duration) -> u64 {
    // PostgreSQL's statement_timeout is an int of milliseconds.
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).min(i32::MAX as u64)
}
