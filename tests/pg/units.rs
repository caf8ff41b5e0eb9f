//! The units that pgherd writes, as systemd itself reads them.

use std::fs;
use std::path::Path;
use std::process::Command;

use pgherd::topology::claim::{self, Profile};
use pgherd::topology::places::Places;
use pgherd::topology::unit::{self, Peers, PoolerService};

use crate::server::{Installation, installations};

#[test]
fn systemd_has_nothing_to_say_of_a_unit_on_every_major() {
    for installation in installations() {
        for peers in [Peers::None, Peers::Some] {
            assert_eq!(verify(&installation, "/var/lib/pgherd/inventory-b", peers), "");
        }
        assert_eq!(verify(&installation, "/srv/50% of $HOME's \"disk\"", Peers::Some), "");
    }
}

#[test]
fn systemd_has_nothing_to_say_of_the_unit_of_a_pooler() {
    let verify = |directory: &str| {
        let path = |name: &str| Path::new(directory).join(name);
        let (ini, pidfile) = (path("pgbouncer.ini"), path("pgbouncer.pid"));
        let service = PoolerService {
            cluster: "inventory",
            host: "db1",
            os_user: "postgres",
            pgbouncer: Path::new("/usr/sbin/pgbouncer"),
            ini: &ini,
            pidfile: &pidfile,
        };
        said(&unit::render_pooler(service).unwrap())
    };
    assert_eq!(verify("/var/lib/pgherd/poolers/inventory-db1"), "");
    assert_eq!(verify("/srv/50% of $HOME \"disk\""), "");
}

#[test]
fn systemd_does_have_something_to_say_of_a_unit_with_a_mistake() {
    let installation = installations().pop().unwrap();
    let text = render(&installation, "/var/lib/pgherd/inventory-b", Peers::Some);
    assert!(said(&text.replace("KillMode=", "KilMode=")).contains("KilMode"));
    assert!(said(&text.replace("/postgres -D", "/postgre -D")).contains("not executable"));
}

fn verify(installation: &Installation, data_directory: &str, peers: Peers) -> String {
    said(&render(installation, data_directory, peers))
}

fn render(installation: &Installation, data_directory: &str, peers: Peers) -> String {
    let golden = include_bytes!("../../src/topology/testdata/profile-1.json");
    let profile: Profile = claim::read(golden).unwrap();
    let profile = Profile {
        version: installation.major,
        bin_directory: installation.bin().to_owned(),
        data_directory: data_directory.into(),
        ..profile
    };
    let mut places = Places::decide(true, |_| None).unwrap().node("inventory-b");
    // The guard is looked for too.
    places.program = Path::new(env!("CARGO_BIN_EXE_pgherd")).to_owned();
    unit::render(&profile, &places, peers).unwrap()
}

/// What systemd-analyze prints on standard error: a key that it does not know is only a warning there, and its status then 0.
fn said(text: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pgherd-inventory-b.service");
    fs::write(&file, text).unwrap();
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output();
    let output = output.expect("systemd-analyze is there: scripts/setup --test");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
