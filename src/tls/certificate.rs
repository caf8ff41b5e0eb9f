//! What stands in PEM files: certificates and the key that belongs to one of them.

use jiff::Timestamp;
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::secret::Secret;

/// One certificate with what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub(super) der: CertificateDer<'static>,
    pub subject: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// It may sign others (basicConstraints CA:TRUE).
    pub is_authority: bool,
}

/// A certificate with those between it and its authority, and its key: one text, so that both are replaced at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub chain: Vec<Certificate>,
    /// The chain, then the key, in PEM.
    pub pem: Secret,
}

/// Reads the certificates of a PEM text, in its order; whatever else is in it is passed over.
///
/// # Errors
/// What is wrong with it, as a whole sentence.
pub fn chain_of(pem: &str) -> Result<Vec<Certificate>, String> {
    let ders: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("It is not PEM: {error}."))?;
    if ders.is_empty() {
        return Err("It holds no \"BEGIN CERTIFICATE\".".to_owned());
    }
    ders.into_iter().map(Certificate::read).collect()
}

impl Certificate {
    pub(super) fn read(der: CertificateDer<'static>) -> Result<Self, String> {
        let unreadable = |why: String| format!("A certificate in it cannot be read: {why}.");
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| unreadable(error.to_string()))?;
        let moment = |time: x509_parser::time::ASN1Time| {
            Timestamp::from_second(time.timestamp()).map_err(|error| unreadable(error.to_string()))
        };
        Ok(Self {
            subject: parsed.subject().to_string(),
            not_before: moment(parsed.validity().not_before)?,
            not_after: moment(parsed.validity().not_after)?,
            is_authority: parsed.is_ca(),
            der,
        })
    }

    /// Takes one that came over the wire.
    ///
    /// # Errors
    /// As [`chain_of`].
    pub fn from_wire(der: &[u8]) -> Result<Self, String> {
        Self::read(CertificateDer::from(der.to_vec()))
    }

    /// Tells whether less than a third of its life is left.
    pub fn is_old(&self, now: Timestamp) -> bool {
        let (begin, end, now) = (self.not_before.as_second(), self.not_after.as_second(), now.as_second());
        (end - now).saturating_mul(3) < end - begin
    }

    /// Returns the first 16 digits of its SHA-256.
    pub fn fingerprint(&self) -> String {
        Sha256::digest(&self.der).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Pair {
    /// Puts a certificate and its key together.
    ///
    /// # Errors
    /// What is wrong with either, as whole sentences; nothing of the key is in them.
    pub fn new(certificate: &str, key: &Secret) -> Result<Self, WrongPair> {
        let chain = chain_of(certificate).map_err(WrongPair::Certificate)?;
        let sections: Vec<SectionKind> = <(SectionKind, Vec<u8>)>::pem_slice_iter(key.reveal().as_bytes())
            .map_while(Result::ok)
            .map(|(kind, _)| kind)
            .collect();
        let encrypted = ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"];
        if encrypted.iter().any(|mark| key.reveal().contains(mark)) {
            return Err(WrongPair::Encrypted);
        }
        let read = PrivateKeyDer::from_pem_slice(key.reveal().as_bytes());
        let Ok(der) = read else {
            return Err(WrongPair::Key(if sections.is_empty() {
                "It is not PEM.".to_owned()
            } else {
                "It holds no private key of PKCS#8, PKCS#1 or SEC 1.".to_owned()
            }));
        };
        let ders = chain.iter().map(|one| one.der.clone()).collect();
        match CertifiedKey::from_der(ders, der, &super::provider()) {
            Ok(_) => {}
            Err(rustls::Error::InconsistentKeys(_)) => return Err(WrongPair::Strangers),
            Err(error) => return Err(WrongPair::Key(format!("It cannot be used: {error}."))),
        }
        let pem: String = chain.iter().map(|one| armour("CERTIFICATE", &one.der)).collect();
        let end = if key.reveal().ends_with('\n') { "" } else { "\n" };
        Ok(Self { pem: Secret::new(format!("{pem}{}{end}", key.reveal())), chain })
    }

    /// Returns the server's own certificate.
    pub fn leaf(&self) -> &Certificate {
        self.chain.first().expect("a pair is made of at least one certificate")
    }
}

/// Why a certificate and a key are no pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WrongPair {
    /// What is wrong with the certificate, as a sentence.
    Certificate(String),
    /// What is wrong with the key, as a sentence.
    Key(String),
    Encrypted,
    /// The key is another certificate's.
    Strangers,
}

fn armour(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
