//! Every rule of the topology file: what is refused, where, why, and what to write instead.

use std::path::Path;

use pgherd::topology::load_text;

/// A cluster of one node; what is appended begins at line 9.
const ONE: &str = "\
pgherd: 1
herd: shop
regions: {here: {hosts: {local: local}}}
clusters:
  inventory:
    ports: {postgres: 5441, pooler: 6441}
    postgres: {version: 15}
    nodes: {a: {host: local}}
";

/// A cluster of two nodes; what is appended begins at line 11.
const TWO: &str = "\
pgherd: 1
herd: shop
regions: {here: {hosts: {local: local}}}
clusters:
  inventory:
    ports: {postgres: 5441, pooler: 6441}
    postgres: {version: 15}
    nodes:
      a: {host: local, port: 5441, data-directory: /d/a}
      b: {host: local, port: 5442, data-directory: /d/b}
";

/// No cluster yet; what is appended begins at line 4.
const HEAD: &str = "\
pgherd: 1
herd: shop
regions: {here: {hosts: {local: local}}}
";

const NOTHING: &str = "";

#[track_caller]
fn refuses(base: &str, added: &str, told: &str) {
    let text = format!("{base}{added}");
    let problems =
        load_text(Path::new("pgherd.yml"), &text, Path::new("/etc/pgherd")).expect_err("it is refused");
    assert_eq!(format!("\n{problems}"), told, "in\n{text}");
    assert!(!problems.to_string().contains("hunter2"), "a secret is shown");
}

#[track_caller]
fn accepts(base: &str, added: &str) -> pgherd::topology::model::Herd {
    let text = format!("{base}{added}");
    match load_text(Path::new("pgherd.yml"), &text, Path::new("/etc/pgherd")) {
        Ok(herd) => herd,
        Err(problems) => panic!("{problems}\nin\n{text}"),
    }
}

#[test]
fn every_problem_is_told_in_one_run_in_the_order_of_the_file() {
    refuses(
        NOTHING,
        "pgherd: 2\nherd: 7\nregions: {here: {hosts: {db1: local}}}\nclusters: {a: {nodes: {x: {host: db2}}, postgres: {version: 99}}}\n",
        r#"
ERROR:  pgherd.yml:1:9: unsupported format version 2
DETAIL: This version of pgherd reads format 1.
HINT:   Write "pgherd: 1", or use the version of pgherd that the file was written for.
ERROR:  pgherd.yml:2:7: herd must be a text, found a number
HINT:   Put quotes around it if it is meant as a text.
ERROR:  pgherd.yml:4:34: unknown host "db2"
DETAIL: Declared: db1.
HINT:   Did you mean "db1"?
ERROR:  pgherd.yml:4:61: unsupported PostgreSQL version "99"
DETAIL: pgherd runs PostgreSQL 14 to 19.
HINT:   Write one of them, such as "version: 18"."#,
    );
}

#[test]
fn what_several_clusters_take_from_defaults_is_told_once() {
    refuses(
        HEAD,
        "defaults: {postgres: {version: 15, settings: {work_mem: 4}}, nodes: {a: {host: locl}}}\nclusters:\n  x: {ports: {postgres: 5441}}\n  y: {ports: {postgres: 5442}}\n",
        r#"
ERROR:  pgherd.yml:4:57: work_mem has no unit
DETAIL: To PostgreSQL, 4 would be 4 times 1 kB.
HINT:   Write the unit, such as "64 MiB" or "64MB".
ERROR:  pgherd.yml:4:80: unknown host "locl"
DETAIL: Declared: local.
HINT:   Did you mean "local"?"#,
    );
}

#[test]
fn a_cluster_overrides_defaults_key_by_key_and_none_takes_away() {
    let herd = accepts(
        HEAD,
        "\
defaults:
  postgres: {version: 15, settings: {max_connections: 60, work_mem: 4 MiB, jit: on}}
  nodes:
    a: {host: local, port: 5441, data-directory: /d/a}
    b: {host: local, port: 5442, data-directory: /d/b}
  synchronous: {wait-for: 1, of: [a, b]}
clusters:
  inventory:
    postgres: {version: 16, settings: {work_mem: 64 MiB, jit: none}}
    nodes: {b: none}
    synchronous: none
",
    );
    let cluster = herd.cluster("inventory").unwrap();
    let settings: Vec<(&str, &str)> =
        cluster.postgres.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(settings, [("max_connections", "60"), ("work_mem", "64MB")]);
    assert_eq!(cluster.postgres.version, 16);
    assert_eq!(cluster.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(cluster.synchronous, None);
}

#[test]
fn a_password_of_a_cluster_replaces_the_whole_reference_of_defaults() {
    use pgherd::topology::model::SecretReference;
    let herd = accepts(
        HEAD,
        "\
defaults: {postgres: {version: 15}, roles: {app: {password: {env: APP}}}}
clusters:
  one: {nodes: {a: {host: local, port: 5441}}}
  two: {nodes: {a: {host: local, port: 5442}}, roles: {app: {password: {file: secrets/app}}}}
",
    );
    let password = |cluster: &str| herd.cluster(cluster).unwrap().roles[0].password.clone();
    assert_eq!(password("one"), Some(SecretReference::Env("APP".into())));
    assert_eq!(password("two"), Some(SecretReference::File("/etc/pgherd/secrets/app".into())));
}

#[test]
fn what_is_not_said_has_its_default() {
    let herd = accepts(ONE, "");
    let cluster = herd.cluster("inventory").unwrap();
    let node = cluster.preferred();
    assert_eq!((node.name.as_str(), node.port), ("a", 5441));
    assert_eq!(node.data_directory, Path::new("/var/lib/pgherd/inventory-a"));
    assert_eq!(cluster.databases, ["inventory"]);
    assert_eq!((herd.timezone.as_str(), cluster.poolers.is_none()), ("UTC", true));
}

#[test]
fn words_of_postgresql_are_texts_and_quoted_none_is_one_of_them() {
    let herd = accepts(
        HEAD,
        "\
clusters:
  inventory:
    postgres:
      version: 15
      settings: {jit: off, fsync: on, log_statement: \"none\", wal_level: logical, temp_file_limit: -1, log_min_duration_statement: 1.5s}
    nodes: {a: {host: local, port: 5441}}
",
    );
    let settings = &herd.clusters[0].postgres.settings;
    let value = |name: &str| settings[name].as_str();
    assert_eq!((value("jit"), value("fsync"), value("log_statement")), ("off", "on", "none"));
    assert_eq!((value("temp_file_limit"), value("log_min_duration_statement")), ("-1", "1.5s"));
}

#[test]
fn a_file_from_windows_has_the_same_lines_and_columns() {
    refuses(
        NOTHING,
        "\u{feff}pgherd: 1\r\nherd: shop\r\nregions: {}\r\nclusters: {}\r\nhrd: x\r\n",
        r#"
ERROR:  pgherd.yml:5:1: unknown key "hrd" in the file
DETAIL: Its keys are: clusters, defaults, herd, pgherd, regions, repositories, scheduler, ssh, timezone.
HINT:   Did you mean "herd"?"#,
    );
}

#[test]
fn an_empty_file_says_how_to_begin() {
    for text in ["", "# only a comment\n", "---\n"] {
        let problems = load_text(Path::new("pgherd.yml"), text, Path::new("/")).unwrap_err();
        assert!(problems.to_string().contains("HINT: "), "{problems}");
        assert!(problems.to_string().starts_with("ERROR:  pgherd.yml:"), "{problems}");
    }
}

// YAML itself

#[test]
fn refuses_an_unknown_key_and_says_what_was_meant() {
    refuses(
        ONE,
        r#"    synchronus: {wait-for: 1, of: [a]}
"#,
        r#"
ERROR:  pgherd.yml:9:5: unknown key "synchronus" in clusters.inventory
DETAIL: Its keys are: backups, checks, databases, drills, dumps, health, hooks, maintenance, nodes, notify, objectives, partitions, poolers, ports, postgres, roles, schemas, synchronous.
HINT:   Did you mean "synchronous"?"#,
    );
}

#[test]
fn refuses_an_unknown_key_deep_in_a_mapping() {
    refuses(
        ONE,
        r#"    roles: {app: {conections: 4}}
"#,
        r#"
ERROR:  pgherd.yml:9:19: unknown key "conections" in clusters.inventory.roles.app
DETAIL: Its keys are: connections, password, pools.
HINT:   Did you mean "connections"?"#,
    );
}

#[test]
fn refuses_a_duplicate_key_and_says_where_the_first_is() {
    refuses(
        ONE,
        r#"    nodes: {b: {host: local}}
"#,
        r#"
ERROR:  pgherd.yml:9:5: duplicate key "nodes"
DETAIL: It was given first at 8:5.
HINT:   Keep one of the two."#,
    );
}

#[test]
fn refuses_an_anchor() {
    refuses(
        ONE,
        r#"    databases: &all {inventory: {}}
"#,
        r#"
ERROR:  pgherd.yml:9:16: an anchor (&name) is not allowed
DETAIL: Every value of a topology stands where it is read, or in "defaults".
HINT:   Remove the anchor; put what clusters share into "defaults"."#,
    );
}

#[test]
fn refuses_an_alias() {
    refuses(
        TWO,
        r#"    schemas: &s {}
    roles: *s
"#,
        r#"
ERROR:  pgherd.yml:11:14: an anchor (&name) is not allowed
DETAIL: Every value of a topology stands where it is read, or in "defaults".
HINT:   Remove the anchor; put what clusters share into "defaults".
ERROR:  pgherd.yml:12:12: an alias (*name) is not allowed
DETAIL: Every value of a topology stands where it is read, or in "defaults".
HINT:   Write the value here, or put what clusters share into "defaults"."#,
    );
}

#[test]
fn refuses_an_unknown_key_that_is_taken_away() {
    refuses(
        ONE,
        r#"    synchronus: none
"#,
        r#"
ERROR:  pgherd.yml:9:5: unknown key "synchronus" in clusters.inventory
DETAIL: Its keys are: backups, checks, databases, drills, dumps, health, hooks, maintenance, nodes, notify, objectives, partitions, poolers, ports, postgres, roles, schemas, synchronous.
HINT:   Did you mean "synchronous"?"#,
    );
}

#[test]
fn refuses_a_merge_key() {
    refuses(
        ONE,
        r#"    schemas: {s: &s {owner: o}}
    roles: {<<: *s}
"#,
        r#"
ERROR:  pgherd.yml:9:18: an anchor (&name) is not allowed
DETAIL: Every value of a topology stands where it is read, or in "defaults".
HINT:   Remove the anchor; put what clusters share into "defaults".
ERROR:  pgherd.yml:10:13: a merge key (<<) is not allowed
DETAIL: Clusters inherit from "defaults": mappings merge key by key, everything else is replaced.
HINT:   Put what clusters share into "defaults"."#,
    );
}

#[test]
fn refuses_a_tag() {
    refuses(
        ONE,
        r#"    databases: !!map {inventory: {}}
"#,
        r#"
ERROR:  pgherd.yml:9:16: a tag (!name) is not allowed
DETAIL: What a value is follows from its key.
HINT:   Remove the tag; put quotes around what must be a text."#,
    );
}

#[test]
fn refuses_a_second_document() {
    refuses(
        ONE,
        r#"---
pgherd: 1
"#,
        r#"
ERROR:  pgherd.yml:9:1: a second document in one file
DETAIL: A topology is one YAML document; a line "---" begins another.
HINT:   Remove the line, or put the second document into a file of its own."#,
    );
}

#[test]
fn refuses_a_key_that_is_not_a_text() {
    refuses(
        ONE,
        r#"    databases: {1: {}}
"#,
        r#"
ERROR:  pgherd.yml:9:16: clusters.inventory.databases names no database
HINT:   Remove the key: the cluster then has one database that is named like it.
ERROR:  pgherd.yml:9:17: a key must be a text, found a number
HINT:   Put quotes around it if it is meant as a name."#,
    );
}

#[test]
fn refuses_interpolation() {
    refuses(
        ONE,
        r#"    schemas: {s: {owner: "${OWNER}"}}
"#,
        r#"
ERROR:  pgherd.yml:9:26: interpolation (${…}) is not allowed
DETAIL: What stands in the file is what is used.
HINT:   Write the value itself; a secret is given as {env: NAME}, {file: PATH} or {command: [...]}."#,
    );
}

#[test]
fn refuses_what_is_not_yaml() {
    refuses(
        ONE,
        r#"    roles: {app: [
"#,
        r#"
ERROR:  pgherd.yml:10:1: invalid YAML: while parsing a node, did not find expected node content
HINT:   The file cannot be read further than this. Look at indentation, quotes and colons here and just before."#,
    );
}

#[test]
fn refuses_nesting_without_end() {
    refuses(
        ONE,
        r#"    roles: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[
"#,
        r#"
ERROR:  pgherd.yml:9:41: nested more than 32 levels deep
HINT:   No key of a topology is so deep. Look for brackets that are not closed."#,
    );
}

#[test]
fn refuses_an_empty_value() {
    refuses(
        ONE,
        r#"    databases:
"#,
        r#"
ERROR:  pgherd.yml:9:14: clusters.inventory.databases must be a mapping, found nothing
HINT:   Give it a value, or remove the key. An empty mapping is written {}."#,
    );
}

#[test]
fn refuses_a_text_where_a_mapping_belongs() {
    refuses(
        ONE,
        r#"    databases: inventory
"#,
        r#"
ERROR:  pgherd.yml:9:16: clusters.inventory.databases must be a mapping, found a text
HINT:   "pgherd schema" prints what each key takes."#,
    );
}

#[test]
fn refuses_a_number_where_a_name_belongs() {
    refuses(
        HEAD,
        r#"clusters:
  inventory: {postgres: {version: 15}, nodes: {a: {host: 7, port: 5441}}}
"#,
        r#"
ERROR:  pgherd.yml:5:58: clusters.inventory.nodes.a.host must be a text, found a number
HINT:   Put quotes around it if it is meant as a text."#,
    );
}

// The top of the file

#[test]
fn refuses_a_format_that_it_does_not_read() {
    refuses(
        NOTHING,
        r#"pgherd: 2
herd: shop
regions: {here: {hosts: {local: local}}}
clusters: {}
"#,
        r#"
ERROR:  pgherd.yml:1:9: unsupported format version 2
DETAIL: This version of pgherd reads format 1.
HINT:   Write "pgherd: 1", or use the version of pgherd that the file was written for."#,
    );
}

#[test]
fn refuses_a_file_without_its_required_keys() {
    refuses(
        NOTHING,
        r#"timezone: UTC
"#,
        r#"
ERROR:  pgherd.yml:1:1: the file has no "pgherd"
HINT:   Add it: pgherd: 1.
ERROR:  pgherd.yml:1:1: the file has no "herd"
HINT:   Add it: herd: NAME.
ERROR:  pgherd.yml:1:1: the file has no "regions"
HINT:   Add it: regions: {here: {hosts: {local: local}}}.
ERROR:  pgherd.yml:1:1: the file has no "clusters"
HINT:   Add it: clusters: {NAME: {...}}."#,
    );
}

#[test]
fn refuses_an_unknown_time_zone() {
    refuses(
        HEAD,
        r#"timezone: Europe/Berln
clusters: {}
"#,
        r#"
ERROR:  pgherd.yml:4:11: unknown time zone "Europe/Berln"
DETAIL: A zone is an IANA name such as UTC or Europe/Berlin.
HINT:   Did you mean "Europe/Berlin"?"#,
    );
}

#[test]
fn refuses_a_vault_that_would_be_told_its_token_in_the_clear_and_half_a_reference() {
    refuses(
        ONE,
        r#"    roles:
      one: {password: {vault: {url: "http://vault:8200", path: secret/data/app, field: password, token: {env: VAULT_TOKEN}}}}
      two: {password: {vault: {url: "https://ops:hunter2@vault:8200", path: /secret/../app, field: password, token: {env: VAULT_TOKEN}}}}
      three: {password: {vault: {url: "https://vault:8200", token: hunter2}}}
      four: {password: {vault: {url: "https://vault:8200", path: a/b, field: f, ca: {}, token: {vault: {}}}}}
"#,
        r#"
ERROR:  pgherd.yml:10:37: clusters.inventory.roles.one.password.vault.url must be https://HOST:PORT
DETAIL: Without TLS the token would be read on the way; http is taken at this machine's loopback address alone. What was found is not shown.
HINT:   Write url: https://vault.example:8200.
ERROR:  pgherd.yml:11:37: clusters.inventory.roles.two.password.vault.url must be https://HOST:PORT
DETAIL: Without TLS the token would be read on the way; http is taken at this machine's loopback address alone. What was found is not shown.
HINT:   Write url: https://vault.example:8200.
ERROR:  pgherd.yml:11:77: clusters.inventory.roles.two.password.vault.path must be names with "/" between them
HINT:   Write it as the API has it, after /v1/: secret/data/NAME.
ERROR:  pgherd.yml:12:33: clusters.inventory.roles.three.password.vault has no "path"
HINT:   Add it: path: secret/data/NAME.
ERROR:  pgherd.yml:12:33: clusters.inventory.roles.three.password.vault has no "field"
HINT:   Add it: field: password.
ERROR:  pgherd.yml:12:68: clusters.inventory.roles.three.password.vault.token is a secret given as text
DETAIL: The file says where a secret is and never what it is. The value is not shown here.
HINT:   Write {env: NAME}, {file: PATH}, {command: [PROGRAM, ARGUMENT]} or {vault: {url: ...}}.
ERROR:  pgherd.yml:13:96: clusters.inventory.roles.four.password.vault.token is in a Vault itself
HINT:   Write {env: NAME}, {file: PATH} or {command: [PROGRAM, ARGUMENT]}."#,
    );
}

#[test]
fn refuses_tls_that_is_half_given_or_set_twice() {
    refuses(
        HEAD,
        r#"clusters:
  one:
    ports: {postgres: 5441}
    postgres: {version: 15, tls: {ca: {file: ca.pem}, key: {}}}
    nodes: {a: {host: local}}
  two:
    ports: {postgres: 5442}
    postgres: {version: 15, tls: own, settings: {ssl: true, ssl_cert_file: /c}}
    nodes: {a: {host: local}}
  three:
    ports: {postgres: 5443}
    postgres: {version: 15, tls: yes}
    nodes: {a: {host: local}}
"#,
        r#"
ERROR:  pgherd.yml:7:34: clusters.one.postgres.tls has no "certificate"
HINT:   Add it: certificate: {file: tls/certificate.pem}.
ERROR:  pgherd.yml:7:60: clusters.one.postgres.tls.key has no "file"
HINT:   Add it: key: {file: tls/key.pem}.
ERROR:  pgherd.yml:11:50: setting "ssl" follows from "tls"
HINT:   Remove one of them.
ERROR:  pgherd.yml:11:61: setting "ssl_cert_file" follows from "tls"
HINT:   Remove one of them.
ERROR:  pgherd.yml:15:34: clusters.three.postgres.tls must be "own", found "yes"
HINT:   Write "own"."#,
    );
}

#[test]
fn refuses_an_address_that_is_none() {
    refuses(
        NOTHING,
        r#"pgherd: 1
herd: shop
regions:
  here:
    hosts:
      db1: dba@10.0.0.1:22
      db2: {address: db2.example.com}
      db3: {user: dba}
      db4: {address: 10.0.0.4, via: local, user: dba}
      db5: {address: 10.0.0.5, port: 70000}
      db6: {address: 10.0.0.6, user: -oProxyCommand=x}
ssh: {key: {}, host-keys: {file: 'a"b'}}
clusters: {}
"#,
        r#"
ERROR:  pgherd.yml:6:12: regions.here.hosts.db1 must be an IP address
DETAIL: It goes into PostgreSQL's and PgBouncer's files; user and port of ssh have keys of their own.
HINT:   Write {address: 10.0.0.1, user: USER, port: 22}, or "local" for this machine.
ERROR:  pgherd.yml:7:22: regions.here.hosts.db2.address must be an IP address
DETAIL: It goes into PostgreSQL's and PgBouncer's files; user and port of ssh have keys of their own.
HINT:   Write {address: 10.0.0.1, user: USER, port: 22}, or "local" for this machine.
ERROR:  pgherd.yml:8:12: regions.here.hosts.db3 has no "address"
HINT:   Add it: address: 10.0.0.1.
ERROR:  pgherd.yml:9:50: regions.here.hosts.db4.user is of ssh, which does not reach this machine
HINT:   Remove it, or remove "via: local".
ERROR:  pgherd.yml:10:38: the port of sshd must be from 1 to 65535, found 70000
HINT:   sshd listens on 22 if nobody said otherwise.
ERROR:  pgherd.yml:11:38: "-oProxyCommand=x" cannot be the name of a user
HINT:   Write the name alone, such as user: dba.
ERROR:  pgherd.yml:12:12: ssh.key has no "file"
HINT:   Add it: key: {file: keys/key}.
ERROR:  pgherd.yml:12:34: ssh.host-keys.file holds a character that ssh's options cannot hold
HINT:   Choose a path without quotes and backslashes."#,
    );
}

#[test]
fn refuses_a_host_that_its_peers_on_other_machines_cannot_reach() {
    refuses(
        NOTHING,
        r#"pgherd: 1
herd: shop
regions: {here: {hosts: {station: local, db1: 10.0.0.1}}}
clusters:
  orders:
    postgres: {version: 18}
    ports: {postgres: 5441}
    nodes: {a: {host: station}, b: {host: db1}}
"#,
        r#"
ERROR:  pgherd.yml:8:13: host station has no address that the other hosts of orders could reach
DETAIL: The cluster has hosts on other machines, and "local" alone is only known to this one.
HINT:   Write station: {address: 10.0.0.1, via: local} under "regions"."#,
    );
}

#[test]
fn refuses_a_host_in_two_regions() {
    refuses(
        NOTHING,
        r#"pgherd: 1
herd: shop
regions:
  east: {hosts: {db1: local}}
  west: {hosts: {db1: local}}
clusters: {}
"#,
        r#"
ERROR:  pgherd.yml:5:18: host "db1" is in two regions
DETAIL: It was given first at 4:18.
HINT:   Keep one of the two."#,
    );
}

#[test]
fn refuses_a_name_that_cannot_be_one() {
    refuses(
        HEAD,
        r#"clusters:
  Inventory_1: {postgres: {version: 15}, nodes: {a: {host: local, port: 5441}}}
"#,
        r#"
ERROR:  pgherd.yml:5:3: "Inventory_1" cannot be the name of a cluster
DETAIL: A name has up to 31 lowercase letters, digits and hyphens, and begins with a letter.
HINT:   Choose another name, such as "inventory" or "db-1"."#,
    );
}

#[test]
fn refuses_a_key_that_a_later_version_brings() {
    refuses(
        ONE,
        r#"    upstream: b
"#,
        r#"
ERROR:  pgherd.yml:9:5: unknown key "upstream" in clusters.inventory
DETAIL: Its keys are: backups, checks, databases, drills, dumps, health, hooks, maintenance, nodes, notify, objectives, partitions, poolers, ports, postgres, roles, schemas, synchronous.
HINT:   This version of pgherd does not have "upstream" yet. Remove it."#,
    );
}

#[test]
fn refuses_none_that_takes_nothing_away_from_settings() {
    refuses(
        HEAD,
        r#"clusters:
  inventory:
    postgres: {version: 15, settings: {log_statement: none}}
    nodes: {a: {host: local, port: 5441}}
"#,
        r#"
ERROR:  pgherd.yml:6:55: clusters.inventory.postgres.settings.log_statement: none takes nothing away
DETAIL: In a cluster, none removes what "defaults" say; here there is nothing to remove.
HINT:   Remove it; or put quotes around "none" if PostgreSQL's word is meant."#,
    );
}

// Units, versions and settings

#[test]
fn refuses_a_time_without_a_unit() {
    refuses(
        ONE,
        r#"    objectives: {lose-primary: {rpo: 5, rto: 1 min}}
"#,
        r#"
ERROR:  pgherd.yml:9:38: clusters.inventory.objectives.lose-primary.rpo: "5" has no unit, expected a time such as 30 s, 5 min or 2 h
HINT:   Write the unit, such as "5 s"."#,
    );
}

#[test]
fn refuses_m_as_a_unit() {
    refuses(
        ONE,
        r#"    objectives: {lose-primary: {rpo: 5 m, rto: 1 min}}
"#,
        r#"
ERROR:  pgherd.yml:9:38: clusters.inventory.objectives.lose-primary.rpo: "5 m" is ambiguous: "m" could be minutes or months; write "min" or "months"
HINT:   Write "min" if minutes are meant."#,
    );
}

#[test]
fn refuses_an_unknown_unit() {
    refuses(
        ONE,
        r#"    objectives: {lose-primary: {rpo: 5 weeks, rto: 1 min}}
"#,
        r#"
ERROR:  pgherd.yml:9:38: clusters.inventory.objectives.lose-primary.rpo: "5 weeks" has the unknown unit "weeks", expected a time such as 30 s, 5 min or 2 h
HINT:   Write a whole number and a unit, such as "64 MiB" or "30 s"."#,
    );
}

#[test]
fn refuses_memory_in_decimal_units() {
    refuses(
        HEAD,
        r#"clusters:
  inventory:
    postgres: {version: 15, tune: {memory: 32 GB}}
    nodes: {a: {host: local, port: 5441}}
"#,
        r#"
ERROR:  pgherd.yml:6:44: clusters.inventory.postgres.tune.memory: "32 GB" has the unknown unit "GB", expected a size such as 64 MiB or 32 GiB
HINT:   Write a whole number and a unit, such as "64 MiB" or "30 s"."#,
    );
}

#[test]
fn refuses_a_setting_without_its_unit() {
    refuses(
        HEAD,
        r#"clusters:
  inventory:
    postgres: {version: 15, settings: {shared_buffers: 16384, statement_timeout: 30}}
    nodes: {a: {host: local, port: 5441}}
"#,
        r#"
ERROR:  pgherd.yml:6:56: shared_buffers has no unit
DETAIL: To PostgreSQL, 16384 would be 16384 times 8 kB.
HINT:   Write the unit, such as "64 MiB" or "64MB".
ERROR:  pgherd.yml:6:82: statement_timeout has no unit
DETAIL: To PostgreSQL, 30 would be 30 times 1 ms.
HINT:   Write the unit, such as "30 s" or "5min"."#,
    );
}

#[test]
fn refuses_m_in_a_setting() {
    refuses(
        HEAD,
        r#"clusters:
  inventory:
    postgres: {version: 15, settings: {checkpoint_timeout: 5 m}}
    nodes: {a: {host: local, port: 5441}}
"#,
        r#"
ERROR:  pgherd.yml:6:60: checkpoint_timeout: "5 m" is ambiguous: "m" could be minutes or months
HINT:   Write "min" if minutes are meant."#,
    );
}

#[test]
fn refuses_a_unit_of_another_kind_in_a_setting() {
    refuses(
        HEAD,
        r#"clusters:
  inventory:
    postgres: {version: 15, settings: {work_mem: 30 s}}
    nodes: {a: {host: local, port: 5441}}
"#,
        r#"
ERROR:  pgherd.yml:6:50: work_mem must be a size such as 64 MiB or 64MB, found "30 s"
HINT:   Write a number and one of PostgreSQL's units (kB, MB, GB, TB; ms, s, min, h, d) or a binary one with a space."#,
    );
}

#[test]
fn refuses_a_version_that_is_too_old_or_too_new_or_minor() {
    refuses(
        HEAD,
        r#"clusters:
  old: {postgres: {version: 13}, nodes: {a: {host: local, port: 5441}}}
  new: {postgres: {version: 20}, nodes: {a: {host: local, port: 5442}}}
  minor: {postgres: {version: "15.3"}, nodes: {a: {host: local, port: 5443}}}
"#,
        r#"
ERROR:  pgherd.yml:5:29: unsupported PostgreSQL version "13"
DETAIL: pgherd runs PostgreSQL 14 to 19.
HINT:   Write one of them, such as "version: 18".
ERROR:  pgherd.yml:6:29: unsupported PostgreSQL version "20"
DETAIL: pgherd runs PostgreSQL 14 to 19.
HINT:   Write one of them, such as "version: 18".
ERROR:  pgherd.yml:7:31: unsupported PostgreSQL version "15.3"
DETAIL: pgherd runs PostgreSQL 14 to 19.
HINT:   Write the major version alone: "version: 15". Which minor version runs is up to the packages of each host."#,
    );
}

#[test]
fn refuses_settings_that_are_its_own() {
    refuses(
        HEAD,
        r#"clusters:
  inventory:
    postgres:
      version: 15
      settings:
        port: 1
        synchronous_standby_names: b
        archive_command: cp
        wal_level: minimal
        recovery_target_time: now
    nodes: {a: {host: local, port: 5441}}
"#,
        r#"
ERROR:  pgherd.yml:9:9: setting "port" is pgherd's own
HINT:   Use "ports: {postgres: ...}", or "port" of a node.
ERROR:  pgherd.yml:10:9: setting "synchronous_standby_names" is pgherd's own
HINT:   Use "synchronous: {wait-for: 1, of: [...]}".
ERROR:  pgherd.yml:11:9: setting "archive_command" is pgherd's own
HINT:   pgherd archives WAL itself. Remove it.
ERROR:  pgherd.yml:12:20: wal_level must be "replica" or "logical", found "minimal"
DETAIL: Standbys and backups need at least replica.
HINT:   Remove it.
ERROR:  pgherd.yml:13:9: setting "recovery_target_time" is pgherd's own
DETAIL: A recovery target belongs to one restore, not to a cluster.
HINT:   Remove it."#,
    );
}

#[test]
fn refuses_settings_that_postgresql_spells_otherwise() {
    refuses(
        HEAD,
        r#"clusters:
  inventory:
    postgres: {version: 15, settings: {Work_Mem: 4MB, work-mem: 4MB, timezone: UTC}}
    nodes: {a: {host: local, port: 5441}}
"#,
        r#"
ERROR:  pgherd.yml:6:40: PostgreSQL spells the setting "Work_Mem" as "work_mem"
HINT:   Write "work_mem".
ERROR:  pgherd.yml:6:55: "work-mem" is not the name of a setting
HINT:   Settings have PostgreSQL's spelling: "work_mem".
ERROR:  pgherd.yml:6:70: PostgreSQL spells the setting "timezone" as "TimeZone"
HINT:   Write "TimeZone"."#,
    );
}

// Names

#[test]
fn refuses_an_unknown_host() {
    refuses(
        HEAD,
        r#"clusters:
  inventory: {postgres: {version: 15}, nodes: {a: {host: locl, port: 5441}}}
"#,
        r#"
ERROR:  pgherd.yml:5:58: unknown host "locl"
DETAIL: Declared: local.
HINT:   Did you mean "local"?"#,
    );
}

#[test]
fn refuses_an_unknown_node() {
    refuses(
        TWO,
        r#"    synchronous: {wait-for: 1, of: [a, b, node-c]}
"#,
        r#"
ERROR:  pgherd.yml:11:43: unknown node "node-c" in clusters.inventory.synchronous
DETAIL: Declared: a, b.
HINT:   Write one of them, or declare it first."#,
    );
}

#[test]
fn refuses_an_unknown_pool() {
    refuses(
        TWO,
        r#"    poolers: {hosts: [local], pools: {rw: {to: primary, size: 5}, ro: {to: standbys, size: 5}}}
    roles: {app: {password: {env: APP}, pools: [rw, roo]}}
"#,
        r#"
ERROR:  pgherd.yml:12:53: unknown pool "roo" of role app
DETAIL: Declared: rw, ro.
HINT:   Did you mean "ro"?"#,
    );
}

#[test]
fn refuses_an_unknown_role() {
    refuses(
        ONE,
        r#"    schemas: {s: {owner: s_owner, write: [app], read: [bi]}}
    roles: {apps: {password: {env: APP}}, bi: {}}
"#,
        r#"
ERROR:  pgherd.yml:9:43: unknown role "app" in clusters.inventory.schemas.s
DETAIL: Declared: apps, bi.
HINT:   Did you mean "apps"?"#,
    );
}

#[test]
fn refuses_an_unknown_database_and_a_schema_without_one() {
    refuses(
        ONE,
        r#"    databases: {one: {}, two: {}}
    schemas: {s: {owner: s_owner, database: tow}, t: {owner: t_owner}}
"#,
        r#"
ERROR:  pgherd.yml:10:45: unknown database "tow" in clusters.inventory.schemas.s
DETAIL: Declared: one, two.
HINT:   Did you mean "two"?
ERROR:  pgherd.yml:10:51: clusters.inventory.schemas.t has no "database"
HINT:   Add it: database: NAME, since the cluster has several."#,
    );
}

#[test]
fn refuses_a_role_that_it_has_for_itself() {
    refuses(
        ONE,
        r#"    roles: {replicator: {}}
    schemas: {s: {owner: postgres}}
"#,
        r#"
ERROR:  pgherd.yml:9:13: role "replicator" cannot be declared: pgherd has it for its own use
HINT:   Choose another name.
ERROR:  pgherd.yml:10:26: role "postgres" cannot be declared: pgherd has it for its own use
HINT:   Choose another name."#,
    );
}

#[test]
fn refuses_a_database_that_every_cluster_has() {
    refuses(
        ONE,
        r#"    databases: {template1: {}, pgbouncer: {}}
"#,
        r#"
ERROR:  pgherd.yml:9:17: database "template1" cannot be declared
DETAIL: PostgreSQL or PgBouncer has it for its own use.
HINT:   Choose another name.
ERROR:  pgherd.yml:9:32: database "pgbouncer" cannot be declared
DETAIL: PostgreSQL or PgBouncer has it for its own use.
HINT:   Choose another name."#,
    );
}

#[test]
fn refuses_a_word_that_is_none_of_the_choices() {
    refuses(
        HEAD,
        r#"clusters:
  inventory: {postgres: {version: 15}, nodes: {a: {host: local, port: 5441, promote: by-hnd}}}
"#,
        r#"
ERROR:  pgherd.yml:5:86: clusters.inventory.nodes.a.promote must be "automatic" or "by-hand", found "by-hnd"
HINT:   Did you mean "by-hand"?"#,
    );
}

#[test]
fn refuses_two_preferred_primaries() {
    refuses(
        HEAD,
        r#"clusters:
  inventory:
    postgres: {version: 15}
    nodes:
      a: {host: local, port: 5441, data-directory: /d/a, prefer: primary}
      b: {host: local, port: 5442, data-directory: /d/b, prefer: primary}
"#,
        r#"
ERROR:  pgherd.yml:9:66: inventory has two preferred primaries: a and b
DETAIL: a has it at 8:7.
HINT:   Keep "prefer: primary" at one node."#,
    );
}

#[test]
fn refuses_two_nodes_with_one_full_name() {
    refuses(
        HEAD,
        r#"clusters:
  shop:
    postgres: {version: 15}
    nodes: {eu-a: {host: local, port: 5441, data-directory: /d/1}}
  shop-eu:
    postgres: {version: 15}
    nodes: {a: {host: local, port: 5442, data-directory: /d/2}}
"#,
        r#"
ERROR:  pgherd.yml:10:13: two nodes are called shop-eu-a
DETAIL: The other is at 7:13; a node is called CLUSTER-NODE in the whole herd.
HINT:   Rename one of the clusters or nodes."#,
    );
}

#[test]
fn refuses_two_pools_with_one_alias() {
    refuses(
        TWO,
        r#"    databases: {shop: {}, shop_ro: {}}
    poolers: {hosts: [local], pools: {rw: {to: primary, size: 5}, ro: {to: standbys, size: 5}}}
"#,
        r#"
ERROR:  pgherd.yml:12:67: two pools of inventory have the alias "shop_ro"
DETAIL: It is database shop_ro through pool rw, and database shop through pool ro.
HINT:   Rename the pool or the database."#,
    );
}

#[test]
fn refuses_a_database_that_pgbouncer_cannot_name() {
    refuses(
        TWO,
        r#"    databases: {"my shop": {}}
    poolers: {hosts: [local], pools: {rw: {to: primary, size: 5}}}
"#,
        r#"
ERROR:  pgherd.yml:12:39: PgBouncer cannot have the alias "my shop"
DETAIL: Its configuration takes letters, digits, "_", "." and "-" in a name, quoted or not.
HINT:   Rename the database, or write "poolers: none"."#,
    );
}

#[test]
fn refuses_a_pool_role_without_a_password() {
    refuses(
        TWO,
        r#"    poolers: {hosts: [local], pools: {rw: {to: primary, size: 5}, ro: {to: standbys, size: 5}}}
    roles: {app: {pools: [rw]}}
"#,
        r#"
ERROR:  pgherd.yml:12:13: role app may use the pool "rw" but has no password
DETAIL: Without a password it cannot log in.
HINT:   Say where its password is: password: {env: NAME} or {file: PATH}; or remove its pools."#,
    );
}

// Ports and directories

#[test]
fn refuses_nodes_that_share_a_host_without_a_port_and_directory_each() {
    refuses(
        HEAD,
        r#"clusters:
  inventory:
    postgres: {version: 15}
    ports: {postgres: 5441}
    nodes:
      a: {host: local}
      b: {host: local, port: 5442}
"#,
        r#"
ERROR:  pgherd.yml:9:7: inventory-a must state port and data-directory
DETAIL: It shares host local with inventory-b.
HINT:   Write a: {host: local, port: PORT, data-directory: /var/lib/pgherd/inventory-a}.
ERROR:  pgherd.yml:10:7: inventory-b must state data-directory
DETAIL: It shares host local with inventory-a.
HINT:   Write b: {host: local, port: PORT, data-directory: /var/lib/pgherd/inventory-b}."#,
    );
}

#[test]
fn refuses_two_nodes_on_one_port() {
    refuses(
        HEAD,
        r#"clusters:
  inventory: {postgres: {version: 15}, nodes: {a: {host: local, port: 5441}}}
  orders: {postgres: {version: 15}, nodes: {a: {host: local, port: 5441}}}
"#,
        r#"
ERROR:  pgherd.yml:6:68: orders-a and inventory-a both listen on port 5441 of local
DETAIL: inventory-a has the port at 5:71; hosts that are "local" are one machine.
HINT:   Give one of them another port."#,
    );
}

#[test]
fn refuses_two_local_hosts_on_one_port_since_they_are_one_machine() {
    refuses(
        NOTHING,
        r#"pgherd: 1
herd: shop
regions: {here: {hosts: {db1: local, db2: local}}}
clusters:
  inventory: {postgres: {version: 15}, ports: {postgres: 5441}, nodes: {a: {host: db1}, b: {host: db2}}}
"#,
        r#"
ERROR:  pgherd.yml:5:89: inventory-b and inventory-a both listen on port 5441 of db2
DETAIL: inventory-a has the port at 5:73; hosts that are "local" are one machine.
HINT:   Give one of them another port."#,
    );
}

#[test]
fn refuses_a_pooler_on_the_port_of_a_node() {
    refuses(
        HEAD,
        r#"clusters:
  inventory:
    postgres: {version: 15}
    ports: {postgres: 5441, pooler: 5441}
    nodes: {a: {host: local}}
    poolers: {hosts: [local], pools: {rw: {to: primary, size: 5}}}
"#,
        r#"
ERROR:  pgherd.yml:7:37: the pooler of inventory and inventory-a both listen on port 5441 of local
DETAIL: inventory-a has the port at 8:13; hosts that are "local" are one machine.
HINT:   Give one of them another port."#,
    );
}

#[test]
fn refuses_two_nodes_in_one_data_directory() {
    refuses(
        HEAD,
        r#"clusters:
  inventory: {postgres: {version: 15}, nodes: {a: {host: local, port: 5441, data-directory: /srv/pg}}}
  orders: {postgres: {version: 15}, nodes: {a: {host: local, port: 5442, data-directory: /srv//pg/}}}
"#,
        r#"
ERROR:  pgherd.yml:6:90: orders-a and inventory-a have the same data directory
DETAIL: inventory-a is at /srv/pg, orders-a at /srv/pg.
HINT:   Give each node a data directory of its own, such as "data-directory: /var/lib/pgherd/CLUSTER-NODE"."#,
    );
}

#[test]
fn refuses_one_data_directory_inside_another() {
    refuses(
        HEAD,
        r#"clusters:
  inventory: {postgres: {version: 15}, nodes: {a: {host: local, port: 5441, data-directory: /srv/pg/orders}}}
  orders: {postgres: {version: 15}, nodes: {a: {host: local, port: 5442, data-directory: /srv/pg}}}
"#,
        r#"
ERROR:  pgherd.yml:6:90: the data directory of inventory-a is inside that of orders-a
DETAIL: orders-a is at /srv/pg, inventory-a at /srv/pg/orders.
HINT:   Give each node a data directory of its own, such as "data-directory: /var/lib/pgherd/CLUSTER-NODE"."#,
    );
}

#[test]
fn refuses_a_data_directory_that_is_not_absolute() {
    refuses(
        HEAD,
        r#"clusters:
  inventory: {postgres: {version: 15}, nodes: {a: {host: local, port: 5441, data-directory: /srv/../pg}}}
"#,
        r#"
ERROR:  pgherd.yml:5:93: data-directory must be an absolute path without "..", found "/srv/../pg"
HINT:   Write the whole path from / on."#,
    );
}

#[test]
fn refuses_root_as_the_owner_of_a_data_directory() {
    refuses(
        HEAD,
        r#"clusters:
  inventory: {postgres: {version: 15, os-user: root}, nodes: {a: {host: local, port: 5441}}}
"#,
        r#"
ERROR:  pgherd.yml:5:48: os-user cannot be "root"
DETAIL: PostgreSQL refuses to run as root.
HINT:   Write the name of an ordinary user, such as "postgres"."#,
    );
}

#[test]
fn refuses_a_port_below_1024() {
    refuses(
        HEAD,
        r#"clusters:
  inventory: {postgres: {version: 15}, nodes: {a: {host: local, port: 543}}}
"#,
        r#"
ERROR:  pgherd.yml:5:71: clusters.inventory.nodes.a.port must be a port from 1024 to 65535, found 543
HINT:   Ports below 1024 need root, which PostgreSQL refuses."#,
    );
}

// Rules across values

#[test]
fn refuses_more_synchronous_standbys_than_nodes_can_give() {
    refuses(
        TWO,
        r#"    synchronous: {wait-for: 2, of: [a, b]}
"#,
        r#"
ERROR:  pgherd.yml:11:29: clusters.inventory.synchronous waits for 2 synchronous standbys, its nodes can give 1
DETAIL: It names a, b, and one of them is or becomes the primary; every commit would wait forever.
HINT:   Lower wait-for, name more nodes in "of", or write "synchronous: none"."#,
    );
}

#[test]
fn refuses_a_commit_that_waits_for_nobody() {
    refuses(
        TWO,
        r#"    synchronous: {wait-for: 0, of: [a, b]}
"#,
        r#"
ERROR:  pgherd.yml:11:29: clusters.inventory.synchronous.wait-for must be 1 or more
HINT:   Write "synchronous: none" if commits are to wait for no standby."#,
    );
}

#[test]
fn refuses_an_rpo_of_nothing_without_a_synchronous_standby() {
    refuses(
        TWO,
        r#"    objectives: {lose-primary: {rpo: 0 s, rto: 1 min}}
"#,
        r#"
ERROR:  pgherd.yml:11:38: inventory cannot lose its primary with an rpo of 0 s: it has no synchronous standby
DETAIL: A commit is acknowledged before any standby has it, so the newest ones die with the primary.
HINT:   Declare "synchronous: {wait-for: 1, of: [a, b]}", or an rpo above 0 s."#,
    );
}

#[test]
fn refuses_pools_over_the_budget_of_a_node() {
    refuses(
        TWO,
        r#"    poolers: {hosts: [local], pools: {rw: {to: primary, size: 80, reserve: 10}, ro: {to: standbys, size: 20, fallback: primary}}}
"#,
        r#"
ERROR:  pgherd.yml:11:63: the pools may open 110 connections to a node of inventory, it has 97 for them
DETAIL: As primary: rw 80 + 10, ro 20 = 110. max_connections 100 - superuser_reserved_connections 3 - reserved_connections 0 = 97.
HINT:   Lower a size or a reserve, or raise max_connections under "settings"."#,
    );
}

#[test]
fn refuses_pools_over_the_pool_connections_of_a_node() {
    refuses(
        HEAD,
        r#"clusters:
  inventory:
    postgres: {version: 15, settings: {max_connections: 30}}
    ports: {pooler: 6441}
    nodes:
      a: {host: local, port: 5441, data-directory: /d/a, pool-connections: 28}
      b: {host: local, port: 5442, data-directory: /d/b, pool-connections: 10}
    poolers: {hosts: [local], pools: {rw: {to: primary, size: 12}}}
"#,
        r#"
ERROR:  pgherd.yml:9:7: inventory-a has pool-connections 28, more than the 27 that its server has for them
DETAIL: max_connections 30 - superuser_reserved_connections 3 - reserved_connections 0 = 27.
HINT:   Lower pool-connections, or raise max_connections under "settings".
ERROR:  pgherd.yml:10:7: the pools may open 12 connections to inventory-b, its pool-connections are 10
DETAIL: As primary: rw 12.
HINT:   Lower a size or a reserve, or raise its pool-connections."#,
    );
}

#[test]
fn refuses_a_pool_for_standbys_that_do_not_exist() {
    refuses(
        ONE,
        r#"    poolers: {hosts: [local], pools: {rw: {to: primary, size: 5}, ro: {to: standbys, size: 5}}}
"#,
        r#"
ERROR:  pgherd.yml:9:76: pool "ro" leads to standbys, and inventory has none
HINT:   Add a node, or write "fallback: primary"."#,
    );
}

#[test]
fn refuses_a_pooler_without_a_port() {
    refuses(
        HEAD,
        r#"clusters:
  inventory:
    postgres: {version: 15}
    nodes: {a: {host: local, port: 5441}}
    poolers: {hosts: [local], pools: {rw: {to: primary, size: 5}}}
"#,
        r#"
ERROR:  pgherd.yml:5:3: clusters.inventory.ports has no "pooler"
HINT:   Add it: ports: {pooler: 6432}."#,
    );
}

// What is not managed

#[test]
fn refuses_redis_as_an_engine() {
    refuses(
        ONE,
        r#"    engine: redis
"#,
        r#"
ERROR:  pgherd.yml:9:5: cannot manage Redis (clusters.inventory)
DETAIL: pgherd manages PostgreSQL clusters whose data directory it can reach: it starts the server and reads its files.
HINT:   Remove it from the file, or describe a PostgreSQL cluster with its own nodes on hosts under "regions"."#,
    );
}

#[test]
fn refuses_rds_as_a_type() {
    refuses(
        ONE,
        r#"    type: aws-rds
"#,
        r#"
ERROR:  pgherd.yml:9:5: cannot manage Amazon RDS (clusters.inventory)
DETAIL: pgherd manages PostgreSQL clusters whose data directory it can reach: it starts the server and reads its files.
HINT:   Remove it from the file, or describe a PostgreSQL cluster with its own nodes on hosts under "regions"."#,
    );
}

#[test]
fn refuses_citus_as_a_library() {
    refuses(
        HEAD,
        r#"clusters:
  inventory:
    postgres: {version: 15, settings: {shared_preload_libraries: "pg_stat_statements, citus"}}
    nodes: {a: {host: local, port: 5441}}
"#,
        r#"
ERROR:  pgherd.yml:6:66: cannot manage Citus (shared_preload_libraries)
DETAIL: pgherd manages PostgreSQL clusters whose data directory it can reach: it starts the server and reads its files.
HINT:   Remove it from the file, or describe a PostgreSQL cluster with its own nodes on hosts under "regions"."#,
    );
}

#[test]
fn refuses_the_host_of_a_service() {
    refuses(
        HEAD,
        r#"clusters:
  inventory: {postgres: {version: 15}, nodes: {a: {host: shop.abc.eu-west-1.rds.amazonaws.com, port: 5441}}}
"#,
        r#"
ERROR:  pgherd.yml:5:58: cannot manage Amazon RDS (host)
DETAIL: pgherd manages PostgreSQL clusters whose data directory it can reach: it starts the server and reads its files.
HINT:   Remove it from the file, or describe a PostgreSQL cluster with its own nodes on hosts under "regions"."#,
    );
}

#[test]
fn refuses_a_url_without_showing_it() {
    refuses(
        HEAD,
        r#"clusters:
  inventory: {postgres: {version: 15}, nodes: {a: {host: "redis://:hunter2@cache:6379", port: 5441}}}
"#,
        r#"
ERROR:  pgherd.yml:5:58: cannot manage Redis (host)
DETAIL: pgherd manages PostgreSQL clusters whose data directory it can reach: it starts the server and reads its files.
HINT:   Remove it from the file, or describe a PostgreSQL cluster with its own nodes on hosts under "regions"."#,
    );
}

#[test]
fn refuses_clickhouse_by_its_own_key() {
    refuses(
        ONE,
        r#"    clickhouse: {shards: 3}
"#,
        r#"
ERROR:  pgherd.yml:9:5: cannot manage ClickHouse (clusters.inventory)
DETAIL: pgherd manages PostgreSQL clusters whose data directory it can reach: it starts the server and reads its files.
HINT:   Remove it from the file, or describe a PostgreSQL cluster with its own nodes on hosts under "regions"."#,
    );
}

// Secrets

#[test]
fn refuses_a_password_given_as_text() {
    refuses(
        ONE,
        r#"    roles: {app: {password: hunter2}}
"#,
        r#"
ERROR:  pgherd.yml:9:29: clusters.inventory.roles.app.password is a secret given as text
DETAIL: The file says where a secret is and never what it is. The value is not shown here.
HINT:   Write {env: NAME}, {file: PATH}, {command: [PROGRAM, ARGUMENT]} or {vault: {url: ...}}."#,
    );
}

#[test]
fn refuses_a_password_in_a_list_or_a_number() {
    refuses(
        ONE,
        r#"    roles: {app: {password: [hunter2]}, bi: {password: 20772}}
"#,
        r#"
ERROR:  pgherd.yml:9:29: clusters.inventory.roles.app.password is a secret given as text
DETAIL: The file says where a secret is and never what it is. The value is not shown here.
HINT:   Write {env: NAME}, {file: PATH}, {command: [PROGRAM, ARGUMENT]} or {vault: {url: ...}}.
ERROR:  pgherd.yml:9:56: clusters.inventory.roles.bi.password is a secret given as text
DETAIL: The file says where a secret is and never what it is. The value is not shown here.
HINT:   Write {env: NAME}, {file: PATH}, {command: [PROGRAM, ARGUMENT]} or {vault: {url: ...}}."#,
    );
}

#[test]
fn refuses_a_password_as_a_key() {
    refuses(
        ONE,
        r#"    roles: {app: {password: {hunter2: x}}}
"#,
        r#"
ERROR:  pgherd.yml:9:30: unknown key in clusters.inventory.roles.app.password
DETAIL: A secret has env, file, command or vault. What was found is not shown, since it may be a secret.
HINT:   Write {env: NAME}, {file: PATH}, {command: [PROGRAM, ARGUMENT]} or {vault: {url: ...}}."#,
    );
}

#[test]
fn refuses_a_password_as_a_key_given_twice() {
    refuses(
        ONE,
        r#"    roles: {app: {password: {hunter2: x, hunter2: x}}}
"#,
        r#"
ERROR:  pgherd.yml:9:30: unknown key in clusters.inventory.roles.app.password
DETAIL: A secret has env, file, command or vault. What was found is not shown, since it may be a secret.
HINT:   Write {env: NAME}, {file: PATH}, {command: [PROGRAM, ARGUMENT]} or {vault: {url: ...}}.
ERROR:  pgherd.yml:9:42: duplicate key
DETAIL: It was given first at 9:30.
HINT:   Keep one of the two."#,
    );
}

#[test]
fn refuses_a_password_where_the_name_of_a_variable_belongs() {
    refuses(
        ONE,
        r#"    roles: {app: {password: {env: "hunter2!"}}}
"#,
        r#"
ERROR:  pgherd.yml:9:35: clusters.inventory.roles.app.password.env is not the name of an environment variable
DETAIL: A name has letters, digits and underscores. What was found is not shown, since it may be a secret.
HINT:   Write {env: NAME}, {file: PATH}, {command: [PROGRAM, ARGUMENT]} or {vault: {url: ...}}."#,
    );
}

#[test]
fn refuses_a_path_that_only_a_shell_knows() {
    refuses(
        ONE,
        r#"    roles: {app: {password: {file: ~/secret}}}
"#,
        r#"
ERROR:  pgherd.yml:9:36: clusters.inventory.roles.app.password.file begins with "~", which only a shell knows
HINT:   Write the whole path; a relative one counts from the topology file."#,
    );
}

#[test]
fn refuses_a_password_as_a_whole_role() {
    refuses(
        ONE,
        r#"    roles: {app: hunter2}
"#,
        r#"
ERROR:  pgherd.yml:9:18: clusters.inventory.roles.app must be a mapping, found a text
HINT:   "pgherd schema" prints what each key takes."#,
    );
}

#[test]
fn refuses_two_places_for_one_password() {
    refuses(
        ONE,
        r#"    roles: {app: {password: {env: APP, file: secrets/app}}}
"#,
        r#"
ERROR:  pgherd.yml:9:29: clusters.inventory.roles.app.password must have exactly one of env, file, command and vault
HINT:   Write {env: NAME}, {file: PATH}, {command: [PROGRAM, ARGUMENT]} or {vault: {url: ...}}."#,
    );
}

/// A repository; what is appended begins at line 4.
const KEPT: &str = "\
pgherd: 1
herd: shop
regions: {here: {hosts: {local: local}}}
repositories: {main: {url: file:///srv/main}, other: {url: \"file:///srv//other/\"}}
clusters:
  inventory:
    postgres: {version: 15}
    nodes: {a: {host: local, port: 5441, data-directory: /d/a}}
";

#[test]
fn backups_and_drills_are_filled_in_and_their_repository_is_resolved() {
    let herd = accepts(
        KEPT,
        "    backups: {repository: other, window: 30 days, keep-full: 7, minimum-full: 2}
    drills: {restore: {to: random-second, assertions: {rows: {sql: select true}}}}
    objectives: {undo-mistake: {rpo: 0 s, rto: 1 h}}
",
    );
    let told = serde_json::to_value(&herd).unwrap();
    let cluster = &told["clusters"][0];
    assert_eq!(
        cluster["backups"],
        serde_json::json!({
            "repository": {"name": "other", "url": "file:///srv/other"},
            "from": "standby",
            "window": {"secs": 2_592_000, "nanos": 0},
            "keep_full": 7,
            "minimum_full": 2,
        })
    );
    assert_eq!(
        cluster["drills"],
        serde_json::json!({
            "to": "random-second",
            "prove": ["checksums", "amcheck", "assertions"],
            "assertions": [{"name": "rows", "database": "inventory", "sql": "select true"}],
        })
    );
    assert_eq!(told["repositories"][0], serde_json::json!({"name": "main", "url": "file:///srv/main"}));
}

#[test]
fn backups_of_defaults_are_taken_away_by_none() {
    let herd = accepts(
        HEAD,
        "\
repositories: {main: {url: file:///srv/main}}
defaults: {postgres: {version: 15}, backups: {repository: main}}
clusters:
  inventory: {nodes: {a: {host: local, port: 5441}}}
  orders: {nodes: {a: {host: local, port: 5442}}, backups: none}
",
    );
    assert!(herd.cluster("inventory").unwrap().backups.is_some());
    assert_eq!(herd.cluster("orders").unwrap().backups, None);
}

#[test]
fn refuses_a_repository_that_is_not_declared() {
    refuses(
        KEPT,
        "    backups: {repository: mian}\n",
        r#"
ERROR:  pgherd.yml:9:27: unknown repository "mian" in clusters.inventory.backups
DETAIL: Declared: main, other.
HINT:   Did you mean "main"?"#,
    );
}

#[test]
fn refuses_backups_without_a_repository() {
    refuses(
        KEPT,
        "    backups: {window: 30 days}\n",
        r#"
ERROR:  pgherd.yml:9:14: clusters.inventory.backups has no "repository"
HINT:   Add it: repository: NAME."#,
    );
}

#[test]
fn refuses_to_keep_nothing() {
    refuses(
        KEPT,
        "    backups: {repository: main, window: 0 s, keep-full: 0, minimum-full: 0}\n",
        r#"
ERROR:  pgherd.yml:9:41: clusters.inventory.backups.window must be longer than 0
HINT:   Write a span of time such as "30 days", or remove the key.
ERROR:  pgherd.yml:9:57: clusters.inventory.backups.keep-full must be 1 or more
HINT:   Remove the key; the newest full backup always stays.
ERROR:  pgherd.yml:9:74: clusters.inventory.backups.minimum-full must be 1 or more
HINT:   Remove the key; the newest full backup always stays."#,
    );
}

#[test]
fn how_backups_are_compressed_is_taken_from_two_keys() {
    for (words, expected) in [
        ("compression-level: 19", serde_json::json!({"zstd": {"level": 19}})),
        ("compression: lz4", serde_json::json!({"lz4": {}})),
        ("compression: off", serde_json::json!({"none": {}})),
    ] {
        let herd = accepts(KEPT, &format!("    backups: {{repository: main, {words}}}\n"));
        let told = serde_json::to_value(&herd).unwrap();
        assert_eq!(told["clusters"][0]["backups"]["compression"], expected);
    }
}

#[test]
fn refuses_a_level_that_zstd_does_not_have_or_nobody_else() {
    refuses(
        KEPT,
        "    backups: {repository: main, compression-level: 20}\n",
        r#"
ERROR:  pgherd.yml:9:52: clusters.inventory.backups.compression-level must be from 1 to 19
DETAIL: It is the level of zstd.
HINT:   1 is fast, 3 is what is taken without the key; above 9 a backup takes many times as long."#,
    );
    refuses(
        KEPT,
        "    backups: {repository: main, compression: lz4, compression-level: 1}\n",
        r#"
ERROR:  pgherd.yml:9:70: clusters.inventory.backups.compression-level is of no use with lz4
DETAIL: Levels are those of zstd.
HINT:   Remove the key, or write compression: zstd."#,
    );
}

#[test]
fn refuses_to_keep_fewer_than_always_stay() {
    refuses(
        KEPT,
        "    backups: {repository: main, keep-full: 1, minimum-full: 2}\n",
        r#"
ERROR:  pgherd.yml:9:44: clusters.inventory.backups.keep-full is 1, minimum-full is 2
DETAIL: The newest 2 always stay, so 1 can never be what is kept.
HINT:   Raise keep-full, or lower minimum-full."#,
    );
}

#[test]
fn refuses_a_source_of_backups_that_is_no_role() {
    refuses(
        KEPT,
        "    backups: {repository: main, from: standbys}\n",
        r#"
ERROR:  pgherd.yml:9:39: clusters.inventory.backups.from must be "standby" or "primary", found "standbys"
HINT:   Did you mean "standby"?"#,
    );
}

#[test]
fn refuses_a_mistake_that_cannot_be_undone() {
    refuses(
        KEPT,
        "    objectives: {undo-mistake: {rpo: 0 s, rto: 1 h}}\n",
        r#"
ERROR:  pgherd.yml:9:32: inventory cannot undo a mistake: it has no backups
DETAIL: What was deleted on purpose or by accident is deleted on every standby too.
HINT:   Declare "backups: {repository: NAME}", or remove the objective."#,
    );
}

#[test]
fn refuses_a_drill_without_backups() {
    refuses(
        KEPT,
        "    drills: {restore: {to: newest}}\n",
        r#"
ERROR:  pgherd.yml:9:23: clusters.inventory.drills.restore has nothing to restore: inventory has no backups
HINT:   Declare "backups: {repository: NAME}", or remove the drill."#,
    );
}

#[test]
fn refuses_a_drill_that_does_not_say_what_it_proves() {
    refuses(
        KEPT,
        "    backups: {repository: main}
    drills:
      restore: {to: newst, prove: [checksum, amcheck, amcheck, assertions], assertions: {}}
",
        r#"
ERROR:  pgherd.yml:11:21: clusters.inventory.drills.restore.to must be "newest" or "random-second", found "newst"
HINT:   Did you mean "newest"?
ERROR:  pgherd.yml:11:36: clusters.inventory.drills.restore.prove.0 must be "checksums" or "amcheck" or "assertions", found "checksum"
HINT:   Did you mean "checksums"?
ERROR:  pgherd.yml:11:55: clusters.inventory.drills.restore.prove names one check twice
HINT:   Keep one of the two.
ERROR:  pgherd.yml:11:64: clusters.inventory.drills.restore proves assertions and has none
HINT:   Declare "assertions: {NAME: {sql: select ...}}", or remove the word."#,
    );
    refuses(
        KEPT,
        "    backups: {repository: main}\n    drills: {restore: {prove: []}}\n",
        r#"
ERROR:  pgherd.yml:10:31: clusters.inventory.drills.restore.prove names nothing
DETAIL: A restore that is not checked proves little.
HINT:   Remove the key: all that can be checked is then checked."#,
    );
}

#[test]
fn refuses_assertions_that_are_not_proven_or_lead_nowhere() {
    refuses(
        KEPT,
        "    backups: {repository: main}
    databases: {one: {}, two: {}}
    drills:
      restore:
        prove: [checksums]
        assertions: {Rows: {database: one}, sum: {sql: select true}, last: {database: tow, sql: select true}}
",
        r#"
ERROR:  pgherd.yml:14:21: clusters.inventory.drills.restore has assertions and does not prove them
HINT:   Add "assertions" to "prove", or remove "prove".
ERROR:  pgherd.yml:14:22: "Rows" cannot be the name of a drill's assertion
DETAIL: A name has up to 31 lowercase letters, digits and hyphens, and begins with a letter.
HINT:   Choose another name, such as "inventory" or "db-1".
ERROR:  pgherd.yml:14:22: clusters.inventory.drills.restore.assertions.Rows has no "sql"
HINT:   Add it: sql: "select count(*) > 0 from SCHEMA.TABLE".
ERROR:  pgherd.yml:14:45: clusters.inventory.drills.restore.assertions.sum has no "database"
HINT:   Add it: database: NAME, since the cluster has several.
ERROR:  pgherd.yml:14:87: unknown database "tow" in clusters.inventory.drills.restore.assertions.last
DETAIL: Declared: one, two.
HINT:   Did you mean "two"?"#,
    );
}

#[test]
fn refuses_what_makes_no_sense_of_a_bucket() {
    refuses(
        HEAD,
        "\
repositories:
  a: {url: s3://Shop}
  b: {url: \"s3://shop/v 1\"}
  c: {url: s3://shop-c, access-key: {env: K}}
  d: {url: s3://shop-d, endpoint: http://s3.example.com}
  e: {url: s3://shop-e, endpoint: \"https://me:hunter2@s3.example.com\", sse: aws, kms-key: k}
  f: {url: file:///srv/f, region: eu-west-1}
  g: {url: s3://shop-c/v1, profile: p, access-key: {env: K}, secret-key: {env: S}}
  h: {url: s3://shop-h, secret-key: hunter2}
clusters:
  x: {postgres: {version: 15}, nodes: {n: {host: local, port: 5441}}, backups: {repository: c}}
",
        r#"
ERROR:  pgherd.yml:5:12: repositories.a.url must be s3://BUCKET/PREFIX
DETAIL: The name of a bucket has 3 to 63 lower-case letters, digits, "." and "-". Credentials do not stand in the URL.
HINT:   Write url: s3://shop-pg-west/v1.
ERROR:  pgherd.yml:6:12: repositories.b.url must be s3://BUCKET/PREFIX
DETAIL: The prefix is made of at most 200 letters, digits, ".", "_" and "-", with "/" between its parts.
HINT:   Write url: s3://shop-pg-west/v1.
ERROR:  pgherd.yml:7:3: repositories.c has no "secret-key"
HINT:   Add it: secret-key: {env: PGHERD_S3_SECRET_KEY}.
ERROR:  pgherd.yml:8:35: repositories.d.endpoint must be https://HOST:PORT
DETAIL: Without TLS the backups would be read on the way; http is taken at a host's own loopback address alone.
HINT:   Write endpoint: https://s3.example.com.
ERROR:  pgherd.yml:9:35: repositories.e.endpoint must be https://HOST:PORT
DETAIL: Without TLS the backups would be read on the way; http is taken at a host's own loopback address alone.
HINT:   Write endpoint: https://s3.example.com.
ERROR:  pgherd.yml:9:77: repositories.e.sse must be "AES256" or "aws:kms" or "aws:kms:dsse", found "aws"
HINT:   Write "AES256" or "aws:kms" or "aws:kms:dsse".
ERROR:  pgherd.yml:9:91: repositories.e.kms-key means nothing without KMS
HINT:   Write sse: "aws:kms" beside it.
ERROR:  pgherd.yml:10:35: repositories.f.region means nothing for a directory
HINT:   Remove it, or keep the repository in a bucket: url: s3://BUCKET/PREFIX.
ERROR:  pgherd.yml:11:12: the repositories c and g overlap
DETAIL: c is at s3://shop-c (given at 7:12), g at s3://shop-c/v1.
HINT:   Give each a prefix of its own; clusters may share a repository.
ERROR:  pgherd.yml:11:37: repositories.g has keys and a profile
DETAIL: A profile of the hosts is asked only where no keys are given.
HINT:   Remove one of them.
ERROR:  pgherd.yml:12:37: repositories.h.secret-key is a secret given as text
DETAIL: The file says where a secret is and never what it is. The value is not shown here.
HINT:   Write {env: NAME}, {file: PATH}, {command: [PROGRAM, ARGUMENT]} or {vault: {url: ...}}."#,
    );
}

#[test]
fn refuses_a_repository_whose_url_is_neither_a_directory_nor_a_bucket() {
    refuses(
        HEAD,
        "\
repositories:
  a: {url: s3://key:hunter2@bucket}
  b: {url: /srv/b}
  c: {url: file://srv/c}
  d: {url: file:///srv/../d}
  e: {url: file:///srv/%65}
  f: {}
  g: {url: file:///}
  H: {url: file:///srv/h, path: /srv}
clusters:
  x: {postgres: {version: 15}, nodes: {n: {host: local, port: 5441}}, backups: {repository: a}}
",
        r#"
ERROR:  pgherd.yml:5:12: repositories.a.url must be s3://BUCKET/PREFIX
DETAIL: The name of a bucket has 3 to 63 lower-case letters, digits, "." and "-". Credentials do not stand in the URL.
HINT:   Write url: s3://shop-pg-west/v1.
ERROR:  pgherd.yml:6:12: repositories.b.url must be file:///ABSOLUTE/PATH or s3://BUCKET/PREFIX
HINT:   Write the whole path of a directory: url: file:///var/lib/pgherd/repository, or a bucket: url: s3://BUCKET/PREFIX.
ERROR:  pgherd.yml:7:12: repositories.c.url must be file:///ABSOLUTE/PATH, with no host and no ".."
HINT:   Write the whole path of a directory: url: file:///var/lib/pgherd/repository, or a bucket: url: s3://BUCKET/PREFIX.
ERROR:  pgherd.yml:8:12: repositories.d.url must be file:///ABSOLUTE/PATH, with no host and no ".."
HINT:   Write the whole path of a directory: url: file:///var/lib/pgherd/repository, or a bucket: url: s3://BUCKET/PREFIX.
ERROR:  pgherd.yml:9:12: repositories.e.url holds the character '%'
DETAIL: In a URL it does not mean itself.
HINT:   Choose a directory without it.
ERROR:  pgherd.yml:10:3: repositories.f has no "url"
HINT:   Add it: url: file:///var/lib/pgherd/repository.
ERROR:  pgherd.yml:11:12: repositories.g.url must be file:///ABSOLUTE/PATH, with no host and no ".."
HINT:   Write the whole path of a directory: url: file:///var/lib/pgherd/repository, or a bucket: url: s3://BUCKET/PREFIX.
ERROR:  pgherd.yml:12:3: "H" cannot be the name of a repository
DETAIL: A name has up to 31 lowercase letters, digits and hyphens, and begins with a letter.
HINT:   Choose another name, such as "inventory" or "db-1".
ERROR:  pgherd.yml:12:27: unknown key "path" in repositories.H
DETAIL: Its keys are: access-key, addressing, ca, encrypt, encrypt-before, endpoint, kms-key, object-lock, object-lock-mode, profile, region, secret-key, sse, storage-class, url.
HINT:   Remove it; "pgherd schema" prints what each key means."#,
    );
}

#[test]
fn refuses_a_repository_in_or_over_what_it_must_outlive() {
    refuses(
        HEAD,
        "\
repositories:
  in: {url: file:///d/a/repository}
  over: {url: file:///d/}
  beside: {url: file:///d-a}
clusters:
  x: {postgres: {version: 15}, nodes: {n: {host: local, port: 5441, data-directory: /d/a}}}
",
        r#"
ERROR:  pgherd.yml:5:13: the repository in overlaps the data directory of x-n
DETAIL: The repository is at /d/a/repository, the data directory at /d/a: whoever loses or removes one loses the other.
HINT:   Give the repository a directory of its own, best on another disk.
ERROR:  pgherd.yml:6:15: the repositories in and over overlap
DETAIL: in is at /d/a/repository (given at 5:13), over at /d.
HINT:   Give each a directory of its own; clusters may share a repository.
ERROR:  pgherd.yml:6:15: the repository over overlaps the data directory of x-n
DETAIL: The repository is at /d, the data directory at /d/a: whoever loses or removes one loses the other.
HINT:   Give the repository a directory of its own, best on another disk."#,
    );
}

#[test]
fn refuses_thresholds_that_no_check_has() {
    refuses(
        ONE,
        r#"    health:
      lagg: {warn: 1 s}
      lag: {warn: 10 s, crit: 5 s}
      disk: {warn: 80}
      connect: {warn: 1 s}
      archive: {after: 0}
"#,
        r#"
ERROR:  pgherd.yml:10:7: unknown check "lagg" in clusters.inventory.health
HINT:   Did you mean "lag"?
ERROR:  pgherd.yml:11:19: clusters.inventory.health.lag warns at 10.0 s, above what is critical, 5.0 s
HINT:   State both, the warning first.
ERROR:  pgherd.yml:12:20: clusters.inventory.health.disk.warn: "80" is not a number with a unit, expected a share such as 80 %
HINT:   Write it as in "warn: 80 %".
ERROR:  pgherd.yml:13:23: clusters.inventory.health.connect has no thresholds: it holds or it does not
HINT:   Remove the key; "report: warning" makes it a warning at most.
ERROR:  pgherd.yml:14:24: clusters.inventory.health.archive.after must be 1 or more"#,
    );
}

#[test]
fn refuses_checks_of_ones_own_that_say_too_little() {
    refuses(
        ONE,
        r#"    checks:
      lag: {sql: select 1, crit: 1}
      silent: {sql: select 1}
      nothing: {crit: 5}
      elsewhere: {sql: select 1, crit: 5, database: nowhere}
      odd: {sql: select 1, crit: 5 s, measure: size}
      patient: {sql: select 1, crit: 5, timeout: 5 min}
"#,
        r#"
ERROR:  pgherd.yml:10:7: clusters.inventory.checks.lag has the name of a check of pgherd's own
HINT:   Give it another one; thresholds of "lag" belong under "health".
ERROR:  pgherd.yml:11:7: clusters.inventory.checks.silent has no "crit"
HINT:   Add it: crit: 10, or "warn".
ERROR:  pgherd.yml:12:7: clusters.inventory.checks.nothing has no "sql"
HINT:   Add it: sql: "select count(*) from SCHEMA.TABLE".
ERROR:  pgherd.yml:13:53: unknown database "nowhere" in clusters.inventory.checks.elsewhere
DETAIL: Declared: inventory.
HINT:   Write one of them, or declare it first.
ERROR:  pgherd.yml:14:34: clusters.inventory.checks.odd.crit: "5 s" has the unknown unit "s", expected a size such as 64 MiB or 32 GiB
HINT:   "measure" says what it is written in: share (80 %), time (30 s), size (64 MiB) or count (12).
ERROR:  pgherd.yml:15:50: clusters.inventory.checks.patient.timeout must be above 0 and at most 1m00s"#,
    );
}

#[test]
fn a_hook_is_an_argv_whose_program_is_named_by_a_path() {
    refuses(
        TWO,
        "    hooks:
      before-promote: {run: [check], timeout: 1 min}
      after-promote: {timeout: 0 s, on: newprimary, run: [/x]}
      fence: []
      after-failover: /usr/local/bin/tell
      after-undo: {on: station}
      before-restart: [/x]
",
        r#"
ERROR:  pgherd.yml:12:29: clusters.inventory.hooks.before-promote must name its program by a path, found "check"
DETAIL: Which program a name means would depend on who runs pgherd.
HINT:   Write the whole path; a relative one, such as hooks/dns, counts from the topology file.
ERROR:  pgherd.yml:12:47: clusters.inventory.hooks.before-promote.timeout must be above 0 and at most 30.0 s
DETAIL: Clients wait while it runs.
ERROR:  pgherd.yml:13:32: clusters.inventory.hooks.after-promote.timeout must be above 0 and at most 10m00s
ERROR:  pgherd.yml:13:41: clusters.inventory.hooks.after-promote.on must be a host of inventory or a word for one, found "newprimary"
DETAIL: Declared: station, old-primary, new-primary, local.
HINT:   Did you mean "new-primary"?
ERROR:  pgherd.yml:14:14: clusters.inventory.hooks.fence names no program
HINT:   Write [/PATH/PROGRAM, ARGUMENT].
ERROR:  pgherd.yml:15:23: clusters.inventory.hooks.after-failover must be an argv such as [/PATH/PROGRAM, ARGUMENT], or a mapping with "run", found a text
HINT:   "pgherd schema" prints what each key takes.
ERROR:  pgherd.yml:16:19: clusters.inventory.hooks.after-undo has no "run"
HINT:   Add it: run: [/PATH/PROGRAM, ARGUMENT].
ERROR:  pgherd.yml:17:7: unknown key "before-restart" in clusters.inventory.hooks
DETAIL: Its keys are: after-failover, after-promote, after-switchover, after-undo, before-promote, before-switchover, fence.
HINT:   Remove it; "pgherd schema" prints what each key means."#,
    );
    let herd = accepts(
        TWO,
        "    hooks:
      before-promote: [hooks/check, --strict]
      after-promote: {run: [/usr/local/bin/dns], timeout: 10 s, on: new-primary}
      fence: {run: [/usr/local/bin/off], on: local}
",
    );
    let hooks = &herd.clusters[0].hooks;
    let told: Vec<String> = hooks
        .iter()
        .map(|hook| {
            let (point, on) = (hook.point.word(), hook.on.word());
            format!("{point} {} {:?} {:?} {on}", hook.program.display(), hook.args, hook.timeout)
        })
        .collect();
    assert_eq!(
        told,
        [
            "fence /usr/local/bin/off [] 30s local",
            "before-promote /etc/pgherd/hooks/check [\"--strict\"] 30s station",
            "after-promote /usr/local/bin/dns [] 10s new-primary",
        ]
    );
}

#[test]
fn a_hook_on_another_host_is_named_from_the_root_on() {
    refuses(
        "pgherd: 1\nherd: shop\nregions: {here: {hosts: {db1: 10.0.0.1, db2: 10.0.0.2}}}\n",
        "clusters:
  inventory:
    ports: {postgres: 5441}
    postgres: {version: 15}
    nodes: {a: {host: db1}, b: {host: db2}}
    hooks: {fence: {run: [~/off]}, after-promote: {run: [hooks/move], on: new-primary}, after-undo: {run: [hooks/tell], on: station}}
",
        r#"
ERROR:  pgherd.yml:9:26: clusters.inventory.hooks.fence begins with "~", which only a shell knows
HINT:   Write the whole path; a relative one counts from the topology file.
ERROR:  pgherd.yml:9:57: clusters.inventory.hooks.after-promote must name a program on another host by its absolute path
HINT:   Write the whole path from / on."#,
    );
}

#[test]
fn the_address_for_notifications_is_a_secret() {
    refuses(
        ONE,
        "    notify: {url: https://hooks.example/hunter2, events: [begun], ca: {}}\n",
        r#"
ERROR:  pgherd.yml:9:19: clusters.inventory.notify.url is a secret given as text
DETAIL: The file says where a secret is and never what it is. The value is not shown here.
HINT:   Write {env: NAME}, {file: PATH}, {command: [PROGRAM, ARGUMENT]} or {vault: {url: ...}}.
ERROR:  pgherd.yml:9:59: clusters.inventory.notify.events.0 must be "started" or "done" or "stuck", found "begun"
HINT:   Write "started" or "done" or "stuck".
ERROR:  pgherd.yml:9:71: clusters.inventory.notify.ca has no "file"
HINT:   Add it: file: notify-ca.pem."#,
    );
    refuses(
        ONE,
        "    notify: {events: []}\n",
        r#"
ERROR:  pgherd.yml:9:13: clusters.inventory.notify has no "url"
HINT:   Add it: url: {env: PGHERD_NOTIFY_URL}.
ERROR:  pgherd.yml:9:22: clusters.inventory.notify.events is empty
HINT:   Write [started, done, stuck], or remove the key."#,
    );
    let herd = accepts(ONE, "    notify: {url: {file: secrets/hook}, events: [stuck, done, stuck]}\n");
    let told = format!("{:?}", herd.clusters[0].notify);
    assert_eq!(
        told,
        "Some(Notify { url: File(\"/etc/pgherd/secrets/hook\"), events: [Stuck, Done], ca: None })"
    );
}

#[test]
fn partitions_are_refused_before_a_server_is_asked() {
    refuses(
        ONE,
        r#"    partitions:
      events: {by: at, every: month}
      a.b: {every: month}
      a.c: {by: at, every: fortnight}
      a.d: {by: at, every: month, ahead: 0}
      a.e: {by: at, every: month, ahead: 120}
      a.f: {by: at, every: month, keep: 3 weeks}
      a.g: {by: at, every: day, keep: 2 m}
      a.h: {by: at, every: month, then: drop}
      a.i: {by: at, every: month, keep: 1 year, then: export and drop}
      a.j: {by: at, every: month, timezone: Europe/Berlim}
      a.k: {by: at, every: month, names: "{table}_{year}"}
      a.l_that_is_called_so_long_that_its_partitions_find_no_names: {by: at, every: day}
      a.m: {by: at, every: month, database: other}
      a.n: {by: at, every: month, keep: 1 year, then: drop, keep-exports: 10 years}
      a.o: {by: at, every: month, keep: 2 years, then: export and drop, keep-exports: 24 months}
"#,
        r#"
ERROR:  pgherd.yml:10:7: clusters.inventory.partitions.events is not the name of a table: it has no schema
DETAIL: No search_path decides which table is meant.
HINT:   Write it with its schema: public.events.
ERROR:  pgherd.yml:11:7: clusters.inventory.partitions.a.b has no "by"
HINT:   Add it: by: created_at.
ERROR:  pgherd.yml:12:28: clusters.inventory.partitions.a.c.every must be "day" or "week" or "month" or "quarter" or "year", found "fortnight"
HINT:   Write "day" or "week" or "month" or "quarter" or "year".
ERROR:  pgherd.yml:13:42: clusters.inventory.partitions.a.d.ahead must be from 1 to 119, found 0
DETAIL: It counts months after the present one. Without one the next month begins without a partition; ten years of them fill the lock table and slow down every query.
HINT:   Write ahead: 3.
ERROR:  pgherd.yml:14:42: clusters.inventory.partitions.a.e.ahead must be from 1 to 119, found 120
DETAIL: It counts months after the present one. Without one the next month begins without a partition; ten years of them fill the lock table and slow down every query.
HINT:   Write ahead: 3.
ERROR:  pgherd.yml:15:41: clusters.inventory.partitions.a.f.keep is shorter than one month: 3 weeks
DETAIL: A partition would go before the period after it has ended, and the one that is written to could follow.
HINT:   Keep one month or more.
ERROR:  pgherd.yml:16:39: clusters.inventory.partitions.a.g.keep: "m" could be minutes or months; write "months"
HINT:   Write a number and a unit: keep: 2 years.
ERROR:  pgherd.yml:17:41: clusters.inventory.partitions.a.h says "then" and not how long a partition is kept
HINT:   Add it: keep: 2 years; or remove "then": partitions are kept for ever.
ERROR:  pgherd.yml:18:55: clusters.inventory.partitions.a.i exports, and inventory has no repository
DETAIL: The rows of a partition that is dropped go to the repository of the cluster's backups.
HINT:   Declare it: backups: {repository: NAME}; or write then: detach.
ERROR:  pgherd.yml:19:45: unknown time zone "Europe/Berlim"
DETAIL: A zone is an IANA name such as UTC or Europe/Berlin.
HINT:   Did you mean "Europe/Berlin"?
ERROR:  pgherd.yml:20:42: clusters.inventory.partitions.a.k.names cannot name the partitions
DETAIL: Without {month} two partitions would have the same name.
HINT:   Write it as pgherd does where nothing is said: "{table}_{year}_{month}".
ERROR:  pgherd.yml:21:7: the partitions of a.l_that_is_called_so_long_that_its_partitions_find_no_names would have names of 69 bytes, PostgreSQL takes 63
DETAIL: PostgreSQL cuts "l_that_is_called_so_long_that_its_partitions_find_no_names_2026_12_28" off, and what is left may be the name of another partition.
HINT:   Name them with something shorter: names: "SHORT_{year}_{month}_{day}".
ERROR:  pgherd.yml:22:45: unknown database "other" in clusters.inventory.partitions.a.m
DETAIL: Declared: inventory.
HINT:   Write one of them, or declare it first.
ERROR:  pgherd.yml:23:75: clusters.inventory.partitions.a.n says how long exports are kept, and exports nothing
HINT:   Write then: export and drop; or leave "keep-exports" out.
ERROR:  pgherd.yml:24:56: clusters.inventory.partitions.a.o exports, and inventory has no repository
DETAIL: The rows of a partition that is dropped go to the repository of the cluster's backups.
HINT:   Declare it: backups: {repository: NAME}; or write then: detach.
ERROR:  pgherd.yml:24:87: clusters.inventory.partitions.a.o.keep-exports is no longer than keep: 24 months and 2 years
DETAIL: Both count from the last moment of a partition, so that its export would go as soon as it is made.
HINT:   Keep exports longer; or write then: drop."#,
    );
}

#[test]
fn partitions_have_their_defaults_and_names_are_exact() {
    let herd = accepts(ONE, "    partitions:\n      '\"My.Schema\".Events': {by: At, every: week}\n");
    let set = &herd.clusters[0].partitions[0];
    assert_eq!(
        (set.table.schema.as_str(), set.table.name.as_str(), set.by.as_str()),
        ("My.Schema", "Events", "At")
    );
    assert_eq!(
        (set.ahead, set.keep, set.timezone.as_str(), set.database.as_str()),
        (3, None, "UTC", "inventory")
    );
    assert_eq!(set.names.as_str(), "{table}_{year}_w{week}");
}
