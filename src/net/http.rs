//! A small HTTP server: one short answer a connection, for probes and scrapes.
//!
//! Nobody can hold it up: a connection has a few seconds in all, and where there are too many the oldest one goes. Says nothing of its own
//! beyond what the protocol asks for; what a path means is the caller's business.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::error::{Error, ErrorKind, Result};

/// From the first byte of a request to the last one of its head.
const HEAD: Duration = Duration::from_secs(2);
/// From the beginning of a connection to its end.
const WHOLE: Duration = Duration::from_secs(10);
const CONNECTIONS: usize = 128;

/// What was asked for, by GET, HEAD or OPTIONS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub path: String,
    pub query: Option<String>,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub body: String,
}

/// Listens on an address.
///
/// # Errors
/// When it is taken or not this machine's.
pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Error::new(ErrorKind::NotFound, format!("could not listen on {address}"))
            .source(error)
            .hint("Name another address with --listen, or see who has it: ss -ltnp")
    })
}

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) {
    let answer = Arc::new(answer);
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                // Too many open files, or a client that went away before it was accepted: neither ends the server.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let task = tokio::spawn(tokio::time::timeout(WHOLE, connection(stream, Arc::clone(&answer))));
        open.push_back(task.abort_handle());
    }
}

async fn connection(stream: TcpStream, answer: Arc<impl Fn(&Asked) -> Answer + Send + Sync + 'static>) {
    let service = service_fn(move |request| {
        let response = respond(&request, &*answer);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(false).max_buf_size(16 << 10);
    // A client that went away, was too slow or spoke something else: hyper has answered it as far as it could be.
    protocol.serve_connection(TokioIo::new(stream), service).await.ok();
}

fn respond(request: &Request<Incoming>, answer: &impl Fn(&Asked) -> Answer) -> Response<Full<Bytes>> {
    let known = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    let told = if known {
        let uri = request.uri();
        answer(&Asked { path: uri.path().to_owned(), query: uri.query().map(str::to_owned) })
    } else {
        Answer { status: 405, content_type: TEXT, body: "only GET, HEAD and OPTIONS\n".to_owned() }
    };
    let mut response = Response::new(Full::from(told.body));
    *response.status_mut() = StatusCode::from_u16(told.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(told.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !known || request.method() == Method::OPTIONS {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    }
    response
}

/// Plain text.
pub const TEXT: &str = "text/plain; charset=utf-8";

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Starts a server that says which path was asked for, and returns where.
    async fn echo() -> SocketAddr {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, |asked| Answer {
            status: if asked.path == "/no" { 503 } else { 200 },
            content_type: TEXT,
            body: format!("{} {:?}\n", asked.path, asked.query),
        }));
        address
    }

    async fn ask(address: SocketAddr, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut told = Vec::new();
        stream.read_to_end(&mut told).await.unwrap();
        String::from_utf8(told).unwrap()
    }

    #[tokio::test]
    async fn each_method_of_a_probe_is_answered_with_the_same_status() {
        let address = echo().await;
        let get = ask(address, b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(
            get.starts_with("HTTP/1.1 200 OK\r\n") && get.ends_with("\r\n\r\n/a Some(\"b=c\")\n"),
            "{get}"
        );
        let head = ask(address, b"HEAD /no HTTP/1.0\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.0 503 ") && head.ends_with("\r\n\r\n"), "{head}");
        let options = ask(address, b"OPTIONS /a HTTP/1.0\r\n\r\n").await;
        assert!(
            options.starts_with("HTTP/1.0 200 ") && options.contains("allow: GET, HEAD, OPTIONS"),
            "{options}"
        );
        let post = ask(address, b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
        assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
    }

    #[tokio::test]
    async fn garbage_is_refused() {
        let address = echo().await;
        for garbage in
            [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..], b"GET\r\n\r\n", b"/ / /\r\n\r\n"]
        {
            let told = ask(address, garbage).await;
            assert!(told.starts_with("HTTP/1.1 400 "), "{garbage:?}: {told}");
        }
    }

    #[tokio::test]
    async fn silent_clients_hold_nobody_up() {
        let address = echo().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS + 20 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let told = ask(address, b"GET /a HTTP/1.0\r\n\r\n").await;
        assert!(told.starts_with("HTTP/1.0 200 "), "{told}");
        // The oldest had to go.
        let mut byte = [0];
        let read = tokio::time::timeout(Duration::from_secs(5), silent[0].read(&mut byte)).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
}
