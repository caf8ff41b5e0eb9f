//! A certificate authority of one herd: made once, and it issues what its servers and poolers show.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

use time::OffsetDateTime;

use super::certificate::{Certificate, Pair, chain_of};
use crate::error::{Error, Result};
use crate::secret::Secret;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long an authority's own certificate is valid.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a certificate that it issues is valid.
pub const LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How far the clocks of two hosts may be apart.
const SKEW: Duration = DAY;

/// An authority with its key, which leaves the station never.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    pub certificate: Certificate,
    /// Its certificate in PEM.
    pub pem: String,
    /// Its key in PEM.
    pub key: Secret,
}

impl Authority {
    /// Makes one; with the key of another one every certificate that this one issued stays as good as it was.
    ///
    /// # Errors
    /// When a key cannot be made or used.
    pub fn make(herd: &str, now: Timestamp, key: Option<&Secret>) -> Result<Self> {
        let pair = match key {
            Some(key) => KeyPair::from_pem(key.reveal()),
            None => KeyPair::generate(),
        }
        .map_err(|error| unusable(&error))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("pgherd {herd}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = validity(now, AUTHORITY_LIFE)?;
        let made = params.self_signed(&pair).map_err(|error| unusable(&error))?;
        Self::read(&made.pem(), &Secret::new(pair.serialize_pem()))
    }

    /// Reads one.
    ///
    /// # Errors
    /// When its certificate or its key cannot be read, or they do not belong together.
    pub fn read(pem: &str, key: &Secret) -> Result<Self> {
        let broken =
            |why: String| Error::failed("cannot use the herd's own certificate authority").detail(why);
        let mut chain = chain_of(pem).map_err(broken)?;
        // Both are read as a pair, which proves that they are one.
        Pair::new(pem, key)
            .map_err(|_| broken("Its certificate and its key do not belong together.".to_owned()))?;
        Ok(Self { certificate: chain.remove(0), pem: pem.to_owned(), key: key.clone() })
    }

    /// Issues a certificate with a new key for a server that is reached by `names`: IP addresses and host names; the first one is its subject.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate, or a key cannot be made.
    pub fn issue(&self, names: &[String], now: Timestamp) -> Result<Pair> {
        let signer = KeyPair::from_pem(self.key.reveal()).map_err(|error| unusable(&error))?;
        let issuer = Issuer::from_ca_cert_pem(&self.pem, signer).map_err(|error| unusable(&error))?;
        let own = KeyPair::generate().map_err(|error| unusable(&error))?;
        let mut params = CertificateParams::new(names).map_err(|error| {
            Error::usage(format!("cannot issue a certificate for {}", names.join(", "))).source(error)
        })?;
        params.distinguished_name = named(names.first().map_or("pgherd", String::as_str));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let (begin, end) = validity(now, LIFE)?;
        // None is valid longer than the authority itself.
        let last = moment(self.certificate.not_after)?;
        (params.not_before, params.not_after) = (begin, end.min(last));
        let made = params.signed_by(&own, &issuer).map_err(|error| unusable(&error))?;
        Pair::new(&made.pem(), &Secret::new(own.serialize_pem()))
            .map_err(|_| Error::failed("a certificate that was just issued does not fit its key"))
    }
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // X.520 allows 64 characters; names are proved by subjectAltName, never by this one.
    name.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    name
}

fn validity(now: Timestamp, life: Duration) -> Result<(OffsetDateTime, OffsetDateTime)> {
    Ok((moment(now - SKEW)?, moment(now + life)?))
}

fn moment(at: Timestamp) -> Result<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(at.as_second())
        .map_err(|error| Error::failed("a certificate cannot be valid so long").source(error))
}

fn unusable(error: &rcgen::Error) -> Error {
    // Its text may name what was read, and nothing of a key is worth that.
    let of_a_key = matches!(error, rcgen::Error::CouldNotParseKeyPair | rcgen::Error::PemError(_));
    let why = if of_a_key { "The key cannot be read.".to_owned() } else { format!("{error}.") };
    Error::failed("could not make a certificate").detail(why)
}
