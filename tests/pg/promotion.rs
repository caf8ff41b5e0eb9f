//! Whether a server in recovery has been asked to end it, at each moment of the way.

use std::fs;
use std::time::{Duration, Instant};

use pgherd::db::Conn;
use pgherd::db::promotion::{Recovery, ended, recovery};
use pgherd::db::queries::ensure_physical_slot;

use crate::server::{Server, installations};

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_promotion_that_is_on_its_way_is_seen_from_the_request_to_its_end_on_every_major() {
    for installation in installations() {
        let a = Server::start(&installation, "cluster_name = 'inventory-a'\n");
        assert!(ensure_physical_slot(&*a.primary("postgres").await, "inventory_b").await.unwrap());
        let b = Server::standby_of(&a, "inventory-b", "inventory_b");
        let standby = b.connect("postgres").await;

        // Nobody has asked, and who pauses replay finds it as it was.
        assert_eq!(recovery(&standby).await.unwrap(), Recovery::Unasked);
        assert_eq!(pause_state(&standby).await, "not paused");
        standby.batch("pause", "SELECT pg_wal_replay_pause()").await.unwrap();
        wait_for(async || pause_state(&standby).await == "paused").await;
        assert_eq!(recovery(&standby).await.unwrap(), Recovery::Unasked);
        assert_eq!(pause_state(&standby).await, "paused");
        standby.batch("resume", "SELECT pg_wal_replay_resume()").await.unwrap();

        // Of whom it is not known whether they have been heard nothing is heard any more.
        let late = b.connect("postgres").await;
        late.batch("say who asks", "SET application_name = 'pgherd-promote'").await.unwrap();
        assert_eq!(recovery(&standby).await.unwrap(), Recovery::Unasked);
        assert!(late.batch("promote", "SELECT pg_promote(false)").await.is_err());
        assert_eq!(recovery(&standby).await.unwrap(), Recovery::Unasked);

        // Its end waits for the archive, which does not answer before it may.
        let go = b.data().join("go");
        let waits = format!("until test -e {}; do sleep 0.05; done; false", go.display());
        standby
            .batch("hold the archive", &format!("ALTER SYSTEM SET restore_command = '{waits}'"))
            .await
            .unwrap();
        let startup =
            text(&standby, "SELECT pid::text AS told FROM pg_stat_activity WHERE backend_type = 'startup'")
                .await;
        b.as_server("kill", &["-STOP", &startup]).unwrap();
        standby.batch("reload", "SELECT pg_reload_conf()").await.unwrap();
        standby.batch("promote", "SELECT pg_promote(false)").await.unwrap();
        let request = b.data().join("promote");
        assert!(request.exists(), "the startup process has not taken it");
        assert_eq!(recovery(&standby).await.unwrap(), Recovery::Asked);

        b.as_server("kill", &["-CONT", &startup]).unwrap();
        wait_for(async || !request.exists()).await;
        for _ in 0..20 {
            assert_eq!(recovery(&standby).await.unwrap(), Recovery::Asked);
        }
        assert!(!ended(&standby, Duration::from_millis(20)).await.unwrap());
        fs::write(&go, "").unwrap();
        assert!(ended(&standby, PATIENCE).await.unwrap());
        assert_eq!(recovery(&standby).await.unwrap(), Recovery::Ended);
    }
}

async fn pause_state(standby: &Conn) -> String {
    text(standby, "SELECT pg_get_wal_replay_pause_state() AS told").await
}

async fn text(conn: &Conn, sql: &str) -> String {
    conn.simple("ask", sql).await.unwrap().remove(0)["told"].clone().unwrap()
}

async fn wait_for(seen: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !seen().await {
        assert!(Instant::now() < deadline, "it does not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
