//! Files of this machine that others read at any moment: there as a whole and on disk, or not at all.
//!
//! Each is written beside its place, synced, and given its name; then the directory is synced. What a killed process leaves is a file
//! whose name begins with a dot. Makes no directory.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Puts a file in place of whatever has the path, with exactly this mode.
///
/// # Errors
/// As the operating system says; then what was there is as it was, unless only the last sync failed.
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    replace_with(path, mode, |file| file.write_all(bytes)).map(drop)
}

/// The same for a file that `fill` writes, and may lock, before anybody else can see it; returns it open.
///
/// # Errors
/// As [`replace`], and what `fill` says.
pub fn replace_with(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<File> {
    place(path, mode, fill, |temporary| fs::rename(temporary, path))
}

/// Puts a file where there is none; of several who do this at once one succeeds.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] when something is there, otherwise as [`replace`].
pub fn create(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let link = |temporary: &Path| {
        fs::hard_link(temporary, path)?;
        fs::remove_file(temporary)
    };
    place(path, mode, |file| file.write_all(bytes), link).map(drop)
}

fn place(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
    name: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<File> {
    let temporary = beside(path)?;
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&temporary)?;
    let named = (|| {
        fill(&mut file)?;
        // Whatever the umask.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        name(&temporary)
    })();
    if let Err(error) = named {
        // The first error is the one to tell; a temporary file that stays behind is only litter.
        fs::remove_file(&temporary).ok();
        return Err(error);
    }
    sync_directory(directory_of(path))?;
    Ok(file)
}

/// A name that no other writer has, and that ends as no file that somebody looks for does.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the path names no file"));
    };
    let mut random = [0_u8; 4];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let name = format!(".{}.pgherd-{:08x}", name.to_string_lossy(), u32::from_ne_bytes(random));
    Ok(directory_of(path).join(name))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes what a directory names durable.
///
/// # Errors
/// As the operating system says.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_with_its_mode_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        for (text, mode) in [("one", 0o600), ("two", 0o644)] {
            replace(&path, mode, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert_eq!(names(directory.path()), ["record.json"]);
    }

    #[test]
    fn what_could_not_be_written_leaves_what_was_there_and_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        replace(&path, 0o600, b"one").unwrap();
        let full = |file: &mut File| {
            file.write_all(b"tw")?;
            Err(ErrorKind::StorageFull.into())
        };
        assert_eq!(replace_with(&path, 0o600, full).unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        assert_eq!(names(directory.path()), ["record.json"]);
        assert!(replace(&directory.path().join("missing/record.json"), 0o600, b"x").is_err());
    }

    #[test]
    fn of_two_who_make_the_same_file_one_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        create(&path, 0o600, b"first").unwrap();
        assert_eq!(create(&path, 0o600, b"second").unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        assert_eq!(names(directory.path()), ["key"]);
    }
}
