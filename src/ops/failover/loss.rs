//! What a failover may lose, and whether that was agreed to.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::db::queries::ServerRole;
use crate::error::Error;
use crate::ops::failover::quorum::Quorum;
use crate::ops::failover::standbys::Up;
use crate::pg::lsn::Lsn;
use crate::topology::model::Cluster;
use crate::units::{ByteCount, human_duration};

/// How much may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Accept {
    Nothing,
    /// What was committed in so long a time, as the topology says: the RPO of losing a primary.
    UpTo(Duration),
    /// The operator has named the cluster.
    Anything,
}

impl Accept {
    pub(super) fn agrees_to(self, loss: &Loss) -> bool {
        match self {
            Self::Nothing => false,
            Self::UpTo(rpo) => loss.seconds.is_some_and(|seconds| seconds <= rpo.as_secs_f64()),
            Self::Anything => true,
        }
    }
}

/// What may be lost, at most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Loss {
    /// What the old primary is known to have written and nobody has; it may have written more since. `None` if it told nobody.
    pub bytes_known: Option<ByteCount>,
    /// How long ago the new primary has heard of the old one last: commits of that time may be lost.
    pub seconds: Option<f64>,
}

/// Tells what may be lost, at most, if this standby leads.
pub(super) fn at_most(to: &Up<'_>, standbys: &[Up<'_>]) -> Loss {
    let most = standbys.iter().map(|up| up.has).max().unwrap_or(to.has);
    let mut written: Option<Lsn> = None;
    let mut heard: Option<Duration> = None;
    for up in standbys {
        let ServerRole::Standby { receiver, .. } = &up.running.facts.role else { continue };
        written = written.max(receiver.as_ref().and_then(|receiver| receiver.latest_end_lsn));
        let age =
            has_everything_until(&up.running.facts.role).map(|at| up.running.facts.now.duration_since(at));
        // The primary's clock may be ahead of the standby's.
        let age = age.map(|age| Duration::try_from(age).unwrap_or_default());
        heard = match (heard, age) {
            (Some(least), Some(age)) => Some(least.min(age)),
            (known, age) => known.or(age),
        };
    }
    Loss {
        bytes_known: written.map(|written| ByteCount(written.as_u64().saturating_sub(most.as_u64()))),
        seconds: heard.map(|heard| heard.as_secs_f64()),
    }
}

/// Returns the moment up to which a standby has every commit. One that had received all that its primary told it of was not behind when it
/// heard it last; of any other only the time of the last commit that it has replayed is known.
fn has_everything_until(role: &ServerRole) -> Option<Timestamp> {
    let ServerRole::Standby { receiver, last_replayed, .. } = role else { return None };
    let told = receiver
        .as_ref()
        .filter(|receiver| receiver.flushed_lsn.is_some() && receiver.flushed_lsn >= receiver.latest_end_lsn);
    told.and_then(|receiver| receiver.last_message_at).or(*last_replayed)
}

/// Says that it may be lost, to whom did not agree to it.
pub(super) fn refused(cluster: &Cluster, quorum: &Quorum, loss: &Loss) -> Error {
    let bytes = match loss.bytes_known {
        Some(bytes) => format!("at least {bytes} that it wrote are on no standby"),
        None => "how much it wrote that no standby has is not known".to_owned(),
    };
    let since = match loss.seconds {
        Some(seconds) => format!(
            "what was committed in the last {} may be lost",
            human_duration(Duration::from_secs_f64(seconds.max(0.0)))
        ),
        None => "when a standby heard of it last is not known".to_owned(),
    };
    Error::refused(format!("rows of {} that were acknowledged may be lost", cluster.name))
        .detail(format!(
            "{}, and its data directory is out of reach: {since}; {bytes}. Nothing was changed.",
            capital(&quorum.why_not())
        ))
        .hint(format!(
            "Bring its host or more standbys back; or accept it: --accept-data-loss {}",
            cluster.name
        ))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::queries::WalReceiver;

    #[test]
    fn a_standby_that_lags_has_everything_only_up_to_its_last_commit() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let lsn = |text: &str| Some(text.parse::<Lsn>().unwrap());
        let (commit, message) = (at("2026-11-22T04:00:00Z"), at("2026-11-22T04:10:00Z"));
        let standby = |flushed: &str, receives: bool| ServerRole::Standby {
            received_lsn: lsn(flushed),
            replayed_lsn: lsn(flushed),
            replay_paused: false,
            last_replayed: Some(commit),
            receiver: receives.then(|| {
                Box::new(WalReceiver {
                    status: "streaming".to_owned(),
                    received_timeline: None,
                    written_lsn: lsn(flushed),
                    flushed_lsn: lsn(flushed),
                    latest_end_lsn: lsn("0/5000000"),
                    latest_end_at: None,
                    last_message_at: Some(message),
                    sender_host: None,
                    sender_port: None,
                    slot: None,
                })
            }),
        };
        assert_eq!(has_everything_until(&standby("0/5000000", true)), Some(message));
        assert_eq!(has_everything_until(&standby("0/4000000", true)), Some(commit));
        assert_eq!(has_everything_until(&standby("0/5000000", false)), Some(commit));
    }
}
