//! Directories renamed out of the way, and back. Nothing here removes anything but an empty directory.

use std::path::{Path, PathBuf};

use crate::engine::step::Found;
use crate::error::{Error, Result};
use crate::host::{Command, FileKind, Host, HostError, RunAs};
use crate::ops::in_place::evidence::{Evidence, Moved};
use crate::ops::observe;
use crate::ops::provision::Site;

/// Returns the name that an operation gives to what it renames: `a` becomes `a.before-7f3a`.
pub fn aside(path: &Path, operation: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".before-{operation}"));
    PathBuf::from(name)
}

/// Looks whether everything has its new name.
pub(super) async fn look(site: &Site<'_>, paths: &[PathBuf]) -> Result<Found<Evidence>> {
    let mut moved = Vec::new();
    for from in paths {
        let to = aside(from, site.operation);
        match (is_there(site.host(), from).await?, is_there(site.host(), &to).await?) {
            (_, true) => moved.push(Moved { from: from.clone(), to }),
            (true, false) => return Ok(Found::NotDone),
            (false, false) => {
                return Ok(Found::CannotTell(format!(
                    "neither {} nor {} is there",
                    from.display(),
                    to.display()
                )));
            }
        }
    }
    Ok(Found::Done(Evidence::SetAside { moved }))
}

/// Gives everything its new name. What has it already is left alone.
pub(crate) async fn set_aside(site: &Site<'_>, paths: &[PathBuf]) -> Result<Evidence> {
    if let Some(pid) = observe::postmaster(site.host(), &site.node.data_directory).await? {
        return Err(Error::refused(format!(
            "cannot rename {}: process {pid} runs for it",
            site.node.data_directory.display()
        )));
    }
    let mut moved = Vec::new();
    for from in paths {
        let to = aside(from, site.operation);
        if !is_there(site.host(), &to).await? {
            rename(site.host(), from, &to).await?;
        }
        moved.push(Moved { from: from.clone(), to });
    }
    Ok(Evidence::SetAside { moved })
}

/// Gives everything its old name back. What this operation made under it must be gone by then; an empty directory is removed.
pub(crate) async fn put_back(site: &Site<'_>, paths: &[PathBuf]) -> Result<()> {
    // The data directory comes first in `paths` and last here: a server that has its data has its tablespaces, too.
    for from in paths.iter().rev() {
        let to = aside(from, site.operation);
        if !is_there(site.host(), &to).await? {
            continue;
        }
        if is_there(site.host(), from).await? {
            remove_empty(site.host(), from).await?;
        }
        rename(site.host(), &to, from).await?;
    }
    Ok(())
}

async fn is_there(host: &dyn Host, path: &Path) -> Result<bool> {
    let found = host
        .stat(path)
        .await
        .map_err(|error| Error::failed(format!("could not look at {}", path.display())).source(error))?;
    Ok(found.is_some())
}

/// Renames a directory within its parent, durably. The parent may belong to root, so it is the caller who renames.
async fn rename(host: &dyn Host, from: &Path, to: &Path) -> Result<()> {
    let could_not = |error: HostError| {
        Error::failed(format!("could not rename {} to {}", from.display(), to.display())).source(error)
    };
    let words = [from, to].map(|path| path.display().to_string());
    let parent = to.parent().unwrap_or(to).display().to_string();
    let program = Command::new("mv").args(["-T", "-n", "--"]).args(words).user(RunAs::Caller);
    host.run(&program).await.map_err(could_not)?;
    // -n keeps quiet about a name that is taken.
    if is_there(host, from).await? {
        return Err(Error::failed(format!("could not rename {}: {} is there", from.display(), to.display())));
    }
    let sync = Command::new("sync").args(["--", &parent]).user(RunAs::Caller);
    host.run(&sync).await.map(drop).map_err(could_not)
}

async fn remove_empty(host: &dyn Host, path: &Path) -> Result<()> {
    let rmdir = Command::new("rmdir").args(["--", &path.display().to_string()]).user(RunAs::Caller);
    host.run(&rmdir).await.map(drop).map_err(|error| {
        Error::refused(format!("cannot put {} back in its place: something is there", path.display()))
            .detail("This operation did not put it there, so it is left alone.")
            .hint("Move it away, then run the same again.")
            .source(error)
    })
}

/// Says why a directory cannot be renamed, if it cannot: a link leads elsewhere, and the root of a file system has no other name.
pub(crate) async fn obstacle(host: &dyn Host, path: &Path) -> Result<Option<String>> {
    let could_not =
        |error: HostError| Error::failed(format!("could not look at {}", path.display())).source(error);
    let Some(found) = host.stat(path).await.map_err(could_not)? else { return Ok(None) };
    match found.kind {
        FileKind::Directory => {}
        FileKind::Link => return Ok(Some("it is a symbolic link".to_owned())),
        FileKind::File | FileKind::Other => return Ok(Some("it is no directory".to_owned())),
    }
    let parent = path.parent().unwrap_or(path);
    if device(host, path).await? != device(host, parent).await? {
        return Ok(Some("it is the root of a file system".to_owned()));
    }
    let may = Command::new("test").args(["-w", &parent.display().to_string()]).user(RunAs::Caller).reads();
    match host.run(&may).await {
        Ok(_) => Ok(None),
        Err(HostError::Exited { status: 1, .. }) => {
            Ok(Some(format!("{} may not change {}", host.caller(), parent.display())))
        }
        Err(error) => Err(could_not(error)),
    }
}

/// Returns the number of the file system that holds a path.
pub(super) async fn device(host: &dyn Host, path: &Path) -> Result<String> {
    let stat = Command::new("stat").args(["-L", "-c", "%d", "--", &path.display().to_string()]).reads();
    let found = host.run(&stat).await.map_err(|error| {
        Error::failed(format!("could not tell which file system holds {}", path.display())).source(error)
    })?;
    Ok(found.text().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_name_and_the_operation_are_in_the_new_one() {
        assert_eq!(
            aside(Path::new("/var/lib/pgherd/inventory-a"), "7f3a"),
            Path::new("/var/lib/pgherd/inventory-a.before-7f3a")
        );
    }
}
