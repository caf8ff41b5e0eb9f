use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgherd::db::queries::*;
use pgherd::db::{Conn, Connector, NodeConn, classify};
use pgherd::gate;
use pgherd::pg::scram::{DEFAULT_ITERATIONS, Verifier};
use pgherd::secret::Secret;
use pgherd::topology::declared::PROBE_ROLE;

use crate::server::{Server, installations, newest};

#[tokio::test]
async fn a_primary_and_its_standby_tell_what_they_are_on_every_major() {
    for installation in installations() {
        let major = installation.major;
        let a = Server::start(&installation, "cluster_name = 'inventory-a'\n");
        let primary = a.primary("postgres").await;
        assert!(ensure_physical_slot(&primary, "inventory_b").await.unwrap());
        assert!(!ensure_physical_slot(&primary, "inventory_b").await.unwrap());
        let b = Server::standby_of(&a, "inventory-b", "inventory_b");
        let standby = b.connect("postgres").await;

        ensure_probe_table(&primary).await.unwrap();
        ensure_probe_table(&primary).await.unwrap();
        write_probe(&primary, "first").await.unwrap();
        write_probe(&primary, "second").await.unwrap();
        wait_for_probe(&standby, "second").await;

        let facts = server_facts(&primary).await.unwrap();
        assert_eq!(facts.version.major, major);
        assert_eq!((facts.timeline.as_u32(), facts.timeline_from), (1, TimelineSource::WalFile));
        assert!(facts.data_checksums);
        assert!(facts.started < facts.now && facts.now <= Timestamp::now());
        let ServerRole::Primary { written_lsn } = facts.role else { panic!("{facts:?}") };

        let seen = server_facts(&standby).await.unwrap();
        assert_eq!(seen.system_identifier, facts.system_identifier);
        assert_eq!((seen.timeline.as_u32(), seen.timeline_from), (1, TimelineSource::WalReceiver));
        let ServerRole::Standby { replayed_lsn, replay_paused, last_replayed, receiver, .. } = &seen.role
        else {
            panic!("{seen:?}")
        };
        assert!(!replay_paused);
        assert!(last_replayed.is_some_and(|at| at < seen.now), "{seen:?}");
        assert!(replayed_lsn.unwrap() <= seen.role.lsn().unwrap());
        let receiver = receiver.as_ref().unwrap();
        assert_eq!((receiver.status.as_str(), receiver.slot.as_deref()), ("streaming", Some("inventory_b")));
        assert!(receiver.flushed_lsn.unwrap() >= written_lsn.min(receiver.latest_end_lsn.unwrap()));

        let senders = replication(&primary).await.unwrap();
        assert_eq!(senders.len(), 1);
        assert_eq!(senders[0].application_name, "inventory-b");
        assert_eq!(senders[0].slot.as_deref(), Some("inventory_b"));
        assert_eq!((senders[0].state.as_str(), senders[0].sync_state.as_str()), ("streaming", "async"));
        assert!(senders[0].replayed_lsn.is_some());

        let held = slots(&primary).await.unwrap();
        assert_eq!(held.len(), 1);
        assert!(held[0].active && held[0].kind == SlotKind::Physical, "{held:?}");
        assert_eq!(held[0].wal_status.as_deref(), Some("reserved"));
        assert!(held[0].retained.is_some());
        let error = drop_slot(&primary, "inventory_b").await.unwrap_err();
        assert!(error.is_state("55006"), "{error:?}");

        // A slot on a standby, and a paused replay.
        assert!(ensure_physical_slot(&standby, "inventory_a").await.unwrap());
        assert_eq!(slots(&standby).await.unwrap()[0].name, "inventory_a");
        assert!(drop_slot(&standby, "inventory_a").await.unwrap());
        assert!(!drop_slot(&standby, "inventory_a").await.unwrap());
        standby.batch("pause", "SELECT pg_wal_replay_pause()").await.unwrap();
        let seen = server_facts(&standby).await.unwrap();
        assert!(matches!(seen.role, ServerRole::Standby { replay_paused: true, .. }), "{seen:?}");
        standby.batch("resume", "SELECT pg_wal_replay_resume()").await.unwrap();

        // Promoted: the live timeline, whatever the last checkpoint says.
        standby.batch("promote", "SELECT pg_promote()").await.unwrap();
        let NodeConn::Primary(promoted) = classify(standby).await.unwrap() else { panic!("not promoted") };
        let facts = server_facts(&promoted).await.unwrap();
        assert_eq!((facts.timeline.as_u32(), facts.timeline_from), (2, TimelineSource::WalFile));
        promoted.batch("checkpoint", "CHECKPOINT").await.unwrap();
    }
}

#[tokio::test]
async fn a_slot_whose_wal_is_gone_is_made_anew_on_every_major() {
    for installation in installations() {
        let server = Server::start(&installation, "max_slot_wal_keep_size = '1MB'\n");
        let primary = server.primary("postgres").await;
        assert!(ensure_physical_slot(&primary, "late").await.unwrap());
        let late = async || slots(&primary).await.unwrap().remove(0);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !late().await.is_lost() {
            assert!(Instant::now() < deadline, "it is not lost");
            primary.batch("write", "SELECT pg_create_restore_point('more')").await.unwrap();
            primary.batch("switch", "SELECT pg_switch_wal()").await.unwrap();
            primary.batch("checkpoint", "CHECKPOINT").await.unwrap();
        }
        assert!(ensure_physical_slot(&primary, "late").await.unwrap());
        assert_eq!(late().await.wal_status.as_deref(), Some("reserved"));
        assert!(!ensure_physical_slot(&primary, "late").await.unwrap());
    }
}

async fn wait_for_probe(standby: &Conn, nonce: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while read_probe(standby).await.expect("read the probe").as_deref() != Some(nonce) {
        assert!(Instant::now() < deadline, "the probe does not arrive");
    }
}

#[tokio::test]
async fn a_standby_without_a_receiver_says_where_its_timeline_is_from() {
    let a = Server::start(&newest(), "");
    let primary = a.primary("postgres").await;
    ensure_physical_slot(&primary, "b").await.unwrap();
    let b = Server::standby_of(&a, "b", "b");
    a.stop("fast");
    let standby = b.connect("postgres").await;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let facts = server_facts(&standby).await.unwrap();
        if matches!(facts.role, ServerRole::Standby { receiver: None, .. }) {
            assert_eq!((facts.timeline.as_u32(), facts.timeline_from), (1, TimelineSource::Checkpoint));
            break;
        }
        assert!(Instant::now() < deadline, "the receiver stays: {facts:?}");
    }
}

#[tokio::test]
async fn the_probe_role_can_write_the_probe_and_nothing_else() {
    let server = Server::start(&newest(), "");
    let primary = server.primary("postgres").await;
    assert_eq!(read_probe(&primary).await.unwrap(), None);
    ensure_probe_table(&primary).await.unwrap();
    let verifier = Verifier::derive(&Secret::new("probing"), b"0123456789abcdef", DEFAULT_ITERATIONS);
    let sql =
        format!("ALTER ROLE {PROBE_ROLE} PASSWORD '{}'; CREATE TABLE public.t ()", verifier.text().reveal());
    primary.batch("give a password", &sql).await.unwrap();
    let login = server.tcp_login(PROBE_ROLE, "probing", "postgres");
    let probe = Connector::new(gate::open()).connect(&login).await.unwrap();
    write_probe(&probe, "seen").await.unwrap();
    assert_eq!(read_probe(&probe).await.unwrap().as_deref(), Some("seen"));
    for forbidden in [
        "DELETE FROM pgherd.probe",
        "INSERT INTO pgherd.probe VALUES (false, '', now())",
        "CREATE TABLE pgherd.t ()",
        "SELECT FROM public.t",
        "CREATE DATABASE d",
        "CREATE ROLE r",
    ] {
        let error = probe.batch("try", forbidden).await.unwrap_err();
        assert!(error.is_state("42501") || error.is_state("23514"), "{forbidden}: {error:?}");
    }
}

#[tokio::test]
async fn settings_are_set_read_and_reset() {
    let server = Server::start(&newest(), "");
    let conn = server.connect("postgres").await;
    set_system(&conn, "work_mem", "7MB").await.unwrap();
    set_system(&conn, "max_connections", "33").await.unwrap();
    set_system(&conn, "log_line_prefix", "it's \\ %m").await.unwrap();
    set_system(&conn, "shared_preload_libraries", "auto_explain, pg_stat_statements").await.unwrap();
    assert!(set_system(&conn, "shared_preload_libraries", " ").await.is_err());
    assert!(set_system(&conn, "no_such", "1").await.unwrap_err().is_state("42704"));
    reload(&conn).await.unwrap();
    let names = ["Work_Mem", "max_connections", "log_line_prefix", "shared_preload_libraries", "no_such"];
    let deadline = Instant::now() + Duration::from_secs(20);
    let found = loop {
        let found = settings(&conn, &names).await.unwrap();
        if found.iter().any(|one| one.name == "work_mem" && one.setting == "7168") {
            break found;
        }
        assert!(Instant::now() < deadline, "the reload has no effect: {found:?}");
    };
    assert_eq!(found.len(), 4);
    let one = |name: &str| found.iter().find(|one| one.name == name).unwrap();
    assert_eq!((one("work_mem").shown.as_str(), one("work_mem").unit.as_deref()), ("7MB", Some("kB")));
    assert_eq!(one("work_mem").source, "configuration file");
    assert!(one("work_mem").sourcefile.as_deref().unwrap().ends_with("/postgresql.auto.conf"));
    assert_eq!(one("log_line_prefix").setting, "it's \\ %m");
    assert!(one("max_connections").pending_restart && one("max_connections").context == "postmaster");
    let file = std::fs::read_to_string(server.data().join("postgresql.auto.conf")).unwrap();
    assert!(file.contains("shared_preload_libraries = 'auto_explain, pg_stat_statements'"), "{file}");

    reset_system(&conn, "work_mem").await.unwrap();
    server.append("postgresql.conf", "work_mem = many\n");
    let errors = file_settings_errors(&conn).await.unwrap();
    let named: Vec<_> =
        errors.iter().map(|error| (error.name.as_deref(), error.context.as_deref())).collect();
    assert!(named.contains(&(Some("work_mem"), Some("user"))), "{errors:?}");
    assert!(named.contains(&(Some("max_connections"), Some("postmaster"))), "{errors:?}");
}
