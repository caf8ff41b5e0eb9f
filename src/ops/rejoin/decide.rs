//! Whether a node can simply follow the primary, has to be rewound, or must be cloned again; and why.
//!
//! Decides, never acts: no I/O. What it is given was measured before.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::units::ByteCount;

/// How a node comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// All that it has is also the primary's.
    Follow,
    /// `pg_rewind` takes back what only it has.
    Rewind,
    /// A new copy, beside what it had.
    Clone,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Follow => "follow",
            Self::Rewind => "rewind",
            Self::Clone => "clone",
        })
    }
}

/// Where two histories part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fork {
    /// The last timeline that both are on.
    pub timeline: TimelineId,
    /// Up to where they share its WAL.
    pub at: Lsn,
}

/// How the histories of the node and of the primary lie to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lineage {
    /// They share nothing.
    Foreign,
    /// Both are on one timeline, and it is the same one.
    Same,
    Parts(Fork),
}

/// How far the WAL of the node goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    pub timeline: TimelineId,
    /// The furthest that is known of.
    pub lsn: Lsn,
    /// Whether it goes past the fork; on the primary's own timeline: past the primary.
    pub past: bool,
}

/// What is in the node's data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directory {
    /// Nothing.
    Empty,
    /// A rewind of it began and did not end: nobody knows what is in it.
    HalfRewound {
        operation: String,
    },
    /// It cannot be read.
    Broken {
        why: String,
    },
    /// Its WAL goes on a timeline that its pg_control does not name yet, which `pg_rewind` would not see.
    Ahead {
        control: TimelineId,
    },
    Whole,
}

/// Everything that the decision rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    pub directory: Directory,
    pub lineage: Lineage,
    pub reached: Reached,
    pub primary: TimelineId,
    pub primary_lsn: Lsn,
    /// Whether it was no standby when it ran last, or runs as a primary now.
    pub led: bool,
    /// Whether pg_control records that changes of pages are seen: checksums or `wal_log_hints`.
    pub sees_pages: bool,
    /// WAL that neither the node, nor the primary, nor the archive has any more: what is needed to follow, or to rewind.
    pub missing: Option<String>,
    /// Whether the operator wants a clone.
    pub wants_clone: bool,
}

/// What is to be done with a node, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    pub way: Way,
    pub why: String,
    pub fork: Option<Fork>,
}

/// Decides.
pub fn decide(measured: &Measured) -> Decision {
    let (way, why) = way(measured);
    let fork = match measured.lineage {
        Lineage::Parts(fork) => Some(fork),
        Lineage::Foreign | Lineage::Same => None,
    };
    Decision { way, why, fork }
}

/// Returns how much of what the node has is past the fork, as far as it is known.
pub fn past(fork: Fork, reached: Reached) -> ByteCount {
    fork.at.lag_behind(reached.lsn)
}

fn way(measured: &Measured) -> (Way, String) {
    let Measured { directory, lineage, reached, primary, primary_lsn, led, sees_pages, missing, wants_clone } =
        measured;
    let clone = |why: String| (Way::Clone, why);
    match directory {
        Directory::Empty => return clone("its data directory is empty".to_owned()),
        Directory::HalfRewound { operation } => {
            return clone(format!("operation {operation} began to rewind it and did not get to the end"));
        }
        Directory::Broken { why } => return clone(format!("its data directory cannot be read: {why}")),
        Directory::Ahead { .. } | Directory::Whole => {}
    }
    if *wants_clone {
        return clone("a clone was asked for".to_owned());
    }
    match lineage {
        Lineage::Foreign => clone(format!(
            "its timeline {} and the primary's timeline {primary} have no ancestor in common",
            reached.timeline
        )),
        // Only one server writes a timeline. How far the other one got does not tell where they parted.
        Lineage::Same if *led => clone(format!(
            "it was a primary on the primary's own timeline {primary}; pg_rewind sees no fork there"
        )),
        Lineage::Same if reached.past => clone(format!(
            "it is on the primary's own timeline {primary}, and ahead of it: at {}, the primary at {primary_lsn}; pg_rewind sees no fork there",
            reached.lsn
        )),
        Lineage::Same => match missing {
            Some(missing) => clone(format!("what it needs to go on is gone: {missing}")),
            None => (Way::Follow, format!("it is behind on the primary's own timeline {primary}")),
        },
        Lineage::Parts(fork) if !reached.past => match missing {
            Some(missing) => clone(format!("what it needs to go on is gone: {missing}")),
            None => (
                Way::Follow,
                format!("its WAL does not go past {}, where timeline {} was left", fork.at, fork.timeline),
            ),
        },
        Lineage::Parts(fork) => {
            let past = past(*fork, *reached);
            let told = if reached.timeline == fork.timeline {
                format!("its WAL goes {past} past {}, where timeline {} was left", fork.at, fork.timeline)
            } else {
                format!(
                    "it left timeline {} at {} for a timeline {} of its own, {past} ago",
                    fork.timeline, fork.at, reached.timeline
                )
            };
            if let Directory::Ahead { control } = directory {
                return clone(format!(
                    "{told}; its pg_control still names timeline {control}, so that pg_rewind would not see the other one"
                ));
            }
            if reached.timeline == *primary {
                return clone(format!(
                    "{told}; the primary's timeline {primary} is another one of that number, which pg_rewind would not see"
                ));
            }
            if !sees_pages {
                return clone(format!(
                    "{told}; pg_control records neither checksums nor wal_log_hints, without which pg_rewind does not work"
                ));
            }
            match missing {
                Some(missing) => clone(format!("{told}; what pg_rewind needs is gone: {missing}")),
                None => (Way::Rewind, told),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    fn old_primary() -> Measured {
        Measured {
            directory: Directory::Whole,
            lineage: Lineage::Parts(Fork { timeline: timeline(1), at: lsn("0/5000000") }),
            reached: Reached { timeline: timeline(1), lsn: lsn("0/5000000"), past: false },
            primary: timeline(2),
            primary_lsn: lsn("0/6000000"),
            led: true,
            sees_pages: true,
            missing: None,
            wants_clone: false,
        }
    }

    fn past_the_fork() -> Measured {
        let reached = Reached { timeline: timeline(1), lsn: lsn("0/50000A8"), past: true };
        Measured { reached, ..old_primary() }
    }

    #[test]
    fn an_old_primary_that_ended_where_it_was_left_follows() {
        let decision = decide(&old_primary());
        assert_eq!(decision.way, Way::Follow);
        assert_eq!(decision.why, "its WAL does not go past 0/5000000, where timeline 1 was left");
        let lost = Measured { missing: Some("segment 5".to_owned()), ..old_primary() };
        assert_eq!(decide(&lost).way, Way::Clone);
    }

    #[test]
    fn one_that_went_on_is_rewound_if_pg_rewind_can_see_what_it_did() {
        let decision = decide(&past_the_fork());
        assert_eq!(decision.way, Way::Rewind);
        assert_eq!(decision.why, "its WAL goes 168 B past 0/5000000, where timeline 1 was left");
        let blind = Measured { sees_pages: false, ..past_the_fork() };
        assert!(decide(&blind).why.contains("neither checksums nor wal_log_hints"));
        let gone = Measured { missing: Some("segment 4".to_owned()), ..past_the_fork() };
        assert!(decide(&gone).why.contains("what pg_rewind needs is gone: segment 4"));
        for clone in [blind, gone] {
            assert_eq!(decide(&clone).way, Way::Clone);
        }
    }

    #[test]
    fn what_pg_rewind_does_not_see_is_cloned() {
        let reached = Reached { timeline: timeline(2), lsn: lsn("0/7000000"), past: true };
        let twin = Measured { reached, ..old_primary() };
        assert!(decide(&twin).why.contains("another one of that number"), "{}", decide(&twin).why);
        let ahead = Measured { lineage: Lineage::Same, led: false, ..twin.clone() };
        assert!(decide(&ahead).why.contains("ahead of it"));
        let reached = Reached { past: false, ..reached };
        let led = Measured { lineage: Lineage::Same, reached, ..twin.clone() };
        assert!(decide(&led).why.contains("it was a primary on the primary's own timeline 2"));
        let unseen = Measured { directory: Directory::Ahead { control: timeline(1) }, ..past_the_fork() };
        assert!(decide(&unseen).why.contains("its pg_control still names timeline 1"));
        let foreign = Measured { lineage: Lineage::Foreign, ..past_the_fork() };
        let half = Directory::HalfRewound { operation: "7f3a".to_owned() };
        let half = Measured { directory: half, ..old_primary() };
        assert!(decide(&half).why.contains("operation 7f3a began to rewind it"));
        let empty = Measured { directory: Directory::Empty, ..old_primary() };
        let wanted = Measured { wants_clone: true, ..old_primary() };
        for measured in [twin, ahead, led, unseen, foreign, half, empty, wanted] {
            assert_eq!(decide(&measured).way, Way::Clone, "{measured:?}");
        }
    }

    #[test]
    fn one_on_a_branch_of_its_own_is_rewound_and_one_behind_follows() {
        let reached = Reached { timeline: timeline(2), lsn: lsn("0/5000100"), past: true };
        let branch = Measured { reached, primary: timeline(3), ..old_primary() };
        assert_eq!(decide(&branch).way, Way::Rewind);
        let reached = Reached { timeline: timeline(2), lsn: lsn("0/5000100"), past: false };
        let behind = Measured { lineage: Lineage::Same, reached, led: false, ..old_primary() };
        assert_eq!(decide(&behind).way, Way::Follow);
    }
}
