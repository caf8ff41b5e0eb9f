//! What the station keeps: the herd's own authority, whose key is read by whoever runs pgherd and never sent anywhere.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::host::whole;
use crate::tls::Authority;
use crate::topology::places::Places;
use crate::topology::secrets;

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";

/// Reads the authority of a herd, if it is there and whole.
///
/// # Errors
/// When its files cannot be read or used.
pub fn read(places: &Places, herd: &str) -> Result<Option<Authority>> {
    let directory = places.authority(herd);
    let Some(pem) = text(&directory.join(CERTIFICATE))? else { return Ok(None) };
    let key = secrets::read_key(&directory.join(KEY)).map_err(|error| {
        error.hint(format!(
            "Bring the key back from a copy of {}; without it every certificate of the herd must be made anew: remove {CERTIFICATE} there.",
            directory.display()
        ))
    })?;
    Authority::read(&pem, &key).map(Some)
}

/// Makes the authority of a herd, or gives one that grows old another certificate for the same key.
///
/// # Errors
/// When its files cannot be written.
pub fn ensure(places: &Places, herd: &str) -> Result<Authority> {
    let now = Timestamp::now();
    if let Some(found) = read(places, herd)?.filter(|found| !found.certificate.is_old(now)) {
        return Ok(found);
    }
    let directory = places.authority(herd);
    let could_not = |path: &Path| {
        let shown = path.display().to_string();
        move |error: std::io::Error| Error::failed(format!("could not write {shown}")).source(error)
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(could_not(&directory))?;
    let key = directory.join(KEY);
    if !key.exists() {
        let fresh = Authority::make(herd, now, None)?;
        // Several clusters of a herd may be applied at once: it is made by one of them, and the others take what that made.
        match whole::create(&key, 0o600, fresh.key.reveal().as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(could_not(&key)(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let made = Authority::make(herd, now, Some(&secrets::read_key(&key)?))?;
    let path = directory.join(CERTIFICATE);
    whole::replace(&path, 0o600, made.pem.as_bytes()).map_err(could_not(&path))?;
    Ok(made)
}

/// Reads a file of the station that is no secret; `None` if there is none.
pub(super) fn text(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::failed(format!("could not read {}", path.display())).source(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn an_authority_is_made_once_and_its_key_is_its_owners() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().display().to_string();
        let places =
            Places::decide(true, |name| (name == "PGHERD_STATE_DIR").then(|| state.clone())).unwrap();
        assert_eq!(read(&places, "shop").unwrap(), None);
        let made = ensure(&places, "shop").unwrap();
        assert_eq!(ensure(&places, "shop").unwrap(), made);
        assert_eq!(read(&places, "shop").unwrap(), Some(made.clone()));
        let key = places.authority("shop").join(KEY);
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o7777, 0o600);
        // A crash between the two files: the key that is there is used.
        fs::remove_file(places.authority("shop").join(CERTIFICATE)).unwrap();
        assert_eq!(ensure(&places, "shop").unwrap().key, made.key);
        let mut names: Vec<_> =
            fs::read_dir(places.authority("shop")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [KEY, CERTIFICATE]);
        // A key that others can read is not used.
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read(&places, "shop").unwrap_err().what().contains("can be read by others"));
    }
}
