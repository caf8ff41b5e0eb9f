//! `pgherd node`: what the controller starts on a node, as the owner of its files. Hidden: nobody types it.

use std::io::Read as _;

use super::{App, Outcome};
use crate::error::{Error, Result};
use crate::ops::backup::{self, expire, verify};
use crate::ops::drill;
use crate::ops::kept;
use crate::ops::node::{self, NodeRequest, Reporter};
use crate::ops::restore;
use crate::ops::wal;
use crate::ui;
use crate::ui::exit::Exit;

/// Do one piece of work on a node's own files, asked for on standard input
///
/// This is how pgherd itself works on a node: one request as JSON on standard input, one message a line on standard output, the report
/// last. The request's form is not promised.
///
/// Exit codes: 0 the last line is the report or the error, 2 the request was not understood.
///
/// Example: none, since nobody types it
#[derive(Debug, clap::Args)]
pub struct NodeArgs {}

pub fn run(_args: &NodeArgs, _app: &mut App) -> Outcome {
    let request = read()?;
    let reporter = Reporter::new(ui::line_now);
    reporter.begin();
    match request {
        NodeRequest::Repository { url, call } => reporter.end(&Ok(node::serve(&url, call))),
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
        NodeRequest::ListWal(request) => reporter.end(&wal::run(&request)),
        NodeRequest::LookAtKept(request) => reporter.end(&kept::run(&request)),
    }
    Ok(Exit::Done)
}

fn read() -> Result<NodeRequest> {
    let mut text = Vec::new();
    std::io::stdin()
        .read_to_end(&mut text)
        .map_err(|error| Error::usage("could not read the request").source(error))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::usage("standard input holds no request of this pgherd").source(error))
}
