//! The ends of transactions in WAL, against what `pg_waldump` reads in the same segments.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pgherd::pg::wal_file::{SegmentName, WalSegmentSize};
use pgherd::pg::wal_record::{self, Mark, MarkKind, SegmentMarks};

use crate::herd::{as_server, text, text_of};
use crate::server::{Installation, Server, installations};

const SIZE: u64 = 16 << 20;

/// What a record says, as `KIND XID TIME`, by where it begins.
fn by_pg_waldump(installation: &Installation, first: &Path, last: &Path) -> BTreeMap<u64, String> {
    let mut dump = as_server(&installation.bin().join("pg_waldump"));
    dump.args([text(first), text(last)]).env("TZ", "UTC").env("PGTZ", "UTC");
    // It ends with an error where the log ends.
    let (out, _) = output(dump);
    let mut found = BTreeMap::new();
    for line in out.lines() {
        let field = |name: &str| line.split_once(name).map(|(_, rest)| rest.trim_start());
        let (Some(lsn), Some(desc)) = (field(" lsn:"), field(" desc:")) else { continue };
        let lsn: pgherd::pg::lsn::Lsn = lsn.split(',').next().unwrap().parse().unwrap();
        let own = field(" tx:").unwrap().split(',').next().unwrap().trim().to_owned();
        let words: Vec<&str> = desc.split_whitespace().collect();
        let said = match words[0] {
            "COMMIT" | "ABORT" => {
                format!("{} {own} {} {}", words[0], words[1], words[2].trim_end_matches(';'))
            }
            "COMMIT_PREPARED" | "ABORT_PREPARED" => {
                let kind = words[0].trim_end_matches("_PREPARED");
                format!(
                    "{kind} {} {} {}",
                    words[1].trim_end_matches(':'),
                    words[2],
                    words[3].trim_end_matches(';')
                )
            }
            "PREPARE" => format!("PREPARE {own}"),
            "RESTORE_POINT" => format!("POINT {}", words[1]),
            _ => String::new(),
        };
        found.insert(lsn.as_u64(), said);
    }
    found
}

fn output(mut command: std::process::Command) -> (String, bool) {
    let done = command.output().unwrap();
    (String::from_utf8_lossy(&done.stdout).into_owned(), done.status.success())
}

fn said(mark: &Mark) -> String {
    let time = mark.at.strftime("%Y-%m-%d %H:%M:%S%.6f");
    match &mark.kind {
        MarkKind::Commit { xid } => format!("COMMIT {xid} {time}"),
        MarkKind::Abort { xid } => format!("ABORT {xid} {time}"),
        MarkKind::Prepare { xid } => format!("PREPARE {xid}"),
        MarkKind::RestorePoint { name } => format!("POINT {name}"),
    }
}

/// Writes transactions of all kinds, one of which ends across a segment boundary.
fn write(server: &Server, installation: &Installation) {
    let sql = |sql: &str| {
        let mut psql = as_server(&installation.bin().join("psql"));
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"]);
        psql.arg(server.socket()).args(["-p", &server.port().to_string(), "-c", sql]);
        text_of(psql).unwrap_or_else(|said| panic!("{sql}: {said}"))
    };
    sql("CREATE TABLE t (n int, note text)");
    for round in 0..3 {
        sql(&format!(
            "INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series(1, 1000) n; DROP TABLE IF EXISTS u{round}"
        ));
        sql("BEGIN; INSERT INTO t VALUES (0, 'no'); ROLLBACK");
        for end in ["COMMIT", "ROLLBACK"] {
            sql(&format!("BEGIN; CREATE TABLE p{round}{end} (n int); PREPARE TRANSACTION 'g{round}{end}'"));
            sql(&format!("{end} PREPARED 'g{round}{end}'"));
        }
        sql(&format!("SELECT pg_create_restore_point('point{round}')"));
        // A commit with so many subtransactions is longer than what is left of the segment.
        sql("DO $$ BEGIN FOR i IN 1..30000 LOOP BEGIN INSERT INTO t VALUES (i); EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$;
             SELECT pg_logical_emit_message(false, 'fill', repeat('x', greatest(0, 16777216 - 60000 - o)::int))
               FROM (SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint % 16777216 AS o) at");
        sql("INSERT INTO t VALUES (1)");
    }
    sql("SELECT pg_switch_wal()");
    sql("INSERT INTO t VALUES (2)");
}

#[test]
fn transactions_end_where_pg_waldump_says() {
    for installation in installations() {
        let server = Server::start(
            &installation,
            "max_prepared_transactions = 5\nautovacuum = off\nwal_keep_size = '1GB'\n",
        );
        write(&server, &installation);
        server.stop("fast");
        let mut files: Vec<PathBuf> =
            fs::read_dir(server.data().join("pg_wal")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.file_name().unwrap().to_str().unwrap().parse::<SegmentName>().is_ok());
        files.sort();
        let size = WalSegmentSize::new(SIZE).unwrap();
        let mut marks = Vec::new();
        let mut before: Option<SegmentMarks> = None;
        let mut across = 0;
        let mut used = Vec::new();
        for file in &files {
            let name: SegmentName = file.file_name().unwrap().to_str().unwrap().parse().unwrap();
            // One that was made ahead holds nothing, or an older log.
            let Ok(found) = wal_record::marks(name, size, &fs::read(file).unwrap()) else { break };
            used.push(file.clone());
            if let Some(tail) = before.and_then(|before| before.tail)
                && let Some(mark) = tail.complete(&found, name.start(size))
            {
                across += 1;
                marks.push(mark);
            }
            marks.extend(found.marks.iter().cloned());
            before = Some(found);
        }
        let all = by_pg_waldump(&installation, &used[0], used.last().unwrap());
        let theirs: Vec<&String> = all.values().filter(|said| !said.is_empty()).collect();
        let ours: Vec<String> = marks.iter().map(said).collect();
        assert_eq!(ours.len(), theirs.len(), "PostgreSQL {}", installation.major);
        assert!(ours.iter().zip(&theirs).all(|(one, other)| one == *other), "{ours:#?}\n{theirs:#?}");
        assert!(across >= 1, "no commit crossed a segment: {across}");
        // A record ends where the next one begins, but for the header of a page between the two.
        let begins: Vec<u64> = all.keys().copied().collect();
        for mark in &marks {
            let end = mark.lsn.as_u64();
            let next = begins.iter().find(|begin| **begin >= end);
            assert!(
                next.is_none_or(|next| next - end <= 40 || mark.lsn.as_u64() % SIZE == 0),
                "{mark:?} {next:?}"
            );
        }
    }
}
