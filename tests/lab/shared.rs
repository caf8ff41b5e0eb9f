//! A repository that the hosts of a cluster do not share is told before anything relies on it.

use std::process::{Command, Output, Stdio};

use super::lab::{Lab, told};
use super::services::newest_server;

const REPOSITORY: &str = "/srv/repository";
const NOT_SHARED: &str = "is not the same directory on host db2 as on host db1";

#[test]
fn a_repository_of_which_each_host_has_its_own_is_refused_also_where_they_were_copied() {
    let Some(lab) = Lab::up(&["db1", "db2"]) else { return };
    // Hosts see what is below "/" as it was when they were made, but not what is in /run.
    let station = tempfile::Builder::new().prefix("pgherd-station-").tempdir_in("/run").unwrap();
    let (major, bin) = newest_server();
    let topology = format!(
        "pgherd: 1\nherd: shop\nssh: {{config: {{file: {}}}}}\nregions: {{west: {{hosts: {{db1: {}, db2: {}}}}}}}\n\
         repositories: {{main: {{url: \"file://{REPOSITORY}\"}}}}\nclusters:\n  inventory:\n    \
         ports: {{postgres: 5441}}\n    \
         postgres: {{version: {major}, bin-directory: {bin}, tune: {{memory: 256 MiB}}}}\n    nodes:\n      \
         a: {{host: db1, data-directory: /srv/inventory-a, prefer: primary}}\n      \
         b: {{host: db2, data-directory: /srv/inventory-b}}\n    backups: {{repository: main}}\n",
        lab.ssh_config().display(),
        lab.address("db1"),
        lab.address("db2"),
    );
    std::fs::write(station.path().join("pgherd.yml"), topology).unwrap();
    let pgherd = |args: &[&str]| -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgherd"));
        command.args(args).current_dir(station.path()).stdin(Stdio::null());
        for (variable, name) in
            [("PGHERD_CONFIG_DIR", "config"), ("PGHERD_STATE_DIR", "state"), ("PGHERD_LIB_DIR", "lib")]
        {
            command.env(variable, station.path().join(name));
        }
        command.output().unwrap()
    };
    let gone = |host: &str, path: &str| !lab.console(host, &["test", "-e", path]).status.success();

    // Neither has one: what the first makes, the second does not see.
    let refused = pgherd(&["apply", "--yes"]);
    assert_eq!(refused.status.code(), Some(4), "{}", told(&refused));
    assert!(told(&refused).contains("is not the same directory on host"), "{}", told(&refused));
    for (host, data) in [("db1", "/srv/inventory-a"), ("db2", "/srv/inventory-b")] {
        assert!(gone(host, REPOSITORY) && gone(host, data), "{}", told(&refused));
    }

    // One has one, and the other got a copy: both say that they are the same, and the WAL of the primary is in one of them.
    let make = |host: &str, document: &str| {
        let script = format!(
            "mkdir -p {REPOSITORY} && printf '%s' '{document}' > {REPOSITORY}/repository.json && \
             chown -R postgres: {REPOSITORY}"
        );
        lab.prints(host, &["sh", "-c", &script]);
    };
    let golden = include_str!("../golden/repository-v1.json");
    make("db1", golden);
    let refused = pgherd(&["plan"]);
    assert_eq!(refused.status.code(), Some(4), "{}", told(&refused));
    assert!(told(&refused).contains(NOT_SHARED), "{}", told(&refused));
    make("db2", golden);
    let refused = pgherd(&["apply", "--yes"]);
    assert!(told(&refused).contains(NOT_SHARED), "{}", told(&refused));
    assert_eq!(refused.status.code(), Some(4), "{}", told(&refused));
}
