//! TLS to a server, before anything is said to it.
//!
//! tokio-postgres knows no more than `sslmode=require`, which believes every certificate; here each server proves who it is, as with
//! libpq's verify-full.

use std::io;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::connect::{DbError, Endpoint, Login};
use crate::tls::{Certificate, Trust, Untrusted};

/// Whom a server must prove to be.
#[derive(Debug, Clone)]
pub struct Identity {
    pub trust: Trust,
    /// The address or the name that its certificate must be for.
    pub name: String,
}

/// `SSLRequest`: a length of 8 and the code 1234.5679 (PostgreSQL docs, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// What bytes come and go on: a TCP connection or a Unix socket.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

pub(super) type Encrypted = TlsStream<Box<dyn Wire>>;

/// Connects and has the server prove who it is; `socket` is the near end of a tunnel.
pub(super) async fn handshake(
    login: &Login,
    identity: &Identity,
    socket: Option<&Path>,
    port: u16,
) -> Result<Encrypted, DbError> {
    let wire = open(login, socket, port).await;
    let mut wire = wire.map_err(|error| could_not_reach(login, &error))?;
    let mut answer = [0];
    let asked = async {
        wire.write_all(&SSL_REQUEST).await?;
        wire.flush().await?;
        wire.read_exact(&mut answer).await
    };
    asked.await.map_err(|error| could_not_reach(login, &error))?;
    if answer != *b"S" {
        return Err(not_proved(login, "it does not speak TLS".to_owned()));
    }
    let name =
        identity.name.clone().try_into().map_err(|_| {
            not_proved(login, format!("{:?} is neither an address nor a name", identity.name))
        })?;
    let connector = TlsConnector::from(identity.trust.client());
    connector.connect(name, wire).await.map_err(|error| {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls) => not_proved(login, Untrusted::from(rustls).to_string()),
            None => could_not_reach(login, &error),
        }
    })
}

/// Returns the certificate that the server has proved itself by.
pub(super) fn certificate_of(login: &Login, stream: &Encrypted) -> Result<Certificate, DbError> {
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| not_proved(login, "it shows no certificate".to_owned()))?;
    Certificate::from_wire(leaf).map_err(|why| not_proved(login, why))
}

async fn open(login: &Login, socket: Option<&Path>, port: u16) -> io::Result<Box<dyn Wire>> {
    Ok(match (socket, &login.endpoint) {
        (Some(directory), _) => Box::new(UnixStream::connect(file(directory, port)).await?),
        (None, Endpoint::Socket { directory, .. }) => {
            Box::new(UnixStream::connect(file(directory, port)).await?)
        }
        (None, Endpoint::Tcp { host, .. }) => Box::new(TcpStream::connect((host.as_str(), port)).await?),
    })
}

fn file(directory: &Path, port: u16) -> std::path::PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

fn could_not_reach(login: &Login, error: &io::Error) -> DbError {
    let (server, at, why) = (login.server.clone(), login.endpoint.to_string(), error.to_string());
    // The near end of a tunnel always accepts; that nobody is at the far end shows as an end before the first answer.
    let refused = matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
    let ended = matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    );
    let nobody = refused || (ended && login.tunnel.is_some());
    if nobody { DbError::NotListening { server, at, why } } else { DbError::Unreachable { server, at, why } }
}

fn not_proved(login: &Login, why: String) -> DbError {
    DbError::NotProved { server: login.server.clone(), at: login.endpoint.to_string(), why }
}
