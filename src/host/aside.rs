//! A program that goes on by itself when whoever started it ends.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// The first descriptor that is not standard input, output or error.
const OPENED: i32 = 3;

/// Starts `program` in the root directory, with nothing on its standard streams and none of the files that this process has inherited or
/// opened. It puts itself into a session of its own ([`leave_the_session`]).
///
/// What PostgreSQL starts inherits from it, before version 16, the pipe by which its processes learn that the postmaster is gone, and sockets: whoever
/// keeps them open for long is taken for a part of the server.
///
/// # Errors
/// As the operating system's.
pub fn start<A: AsRef<OsStr>>(program: &Path, args: &[A]) -> io::Result<()> {
    close_fds::set_fds_cloexec_threadsafe(OPENED, &[]);
    let mut command = Command::new(program);
    command.args(args).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Whoever inherits it when this process ends takes notice of its end.
    command.spawn().map(drop)
}

/// Makes this process the first of a session of its own: what ends the one of whoever started it does not reach it.
pub fn leave_the_session() {
    // Fails where it is the first one already.
    rustix::process::setsid().ok();
}
