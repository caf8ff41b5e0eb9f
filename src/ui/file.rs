//! A file that others read at any moment: there as a whole, or not at all.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::host::whole;

/// Puts a file in place by rename, synced and readable to everybody: what reads it runs as somebody else.
///
/// # Errors
/// When it cannot be written, or the path is something that a rename would destroy, such as a device.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => {
            return Err(Error::usage(format!("{} is no file", path.display()))
                .detail("What is there would be replaced by a file. Nothing was written.")
                .hint("Name a file with --output, or write to standard output without it."));
        }
        Ok(_) | Err(_) => {}
    }
    whole::replace(path, 0o644, bytes)
        .map_err(|error| Error::failed(format!("could not write {}", path.display())).source(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_everybody_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgherd.prom");
        write_whole(&path, b"one\n").unwrap();
        write_whole(&path, b"two\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn nothing_but_a_file_is_replaced() {
        assert!(write_whole(Path::new("/dev/null"), b"x").unwrap_err().what().contains("is no file"));
        let directory = tempfile::tempdir().unwrap();
        assert!(write_whole(directory.path(), b"x").is_err());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("elsewhere", &link).unwrap();
        assert!(write_whole(&link, b"x").is_err());
        assert!(write_whole(&directory.path().join("missing/file"), b"x").is_err());
    }
}
