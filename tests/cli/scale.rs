//! Files of any size and any content: a thousand nodes are checked, and nothing makes the reader panic.

use std::path::Path;

use pgherd::topology::load_text;
use proptest::prelude::*;

use crate::large::thousand_nodes;

#[test]
fn a_thousand_nodes_are_one_valid_herd() {
    let herd = load_text(Path::new("pgherd.yml"), &thousand_nodes(), Path::new("/")).unwrap();
    assert_eq!(herd.clusters.len(), 200);
    assert_eq!(herd.clusters.iter().map(|cluster| cluster.nodes.len()).sum::<usize>(), 1_000);
}

#[test]
fn one_wrong_port_in_a_thousand_nodes_is_found_at_its_line() {
    let text = thousand_nodes().replace("c150-d}", "c150-d, prot: 1}");
    let problems = load_text(Path::new("pgherd.yml"), &text, Path::new("/")).unwrap_err();
    let line = text.lines().position(|line| line.contains("prot")).unwrap() + 1;
    let found: Vec<_> =
        problems.iter().map(|problem| (problem.at.unwrap().line, problem.what.as_str())).collect();
    assert_eq!(found, [(line, "unknown key \"prot\" in clusters.c150.nodes.d")]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,200}") {
        load_text(Path::new("pgherd.yml"), &text, Path::new("/")).err();
    }

    #[test]
    fn no_damage_to_a_valid_file_makes_the_reader_panic(from in 0_usize..4_000, length in 0_usize..60, put in "[ \\n:{}\\[\\],&*'\"|>#a-z0-9-]{0,8}") {
        let text = std::fs::read_to_string(crate::project("examples/shop.yml")).unwrap();
        let letters: Vec<char> = text.chars().collect();
        let from = from.min(letters.len());
        let until = (from + length).min(letters.len());
        let damaged: String = letters[..from].iter().copied().chain(put.chars()).chain(letters[until..].iter().copied()).collect();
        load_text(Path::new("pgherd.yml"), &damaged, Path::new("/")).err();
    }
}
