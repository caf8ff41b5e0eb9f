//! A secret that never prints: no `Display`, no `Serialize`, a redacted `Debug`.

use std::fmt;

/// A resolved secret. It can only be looked at through [`Secret::reveal`], so that each use can be found by name.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Makes a random secret of 32 characters from the operating system's generator.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0_u8; 24];
        getrandom::fill(&mut bytes)?;
        Ok(Self(base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, bytes)))
    }

    /// Returns the secret itself; only for the wire, a 0600 file or a comparison.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_of_the_secret() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(redacted)");
    }

    #[test]
    fn two_generated_secrets_differ_and_need_no_quoting() {
        let (one, two) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.reveal().len(), 32);
        assert!(one.reveal().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    }
}
