//! Gives `pgherd --version` the commit that it was built from; without git, just the version.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/logs/HEAD");
    let commit = Command::new("git")
        .args(["rev-parse", "--short=10", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map(|text| text.trim().to_owned())
        .unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    let full = if commit.is_empty() { version.to_owned() } else { format!("{version} ({commit})") };
    println!("cargo:rustc-env=PGHERD_VERSION={full}");
}
