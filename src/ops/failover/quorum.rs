//! Whether enough standbys answer: one of them then has every commit that was acknowledged, and the old primary gets no other acknowledged.
//!
//! With N standbys that commits wait for and W confirmations a commit, R of them that answer overlap with every W if R + W > N. The others,
//! N - R < W, are too few to confirm anything to a primary that still runs.

use std::collections::BTreeSet;

use crate::topology::declared;
use crate::topology::model::{Cluster, Node};

/// What is known of the standbys that commits of the old primary waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quorum {
    /// Those that answer.
    pub reached: Vec<String>,
    /// All of them.
    of: usize,
    /// Confirmations that a commit waited for; 0 without synchronous standbys.
    wait_for: usize,
}

impl Quorum {
    /// Counts for a cluster whose primary was `old`, and of which these standbys answer.
    pub fn of<'a>(cluster: &Cluster, old: &Node, answering: impl Iterator<Item = &'a str>) -> Self {
        let Some(synchronous) = &cluster.synchronous else {
            return Self { reached: Vec::new(), of: 0, wait_for: 0 };
        };
        // The primary itself is skipped. A primary that nobody listed waits for the listed ones all the same.
        let of: BTreeSet<&str> =
            synchronous.of.iter().map(String::as_str).filter(|name| *name != old.name).collect();
        Self {
            reached: answering.filter(|name| of.contains(name)).map(str::to_owned).collect(),
            of: of.len(),
            wait_for: synchronous.wait_for as usize,
        }
    }

    /// Tells whether every commit that was acknowledged is on one of the standbys that answer.
    pub fn holds(&self) -> bool {
        self.wait_for > 0 && self.reached.len() + self.wait_for > self.of
    }

    /// Returns how many of them must confirm nothing so that no commit of the old primary ends.
    pub fn needed(&self) -> usize {
        (self.of + 1).saturating_sub(self.wait_for)
    }

    /// Says why it does not hold: a fragment.
    pub fn why_not(&self) -> String {
        if self.wait_for == 0 {
            return "its commits waited for no standby".to_owned();
        }
        format!(
            "of the {} standbys that its commits waited for, {} of them at a time, only {} answer",
            self.of,
            self.wait_for,
            self.reached.len()
        )
    }
}

/// Returns whom the commits of the new primary can wait for where too few of the declared standbys answer; `None` where what is declared will do.
pub fn fewer(cluster: &Cluster, to: &Node, siblings: &[String]) -> Option<String> {
    let synchronous = cluster.synchronous.as_ref()?;
    let there = siblings.iter().filter(|name| synchronous.of.contains(name)).count();
    if there >= synchronous.wait_for as usize {
        return None;
    }
    if there == 0 {
        return Some(String::new());
    }
    let mut fewer = cluster.clone();
    if let Some(synchronous) = &mut fewer.synchronous {
        synchronous.wait_for = u32::try_from(there).unwrap_or(1);
    }
    Some(declared::synchronous_names(&fewer, to))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::topology::load_text;

    fn cluster(nodes: &str, synchronous: &str) -> Cluster {
        let nodes: String = nodes
            .chars()
            .zip(5441..)
            .map(|(node, port)| {
                format!("      {node}: {{host: local, port: {port}, data-directory: /d/{node}}}\n")
            })
            .collect();
        let text = format!(
            "pgherd: 1\nherd: shop\nregions: {{here: {{hosts: {{local: local}}}}}}\nclusters:\n  inventory:\n    postgres: {{version: 15}}\n    \
             nodes:\n{nodes}{synchronous}"
        );
        let herd =
            load_text(Path::new("pgherd.yml"), &text, Path::new("/")).unwrap_or_else(|why| panic!("{why}"));
        herd.clusters.into_iter().next().unwrap()
    }

    fn quorum(cluster: &Cluster, answering: &[&str]) -> Quorum {
        Quorum::of(cluster, cluster.node("a").unwrap(), answering.iter().copied())
    }

    #[test]
    fn every_commit_is_on_one_that_answers_exactly_when_those_left_are_too_few_for_another_one() {
        let one_of_three = cluster("abcd", "    synchronous: {wait-for: 1, of: [a, b, c, d]}\n");
        let two_of_three = cluster("abcd", "    synchronous: {wait-for: 2, of: [a, b, c, d]}\n");
        for (cluster, answering, holds, needed) in [
            (&one_of_three, &["b", "c", "d"][..], true, 3),
            (&one_of_three, &["b", "c"], false, 3),
            (&two_of_three, &["b", "c"], true, 2),
            (&two_of_three, &["d"], false, 2),
            (&two_of_three, &[], false, 2),
        ] {
            let quorum = quorum(cluster, answering);
            assert_eq!((quorum.holds(), quorum.needed()), (holds, needed), "{answering:?}");
            // What does not answer may still confirm: as many as a commit waits for, unless it holds.
            assert_eq!(3 - answering.len() < quorum.wait_for, holds, "{answering:?}");
        }
    }

    #[test]
    fn a_standby_that_no_commit_waits_for_does_not_count() {
        let cluster = cluster("abc", "    synchronous: {wait-for: 1, of: [a, b]}\n");
        assert!(quorum(&cluster, &["b"]).holds());
        assert!(!quorum(&cluster, &["c"]).holds());
        let nobody = super::tests::cluster("ab", "");
        assert!(!quorum(&nobody, &["b"]).holds());
        assert_eq!(quorum(&nobody, &["b"]).why_not(), "its commits waited for no standby");
    }

    #[test]
    fn the_new_primary_waits_for_no_more_than_there_are() {
        let two = cluster("abcd", "    synchronous: {wait-for: 2, of: [a, b, c, d]}\n");
        let b = two.node("b").unwrap();
        let siblings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(fewer(&two, b, &siblings(&["c", "d"])), None);
        let one = fewer(&two, b, &siblings(&["c"])).unwrap();
        assert_eq!(one, r#"ANY 1 ("inventory-a", "inventory-c", "inventory-d")"#);
        assert_eq!(fewer(&two, b, &[]), Some(String::new()));
        assert_eq!(fewer(&cluster("ab", ""), b, &[]), None);
    }
}
