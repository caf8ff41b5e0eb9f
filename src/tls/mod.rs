//! Certificates: what they say, whom they prove, and our own authority that issues them.
//!
//! Pure: text in, text out, and the moment is handed in. Knows no file, no server and no topology.

mod authority;
mod certificate;
mod trust;

pub use authority::{Authority, LIFE};
pub use certificate::{Certificate, Pair, WrongPair, chain_of};
pub use trust::{Trust, Untrusted};

/// How long before its end a certificate is told as about to expire.
pub const WARN: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 3600);

/// Returns the one implementation of cryptography that is compiled in.
fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
