//! Backups of real clusters: what is in them, and what becomes of them when something goes wrong.

use std::fs;
use std::path::PathBuf;

use crate::herd::{Herd, Ran, SINGLE, Shape};
use crate::server::{Installation, installations, newest};

/// A herd whose WAL is archived.
struct Backed {
    herd: Herd,
}

impl Backed {
    fn up(installation: &Installation, shape: &Shape<'_>) -> Self {
        let mut herd = Herd::up(installation, shape);
        let repository = herd.path("repository");
        pgherd::repo::create(&format!("file://{}", repository.display())).unwrap();
        let status =
            std::process::Command::new("chown").args(["-R", "postgres", herd_text(&repository)]).status();
        assert!(status.unwrap().success());
        let script = herd.path("archive");
        fs::write(
            &script,
            format!(
                "#!/bin/sh\nset -e\nd={}/inventory/$(cat {}/system)/wal/$(echo \"$2\" | cut -c1-16)\nmkdir -p \"$d\"\nzstd -q -f -o \"$d/.$2\" \"$1\"\nmv \"$d/.$2\" \"$d/$2.zst\"\n",
                repository.display(),
                herd.root().display()
            ),
        )
        .unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let system = herd.sql("a", "SELECT system_identifier FROM pg_control_system()");
        fs::write(herd.path("system"), system).unwrap();
        for setting in [
            "archive_mode = on".to_owned(),
            format!("archive_command = '{} \"%p\" \"%f\"'", script.display()),
        ] {
            herd.sql("a", &format!("ALTER SYSTEM SET {setting}"));
        }
        for node in shape.nodes {
            herd.program("pg_ctl", &["-D", herd_text(&herd.data(node)), "-w", "-l", "/dev/null", "restart"]);
        }
        let url = format!("file://{}", repository.display());
        herd.edit("clusters:\n", &format!("repositories: {{main: {{url: \"{url}\"}}}}\nclusters:\n"));
        herd.edit("    schemas:\n", "    backups: {repository: main}\n    schemas:\n");
        Self { herd }
    }

    fn create(&self) -> Ran {
        self.herd.run(&["backup", "create"])
    }
}

fn herd_text(path: &PathBuf) -> &str {
    crate::herd::text(path)
}

#[test]
fn a_backup_of_a_primary_is_whole() {
    for installation in installations() {
        let backed = Backed::up(&installation, &SINGLE);
        let ran = backed.create().ends_with(0);
        eprintln!("{}\n{}", ran.stdout, ran.stderr);
        std::process::Command::new("find").arg(backed.herd.path("repository")).status().unwrap();
    }
    newest();
}
