use pgherd::db::{Connector, DbError};
use pgherd::gate;
use pgherd::pg::ident::quote_literal;
use pgherd::pg::scram::{DEFAULT_ITERATIONS, Verifier};
use pgherd::secret::Secret;

use crate::server::{Server, newest};

// ASCII with quotes; a ligature, a roman numeral and a no-break space, which SASLprep changes; a soft hyphen alone, of which it would
// leave nothing; an unassigned and a bidirectional case, which it refuses.
const PASSWORDS: [&str; 8] =
    ["pencil", "it's a \"\\ one", "\u{fb01}le", "\u{2168}", "a\u{a0}b", "\u{ad}", "x\u{221}", "a\u{627}"];

#[tokio::test]
async fn postgresql_and_we_make_the_same_of_a_password() {
    let server = Server::start(&newest(), "");
    let conn = server.primary("postgres").await;
    for password in PASSWORDS {
        let secret = Secret::new(password);
        let sql = format!(
            "DROP ROLE IF EXISTS theirs, ours; CREATE ROLE theirs LOGIN PASSWORD {};
             CREATE ROLE ours LOGIN PASSWORD {}",
            quote_literal(password),
            quote_literal(Verifier::derive(&secret, b"0123456789abcdef", DEFAULT_ITERATIONS).text().reveal())
        );
        conn.batch("create roles", &sql).await.unwrap();
        let stored = "SELECT rolpassword FROM pg_authid WHERE rolname = 'theirs'";
        let rows = conn.simple("read verifier", stored).await.unwrap();
        let theirs = Verifier::parse(rows[0]["rolpassword"].as_deref().unwrap()).unwrap();
        assert!(theirs.matches(&secret), "{password:?}");
        assert!(!theirs.matches(&Secret::new(format!("{password}x"))), "{password:?}");

        let connector = Connector::new(gate::open());
        if password != "\u{ad}" {
            // tokio-postgres prepares this one differently from libpq.
            connector.connect(&server.tcp_login("ours", password, "postgres")).await.unwrap();
        }
        let wrong = connector.connect(&server.tcp_login("ours", "other", "postgres")).await;
        assert!(matches!(wrong, Err(DbError::Authentication { .. })));
    }
}
