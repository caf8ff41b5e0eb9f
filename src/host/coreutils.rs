//! File operations done by the coreutils and findutils of a host, as its os-user, one argv each and no shell.
//!
//! What a door uses that cannot open files itself, since the machine is another one; removing a tree is the same on this one. Starts
//! nothing but through [`Host::run`], so it serves every kind of host. Reads error messages, which LANG=C.UTF-8 keeps to one wording.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Command, DiskSpace, FileKind, FileStat, Host, HostError, RunAs};
use crate::units::ByteCount;

/// Removing a large data directory takes its time.
const REMOVE_TREE_LIMIT: Duration = Duration::from_secs(3600);

/// The messages of strerror(3) that a caller can act on.
const MESSAGES: [(&str, ErrorKind); 10] = [
    ("No such file or directory", ErrorKind::NotFound),
    ("Permission denied", ErrorKind::PermissionDenied),
    ("Operation not permitted", ErrorKind::PermissionDenied),
    ("File exists", ErrorKind::AlreadyExists),
    ("Not a directory", ErrorKind::NotADirectory),
    ("Is a directory", ErrorKind::IsADirectory),
    ("Directory not empty", ErrorKind::DirectoryNotEmpty),
    ("No space left on device", ErrorKind::StorageFull),
    ("Disk quota exceeded", ErrorKind::QuotaExceeded),
    ("Read-only file system", ErrorKind::ReadOnlyFilesystem),
];

pub(super) async fn read(host: &dyn Host, path: &Path) -> Result<Option<Vec<u8>>, HostError> {
    let doing = format!("read {}", path.display());
    let cat = tool("cat").args(["--", text(host, &doing, path)?]).reads();
    absent_is_none(run(host, &doing, &cat).await)
}

pub(super) async fn stat(host: &dyn Host, path: &Path) -> Result<Option<FileStat>, HostError> {
    let doing = format!("look at {}", path.display());
    let stat = tool("stat").args(["-c", "%f %s %u %U", "--", text(host, &doing, path)?]).reads();
    let Some(line) = absent_is_none(run(host, &doing, &stat).await)? else {
        return Ok(None);
    };
    parse_stat(&String::from_utf8_lossy(&line))
        .map(Some)
        .ok_or_else(|| unreadable_answer(host, &doing, "stat", &line))
}

/// Reads `MODE SIZE UID NAME`, the mode in hexadecimal with the kind of file in it (`st_mode`).
fn parse_stat(line: &str) -> Option<FileStat> {
    let mut words = line.split_whitespace();
    let mode = u32::from_str_radix(words.next()?, 16).ok()?;
    let size = ByteCount(words.next()?.parse().ok()?);
    let (number, name) = (words.next()?, words.next()?);
    let kind = match mode & 0o170_000 {
        0o100_000 => FileKind::File,
        0o040_000 => FileKind::Directory,
        0o120_000 => FileKind::Link,
        _ => FileKind::Other,
    };
    let owner = if name == "UNKNOWN" { number } else { name }.to_owned();
    Some(FileStat { kind, mode: mode & 0o7777, size, owner })
}

pub(super) async fn list(host: &dyn Host, path: &Path) -> Result<Option<Vec<String>>, HostError> {
    let doing = format!("list {}", path.display());
    // The slash makes find follow a link to a directory and refuse a file, as opendir(3) does.
    let directory = format!("{}/", text(host, &doing, path)?);
    let find = tool("find")
        .args([directory.as_str(), "-mindepth", "1", "-maxdepth", "1", "-printf", "%f\\0"])
        .reads();
    let Some(names) = absent_is_none(run(host, &doing, &find).await)? else {
        return Ok(None);
    };
    let mut names: Vec<String> = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.sort();
    Ok(Some(names))
}

pub(super) async fn remove_file(host: &dyn Host, path: &Path) -> Result<(), HostError> {
    let doing = format!("remove {}", path.display());
    let target = text(host, &doing, path)?;
    let (directory, _) = split(host, &doing, path)?;
    match absent_is_none(run(host, &doing, &tool("rm").args(["--", target])).await)? {
        Some(_) => sync(host, &doing, &[directory]).await,
        None => Ok(()),
    }
}

pub(super) async fn remove_tree(host: &dyn Host, path: &Path) -> Result<(), HostError> {
    let doing = format!("remove {}", path.display());
    let target = text(host, &doing, path)?;
    let rm = tool("rm").args(["-rf", "--one-file-system", "--", target]).timeout(REMOVE_TREE_LIMIT);
    run(host, &doing, &rm).await.map(|_| ())
}

/// Makes one directory whose parent is there; the os-user's own umask does not count.
pub(super) async fn make_one_directory(host: &dyn Host, path: &Path, mode: u32) -> Result<(), HostError> {
    let doing = format!("make the directory {}", path.display());
    let mode = format!("{mode:o}");
    run(host, &doing, &tool("mkdir").args(["-m", &mode, "--", text(host, &doing, path)?])).await.map(|_| ())
}

/// Makes a directory whose parent is there, unless it is there itself; `false` where the os-user cannot, or not yet.
pub(super) async fn make_where_it_may(host: &dyn Host, path: &Path, mode: u32) -> Result<bool, HostError> {
    match make_one_directory(host, path, mode).await {
        Ok(()) => Ok(true),
        Err(HostError::File { kind: ErrorKind::AlreadyExists, .. }) => {
            if can_enter(host, path).await? {
                return Ok(true);
            }
            let why = format!("it is there, and is not a directory that {} may enter", host.os_user());
            Err(refused(host, "make the directory", path, ErrorKind::AlreadyExists, &why))
        }
        Err(HostError::File { kind: ErrorKind::NotFound | ErrorKind::PermissionDenied, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A relative path would count from wherever the caller happens to stand.
pub(super) fn absolute(host: &dyn Host, doing: &str, path: &Path) -> Result<(), HostError> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(refused(host, doing, path, ErrorKind::InvalidInput, "the path is not absolute"))
}

pub(super) fn refused(host: &dyn Host, doing: &str, path: &Path, kind: ErrorKind, why: &str) -> HostError {
    let what = format!("{doing} {}", path.display());
    HostError::File { host: host.name().to_owned(), what, kind, why: why.to_owned() }
}

/// Tells whether `path`, after following links, is a directory that the os-user may enter.
pub(super) async fn can_enter(host: &dyn Host, path: &Path) -> Result<bool, HostError> {
    let doing = format!("look at {}", path.display());
    let target = text(host, &doing, path)?;
    match host.run(&tool("test").args(["-d", target, "-a", "-x", target]).reads()).await {
        Ok(_) => Ok(true),
        Err(HostError::Exited { status: 1, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) async fn disk(host: &dyn Host, path: &Path) -> Result<DiskSpace, HostError> {
    let doing = format!("measure the disk of {}", path.display());
    let mut nearest = path;
    loop {
        let df = tool("df").args(["-B1", "--output=used,avail", "--", text(host, &doing, nearest)?]).reads();
        match (run(host, &doing, &df).await, nearest.parent()) {
            (Ok(table), _) => {
                let shown = String::from_utf8_lossy(&table);
                let mut numbers = shown.lines().nth(1).unwrap_or("").split_whitespace().map(str::parse);
                return match (numbers.next(), numbers.next()) {
                    (Some(Ok(used)), Some(Ok(free))) => {
                        let used: u64 = used;
                        Ok(DiskSpace { total: ByteCount(used.saturating_add(free)), free: ByteCount(free) })
                    }
                    _ => Err(unreadable_answer(host, &doing, "df", &table)),
                };
            }
            (Err(HostError::File { kind: ErrorKind::NotFound, .. }), Some(parent)) => nearest = parent,
            (Err(error), _) => return Err(error),
        }
    }
}

/// Removes one empty directory as the caller: the last one of a tree may stand in a directory that is not the os-user's.
pub(super) async fn remove_empty_directory_as_caller(host: &dyn Host, path: &Path) -> Result<(), HostError> {
    let doing = format!("remove {}", path.display());
    let rmdir = tool("rmdir").args(["--", text(host, &doing, path)?]).user(RunAs::Caller);
    run(host, &doing, &rmdir).await.map(|_| ())
}

async fn sync(host: &dyn Host, doing: &str, paths: &[&str]) -> Result<(), HostError> {
    run(host, doing, &tool("sync").arg("--").args(paths.iter().copied())).await.map(|_| ())
}

fn tool(name: &str) -> Command {
    Command::new(PathBuf::from(name))
}

/// Runs a tool; its failure becomes the file error that its message tells.
pub(super) async fn run(host: &dyn Host, doing: &str, command: &Command) -> Result<Vec<u8>, HostError> {
    match host.run(command).await {
        Ok(output) => Ok(output.stdout),
        Err(HostError::Exited { host, stderr, status, .. }) => {
            let told = stderr
                .lines()
                .rev()
                .find_map(|line| MESSAGES.iter().find(|(message, _)| line.ends_with(message)));
            let (why, kind) = match told {
                Some((message, kind)) => ((*message).to_owned(), *kind),
                None if stderr.is_empty() => {
                    (format!("{} ended with status {status}", command.title()), ErrorKind::Other)
                }
                None => (stderr, ErrorKind::Other),
            };
            Err(HostError::File { host, what: doing.to_owned(), kind, why })
        }
        Err(error) => Err(error),
    }
}

fn absent_is_none<T>(result: Result<T, HostError>) -> Result<Option<T>, HostError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(HostError::File { kind: ErrorKind::NotFound, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn text<'a>(host: &dyn Host, doing: &str, path: &'a Path) -> Result<&'a str, HostError> {
    path.to_str().ok_or_else(|| invalid(host, doing, "the path is not UTF-8"))
}

pub(super) fn split<'a>(
    host: &dyn Host,
    doing: &str,
    path: &'a Path,
) -> Result<(&'a str, &'a str), HostError> {
    match (path.parent().and_then(Path::to_str), path.file_name().and_then(|name| name.to_str())) {
        (Some(directory), Some(name)) => Ok((directory, name)),
        _ => Err(invalid(host, doing, "the path names no file")),
    }
}

fn invalid(host: &dyn Host, doing: &str, why: &str) -> HostError {
    HostError::File {
        host: host.name().to_owned(),
        what: doing.to_owned(),
        kind: ErrorKind::InvalidInput,
        why: why.to_owned(),
    }
}

pub(super) fn unreadable_answer(host: &dyn Host, doing: &str, tool: &str, answer: &[u8]) -> HostError {
    HostError::File {
        host: host.name().to_owned(),
        what: doing.to_owned(),
        kind: ErrorKind::InvalidData,
        why: format!("{tool} answered {:?}", String::from_utf8_lossy(answer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_stat_prints() {
        let stat = parse_stat("41c0 4096 101 postgres\n").unwrap();
        assert_eq!(stat.kind, FileKind::Directory);
        assert_eq!((stat.mode, stat.size, stat.owner.as_str()), (0o700, ByteCount(4096), "postgres"));
        assert_eq!(parse_stat("81a4 12 4711 UNKNOWN").unwrap().owner, "4711");
        assert_eq!(parse_stat("a1ff 7 0 root").unwrap().kind, FileKind::Link);
        assert!(parse_stat("regular file").is_none());
    }
}
