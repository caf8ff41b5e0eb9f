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

use crate::tls::{Certificate, Trust, Untrusted};

/// Whom a server must prove to be.
#[derive(Debug, Clone)]
pub struct Identity {
    pub trust: Trust,
    /// The address or the name that its certificate must be for.
    pub name: String,
}

/// Where a server is found.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// A directory that holds its socket.
    Socket(&'a Path),
    Tcp(&'a str),
}

/// Why nothing can be said to a server.
#[derive(Debug)]
pub(super) enum Trouble {
    Wire(io::Error),
    NotProved(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Wire(error)
    }
}

/// `SSLRequest`: a length of 8 and the code 1234.5679 (PostgreSQL docs, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// What bytes come and go on: a TCP connection or a Unix socket.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

pub(super) type Encrypted = TlsStream<Box<dyn Wire>>;

/// Connects and has the server prove who it is.
pub(super) async fn handshake(
    place: Place<'_>,
    port: u16,
    identity: &Identity,
) -> Result<Encrypted, Trouble> {
    let mut wire: Box<dyn Wire> = match place {
        Place::Socket(directory) => {
            Box::new(UnixStream::connect(directory.join(format!(".s.PGSQL.{port}"))).await?)
        }
        Place::Tcp(host) => Box::new(TcpStream::connect((host, port)).await?),
    };
    let mut answer = [0];
    wire.write_all(&SSL_REQUEST).await?;
    wire.flush().await?;
    wire.read_exact(&mut answer).await?;
    if answer != *b"S" {
        return Err(Trouble::NotProved("it does not speak TLS".to_owned()));
    }
    let name =
        identity.name.clone().try_into().map_err(|_| {
            Trouble::NotProved(format!("{:?} is neither an address nor a name", identity.name))
        })?;
    let connector = TlsConnector::from(identity.trust.client());
    connector.connect(name, wire).await.map_err(|error| {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls) => Trouble::NotProved(Untrusted::from(rustls).to_string()),
            None => Trouble::Wire(error),
        }
    })
}

/// Returns the certificate that the server has proved itself by.
pub(super) fn certificate_of(stream: &Encrypted) -> Result<Certificate, Trouble> {
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| Trouble::NotProved("it shows no certificate".to_owned()))?;
    Certificate::from_wire(leaf).map_err(Trouble::NotProved)
}
