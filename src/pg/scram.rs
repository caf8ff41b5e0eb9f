//! SCRAM-SHA-256 verifiers as PostgreSQL stores them in `pg_authid`: `SCRAM-SHA-256$4096:salt$StoredKey:ServerKey`.
//!
//! Makes and compares verifiers, so that a password never travels and `apply` knows without a login whether the stored one is right.
//! Speaks no SASL and has no randomness: the salt is handed in.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::secret::Secret;

/// Iterations that PostgreSQL uses (`scram_iterations` since 16, fixed before).
pub const DEFAULT_ITERATIONS: u32 = 4096;

/// Length of a salt that PostgreSQL makes, in bytes.
pub const SALT_LENGTH: usize = 16;

/// What a server needs to check a password by SCRAM-SHA-256. As good as a password to whoever wants to guess it: never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: [u8; 32],
    server_key: [u8; 32],
}

/// The text is not a SCRAM-SHA-256 verifier; an md5 hash is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a SCRAM-SHA-256 verifier")]
pub struct VerifierError;

impl Verifier {
    /// Derives the verifier of `password`.
    ///
    /// ```
    /// use pgherd::pg::scram::Verifier;
    /// use pgherd::secret::Secret;
    /// let verifier = Verifier::derive(&Secret::new("pencil"), b"0123456789abcdef", 4096);
    /// assert!(verifier.text().reveal().starts_with("SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg==$"));
    /// assert!(verifier.matches(&Secret::new("pencil")));
    /// ```
    ///
    /// Mirrors `scram_build_secret` in `scram-common.c`.
    pub fn derive(password: &Secret, salt: &[u8], iterations: u32) -> Self {
        let salted = salted_password(&prepare(password.reveal()), salt, iterations);
        let client_key = hmac(&salted, b"Client Key");
        Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: Sha256::digest(client_key).into(),
            server_key: hmac(&salted, b"Server Key"),
        }
    }

    /// Reads a verifier.
    ///
    /// # Errors
    /// [`VerifierError`] for anything else, such as an md5 hash.
    pub fn parse(text: &str) -> Result<Self, VerifierError> {
        let rest = text.strip_prefix("SCRAM-SHA-256$").ok_or(VerifierError)?;
        let (parameters, keys) = rest.split_once('$').ok_or(VerifierError)?;
        let (iterations, salt) = parameters.split_once(':').ok_or(VerifierError)?;
        let (stored_key, server_key) = keys.split_once(':').ok_or(VerifierError)?;
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| VerifierError);
        let key = |text: &str| decode(text)?.try_into().map_err(|_| VerifierError);
        let iterations = iterations.parse().ok().filter(|count| *count > 0).ok_or(VerifierError)?;
        Ok(Self {
            iterations,
            salt: decode(salt)?,
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }

    /// Returns the verifier as `pg_authid` and `ALTER ROLE … PASSWORD` have it.
    pub fn text(&self) -> Secret {
        Secret::new(format!(
            "SCRAM-SHA-256${}:{}${}:{}",
            self.iterations,
            STANDARD.encode(&self.salt),
            STANDARD.encode(self.stored_key),
            STANDARD.encode(self.server_key)
        ))
    }

    /// Tells whether this is a verifier of `password`; takes as long whatever differs.
    pub fn matches(&self, password: &Secret) -> bool {
        let other = Self::derive(password, &self.salt, self.iterations);
        let differ =
            |one: &[u8; 32], two: &[u8; 32]| one.iter().zip(two).fold(0, |sum, (a, b)| sum | (a ^ b));
        differ(&self.stored_key, &other.stored_key) | differ(&self.server_key, &other.server_key) == 0
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(redacted)")
    }
}

/// `SASLprep` as PostgreSQL does it: what it prohibits, or what would leave nothing, is used as it is.
///
/// Mirrors `pg_saslprep` in `saslprep.c` and its callers.
fn prepare(password: &str) -> String {
    match stringprep::saslprep(password) {
        Ok(prepared) if !prepared.is_empty() => prepared.into_owned(),
        Ok(_) | Err(_) => password.to_owned(),
    }
}

/// `Hi()` of RFC 5802: PBKDF2 with one block.
fn salted_password(password: &str, salt: &[u8], iterations: u32) -> [u8; 32] {
    let keyed = Hmac::<Sha256>::new_from_slice(password.as_bytes()).expect("HMAC takes a key of any length");
    let once = |parts: &[&[u8]]| -> [u8; 32] {
        let mut mac = keyed.clone();
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    };
    let mut last = once(&[salt, &1_u32.to_be_bytes()]);
    let mut sum = last;
    for _ in 1..iterations {
        last = once(&[&last]);
        sum.iter_mut().zip(last).for_each(|(all, one)| *all ^= one);
    }
    sum
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(data);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    // StoredKey and ServerKey of the exchange in RFC 7677 §3 (user "user", password "pencil").
    const RFC_7677: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn derives_the_verifier_of_the_rfc() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = Verifier::derive(&Secret::new("pencil"), &salt, DEFAULT_ITERATIONS);
        assert_eq!(verifier.text().reveal(), RFC_7677);
    }

    #[test]
    fn knows_the_right_password_from_a_wrong_one() {
        let verifier = Verifier::parse(RFC_7677).unwrap();
        assert!(verifier.matches(&Secret::new("pencil")));
        assert!(!verifier.matches(&Secret::new("Pencil")));
        assert!(!verifier.matches(&Secret::new("")));
    }

    #[test]
    fn refuses_what_is_no_verifier() {
        for text in [
            "",
            "md5a8d8d5f0a0bd1d0a1a0f0f0f0f0f0f0f",
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm:wfPLwcE6",
            "SCRAM-SHA-256$0:W22ZaJ0SNY7soEsUEjb6gQ==$x:y",
            &RFC_7677[1..],
            &RFC_7677.replace(':', "$"),
        ] {
            assert_eq!(Verifier::parse(text), Err(VerifierError), "{text}");
        }
    }

    #[test]
    fn debug_shows_nothing_of_a_verifier() {
        assert_eq!(format!("{:?}", Verifier::parse(RFC_7677).unwrap()), "Verifier(redacted)");
    }

    #[test]
    fn what_sasl_would_leave_empty_or_prohibits_is_used_as_it_is() {
        assert_eq!(prepare("\u{ad}"), "\u{ad}");
        assert_eq!(prepare("a\u{7}b"), "a\u{7}b");
        assert_eq!(prepare("\u{2168}"), "IX");
        assert_eq!(prepare("a\u{a0}b"), "a b");
    }
}
