//! `pgherd node`: what the controller starts on a node, as the owner of its files. Hidden: nobody types it.

use std::io::{BufRead as _, Read as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::{App, Outcome};
use crate::error::{Error, Result};
use crate::host::SILENCE;
use crate::ops::backup::{self, expire, transfer, verify};
use crate::ops::drill;
use crate::ops::dump;
use crate::ops::kept;
use crate::ops::node::{self, NodeRequest, Reporter};
use crate::ops::partition;
use crate::ops::pooler::{expiry, turn};
use crate::ops::restore;
use crate::ops::wal;
use crate::ui;
use crate::ui::exit::Exit;

/// Do one piece of work on a node's own files, asked for on standard input
///
/// This is how pgherd itself works on a node: one request as a line of JSON on standard input, then an empty line every few seconds for as
/// long as somebody waits; one message a line on standard output, the report last. The request's form is not promised.
///
/// Exit codes: 0 the last line is the report or the error, 2 the request was not understood.
///
/// Example: none, since nobody types it
#[derive(Debug, clap::Args)]
pub struct NodeArgs {}

pub fn run(_args: &NodeArgs, _app: &mut App) -> Outcome {
    let request = read()?;
    let reporter = Reporter::new(ui::line_now);
    watch(reporter.solitude(), Lonely::of(&request));
    reporter.begin();
    match request {
        NodeRequest::Repository { repository, call } => reporter.end(&Ok(node::serve(&repository, call))),
        NodeRequest::CopyForBackup(request) => reporter.end(&backup::copy::run(&request, &reporter)),
        NodeRequest::PlanForRestore(request) => reporter.end(&restore::survey::survey(&request)),
        NodeRequest::CopyForRestore(request) => reporter.end(&restore::copy::run(&request, &reporter)),
        NodeRequest::ExpireBackups(request) => {
            reporter.end(&super::block_on(expire::run(&request, &reporter)).flatten());
        }
        NodeRequest::GuardScratch(scratch) => {
            reporter.end(&super::block_on(drill::guard(&scratch, &reporter)).flatten());
        }
        NodeRequest::VerifyBackups(request) => {
            reporter.end(&super::block_on(verify::run(&request, &reporter)).flatten());
        }
        NodeRequest::CopyBackups(request) => {
            reporter.end(&super::block_on(transfer::run(&request, &reporter)).flatten());
        }
        NodeRequest::ListWal(request) => reporter.end(&wal::run(&request)),
        NodeRequest::MakeDump(request) => {
            reporter.end(&super::block_on(dump::run(&request, &reporter)).flatten());
        }
        NodeRequest::LookAtKept(request) => reporter.end(&kept::run(&request)),
        NodeRequest::OnPoolers(request) => reporter.end(&super::block_on(turn::run(&request)).flatten()),
        NodeRequest::ExportPartition(request) => {
            reporter.end(&super::block_on(partition::export_here(&request, &reporter)).flatten());
        }
        NodeRequest::RestorePartition(request) => {
            reporter.end(&super::block_on(partition::restore_here(&request, &reporter)).flatten());
        }
        NodeRequest::ListExports { repository, cluster } => {
            reporter.end(&partition::exports_here(&repository, &cluster));
        }
        NodeRequest::ExpirePause(request) => {
            reporter.end(&super::block_on(expiry::run(&request)).flatten());
        }
    }
    Ok(Exit::Done)
}

fn read() -> Result<NodeRequest> {
    let mut text = Vec::new();
    std::io::stdin()
        .lock()
        .read_until(b'\n', &mut text)
        .map_err(|error| Error::usage("could not read the request").source(error))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::usage("standard input holds no request of this pgherd").source(error))
}

/// How long work that nobody waits for may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// What becomes of a child that nobody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lonely {
    Ends,
    /// That is what it has waited for.
    GoesOn,
}

impl Lonely {
    fn of(request: &NodeRequest) -> Self {
        match request {
            NodeRequest::GuardScratch(_) => Self::GoesOn,
            NodeRequest::ExpirePause(request) if request.detached => Self::GoesOn,
            NodeRequest::Repository { .. }
            | NodeRequest::CopyForBackup(_)
            | NodeRequest::PlanForRestore(_)
            | NodeRequest::CopyForRestore(_)
            | NodeRequest::ExpireBackups(_)
            | NodeRequest::VerifyBackups(_)
            | NodeRequest::CopyBackups(_)
            | NodeRequest::ListWal(_)
            | NodeRequest::MakeDump(_)
            | NodeRequest::ExpirePause(_)
            | NodeRequest::OnPoolers(_)
            | NodeRequest::ExportPartition(_)
            | NodeRequest::RestorePartition(_)
            | NodeRequest::ListExports { .. }
            | NodeRequest::LookAtKept(_) => Self::Ends,
        }
    }
}

/// Ends this child when its input has ended or nothing has come on it for a while: whoever waited is gone, or the way to them is, and the
/// same work may be begun again elsewhere.
fn watch(solitude: Arc<AtomicBool>, lonely: Lonely) {
    let (beat, beats) = mpsc::channel();
    std::thread::spawn(move || {
        let mut chunk = [0; 64];
        while let Ok(1..) = std::io::stdin().lock().read(&mut chunk) {
            if beat.send(()).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        while beats.recv_timeout(SILENCE).is_ok() {}
        solitude.store(true, Ordering::Relaxed);
        if lonely == Lonely::Ends {
            std::thread::sleep(GRACE);
            // It hangs in something: a disk, or a pipe that nobody reads.
            std::process::exit(1);
        }
    });
}
