//! Which node serves whom right now: what a load balancer asks before it sends a client there.
//!
//! Yes only where it is known: a node that may be the primary is none, and while two are, nobody serves anybody.

use std::time::Duration;

use super::report::{Finding, Status, Subject};
use super::seen::Seen;
use crate::db::queries::ServerRole;
use crate::ops::observe::NodeObserved;
use crate::ops::roles::Lead;
use crate::topology::checks::Check;
use crate::topology::model::Cluster;

/// The nodes of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Routes {
    pub cluster: String,
    /// In the order of the file.
    pub nodes: Vec<NodeRoute>,
}

/// One node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeRoute {
    pub node: String,
    pub serves: Serves,
}

/// Whom a node serves.
#[derive(Debug, Clone, PartialEq)]
pub enum Serves {
    /// It is the only primary.
    Writes,
    /// It is a standby that streams.
    Reads {
        /// `None` while it is not known.
        lag: Option<Duration>,
        /// Whether it is behind by what is critical, or that is not known.
        late: bool,
    },
    /// A fragment says why.
    Nobody { why: String },
}

impl NodeRoute {
    /// Tells whether a client that writes may be sent there; why not.
    ///
    /// # Errors
    /// A fragment.
    pub fn takes_writes(&self) -> Result<(), String> {
        match &self.serves {
            Serves::Writes => Ok(()),
            Serves::Reads { .. } => Err("it is a standby".to_owned()),
            Serves::Nobody { why } => Err(why.clone()),
        }
    }

    /// Tells whether a client that reads may be sent to this standby, behind by no more than `max_lag`, else by what is not critical.
    ///
    /// # Errors
    /// A fragment.
    pub fn takes_reads(&self, max_lag: Option<Duration>) -> Result<(), String> {
        match &self.serves {
            Serves::Writes => Err("it is the primary".to_owned()),
            Serves::Nobody { why } => Err(why.clone()),
            Serves::Reads { lag, late } => match (lag, max_lag) {
                (None, _) => Err("its lag is not known".to_owned()),
                (Some(lag), Some(most)) if *lag > most => {
                    Err(format!("it is {:.1} s behind", lag.as_secs_f64()))
                }
                (Some(lag), None) if *late => Err(format!("it is {:.1} s behind", lag.as_secs_f64())),
                (Some(_), _) => Ok(()),
            },
        }
    }
}

impl Routes {
    /// Returns the routes of a cluster of which nothing is known.
    pub fn unknown(cluster: &Cluster, why: &str) -> Self {
        let nobody =
            |name: &String| NodeRoute { node: name.clone(), serves: Serves::Nobody { why: why.to_owned() } };
        Self {
            cluster: cluster.name.clone(),
            nodes: cluster.nodes.iter().map(|node| nobody(&node.name)).collect(),
        }
    }

    /// Tells from a look and what was found whom each node serves.
    pub fn of(seen: &Seen<'_>, findings: &[Finding]) -> Self {
        if let Lead::Split(names) = &seen.lead {
            return Self::unknown(
                seen.cluster,
                &format!("{} are primaries at the same time", names.join(" and ")),
            );
        }
        let nodes = seen.each().map(|(node, observed, _)| NodeRoute {
            node: node.name.clone(),
            serves: serves(seen, observed, findings),
        });
        Self { cluster: seen.cluster.name.clone(), nodes: nodes.collect() }
    }
}

fn serves(seen: &Seen<'_>, observed: &NodeObserved, findings: &[Finding]) -> Serves {
    let nobody = |why: &str| Serves::Nobody { why: why.to_owned() };
    let Some(running) = observed.running() else { return nobody("its server does not answer") };
    match &running.facts.role {
        ServerRole::Primary { .. } => match &seen.lead {
            Lead::Primary(name) if *name == observed.node => Serves::Writes,
            Lead::Primary(_)
            | Lead::Unborn
            | Lead::StoppedPrimary(_)
            | Lead::Split(_)
            | Lead::Unknown { .. } => nobody("it is not known to be the only primary"),
        },
        ServerRole::Standby { receiver: Some(receiver), .. } if receiver.status == "streaming" => {
            let lag = findings.iter().find(|finding| {
                finding.check == Check::Lag && finding.subject == Subject::Node(observed.node.clone())
            });
            let measured = lag.and_then(|lag| lag.measured.iter().find(|measured| measured.name == "lag"));
            let late = lag.is_none_or(|lag| {
                let status = lag.damped.map_or(lag.status, |damped| damped.status);
                matches!(status, Status::Critical | Status::Unknown)
            });
            let lag = measured.and_then(|measured| Duration::try_from_secs_f64(measured.value).ok());
            Serves::Reads { lag, late }
        }
        ServerRole::Standby { .. } => nobody("it is a standby that receives nothing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(serves: Serves) -> NodeRoute {
        NodeRoute { node: "b".to_owned(), serves }
    }

    #[test]
    fn a_standby_takes_reads_within_its_lag_and_never_writes() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let behind = node(Serves::Reads { lag: seconds(3), late: false });
        assert!(behind.takes_writes().is_err());
        assert!(behind.takes_reads(None).is_ok());
        assert!(behind.takes_reads(seconds(5)).is_ok());
        assert_eq!(behind.takes_reads(seconds(2)), Err("it is 3.0 s behind".to_owned()));
        let late = node(Serves::Reads { lag: seconds(30), late: true });
        assert!(late.takes_reads(None).is_err());
        // Who asks for another limit gets it.
        assert!(late.takes_reads(seconds(60)).is_ok());
        let unknown = node(Serves::Reads { lag: None, late: true });
        assert!(unknown.takes_reads(None).is_err() && unknown.takes_reads(seconds(60)).is_err());
    }

    #[test]
    fn a_primary_takes_writes_and_whoever_is_not_known_takes_nothing() {
        let primary = node(Serves::Writes);
        assert!(primary.takes_writes().is_ok() && primary.takes_reads(None).is_err());
        let unknown = node(Serves::Nobody { why: "x".to_owned() });
        assert!(unknown.takes_writes().is_err() && unknown.takes_reads(None).is_err());
    }
}
