//! How long a restore would take, by what a drill of the cluster has measured.

use jiff::Timestamp;
use serde::Serialize;

use super::archive;
use super::report::{Phase, Report};
use crate::error::Result;
use crate::ops::restore::survey::Survey;
use crate::topology::places::Places;
use crate::units::ByteCount;

/// An estimate with what it rests on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RtoEstimate {
    pub seconds: f64,
    /// The drill that was measured.
    pub drill: String,
    pub begun: Timestamp,
    /// Bytes of the cluster's files a second, from the repository to their place.
    pub fetch_rate: ByteCount,
    /// Bytes of WAL that it replayed, and in what time.
    pub replayed: ByteCount,
    pub replay_seconds: f64,
}

/// Estimates a restore by the newest drill that came to the end of recovery; `None` without one.
///
/// Files are taken to come as fast as then. Replay is taken to be as fast as then, and never shorter: of a short one most is the server's
/// own start.
///
/// # Errors
/// When the reports cannot be listed; one that cannot be read is passed over.
pub fn estimate(places: &Places, cluster: &str, survey: &Survey) -> Result<Option<RtoEstimate>> {
    let newest_first = archive::list(places, cluster)?.into_iter().rev().filter_map(|kept| kept.report.ok());
    let wal = survey.manifest.start_lsn.lag_behind(survey.choice.replays_to());
    Ok(newest_first.filter_map(|report| scale(&report, survey.manifest.size, wal)).next())
}

/// Scales what a drill has measured to other amounts.
fn scale(report: &Report, size: ByteCount, wal: ByteCount) -> Option<RtoEstimate> {
    let (copied, reached) = (report.copied.as_ref()?, report.reached.as_ref()?);
    let (choose, fetch) = (report.seconds(Phase::Choose)?, report.seconds(Phase::Fetch)?);
    let (replay, start) = (report.seconds(Phase::Replay)?, report.seconds(Phase::Start)?);
    let replayed = reached.from.lag_behind(reached.lsn);
    let times = |now: ByteCount, then: ByteCount| now.0 as f64 / then.0.max(1) as f64;
    let fetching = fetch * times(size, copied.size_bytes);
    let replaying = replay * times(wal, replayed).max(1.0);
    Some(RtoEstimate {
        seconds: choose + fetching + replaying + start,
        drill: report.id.clone(),
        begun: report.begun,
        fetch_rate: ByteCount((copied.size_bytes.0 as f64 / fetch.max(0.001)) as u64),
        replayed,
        replay_seconds: replay,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drilled() -> Report {
        serde_json::from_str(include_str!("testdata/report-1.json")).unwrap()
    }

    #[test]
    fn twice_the_files_and_twice_the_wal_take_twice_as_long() {
        let report = drilled();
        let size = report.copied.as_ref().unwrap().size_bytes;
        let reached = report.reached.as_ref().unwrap();
        let wal = reached.from.lag_behind(reached.lsn);
        let same = scale(&report, size, wal).unwrap();
        assert!((same.seconds - (0.4 + 192.0 + 100.0 + 6.0)).abs() < 0.01, "{same:?}");
        let twice = scale(&report, ByteCount(2 * size.0), ByteCount(2 * wal.0)).unwrap();
        assert!((twice.seconds - (0.4 + 384.0 + 200.0 + 6.0)).abs() < 0.01, "{twice:?}");
        assert_eq!(same.fetch_rate, ByteCount(size.0 / 192));
    }

    #[test]
    fn a_short_replay_is_not_made_shorter() {
        let report = drilled();
        let little = scale(&report, ByteCount(0), ByteCount(1)).unwrap();
        assert!((little.seconds - (0.4 + 100.0 + 6.0)).abs() < 0.01, "{little:?}");
    }

    #[test]
    fn a_drill_that_did_not_recover_tells_nothing() {
        let mut report = drilled();
        report.reached = None;
        assert_eq!(scale(&report, ByteCount(1), ByteCount(1)), None);
        let mut report = drilled();
        report.phases.truncate(2);
        assert_eq!(scale(&report, ByteCount(1), ByteCount(1)), None);
    }
}
