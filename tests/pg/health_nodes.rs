//! What a node's server tells of itself to a role that is no superuser.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::herd::{Herd, SINGLE, as_server, until};
use crate::server::installations;

/// A session that stays where it is until this is dropped.
pub struct Session(Child);

impl Session {
    pub fn open(herd: &Herd, node: &str, sql: &str) -> Self {
        let mut command = as_server(&herd.installation().bin().join("psql"));
        command
            .args(["-XAtq", "-U", "postgres", "-d", "inventory", "-p", &herd.port(node).to_string(), "-h"])
            .arg(herd.path("state/run").join(format!("inventory-{node}")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let mut child = command.spawn().expect("psql starts");
        writeln!(child.stdin.as_mut().expect("piped"), "{sql}").expect("psql reads");
        Self(child)
    }

    /// Says one thing more.
    pub fn goes_on(&mut self, sql: &str) {
        writeln!(self.0.stdin.as_mut().expect("piped"), "{sql}").expect("psql reads");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // psql ends with its input; one that waits for an answer is killed.
        drop(self.0.stdin.take());
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

pub fn append(path: &Path, line: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(path).expect("it is there");
    writeln!(file, "{line}").expect("it can be written");
}

pub fn without_last_line(path: &Path) {
    let text = fs::read_to_string(path).expect("it is there");
    let end = text.trim_end().rfind('\n').expect("lines") + 1;
    fs::write(path, &text[..end]).expect("it can be written");
}

#[test]
fn a_role_with_pg_monitor_sees_all_but_what_takes_a_grant_of_its_own() {
    for installation in installations().into_iter().filter(|found| [14, 15, 18].contains(&found.major)) {
        let mut herd = Herd::declare(&installation, &SINGLE);
        // What a lone node would lose is not known to anybody.
        herd.edit("    nodes:\n", "    health: {disk: {report: never}, rpo: {report: never}}\n    nodes:\n");
        herd.apply().ends_with(0);
        herd.edit(
            "    nodes:\n",
            "    checks: {stock: {sql: select count(*) from public.stock, warn: 100}}\n    nodes:\n",
        );
        let hba = herd.data("a").join("pg_hba.conf");
        let lines = fs::read_to_string(&hba).expect("it is there");
        fs::write(&hba, format!("local all mon trust\n{lines}")).expect("it can be written");
        herd.sql("a", "CREATE ROLE mon LOGIN");
        herd.sql("a", "SELECT pg_reload_conf()");
        herd.sql_in("a", "inventory", "GRANT CONNECT ON DATABASE inventory TO mon; CREATE SEQUENCE public.s; CREATE TABLE public.stock (n int)");
        herd.variable("PGHERD_ROLE", Some("mon"));
        let asked = || {
            let report = herd.run(&["--format", "json", "health"]).json();
            let findings = report["findings"].as_array().expect("a list").clone();
            let of = |status: &str| -> Vec<(String, String)> {
                let of = findings.iter().filter(|finding| finding["status"] == status);
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                of.map(|finding| (text(&finding["check"]), text(&finding["next"]))).collect()
            };
            (of("unknown"), of("ok"), findings.len())
        };

        // Without it nothing is fine that the role does not see.
        let (unknown, fine, _) =
            until("the role is let in", || Some(asked()).filter(|(_, fine, _)| fine.len() > 5));
        let seen: Vec<&str> = fine.iter().map(|(check, _)| check.as_str()).collect();
        for check in [
            "connections",
            "idle-in-transaction",
            "lock-wait",
            "wal-size",
            "crash",
            "xid-age",
            "subscriptions",
        ] {
            assert!(!seen.contains(&check), "{check} is fine on {}", installation.major);
            let grant = unknown.iter().find(|(of, _)| of == check).map(|(_, next)| next.as_str());
            assert_eq!(grant, Some("GRANT pg_monitor TO \"mon\""), "{check} on {}", installation.major);
        }

        herd.sql("a", "GRANT pg_monitor TO mon");
        let (unknown, fine, all) = asked();
        let names: Vec<&str> = unknown.iter().map(|(check, _)| check.as_str()).collect();
        assert_eq!(names, ["sequences", "configuration", "stock"], "{unknown:#?}");
        assert_eq!(unknown[2].1, "GRANT pg_read_all_data TO \"mon\"");
        assert_eq!(fine.len() + 3, all, "on {}", installation.major);
        for (_, grant) in unknown {
            herd.sql_in("a", "postgres", &grant);
        }
        let (unknown, _, _) = asked();
        assert_eq!(unknown, [], "on {}", installation.major);
    }
}
