//! Resolves references to secrets, as late as can be. No error shows anything of a secret.
//!
//! Starts no program: whoever may, hands in how.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::model::SecretReference;
use crate::error::{Error, Result};
use crate::secret::Secret;

/// Looks a secret up where its reference says it is.
///
/// `run` starts a program and returns its standard output; it is called only for [`SecretReference::Command`].
///
/// # Errors
/// When there is no secret, when it is empty, or when its file can be read by others than its owner.
pub fn resolve_with(
    reference: &SecretReference,
    run: &dyn Fn(&[String]) -> Result<Vec<u8>>,
) -> Result<Secret> {
    match reference {
        SecretReference::Env(name) => from_environment(name),
        SecretReference::File(path) => from_file(path),
        SecretReference::Command(argv) => {
            let program = argv.first().map_or("", String::as_str);
            let output = run(argv).map_err(|error| error.context(format!("run {program} for a secret")))?;
            secret(output, &format!("what {program} printed"))
        }
    }
}

fn from_environment(name: &str) -> Result<Secret> {
    let missing = |what: &str| {
        Error::failed(format!("environment variable {name} {what}"))
            .detail("The topology says that it holds a password.")
            .hint(format!(
                "Set it for this command: {name}=... pgherd ..., or take it from a file: {{file: PATH}}."
            ))
    };
    match std::env::var(name) {
        Ok(value) if value.is_empty() => Err(missing("is empty")),
        Ok(value) => secret(value.into_bytes(), &format!("environment variable {name}")),
        Err(std::env::VarError::NotPresent) => Err(missing("is not set")),
        Err(std::env::VarError::NotUnicode(_)) => Err(missing("is not UTF-8")),
    }
}

fn from_file(path: &Path) -> Result<Secret> {
    secret(from_private_file(path)?, &path.display().to_string())
}

/// Reads the key of a certificate: many lines that only its owner may read.
///
/// # Errors
/// When it is not there, not text, or can be read by others than its owner.
pub fn read_key(path: &Path) -> Result<Secret> {
    // The error of from_utf8 would hold the bytes.
    String::from_utf8(from_private_file(path)?)
        .map(Secret::new)
        .map_err(|_| Error::failed(format!("the key in {} is not PEM", path.display())))
}

fn from_private_file(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let could_not =
        |error: std::io::Error| Error::failed(format!("could not read the secret in {shown}")).source(error);
    let mut file = fs::File::open(path).map_err(could_not)?;
    // Asked of the open file, so that nobody can put another one in between.
    let status = file.metadata().map_err(could_not)?;
    if !status.is_file() {
        return Err(Error::failed(format!("the secret {shown} is not a file")));
    }
    if status.mode() & 0o077 != 0 {
        return Err(Error::failed(format!("the secret in {shown} can be read by others than its owner"))
            .detail(format!("Its mode is {:04o}, expected 0600 or 0400.", status.mode() & 0o7777))
            .hint(format!("Run: chmod 600 {shown}")));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(could_not)?;
    Ok(bytes)
}

/// Takes what was read, without one newline at its end.
fn secret(mut bytes: Vec<u8>, place: &str) -> Result<Secret> {
    if bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    // The error of from_utf8 would hold the bytes.
    let text =
        String::from_utf8(bytes).map_err(|_| Error::failed(format!("the secret in {place} is not UTF-8")))?;
    if text.is_empty() {
        return Err(Error::failed(format!("the secret in {place} is empty")));
    }
    // PostgreSQL's protocol and PgBouncer's userlist end a password there.
    if text.contains(['\0', '\n', '\r']) {
        return Err(Error::failed(format!("the secret in {place} has more than one line"))
            .hint("Keep one secret in a file."));
    }
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn no_program(_: &[String]) -> Result<Vec<u8>> {
        Err(Error::failed("no program is started here"))
    }

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, SecretReference) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, SecretReference::File(path))
    }

    #[test]
    fn a_file_gives_its_line_without_the_newline() {
        let (_directory, reference) = file("hunter2\n", 0o600);
        assert_eq!(resolve_with(&reference, &no_program).unwrap().reveal(), "hunter2");
    }

    #[test]
    fn refuses_a_file_that_others_can_read_and_says_how_to_change_that() {
        let (_directory, reference) = file("hunter2\n", 0o640);
        let error = resolve_with(&reference, &no_program).unwrap_err();
        assert!(error.what().ends_with("can be read by others than its owner"), "{error}");
        assert_eq!(error.detail_text(), Some("Its mode is 0640, expected 0600 or 0400."));
        assert!(error.hint_text().unwrap().starts_with("Run: chmod 600 "));
        assert!(!format!("{error:?}").contains("hunter2"));
    }

    #[test]
    fn refuses_an_empty_file_and_one_of_several_lines() {
        for (text, end) in
            [("\n", "is empty"), ("", "is empty"), ("hunter2\nhunter3\n", "has more than one line")]
        {
            let (_directory, reference) = file(text, 0o600);
            let error = resolve_with(&reference, &no_program).unwrap_err();
            assert!(error.what().ends_with(end), "{error}");
            assert!(!format!("{error:?}").contains("hunter"));
        }
    }

    #[test]
    fn refuses_bytes_that_are_no_text_without_showing_them() {
        let bytes = |_: &[String]| -> Result<Vec<u8>> { Ok(b"hunter\xff".to_vec()) };
        let error = resolve_with(&SecretReference::Command(vec!["vault".into()]), &bytes).unwrap_err();
        assert_eq!(error.what(), "the secret in what vault printed is not UTF-8");
        assert!(!format!("{error:?}").contains("hunter"));
    }

    #[test]
    fn a_command_is_run_by_whoever_may() {
        let echo = |argv: &[String]| -> Result<Vec<u8>> { Ok(format!("{}\n", argv[1]).into_bytes()) };
        let reference = SecretReference::Command(vec!["vault".into(), "hunter2".into()]);
        assert_eq!(resolve_with(&reference, &echo).unwrap().reveal(), "hunter2");
        let error = resolve_with(&reference, &no_program).unwrap_err();
        assert_eq!(error.contexts(), ["run vault for a secret"]);
    }

    #[test]
    fn names_the_environment_variable_that_is_not_set() {
        let reference = SecretReference::Env("PGHERD_TEST_NEVER_SET".into());
        let error = resolve_with(&reference, &no_program).unwrap_err();
        assert_eq!(error.what(), "environment variable PGHERD_TEST_NEVER_SET is not set");
    }
}
