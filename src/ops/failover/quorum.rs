//! Whether enough standbys answer: one of them then has every commit that was acknowledged, and the old primary gets no other acknowledged.
//!
//! With N standbys that commits wait for and W confirmations a commit, R of them that answer overlap with every W if R + W > N. The others,
//! N - R < W, are too few to confirm anything to a primary that still runs.
//!
//! What is declared is not what counts, but what the old primary waited for: the topology may have been edited since, and after a failover that
//! left too few standbys the new primary waits for fewer. Each standby carries that with it: the setting that it would lead with, which pgherd
//! keeps no stricter than that of the primary that it follows.

use std::collections::BTreeSet;

use crate::db::commits;
use crate::pg::synchronous::SynchronousNames;
use crate::topology::declared;
use crate::topology::model::{Cluster, Node};

/// What a node says of whom commits wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Name within the cluster.
    pub node: String,
    /// Its `synchronous_standby_names`: those of the primary for the old primary itself, those that it would lead with for a standby.
    pub names: String,
    /// `synchronous_commit` of sessions that have no other; `None` where nothing sets it.
    pub commit: Option<String>,
}

/// What is known of the standbys that commits of the old primary waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quorum {
    /// Those that answer.
    pub reached: Vec<String>,
    /// All of them.
    of: usize,
    /// Confirmations that a commit waited for; 0 without synchronous standbys.
    wait_for: usize,
    /// Why less is counted than is declared.
    less: Option<String>,
}

impl Quorum {
    /// Counts for a cluster whose primary was `old`, and of which these standbys answer; `own` is what the files of the old primary say,
    /// where they can be read.
    pub fn of(cluster: &Cluster, old: &Node, answering: &[Said], own: Option<&Said>) -> Self {
        let Some(synchronous) = &cluster.synchronous else {
            return Self { reached: Vec::new(), of: 0, wait_for: 0, less: None };
        };
        // The primary itself is skipped. A primary that nobody listed waits for the listed ones all the same.
        let others = |name: &String| *name != cluster.full_name(&old.name);
        let declared = synchronous.of.iter().map(|name| cluster.full_name(name));
        let mut of: BTreeSet<String> = declared.filter(others).collect();
        let (mut wait_for, mut less) = (synchronous.wait_for as usize, None);
        for said in answering.iter().chain(own) {
            let Some((found, why)) = differs(cluster, said) else { continue };
            // Of several that differ the least counts, and everybody whom one of them names: who is counted too many only adds to those
            // that do not answer.
            if let Some(found) = &found {
                of.extend(found.plain().map(str::to_owned).filter(others));
            }
            let count = found.map_or(0, |found| found.count as usize);
            if less.is_none() || count < wait_for {
                less = Some(why);
            }
            wait_for = wait_for.min(count);
        }
        let counted = |said: &&Said| of.contains(&cluster.full_name(&said.node));
        Self {
            reached: answering.iter().filter(counted).map(|said| said.node.clone()).collect(),
            of: of.len(),
            wait_for,
            less,
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

    /// Says why less is counted than is declared: a fragment.
    pub fn less(&self) -> Option<&str> {
        self.less.as_deref()
    }

    /// Says why it does not hold: a fragment.
    pub fn why_not(&self) -> String {
        let told = match (self.wait_for, &self.less) {
            (0, None) => return "its commits waited for no standby".to_owned(),
            (0, Some(_)) => "its commits may have waited for no standby".to_owned(),
            (_, _) => format!(
                "of the {} standbys that its commits waited for, {} of them at a time, only {} answer",
                self.of,
                self.wait_for,
                self.reached.len()
            ),
        };
        let less = self.less.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        format!("{told}{less}")
    }
}

/// Returns whom commits wait for by what a node says, where that is not as declared, and in words; nobody if it cannot be counted on anybody.
fn differs(cluster: &Cluster, said: &Said) -> Option<(Option<SynchronousNames>, String)> {
    let name = cluster.full_name(&said.node);
    if let Some(commit) = said.commit.as_deref().filter(|commit| commits::waits_for_nobody(commit)) {
        return Some((None, format!("{name} has synchronous_commit = {commit}")));
    }
    let declared = cluster.node(&said.node).map(|node| declared::synchronous_names(cluster, node));
    let declared = declared.unwrap_or_default();
    if said.names == declared {
        return None;
    }
    let why = format!("{name} has synchronous_standby_names = '{}', declared is '{declared}'", said.names);
    // Any standby at all says nothing about which of those that answer are among them.
    let found = SynchronousNames::parse(&said.names)
        .filter(|found| !found.names.is_empty() && !found.plain().any(|name| name == "*"));
    Some((found, why))
}

/// Returns for how many the commits of the new primary can wait where too few of the declared standbys answer; `None` where what is declared
/// will do.
pub fn fewer(cluster: &Cluster, siblings: &[String]) -> Option<u32> {
    let synchronous = cluster.synchronous.as_ref()?;
    let there = siblings.iter().filter(|name| synchronous.of.contains(name)).count();
    let there = u32::try_from(there).unwrap_or(u32::MAX);
    (there < synchronous.wait_for).then_some(there)
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

    fn said(cluster: &Cluster, node: &str, wait_for: u32) -> Said {
        let names = declared::synchronous_names_for(cluster, cluster.node(node).unwrap(), wait_for);
        Said { node: node.to_owned(), names, commit: None }
    }

    /// Of a cluster whose standbys say what is declared.
    fn quorum(cluster: &Cluster, answering: &[&str]) -> Quorum {
        let wait_for = cluster.synchronous.as_ref().map_or(0, |of| of.wait_for);
        let said: Vec<Said> = answering.iter().map(|node| said(cluster, node, wait_for)).collect();
        Quorum::of(cluster, cluster.node("a").unwrap(), &said, None)
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
    fn what_the_old_primary_waited_for_counts_and_not_what_is_declared() {
        let two = cluster("abcd", "    synchronous: {wait-for: 2, of: [a, b, c, d]}\n");
        let old = two.node("a").unwrap();
        let asked = |said: &[Said], own: Option<&Said>| Quorum::of(&two, old, said, own);
        // After a failover that left too few, the least that one of them says counts.
        let degraded = asked(&[said(&two, "b", 2), said(&two, "c", 1)], None);
        assert!(!degraded.holds());
        assert_eq!((degraded.wait_for, degraded.needed()), (1, 3));
        assert_eq!(
            degraded.why_not(),
            "of the 3 standbys that its commits waited for, 1 of them at a time, only 2 answer (inventory-c has \
             synchronous_standby_names = 'ANY 1 (\"inventory-a\", \"inventory-b\", \"inventory-d\")', declared is \
             'ANY 2 (\"inventory-a\", \"inventory-b\", \"inventory-d\")')"
        );
        let nobody = asked(&[said(&two, "b", 0), said(&two, "c", 2), said(&two, "d", 2)], None);
        assert!(!nobody.holds());
        assert!(nobody.why_not().starts_with("its commits may have waited for no standby (inventory-b has"));
        // Somebody who has another word of the primary itself, or waits for none by its files.
        let by_hand = Said { node: "a".to_owned(), names: "*".to_owned(), commit: None };
        let said = [said(&two, "b", 2), said(&two, "c", 2)];
        assert!(asked(&said, None).holds());
        assert!(!asked(&said, Some(&by_hand)).holds());
        let names = said[0].names.clone();
        let off = Said { node: "b".to_owned(), names, commit: Some("off".to_owned()) };
        assert_eq!(
            asked(&[off.clone(), said[1].clone()], None).why_not(),
            "its commits may have waited for no standby (inventory-b has synchronous_commit = off)"
        );
        let on_disk = Said { commit: Some("remote_apply".to_owned()), ..off };
        assert!(asked(&[on_disk, said[1].clone()], None).holds());
    }

    #[test]
    fn everybody_counts_whom_commits_may_have_waited_for() {
        // The file says one of two by now; what is in effect is one of three.
        let now = cluster("abcd", "    synchronous: {wait-for: 1, of: [a, b, c]}\n");
        let before = cluster("abcd", "    synchronous: {wait-for: 1, of: [a, b, c, d]}\n");
        let old = now.node("a").unwrap();
        let said = [said(&before, "b", 1), said(&before, "c", 1)];
        let quorum = Quorum::of(&now, old, &said, None);
        assert_eq!((quorum.of, quorum.holds(), quorum.needed()), (3, false, 3));
        let with_d = [said[0].clone(), said[1].clone(), self::said(&before, "d", 1)];
        assert!(Quorum::of(&now, old, &with_d, None).holds());
    }

    #[test]
    fn the_new_primary_waits_for_no_more_than_there_are() {
        let two = cluster("abcd", "    synchronous: {wait-for: 2, of: [a, b, c, d]}\n");
        let siblings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(fewer(&two, &siblings(&["c", "d"])), None);
        assert_eq!(fewer(&two, &siblings(&["c"])), Some(1));
        assert_eq!(fewer(&two, &[]), Some(0));
        assert_eq!(fewer(&cluster("ab", ""), &[]), None);
    }
}
