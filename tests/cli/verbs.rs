//! The verbs through the real binary: whole outputs, exit codes, and what is on stdout and on stderr.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use insta::assert_snapshot;

/// Runs pgherd in a directory with nothing of this machine's environment that could change what it prints.
fn pgherd(directory: &Path, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_pgherd"))
        .args(args)
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", directory)
        .output()
        .expect("the binary starts");
    let shown = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    let text = format!(
        "$ pgherd {}\n{}--- stderr\n{}--- exit {}\n",
        args.join(" "),
        shown(output.stdout),
        shown(output.stderr),
        output.status.code().expect("it was not killed by a signal"),
    );
    let real = directory.canonicalize().expect("the directory exists");
    text.replace(&real.display().to_string(), "[DIR]").replace(&directory.display().to_string(), "[DIR]")
}

/// A directory that holds the example as its topology.
fn shop() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory can be made");
    fs::copy(crate::project("examples/shop.yml"), directory.path().join("pgherd.yml"))
        .expect("the example can be copied");
    directory
}

fn with_topology(text: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory can be made");
    fs::write(directory.path().join("pgherd.yml"), text).expect("a file can be written");
    directory
}

const BROKEN: &str = "\
pgherd: 1
herd: shop
regions: {here: {hosts: {local: local}}}
clusters:
  inventory:
    postgres: {version: 13}
    synchronus: none
    nodes: {a: {host: local, port: 5441}}
    roles: {inventory_app: {password: hunter2}}
";

#[test]
fn validate_says_what_each_cluster_is() {
    assert_snapshot!(pgherd(shop().path(), &["validate"]));
}

#[test]
fn validate_in_json_is_one_document() {
    assert_snapshot!(pgherd(shop().path(), &["validate", "--format", "json", "--cluster", "orders"]));
}

#[test]
fn validate_says_nothing_when_it_is_quiet_and_all_is_well() {
    assert_eq!(pgherd(shop().path(), &["-q", "validate"]), "$ pgherd -q validate\n--- stderr\n--- exit 0\n");
}

#[test]
fn validate_prints_every_problem_even_when_it_is_quiet() {
    assert_snapshot!(pgherd(with_topology(BROKEN).path(), &["validate", "-q"]));
}

#[test]
fn problems_in_json_are_one_document_on_stderr() {
    assert_snapshot!(pgherd(with_topology(BROKEN).path(), &["validate", "--format", "json"]));
}

#[test]
fn no_verb_and_no_format_shows_a_secret_that_is_given_as_text() {
    let directory = with_topology(BROKEN);
    for verb in [&["validate"][..], &["config", "show", "inventory", "--origin"]] {
        for format in ["human", "json", "markdown"] {
            let told = pgherd(directory.path(), &[verb, &["--format", format, "-v"]].concat());
            assert!(told.contains("secret given as text"), "{told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
    }
}

#[test]
fn a_cluster_that_does_not_exist_is_not_found() {
    assert_snapshot!(pgherd(shop().path(), &["validate", "--cluster", "invoices"]));
}

#[test]
fn without_a_topology_it_says_where_it_looked() {
    let directory = tempfile::tempdir().unwrap();
    assert_snapshot!(pgherd(directory.path(), &["validate"]));
}

#[test]
fn a_topology_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    assert_snapshot!(pgherd(directory.path(), &["-f", "missing.yml", "validate"]));
}

#[test]
fn config_show_prints_every_value() {
    assert_snapshot!(pgherd(shop().path(), &["config", "show", "orders"]));
}

#[test]
fn config_show_origin_prints_the_line_of_every_value() {
    assert_snapshot!(pgherd(shop().path(), &["config", "show", "reporting", "--origin"]));
}

#[test]
fn config_show_in_json_is_one_document() {
    let directory = with_topology(
        "\
pgherd: 1
herd: shop
regions: {here: {hosts: {local: local}}}
defaults: {postgres: {version: 15}}
clusters:
  inventory:
    nodes: {a: {host: local, port: 5441}}
    roles: {app: {password: {command: [vault, kv, get, hunter2]}}}
",
    );
    let told = pgherd(directory.path(), &["config", "show", "inventory", "--format", "json"]);
    assert!(!told.contains("hunter2"), "{told}");
    assert_snapshot!(told);
}

#[test]
fn schema_is_a_json_document_on_stdout() {
    let directory = tempfile::tempdir().unwrap();
    let told = pgherd(directory.path(), &["schema"]);
    let schema =
        told.strip_prefix("$ pgherd schema\n").and_then(|rest| rest.strip_suffix("--- stderr\n--- exit 0\n"));
    assert_eq!(schema, Some(pgherd::topology::schema::text().as_str()));
}

#[test]
fn the_short_help_fits_a_screen() {
    let directory = tempfile::tempdir().unwrap();
    assert_snapshot!(pgherd(directory.path(), &["-h"]));
}

#[test]
fn the_long_help_of_a_verb_is_its_manual() {
    let directory = tempfile::tempdir().unwrap();
    assert_snapshot!(pgherd(directory.path(), &["init", "--help"]));
}

#[test]
fn an_unknown_flag_is_a_usage_error() {
    let directory = tempfile::tempdir().unwrap();
    assert_snapshot!(pgherd(directory.path(), &["validate", "--fromat", "json"]));
}

#[test]
fn a_usage_error_in_json_is_one_document() {
    let directory = tempfile::tempdir().unwrap();
    assert_snapshot!(pgherd(directory.path(), &["validate", "--nodes", "--format", "json"]));
}

#[test]
fn the_version_names_the_commit() {
    let directory = tempfile::tempdir().unwrap();
    let told = pgherd(directory.path(), &["--version"]);
    assert!(told.starts_with(concat!("$ pgherd --version\npgherd ", env!("CARGO_PKG_VERSION"))), "{told}");
    assert!(told.ends_with("--- stderr\n--- exit 0\n"), "{told}");
}

#[test]
fn completions_know_every_verb() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let told = pgherd(directory.path(), &["completions", shell]);
        for verb in ["init", "validate", "schema", "config", "completions", "man"] {
            assert!(told.contains(verb), "{shell} does not know {verb}");
        }
    }
}

#[test]
fn the_manual_has_a_page_for_every_verb_and_the_exit_codes() {
    let directory = tempfile::tempdir().unwrap();
    let told = pgherd(directory.path(), &["man", "--to", "."]);
    assert_eq!(told, "$ pgherd man --to .\n--- stderr\n--- exit 0\n");
    for page in ["pgherd.1", "pgherd-init.1", "pgherd-validate.1", "pgherd-config-show.1"] {
        assert!(directory.path().join(page).is_file(), "{page} is missing");
    }
    let main = fs::read_to_string(directory.path().join("pgherd.1")).unwrap();
    assert!(main.contains("refused by a safety gate"), "{main}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_pgherd"))
        .arg("schema")
        .current_dir(directory.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pgherd")).arg("schema").stdout(full).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.starts_with("ERROR:  could not write to standard output\nDETAIL: No space left on device"),
        "{told}"
    );
    assert_eq!(output.status.code(), Some(1));
}

/// Finds a port that is free together with the ones that `init` needs with it.
fn free_ports() -> u16 {
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    // A part of the range for each process, so that test binaries that run side by side do not meet.
    let start = 20_000 + u16::try_from(std::process::id() % 1_000).expect("below 1000") * 10;
    (start..start + 10_000)
        .step_by(10)
        .find(|first| (*first..first + 3).chain([first + 1000]).all(free))
        .expect("some are free")
}

#[test]
fn init_writes_a_topology_that_is_valid_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_ports();
    let told = pgherd(directory.path(), &["init", "shop", "--local", "--port", &port.to_string()]);
    let text = fs::read_to_string(directory.path().join("pgherd.yml")).unwrap_or_else(|_| panic!("{told}"));
    let mut settings = insta::Settings::clone_current();
    for offset in [0, 1, 2, 1000] {
        settings.add_filter(&(port + offset).to_string(), format!("[PORT+{offset}]"));
    }
    settings.add_filter(r"PostgreSQL 1\d\.\d+", "PostgreSQL [VERSION]");
    settings.add_filter(r"PgBouncer \d+\.\d+\.\d+", "PgBouncer [VERSION]");
    settings.add_filter(r"version: 1\d", "version: [MAJOR]");
    settings.add_filter(r"memory: [\d.]+ [MG]iB\} *", "memory: [SIZE]} ");
    settings.add_filter(
        r"\[DIR\]/\.local/share/pgherd|/tmp/[^ ,}]*/\.local/share/pgherd|/var/lib/pgherd",
        "[DATA]",
    );
    settings.bind(|| {
        assert_snapshot!("init_says", told);
        assert_snapshot!("init_writes", text);
    });
    assert!(pgherd(directory.path(), &["validate"]).ends_with("--- exit 0\n"));

    let secret = directory.path().join("secrets/inventory_app");
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    let password = fs::read_to_string(&secret).unwrap();
    assert_eq!(password.trim_end().len(), 32);
    assert!(!told.contains(password.trim_end()) && !text.contains(password.trim_end()));
    assert_eq!(fs::read_to_string(directory.path().join("secrets/.gitignore")).unwrap(), "*\n");
}

#[test]
fn init_never_writes_over_a_file() {
    let directory = with_topology("mine\n");
    assert_snapshot!(pgherd(directory.path(), &["init", "shop", "--local"]));
    assert_eq!(fs::read_to_string(directory.path().join("pgherd.yml")).unwrap(), "mine\n");
    assert!(!directory.path().join("secrets").exists());
}

#[test]
fn init_refuses_a_port_in_use_and_names_a_free_one() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_ports();
    let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port + 1)).unwrap();
    let told = pgherd(directory.path(), &["init", "shop", "--local", "--port", &port.to_string()]);
    assert!(told.contains(&format!("ERROR:  port {} of this machine is in use\n", port + 1)), "{told}");
    assert!(told.contains("HINT:   Start at a free one: --port "), "{told}");
    assert!(told.ends_with("--- exit 1\n"), "{told}");
    assert!(!directory.path().join("pgherd.yml").exists());
}

#[test]
fn init_of_one_node_needs_no_standby() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_ports();
    let args =
        ["init", "shop", "--local", "--nodes", "1", "--cluster", "web-orders", "--port", &port.to_string()];
    let told = pgherd(directory.path(), &args);
    assert!(told.ends_with("--- exit 0\n"), "{told}");
    let valid = pgherd(directory.path(), &["validate"]);
    assert!(valid.contains("shop/web-orders"), "{valid}");
    assert!(valid.contains("1 node (preferred a)   asynchronous"), "{valid}");
    assert!(directory.path().join("secrets/web_orders_app").is_file());
}

#[test]
fn init_refuses_a_name_that_cannot_be_one() {
    let directory = tempfile::tempdir().unwrap();
    assert_snapshot!(pgherd(directory.path(), &["init", "My_Shop", "--local"]));
    assert!(!directory.path().join("pgherd.yml").exists());
}
