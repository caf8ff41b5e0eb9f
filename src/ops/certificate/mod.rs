//! What servers and poolers prove themselves by: where it comes from, whether it is right, and putting it where it belongs.
//!
//! A node has its certificate beside its other facts, a pooler in its directory; both are one file that holds certificate and key,
//! so that they are replaced at once. Keys are made or read on the station, and never read back from where they were sent.

pub mod station;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use crate::db::{DbError, Endpoint, Identity, Login, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Command, Host, HostError};
use crate::ops::observe::Doors;
use crate::secret::Secret;
use crate::tls::{Authority, Certificate, Pair, Trust, Untrusted, WrongPair, chain_of};
use crate::topology::declared::{self, LOOPBACK};
use crate::topology::model::{Cluster, Node, Tls};
use crate::topology::places::Places;
use crate::topology::secrets;

/// How long a server may take to show a certificate that it was told to read.
const SHOWN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// Who proves itself by a certificate.
#[derive(Debug, Clone, Copy)]
pub enum Holder<'a> {
    Node(&'a Node),
    /// The pooler on this host.
    Pooler(&'a str),
}

impl Holder<'_> {
    pub fn host(&self) -> &str {
        match self {
            Self::Node(node) => &node.host,
            Self::Pooler(host) => host,
        }
    }

    /// Returns how messages call it: `inventory-a`, `the pooler on db1`.
    pub fn name(&self, cluster: &Cluster) -> String {
        match self {
            Self::Node(node) => cluster.full_name(&node.name),
            Self::Pooler(host) => format!("the pooler on {host}"),
        }
    }

    /// Returns its files on its host: the authorities, and its certificate with the key.
    fn files(&self, doors: &Doors, cluster: &Cluster) -> [PathBuf; 2] {
        match self {
            Self::Node(node) => {
                let places = doors.node_places(cluster, node);
                [places.authorities, places.certificate]
            }
            Self::Pooler(host) => {
                let directory = doors.places(host).pooler(&cluster.name, host);
                ["ca.pem", "server.pem"].map(|name| directory.join(name))
            }
        }
    }
}

/// Everybody who proves itself by a certificate in a cluster.
pub fn holders(cluster: &Cluster) -> impl Iterator<Item = Holder<'_>> {
    let poolers = cluster.pooler_hosts().map(|host| Holder::Pooler(host));
    cluster.nodes.iter().map(Holder::Node).chain(poolers)
}

/// What the station has to give.
#[derive(Debug)]
enum Source {
    /// `None` if it was not made yet.
    Own(Option<Authority>),
    Given {
        authorities: String,
        pair: Pair,
    },
}

fn source(places: &Places, cluster: &Cluster, host: &str, now: Timestamp) -> Result<Option<Source>> {
    Ok(match &cluster.postgres.tls {
        None => None,
        Some(Tls::Own { herd }) => Some(Source::Own(station::read(places, herd)?)),
        Some(Tls::Given { .. }) => {
            let given = given(cluster, host, now)?;
            Some(Source::Given { authorities: given.0, pair: given.1 })
        }
    })
}

/// What is to be done to the herd's own authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthoritySeen {
    Missing,
    /// It ends then, and less than a third of its life is left.
    Old {
        not_after: Timestamp,
    },
    Right,
}

/// Looks at the herd's own authority; `None` where the cluster does not use it.
///
/// # Errors
/// When its files cannot be read or used.
pub fn authority(places: &Places, cluster: &Cluster) -> Result<Option<AuthoritySeen>> {
    let Some(Tls::Own { herd }) = &cluster.postgres.tls else { return Ok(None) };
    Ok(Some(match station::read(places, herd)? {
        None => AuthoritySeen::Missing,
        Some(found) if found.certificate.is_old(Timestamp::now()) => {
            AuthoritySeen::Old { not_after: found.certificate.not_after }
        }
        Some(_) => AuthoritySeen::Right,
    }))
}

/// Says what is wrong with the files that a topology gives, host by host.
pub fn obstacles(cluster: &Cluster) -> Vec<Error> {
    let now = Timestamp::now();
    let mut found: Vec<Error> = Vec::new();
    if let Some(Tls::Given { .. }) = &cluster.postgres.tls {
        for host in cluster.used_hosts() {
            let error = given(cluster, host, now).err();
            found.extend(error.filter(|error| found.iter().all(|other| other.what() != error.what())));
        }
    }
    found
}

/// Reads and checks what is given for a host: the authorities, and its certificate with the key.
fn given(cluster: &Cluster, host: &str, now: Timestamp) -> Result<(String, Pair)> {
    let Some(Tls::Given { ca, certificate, key }) = &cluster.postgres.tls else {
        return Err(Error::failed(format!("{} declares no certificates", cluster.name)));
    };
    let [ca, certificate, key] = [ca, certificate, key].map(|path| for_host(path, host));
    let read = |path: &PathBuf| {
        station::text(path)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no file {}", path.display()))
                .detail(format!("\"tls\" of {} names it for host {host}. Nothing was changed.", cluster.name))
        })
    };
    let wrong = |path: &PathBuf, what: &str, why: String| {
        Error::usage(format!("cannot use {what} {} for host {host}", path.display()))
            .detail(format!("{why} Nothing was changed."))
    };
    let authorities = read(&ca)?;
    let trust = Trust::in_authorities(&authorities).map_err(|why| {
        wrong(&ca, "the authorities in", why).hint("Give the certificates of your authorities in PEM.")
    })?;
    let text = read(&certificate)?;
    let secret = secrets::read_key(&key)?;
    let pair = Pair::new(&text, &secret).map_err(|why| match why {
        WrongPair::Certificate(why) => wrong(&certificate, "the certificate", why),
        WrongPair::Key(why) => wrong(&key, "the key", why),
        WrongPair::Encrypted => wrong(
            &key,
            "the key",
            "It is encrypted, and a server starts with nobody there to type.".to_owned(),
        )
        .hint(format!("Decrypt it: openssl pkey -in {0} -out {0}.plain; chmod 600 {0}.plain", key.display())),
        WrongPair::Strangers => wrong(
            &key,
            "the key",
            format!("It does not belong to the certificate {}.", certificate.display()),
        )
        .hint("Give the key that the certificate was requested with."),
    })?;
    let by_name = declared::proves_names_only(cluster).then_some(host);
    for name in by_name.into_iter().chain([cluster.address(host)]) {
        trust.verify(&pair.chain, name, now).map_err(|why| {
            let error = wrong(&certificate, "the certificate", told(&why, pair.leaf(), name, &ca));
            advised(error, &why, name)
        })?;
    }
    Ok((authorities, pair))
}

fn advised(error: Error, why: &Untrusted, name: &str) -> Error {
    match why {
        Untrusted::Expired => error.hint("Renew it, then plan again."),
        Untrusted::NotYetValid => error.hint("Look at the clock of this machine."),
        Untrusted::OtherName(_) => error.hint(format!(
            "Have it issued for {name} (subjectAltName): by that it is known to its peers and clients."
        )),
        Untrusted::UnknownAuthority => {
            error.hint("Give the authority that signed it, and in the certificate's file those in between.")
        }
        Untrusted::IsAuthority => {
            error.hint("Sign a server's certificate with it; or let pgherd do all of it: tls: own")
        }
        Untrusted::NotForServers => error.hint("Have it issued with extendedKeyUsage serverAuth."),
        Untrusted::Other(_) => error,
    }
}

fn told(why: &Untrusted, leaf: &Certificate, name: &str, ca: &std::path::Path) -> String {
    match why {
        Untrusted::Expired => format!("It has expired at {}.", leaf.not_after),
        Untrusted::NotYetValid => format!("It is not valid before {}.", leaf.not_before),
        Untrusted::OtherName(_) => format!("The host is known as {name}, and {why}."),
        Untrusted::UnknownAuthority => format!("None of the authorities in {} signed it.", ca.display()),
        Untrusted::IsAuthority => {
            "It is self-signed and an authority's own (CA:TRUE), which proves no server.".to_owned()
        }
        Untrusted::NotForServers | Untrusted::Other(_) => {
            let text = why.to_string();
            let mut letters = text.chars();
            let first = letters.next().map(|letter| letter.to_ascii_uppercase());
            format!("{}{}.", first.map(String::from).unwrap_or_default(), letters.as_str())
        }
    }
}

fn for_host(path: &std::path::Path, host: &str) -> PathBuf {
    PathBuf::from(path.display().to_string().replace(Tls::HOST, host))
}

/// What was seen of a holder's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Why it must have others; `None` if they are right.
    pub wrong: Option<String>,
}

/// Compares a holder's files with what it should have; `None` where the cluster declares no TLS.
///
/// # Errors
/// When the files on the station or on the host cannot be read.
pub async fn look(doors: &Doors, cluster: &Cluster, holder: Holder<'_>) -> Result<Option<Seen>> {
    let now = Timestamp::now();
    let Some(source) = source(&doors.station, cluster, holder.host(), now)? else { return Ok(None) };
    if let Source::Own(Some(authority)) = &source
        && authority.certificate.is_old(now)
    {
        return Ok(Some(Seen { wrong: Some("the authority that issued it is renewed".to_owned()) }));
    }
    let host = doors.host(holder.host());
    let [authorities, certificate] = holder.files(doors, cluster);
    let could_not = |error: HostError| {
        Error::failed(format!("could not look at the certificate of {}", holder.name(cluster))).source(error)
    };
    let believed = host.read(&authorities).await.map_err(could_not)?;
    let chain = shown(host, &certificate).await.map_err(could_not)?;
    let wrong = match (&source, chain.as_deref().map(chain_of)) {
        (_, None) => Some("there is no certificate yet".to_owned()),
        (_, Some(Err(why))) => Some(format!("{}: {why}", certificate.display())),
        (Source::Given { pair, .. }, Some(Ok(chain))) => (chain != pair.chain).then(|| {
            let found = chain.first().map(Certificate::fingerprint).unwrap_or_default();
            format!(
                "certificate {found} → {}, which ends {}",
                pair.leaf().fingerprint(),
                pair.leaf().not_after
            )
        }),
        (Source::Own(None), Some(Ok(_))) => {
            Some("the authority that issued it is gone from the station".to_owned())
        }
        (Source::Own(Some(authority)), Some(Ok(chain))) => {
            not_issued(authority, &chain, &names(cluster, &holder), now)
        }
    };
    let declared = match &source {
        Source::Own(authority) => authority.as_ref().map(|authority| authority.pem.as_str()),
        Source::Given { authorities, .. } => Some(authorities.as_str()),
    };
    let wrong = wrong.or_else(|| {
        let same = believed.as_deref() == declared.map(str::as_bytes);
        (!same).then(|| "the authorities that it believes are others than declared".to_owned())
    });
    Ok(Some(Seen { wrong }))
}

/// Says why a chain is not what our own authority would issue.
fn not_issued(
    authority: &Authority,
    chain: &[Certificate],
    names: &[String],
    now: Timestamp,
) -> Option<String> {
    let trust = match Trust::in_authorities(&authority.pem) {
        Ok(trust) => trust,
        Err(why) => return Some(why),
    };
    let wrong = names.iter().find_map(|name| trust.verify(chain, name, now).err().map(|why| (name, why)));
    let leaf = chain.first()?;
    match wrong {
        Some((_, Untrusted::Expired)) => Some(format!("its certificate has expired at {}", leaf.not_after)),
        Some((name, why)) => Some(format!("its certificate does not prove {name}: {why}")),
        None => leaf.is_old(now).then(|| {
            format!("its certificate ends {}: less than a third of its life is left", leaf.not_after)
        }),
    }
}

/// Returns what a holder is reached by, the address first.
fn names(cluster: &Cluster, holder: &Holder<'_>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in [cluster.address(holder.host()), holder.host(), "localhost", LOOPBACK] {
        if !names.iter().any(|other| other == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// Reads the certificates of a file that holds a key too, and leaves that where it is; `None` if there is no file.
async fn shown(host: &dyn Host, path: &std::path::Path) -> Result<Option<String>, HostError> {
    if host.stat(path).await?.is_none() {
        return Ok(None);
    }
    let only = "/^-----BEGIN CERTIFICATE-----/,/^-----END CERTIFICATE-----/p";
    let command = Command::new("sed").args(["-n", only, "--", &path.display().to_string()]).reads();
    host.run(&command).await.map(|output| Some(output.text()))
}

/// Gives a holder its files where they are wrong, and tells whether it did. Who runs goes on with what it has read before.
///
/// # Errors
/// When the herd's authority is not there, what is given is wrong, or the host cannot.
pub async fn equip(doors: &Doors, cluster: &Cluster, holder: Holder<'_>) -> Result<bool> {
    let right = look(doors, cluster, holder).await?.is_none_or(|seen| seen.wrong.is_none());
    if right {
        return Ok(false);
    }
    let now = Timestamp::now();
    let name = holder.name(cluster);
    let (authorities, pem): (String, Secret) = match source(&doors.station, cluster, holder.host(), now)? {
        None => return Ok(false),
        Some(Source::Given { authorities, pair }) => (authorities, pair.pem),
        Some(Source::Own(Some(authority))) => {
            let pair = authority.issue(&names(cluster, &holder), now)?;
            (authority.pem, pair.pem)
        }
        Some(Source::Own(None)) => {
            return Err(Error::failed(format!(
                "cannot issue a certificate for {name}: the herd has no authority"
            ))
            .detail("It is made on the machine that \"pgherd apply\" runs on.")
            .hint("pgherd apply"));
        }
    };
    let host = doors.host(holder.host());
    let could_not =
        |error: HostError| Error::failed(format!("could not write the certificate of {name}")).source(error);
    let [believed, own] = holder.files(doors, cluster);
    if let (Holder::Pooler(_), Some(directory)) = (holder, own.parent()) {
        host.make_directory(directory, 0o700).await.map_err(could_not)?;
    }
    // Whom it believes first: who proves itself by the next certificate must not meet one that does not know its authority.
    host.write_atomic(&believed, authorities.as_bytes(), 0o640).await.map_err(could_not)?;
    host.write_atomic(&own, pem.reveal().as_bytes(), 0o600).await.map_err(could_not)?;
    Ok(true)
}

/// Returns whom a server or a pooler on a host must prove to be; `None` where nothing is encrypted.
///
/// # Errors
/// When the authorities on the station cannot be read.
pub fn identity(doors: &Doors, cluster: &Cluster, host: &str) -> Result<Option<Identity>> {
    let pem = match &cluster.postgres.tls {
        None => return Ok(None),
        Some(Tls::Own { herd }) => station::read(&doors.station, herd)?.map(|authority| authority.pem),
        Some(Tls::Given { ca, .. }) => station::text(&for_host(ca, host))?,
    };
    let pem = pem.ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("the authorities of {} are not on this machine", cluster.name),
        )
        .hint("Run it where \"pgherd apply\" runs.")
    })?;
    let trust = Trust::in_authorities(&pem)
        .map_err(|why| Error::usage(format!("cannot use the authorities of {}", cluster.name)).detail(why))?;
    Ok(Some(Identity { trust, name: cluster.address(host).to_owned() }))
}

/// Has a holder that runs show the certificate that it proves itself by.
///
/// # Errors
/// [`DbError::NotProved`] if it proves to be somebody else, and as any login.
pub async fn shown_by(
    doors: &Doors,
    cluster: &Cluster,
    holder: Holder<'_>,
    identity: &Identity,
) -> Result<Certificate, DbError> {
    let port = match holder {
        Holder::Node(node) => node.port,
        Holder::Pooler(_) => cluster.poolers.as_ref().map_or(0, |poolers| poolers.port),
    };
    let login = Login {
        server: holder.name(cluster),
        endpoint: Endpoint::Tcp { host: LOOPBACK.to_owned(), port },
        tunnel: doors.host(holder.host()).tunnel(),
        tls: None,
        user: String::new(),
        database: String::new(),
        password: None,
        session: Session::Plain,
    };
    doors.connector.shown_certificate(&login, identity).await
}

/// Waits until a holder that was told to read its files shows the certificate that is in them.
///
/// # Errors
/// When it still shows another one after [`SHOWN`].
pub async fn until_shown(doors: &Doors, cluster: &Cluster, holder: Holder<'_>) -> Result<()> {
    let Some(identity) = identity(doors, cluster, holder.host())? else { return Ok(()) };
    let [_, file] = holder.files(doors, cluster);
    let host = doors.host(holder.host());
    let name = holder.name(cluster);
    let text = shown(host, &file).await.map_err(|error| {
        Error::failed(format!("could not look at the certificate of {name}")).source(error)
    })?;
    let wanted = text.and_then(|text| chain_of(&text).ok()).and_then(|chain| chain.into_iter().next());
    let deadline = Instant::now() + SHOWN;
    loop {
        let seen = shown_by(doors, cluster, holder, &identity).await;
        if let (Ok(seen), Some(wanted)) = (&seen, &wanted)
            && seen == wanted
        {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let why = match seen {
                Ok(other) => format!("It shows {}, which ends {}.", other.fingerprint(), other.not_after),
                Err(error) => format!("{error}."),
            };
            return Err(Error::failed(format!("{name} does not show its new certificate"))
                .detail(why)
                .hint(format!("Its log says why it did not read {}.", file.display())));
        }
        sleep(PAUSE).await;
    }
}
