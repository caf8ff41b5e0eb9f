//! A topology of a thousand nodes, for a test and for a benchmark.

use std::fmt::Write as _;

/// A file of 200 clusters of five nodes.
pub fn thousand_nodes() -> String {
    let mut text = "\
pgherd: 1
herd: large
regions: {here: {hosts: {local: local}}}
defaults:
  postgres: {version: 15, settings: {max_connections: 60, work_mem: 4 MiB}}
  synchronous: {wait-for: 1, of: [a, b, c]}
clusters:
"
    .to_owned();
    for cluster in 0..200 {
        writeln!(text, "  c{cluster}:\n    ports: {{pooler: {}}}\n    nodes:", 30_000 + cluster)
            .expect("a String takes everything");
        for (index, node) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
            let port = 10_000 + cluster * 5 + index;
            writeln!(
                text,
                "      {node}: {{host: local, port: {port}, data-directory: /d/c{cluster}-{node}}}"
            )
            .expect("a String takes everything");
        }
        writeln!(text, "    schemas: {{s: {{owner: s_owner, write: [app]}}}}")
            .expect("a String takes everything");
        writeln!(text, "    roles: {{app: {{password: {{env: APP}}, pools: [rw]}}}}")
            .expect("a String takes everything");
        writeln!(text, "    poolers: {{hosts: [local], pools: {{rw: {{to: primary, size: 16}}}}}}")
            .expect("a String takes everything");
    }
    text
}
