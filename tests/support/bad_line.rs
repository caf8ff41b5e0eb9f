//! A line to an S3 server on which things go wrong: a proxy that passes each request on as it is, its `Host` with it, so that signatures hold,
//! and does to the ones that a rule names what the rule says.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What befalls a request.
#[derive(Debug, Clone, Copy)]
pub enum Evil {
    /// The server does nothing and answers so, with this status and code.
    Says(u16, &'static str),
    /// The connection is reset before the server sees anything.
    Resets,
    /// Nobody ever answers.
    Stalls,
    /// The server does it, and the connection is reset.
    LosesAnswer,
    /// The server does it, and 500 comes.
    DoesItAndFails,
    /// Half of what the answer holds comes, then the end.
    CutsBody,
    /// Half of what the answer holds comes, then nothing.
    StallsInBody,
    /// What the answer holds is shorter by a byte, and so says its length.
    SaysLess,
    /// What the answer holds is another one.
    Rewrites(fn(&str) -> String),
    /// So many bytes of a request are taken in a second.
    Takes(usize),
}

/// Tells of a request, by its line (`PUT /bucket/key?partNumber=1 HTTP/1.1`) and its number from 1, what befalls it.
type Rule = dyn Fn(&str, usize) -> Option<Evil> + Send + Sync;

#[derive(Clone)]
pub struct BadLine {
    port: u16,
    state: Arc<Mutex<State>>,
}

struct State {
    requests: usize,
    rule: Box<Rule>,
}

/// A request or an answer, as it came.
struct Message {
    head: String,
    body: Vec<u8>,
}

impl BadLine {
    /// Begins one to the server at `endpoint`, on which nothing goes wrong yet. It ends with the runtime.
    pub async fn to(endpoint: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { requests: 0, rule: Box::new(|_, _| None) }));
        let server = endpoint.strip_prefix("http://").unwrap().to_owned();
        let line = Self { port, state };
        let serving = line.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (line, server) = (serving.clone(), server.clone());
                tokio::spawn(async move { line.serve(client, &server).await });
            }
        });
        line
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Has another rule from now on, and counts from 1 again; returns how many requests there were.
    pub fn now(&self, rule: impl Fn(&str, usize) -> Option<Evil> + Send + Sync + 'static) -> usize {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.rule = Box::new(rule);
        std::mem::take(&mut state.requests)
    }

    /// Nothing goes wrong from now on.
    pub fn mend(&self) -> usize {
        self.now(|_, _| None)
    }

    fn evil(&self, head: &str) -> Option<Evil> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.requests += 1;
        (state.rule)(head.lines().next().unwrap_or_default(), state.requests)
    }

    async fn serve(&self, mut client: TcpStream, server: &str) -> Option<()> {
        loop {
            let head = head(&mut client).await?;
            let evil = self.evil(&head);
            if header(&head, "expect").is_some() {
                client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
            }
            let body = match evil {
                Some(Evil::Takes(a_second)) => slowly(&mut client, &head, a_second).await?,
                _ => body(&mut client, &head).await?,
            };
            let is_head = head.starts_with("HEAD ");
            let request = Message { head, body };
            match evil {
                Some(Evil::Says(status, code)) => {
                    client.write_all(&refusal(status, code, is_head)).await.ok()?
                }
                Some(Evil::Resets) => return reset(&client),
                Some(Evil::Stalls) => std::future::pending().await,
                Some(Evil::LosesAnswer) => {
                    pass_on(server, &request).await?;
                    return reset(&client);
                }
                Some(Evil::DoesItAndFails) => {
                    pass_on(server, &request).await?;
                    client.write_all(&refusal(500, "InternalError", is_head)).await.ok()?;
                }
                Some(evil) => answer_badly(&mut client, pass_on(server, &request).await?, evil).await?,
                None => pass_on(server, &request).await?.send(&mut client).await?,
            }
        }
    }
}

async fn answer_badly(client: &mut TcpStream, mut answer: Message, evil: Evil) -> Option<()> {
    let half = answer.body.len() / 2;
    match evil {
        Evil::CutsBody => {
            answer.body.truncate(half);
            answer.send(client).await?;
            return None;
        }
        Evil::StallsInBody => {
            answer.body.truncate(half);
            answer.send(client).await?;
            std::future::pending().await
        }
        Evil::SaysLess => {
            answer.body.pop();
            answer.say_length();
        }
        Evil::Rewrites(rewritten) => {
            answer.body = rewritten(&String::from_utf8_lossy(&answer.body)).into_bytes();
            answer.say_length();
        }
        Evil::Says(..)
        | Evil::Resets
        | Evil::Stalls
        | Evil::LosesAnswer
        | Evil::DoesItAndFails
        | Evil::Takes(_) => {}
    }
    answer.send(client).await
}

impl Message {
    async fn send(&self, to: &mut TcpStream) -> Option<()> {
        to.write_all(self.head.as_bytes()).await.ok()?;
        to.write_all(&self.body).await.ok()
    }

    fn say_length(&mut self) {
        let lines =
            self.head.trim_end().lines().filter(|line| !line.to_lowercase().starts_with("content-length"));
        let lines = lines.collect::<Vec<_>>().join("\r\n");
        self.head = format!("{lines}\r\nContent-Length: {}\r\n\r\n", self.body.len());
    }
}

/// Has the server do it, and returns what it answers. What came in chunks is one piece then, and says how long it is.
async fn pass_on(server: &str, request: &Message) -> Option<Message> {
    let mut stream = TcpStream::connect(server).await.ok()?;
    request.send(&mut stream).await?;
    let mut answered = head(&mut stream).await?;
    while answered.starts_with("HTTP/1.1 100") {
        answered = head(&mut stream).await?;
    }
    let has_body = !request.head.starts_with("HEAD ") && !answered.starts_with("HTTP/1.1 204");
    if !has_body {
        return Some(Message { head: answered, body: Vec::new() });
    }
    if header(&answered, "transfer-encoding").is_none() {
        let body = body(&mut stream, &answered).await?;
        return Some(Message { head: answered, body });
    }
    let body = chunks(&mut stream).await?;
    let lines =
        answered.trim_end().lines().filter(|line| !line.to_lowercase().starts_with("transfer-encoding"));
    let mut whole = Message { head: lines.collect::<Vec<_>>().join("\r\n"), body };
    whole.say_length();
    Some(whole)
}

/// Reads up to the empty line; `None` at the end of the connection.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

fn length(head: &str) -> usize {
    header(head, "content-length").map_or(0, |length| length.parse().unwrap())
}

async fn body(stream: &mut TcpStream, head: &str) -> Option<Vec<u8>> {
    let mut body = vec![0; length(head)];
    stream.read_exact(&mut body).await.ok()?;
    Some(body)
}

async fn slowly(stream: &mut TcpStream, head: &str, a_second: usize) -> Option<Vec<u8>> {
    let mut body = vec![0; length(head)];
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    for piece in body.chunks_mut((a_second / 10).max(1)) {
        ticks.tick().await;
        stream.read_exact(piece).await.ok()?;
    }
    Some(body)
}

async fn chunks(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(stream.read_u8().await.ok()?);
        }
        let size = usize::from_str_radix(std::str::from_utf8(&line).ok()?.trim(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).await.ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(&chunk[..size]);
    }
}

fn refusal(status: u16, code: &str, is_head: bool) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>as told.</Message></Error>"
    );
    let head = format!(
        "HTTP/1.1 {status} So\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    if is_head { head.into_bytes() } else { (head + &body).into_bytes() }
}

/// Closes in a way that the other side takes for a reset; always `None`.
fn reset(client: &TcpStream) -> Option<()> {
    client.set_zero_linger().ok()?;
    None
}
