//! Secrets out of a Vault: a small server that speaks its KV API over HTTP and HTTPS, and what pgherd makes of each of its answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use pgherd::error::ErrorKind;
use pgherd::net::vault::{Wanted, read};
use pgherd::secret::Secret;
use pgherd::tls::Authority;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use crate::herd::{APP_PASSWORD, Herd, PAIR, newest_or_15};

const TOKEN: &str = "hvs.known-to-the-operator";

/// What one request brought: its path, and its headers by name in lower case.
type Asked = (String, BTreeMap<String, String>);

/// A Vault on a port of its own. Ends with the value.
struct Vault {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Secrets by path, as JSON; what a test changes is answered from then on.
    secrets: Arc<Mutex<BTreeMap<String, String>>>,
    _runtime: Runtime,
}

impl Vault {
    fn start(authority: Option<&Authority>) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = authority.map(acceptor);
        let (asked, secrets) =
            (Arc::<Mutex<Vec<Asked>>>::default(), Arc::<Mutex<BTreeMap<String, String>>>::default());
        let (log, store) = (Arc::clone(&asked), Arc::clone(&secrets));
        runtime.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (log, store, acceptor) = (Arc::clone(&log), Arc::clone(&store), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => answer(stream, &log, &store, port).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                answer(stream, &log, &store, port).await;
                            }
                        }
                    }
                });
            }
        });
        let scheme = if authority.is_some() { "https" } else { "http" };
        Self { url: format!("{scheme}://127.0.0.1:{port}"), asked, secrets, _runtime: runtime }
    }

    fn holds(&self, path: &str, body: &str) {
        self.secrets.lock().unwrap().insert(path.to_owned(), body.to_owned());
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn acceptor(authority: &Authority) -> TlsAcceptor {
    let pair = authority.issue(&["127.0.0.1".to_owned()], Timestamp::now()).unwrap();
    let pem = pair.pem.reveal().as_bytes().to_vec();
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(&pem).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// Answers one request as Vault does.
async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    log: &Mutex<Vec<Asked>>,
    store: &Mutex<BTreeMap<String, String>>,
    port: u16,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let right = headers.get("x-vault-token").is_some_and(|token| token == TOKEN);
    log.lock().unwrap().push((path.clone(), headers));
    let held = store.lock().unwrap().get(&path).cloned();
    let (status, more, body) = match (path.as_str(), right, held) {
        ("/v1/sealed", _, _) => {
            ("503 Service Unavailable", String::new(), r#"{"errors":["Vault is sealed"]}"#.to_owned())
        }
        ("/v1/silent", _, _) => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            return;
        }
        ("/v1/standby", _, _) => (
            "307 Temporary Redirect",
            format!("Location: http://127.0.0.1:{port}/v1/elsewhere\r\n"),
            String::new(),
        ),
        (_, false, _) => ("403 Forbidden", String::new(), r#"{"errors":["permission denied"]}"#.to_owned()),
        (_, true, Some(body)) => ("200 OK", String::new(), body),
        ("/v1/secret/app", true, None) => (
            "404 Not Found",
            String::new(),
            r#"{"warnings":["Invalid path for a versioned K/V secrets engine."]}"#.to_owned(),
        ),
        (_, true, None) => ("404 Not Found", String::new(), r#"{"errors":[]}"#.to_owned()),
    };
    let text = format!(
        "HTTP/1.1 {status}\r\n{more}Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await.ok();
    stream.shutdown().await.ok();
}

fn second(password: &str) -> String {
    format!(r#"{{"data": {{"data": {{"password": "{password}"}}, "metadata": {{"version": 2}}}}}}"#)
}

#[test]
fn each_answer_of_a_vault_is_told_for_what_it_is() {
    let vault = Vault::start(None);
    vault.holds("/v1/secret/data/app", &second("of-version-2"));
    vault.holds("/v1/kv/app", r#"{"data": {"password": "of-version-1"}}"#);
    vault.holds("/v1/long", &"x".repeat(2 << 20));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (url, patience) = (vault.url.clone(), Duration::from_secs(1));
    let wanted = |path: &'static str| Wanted {
        url: &url,
        path,
        field: "password",
        namespace: Some("dba/"),
        authorities: None,
        patience,
    };
    let token = Secret::new(TOKEN);
    let ask = |wanted: &Wanted<'_>, token: &Secret| runtime.block_on(read(wanted, token));
    assert_eq!(ask(&wanted("secret/data/app"), &token).unwrap().reveal(), "of-version-2");
    assert_eq!(ask(&wanted("kv/app"), &token).unwrap().reveal(), "of-version-1");
    let (path, headers) = vault.asked().remove(0);
    assert_eq!(path, "/v1/secret/data/app");
    assert_eq!(
        (headers["x-vault-namespace"].as_str(), headers["x-vault-request"].as_str()),
        ("dba/", "true")
    );

    let refusal = |wanted: &Wanted<'_>, token: &Secret| {
        let error = ask(wanted, token).unwrap_err();
        let told = format!(
            "{error} {} {}",
            error.detail_text().unwrap_or_default(),
            error.hint_text().unwrap_or_default()
        );
        assert!(!told.contains(TOKEN) && !format!("{error:?}").contains(TOKEN), "{told}");
        (error.kind(), told)
    };
    let tells = |found: (ErrorKind, String), kind: ErrorKind, text: &str| {
        assert!(found.0 == kind && found.1.contains(text), "{found:?}");
    };
    tells(
        refusal(&wanted("secret/data/none"), &token),
        ErrorKind::NotFound,
        "there is no secret secret/data/none in Vault",
    );
    tells(refusal(&wanted("secret/app"), &token), ErrorKind::NotFound, "paths have \"data\" after the mount");
    tells(
        refusal(&wanted("secret/data/app"), &Secret::new("hvs.ended")),
        ErrorKind::Failed,
        "refuses the token",
    );
    tells(refusal(&wanted("sealed"), &token), ErrorKind::Failed, "is sealed");
    tells(refusal(&wanted("long"), &token), ErrorKind::Failed, "is no secret");
    tells(refusal(&wanted("silent"), &token), ErrorKind::NotFound, "did not answer");
    let other = Wanted { field: "pw", ..wanted("kv/app") };
    tells(refusal(&other, &token), ErrorKind::Failed, "has no field pw");
    // The token goes nowhere else.
    tells(refusal(&wanted("standby"), &token), ErrorKind::Failed, "sends us elsewhere");
    assert!(vault.asked().iter().all(|(path, _)| path != "/v1/elsewhere"));
    let nobody = Wanted { url: "http://127.0.0.1:1", ..wanted("kv/app") };
    tells(refusal(&nobody, &token), ErrorKind::NotFound, "could not reach Vault");
}

#[test]
fn a_vault_that_does_not_prove_who_it_is_gets_no_token() {
    let authority = Authority::make("corp", Timestamp::now(), None).unwrap();
    let other = Authority::make("corp", Timestamp::now(), None).unwrap();
    let vault = Vault::start(Some(&authority));
    vault.holds("/v1/kv/app", r#"{"data": {"password": "kept"}}"#);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |authorities: Option<&str>| {
        let patience = Duration::from_secs(5);
        let wanted = Wanted {
            url: &vault.url,
            path: "kv/app",
            field: "password",
            namespace: None,
            authorities,
            patience,
        };
        runtime.block_on(read(&wanted, &Secret::new(TOKEN)))
    };
    assert_eq!(ask(Some(&authority.pem)).unwrap().reveal(), "kept");
    for strangers in [Some(other.pem.as_str()), None] {
        let error = ask(strangers).unwrap_err();
        assert_eq!(error.what(), format!("Vault at {} does not prove who it is", vault.url));
    }
    assert_eq!(vault.asked().len(), 1, "a stranger was given the token");
}

#[test]
fn a_cluster_takes_a_password_out_of_a_vault_and_its_next_one() {
    let mut herd = Herd::declare(&newest_or_15(1), &PAIR);
    let vault = Vault::start(None);
    vault.holds("/v1/secret/data/app", &second(APP_PASSWORD));
    herd.variable("VAULT_TOKEN", Some(TOKEN));
    let reference = format!(
        "{{vault: {{url: \"{}\", path: secret/data/app, field: password, token: {{env: VAULT_TOKEN}}}}}}",
        vault.url
    );
    herd.edit("{env: APP_PASSWORD}", &reference);
    herd.apply().ends_with(0);
    assert_eq!(herd.client("pooler", "app", APP_PASSWORD, "inventory", "SELECT 1").as_deref(), Ok("1"));
    herd.is_as_declared();
    vault.holds("/v1/secret/data/app", &second("Vq3-the-next-one"));
    herd.plan().ends_with(0).says(&["set password of app"]).does_not_say("Vq3");
    herd.apply().ends_with(0);
    assert_eq!(herd.client("pooler", "app", "Vq3-the-next-one", "inventory", "SELECT 1").as_deref(), Ok("1"));
    herd.variable("VAULT_TOKEN", Some("hvs.ended"));
    let refused = herd.plan().ends_with(1).tells(&["refuses the token", "Resolve the password of role app"]);
    assert!(!refused.stderr.contains("hvs.ended"));
}
