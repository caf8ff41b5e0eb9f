//! Which certificates are believed: those that lead to a given authority and name whom we meant.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, RootCertStore};

use super::certificate::{Certificate, chain_of};

/// One or more authorities, and what follows from believing them.
#[derive(Clone)]
pub struct Trust {
    verifier: Arc<WebPkiServerVerifier>,
    client: Arc<ClientConfig>,
    /// In the order of their file.
    pub authorities: Vec<Certificate>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subjects: Vec<&str> = self.authorities.iter().map(|one| one.subject.as_str()).collect();
        f.debug_tuple("Trust").field(&subjects).finish()
    }
}

/// Why a chain is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Untrusted {
    Expired,
    NotYetValid,
    /// It is for other names: these.
    OtherName(Vec<String>),
    /// None of the authorities signed it.
    UnknownAuthority,
    /// It is an authority's own certificate.
    IsAuthority,
    /// It may not be shown by a server (extendedKeyUsage).
    NotForServers,
    Other(String),
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("it has expired"),
            Self::NotYetValid => f.write_str("it is not valid yet"),
            Self::OtherName(names) if names.is_empty() => f.write_str("it has no subjectAltName"),
            Self::OtherName(names) => write!(f, "it is for {}", names.join(", ")),
            Self::UnknownAuthority => f.write_str("no authority of ours signed it"),
            Self::IsAuthority => {
                f.write_str("it is an authority's own certificate (CA:TRUE), not a server's")
            }
            Self::NotForServers => f.write_str("it may not be used by a server (extendedKeyUsage)"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

impl Trust {
    /// Believes the authorities of a PEM text.
    ///
    /// # Errors
    /// What is wrong with it, as a whole sentence.
    pub fn in_authorities(pem: &str) -> Result<Self, String> {
        let authorities = chain_of(pem)?;
        let mut roots = RootCertStore::empty();
        for one in &authorities {
            roots
                .add(one.der.clone())
                .map_err(|error| format!("{} cannot be an authority: {error}.", one.subject))?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), super::provider())
            .build()
            .map_err(|error| format!("It cannot be used: {error}."))?;
        let client = ClientConfig::builder_with_provider(super::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("It cannot be used: {error}."))?
            .with_webpki_verifier(Arc::clone(&verifier))
            .with_no_client_auth();
        Ok(Self { verifier, client: Arc::new(client), authorities })
    }

    /// Returns how a client that believes them speaks TLS.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// Verifies the chain of a server that is meant by `name`, an IP address or a host name, as verify-full does.
    ///
    /// # Errors
    /// [`Untrusted`].
    pub fn verify(&self, chain: &[Certificate], name: &str, now: Timestamp) -> Result<(), Untrusted> {
        let [leaf, between @ ..] = chain else { return Err(Untrusted::UnknownAuthority) };
        // libpq takes a self-signed certificate that is its own root; webpki, which verifies for us, does not (RFC 5280, 4.2.1.9).
        if leaf.is_authority {
            return Err(Untrusted::IsAuthority);
        }
        let between: Vec<CertificateDer<'_>> = between.iter().map(|one| one.der.clone()).collect();
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| Untrusted::Other(format!("{name:?} is neither an address nor a name")))?;
        let seconds = u64::try_from(now.as_second()).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        match self.verifier.verify_server_cert(&leaf.der, &between, &name, &[], now) {
            Ok(_) => Ok(()),
            Err(error) => Err(Untrusted::from(&error)),
        }
    }
}

impl From<&rustls::Error> for Untrusted {
    fn from(error: &rustls::Error) -> Self {
        let rustls::Error::InvalidCertificate(why) = error else { return Self::Other(error.to_string()) };
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "rustls has reasons by the dozen, and their own words are the best for the rest"
        )]
        match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::NotValidForName => Self::OtherName(Vec::new()),
            CertificateError::NotValidForNameContext { presented, .. } => {
                Self::OtherName(presented.iter().map(|name| plain_name(name)).collect())
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownAuthority,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::NotForServers
            }
            other if other.to_string().contains("CaUsedAsEndEntity") => Self::IsAuthority,
            other => Self::Other(other.to_string()),
        }
    }
}

/// Writes `DnsName("db1")` as `db1`.
fn plain_name(shown: &str) -> String {
    match (shown.find('('), shown.rfind(')')) {
        (Some(begin), Some(end)) if begin < end => shown[begin + 1..end].trim_matches('"').to_owned(),
        _ => shown.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use crate::tls::{Authority, LIFE, Pair, WrongPair};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn now() -> Timestamp {
        at("2026-06-01T00:00:00Z")
    }

    fn names() -> Vec<String> {
        ["10.0.0.1", "db1", "localhost", "127.0.0.1"].map(str::to_owned).into()
    }

    #[test]
    fn an_issued_certificate_proves_its_names_and_no_other() {
        let authority = Authority::make("shop", now(), None).unwrap();
        let trust = Trust::in_authorities(&authority.pem).unwrap();
        let pair = authority.issue(&names(), now()).unwrap();
        for name in names() {
            assert_eq!(trust.verify(&pair.chain, &name, now()), Ok(()), "{name}");
        }
        let wrong = trust.verify(&pair.chain, "10.0.0.2", now()).unwrap_err();
        assert_eq!(wrong.to_string(), "it is for 10.0.0.1, db1, localhost, 127.0.0.1");
        assert_eq!(trust.verify(&pair.chain, "10.0.0.1", now() + LIFE * 2), Err(Untrusted::Expired));
        let before = at("2026-01-01T00:00:00Z");
        assert_eq!(trust.verify(&pair.chain, "10.0.0.1", before), Err(Untrusted::NotYetValid));
    }

    #[test]
    fn another_authority_of_the_same_name_proves_nothing() {
        let [one, other] = [(); 2].map(|()| Authority::make("shop", now(), None).unwrap());
        let pair = one.issue(&names(), now()).unwrap();
        let trust = Trust::in_authorities(&other.pem).unwrap();
        assert_eq!(trust.verify(&pair.chain, "db1", now()), Err(Untrusted::UnknownAuthority));
        // Both in one file: what either signed is believed.
        let both = Trust::in_authorities(&format!("{}{}", other.pem, one.pem)).unwrap();
        assert_eq!(both.verify(&pair.chain, "db1", now()), Ok(()));
    }

    #[test]
    fn an_authority_that_was_renewed_with_its_key_proves_what_it_issued_before() {
        let old = Authority::make("shop", now(), None).unwrap();
        let pair = old.issue(&names(), now()).unwrap();
        let new = Authority::make("shop", now() + LIFE / 2, Some(&old.key)).unwrap();
        assert_ne!(new.pem, old.pem);
        let trust = Trust::in_authorities(&new.pem).unwrap();
        assert_eq!(trust.verify(&pair.chain, "db1", now() + LIFE / 2), Ok(()));
    }

    #[test]
    fn a_certificate_that_is_its_own_root_is_said_to_be_an_authoritys() {
        let authority = Authority::make("shop", now(), None).unwrap();
        let trust = Trust::in_authorities(&authority.pem).unwrap();
        let own = chain_of(&authority.pem).unwrap();
        assert_eq!(trust.verify(&own, "db1", now()), Err(Untrusted::IsAuthority));
    }

    #[test]
    fn no_certificate_outlives_its_authority() {
        let authority = Authority::make("shop", now(), None).unwrap();
        let late = authority.certificate.not_after - LIFE / 4;
        let pair = authority.issue(&names(), late).unwrap();
        assert_eq!(pair.leaf().not_after, authority.certificate.not_after);
    }

    #[test]
    fn a_certificate_is_old_when_less_than_a_third_of_its_life_is_left() {
        let authority = Authority::make("shop", now(), None).unwrap();
        let pair = authority.issue(&names(), now()).unwrap();
        assert!(!pair.leaf().is_old(now() + LIFE / 2));
        assert!(pair.leaf().is_old(now() + LIFE / 10 * 7));
        assert!(pair.leaf().is_old(now() + LIFE * 2));
    }

    #[test]
    fn a_key_that_is_encrypted_or_anothers_is_said_to_be() {
        let authority = Authority::make("shop", now(), None).unwrap();
        let pair = authority.issue(&names(), now()).unwrap();
        assert_eq!(Pair::new(pair.pem.reveal(), &authority.key), Err(WrongPair::Strangers));
        let old = Secret::new(
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
        );
        assert_eq!(Pair::new(pair.pem.reveal(), &old), Err(WrongPair::Encrypted));
        let new =
            Secret::new("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
        assert_eq!(Pair::new(pair.pem.reveal(), &new), Err(WrongPair::Encrypted));
        let certificate = Pair::new(pair.pem.reveal(), &Secret::new(authority.pem.clone())).unwrap_err();
        assert_eq!(
            certificate,
            WrongPair::Key("It holds no private key of PKCS#8, PKCS#1 or SEC 1.".to_owned())
        );
        let empty = Pair::new("", &authority.key).unwrap_err();
        assert_eq!(empty, WrongPair::Certificate("It holds no \"BEGIN CERTIFICATE\".".to_owned()));
    }

    #[test]
    fn no_debug_output_shows_a_key() {
        let authority = Authority::make("shop", now(), None).unwrap();
        let pair = authority.issue(&names(), now()).unwrap();
        assert!(!format!("{authority:?}{pair:?}").contains("PRIVATE"));
    }
}
