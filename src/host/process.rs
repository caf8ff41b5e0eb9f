//! One child process from its start to its end.
//!
//! Knows no host, no user and no file: it is handed a prepared command. A child runs in a process group of its own, so that the
//! terminal's ^C reaches only pgherd, which then decides, and so that a kill reaches what the child itself started. A daemon
//! that left the group (`pg_ctl start` and `pgbouncer -d` call setsid) outlives both.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStdin, Command};
use tokio::time::timeout;

use super::{BEAT, LineSink, Stdin};

/// How long output is still read after the program ended while somebody else holds its pipes (a daemon that it started).
const DRAIN: Duration = Duration::from_millis(250);
/// How long a killed program may take to vanish before nobody waits for it any more.
const REAP: Duration = Duration::from_secs(5);
/// How much is kept of standard error, and of standard output that was handed over line by line: its end.
const KEPT: usize = 64 * 1024;

/// How a child ended.
pub(super) enum End {
    NotStarted(io::Error),
    /// `status` is 128 + signal where a signal ended it.
    Exited {
        status: i32,
        stdout: Vec<u8>,
        stderr: String,
    },
    /// It was killed after its time, or the operating system lost it.
    Lost(String),
}

/// What a child finds on its standard input.
#[derive(Debug, Clone, Copy)]
pub(super) enum Input<'a> {
    Nothing,
    Bytes(&'a [u8]),
    /// These bytes, if any, and then an empty line every [`BEAT`]: who reads them learns when nobody waits any more.
    Beats(&'a [u8]),
}

impl<'a> From<&'a Stdin> for Input<'a> {
    fn from(stdin: &'a Stdin) -> Self {
        match stdin {
            Stdin::Nothing => Self::Nothing,
            Stdin::Bytes(bytes) => Self::Bytes(bytes),
            Stdin::Secret(secret) => Self::Bytes(secret.reveal().as_bytes()),
            Stdin::Line(bytes) => Self::Beats(bytes),
        }
    }
}

/// Runs `command` to its end or for at most `limit`, feeding it `stdin`.
///
/// If the returned future is dropped, the child and its process group are killed; if pgherd itself is killed, they are not.
pub(super) async fn run(
    mut command: Command,
    stdin: Input<'_>,
    limit: Duration,
    lines: Option<&LineSink>,
) -> End {
    command
        .stdin(if matches!(stdin, Input::Nothing) { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return End::NotStarted(error),
    };
    // Declared after the child, so dropped before it: the group is killed while the child's number cannot be given away yet.
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));

    // Who takes the lines may do so for days.
    let mut stdout = Collected::new(false, if lines.is_some() { KEPT } else { usize::MAX }, lines);
    let mut stderr = Collected::new(true, KEPT, lines);
    let ended = {
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let pump = async {
            let fed = feed(input, stdin);
            tokio::pin!(fed);
            let printed = async { tokio::join!(stdout.fill(output), stderr.fill(errors)) };
            tokio::pin!(printed);
            tokio::select! {
                // Beats have no end of their own.
                _ = &mut printed => {}
                () = &mut fed => {
                    printed.await;
                }
            }
        };
        let to_the_end = async {
            tokio::pin!(pump);
            tokio::select! {
                () = &mut pump => child.wait().await,
                status = child.wait() => {
                    timeout(DRAIN, &mut pump).await.ok();
                    status
                }
            }
        };
        timeout(limit, to_the_end).await
    };
    match ended {
        Ok(Ok(status)) => {
            group.0 = None;
            let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            End::Exited {
                status,
                stdout: stdout.finish(),
                stderr: String::from_utf8_lossy(&stderr.finish()).into_owned(),
            }
        }
        Ok(Err(error)) => End::Lost(error.to_string()),
        Err(_) => {
            group.kill();
            timeout(REAP, child.wait()).await.ok();
            let mut why =
                format!("it did not end within {} and was killed", crate::units::human_duration(limit));
            let said = String::from_utf8_lossy(&stderr.finish()).trim().to_owned();
            if let Some(last) = said.lines().last() {
                why.push_str(&format!("; its last message: {last}"));
            }
            End::Lost(why)
        }
    }
}

/// Gives a child what it reads. One that does not want it closes the pipe; its status says whether that is an error.
async fn feed(pipe: Option<ChildStdin>, stdin: Input<'_>) {
    let Some(mut pipe) = pipe else { return };
    match stdin {
        Input::Nothing => {}
        Input::Bytes(bytes) => {
            pipe.write_all(bytes).await.ok();
        }
        Input::Beats(bytes) => {
            let mut written = pipe.write_all(bytes).await;
            while written.is_ok() {
                written = pipe.write_all(b"\n").await;
                tokio::time::sleep(BEAT).await;
            }
        }
    }
}

/// The process group of a child that may still run.
struct Group(Option<Pid>);

impl Group {
    fn kill(&mut self) {
        if let Some(leader) = self.0.take() {
            // The only error that can come is that the group has ended.
            kill_process_group(leader, Signal::KILL).ok();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What came through one pipe so far, with the line that is not complete yet.
struct Collected<'a> {
    is_stderr: bool,
    keep: usize,
    bytes: Vec<u8>,
    lines: Option<&'a LineSink>,
    line: Vec<u8>,
}

impl<'a> Collected<'a> {
    fn new(is_stderr: bool, keep: usize, lines: Option<&'a LineSink>) -> Self {
        Self { is_stderr, keep, bytes: Vec::new(), lines, line: Vec::new() }
    }

    async fn fill(&mut self, pipe: Option<impl AsyncRead + Unpin>) {
        let Some(mut pipe) = pipe else { return };
        let mut chunk = vec![0_u8; 16 * 1024];
        while let Ok(read @ 1..) = pipe.read(&mut chunk).await {
            self.take(&chunk[..read]);
        }
    }

    fn take(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
        if self.bytes.len() > self.keep.saturating_mul(2) {
            self.bytes.drain(..self.bytes.len() - self.keep);
        }
        if self.lines.is_some() {
            for byte in chunk {
                if matches!(byte, b'\n' | b'\r') { self.end_line() } else { self.line.push(*byte) }
            }
        }
    }

    fn end_line(&mut self) {
        if let (Some(lines), false) = (self.lines, self.line.is_empty()) {
            lines(self.is_stderr, &String::from_utf8_lossy(&self.line));
            self.line.clear();
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.end_line();
        self.bytes
    }
}
