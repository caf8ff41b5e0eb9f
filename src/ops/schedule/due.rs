//! When a job is due. Pure: the record, the schedule and the time are handed in.
//!
//! A job is due if its newest time has passed and no run was for it. However many times were missed, it runs once. One that failed waits
//! for its next time; one that was killed, interrupted, locked out or cut off is tried again, up to [`ATTEMPTS`] times.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::record::{Ended, Record};
use super::signed;
use crate::topology::jobs::Job;
use crate::topology::schedule::Schedule;

/// How often a run is begun for one time.
const ATTEMPTS: u32 = 6;
/// How long after such an end it is tried again.
const PAUSE: Duration = Duration::from_secs(10 * 60);
/// So much later than its time a job may be done before somebody should know.
const GRACE: Duration = Duration::from_secs(3600);

/// Whether a job is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// For this time of its schedule.
    Now {
        at: Timestamp,
    },
    NotYet,
}

/// How it stands with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It runs in this moment.
    Running,
    /// Nobody has asked on this station whether it is due.
    Unseen,
    /// It has not been due yet.
    New,
    /// Its last time was met.
    Met,
    /// Its time has come, and that is not long ago.
    Due,
    /// Its last run did not end well.
    Failed,
    /// Its time passed long ago, and no run for it has ended well.
    Overdue,
}

/// Decides whether a job is due, and takes over a schedule that has changed: it counts from now on. What was due by the old one still is.
pub fn decide(
    record: &mut Record,
    schedule: &Schedule,
    (zone, name): (&TimeZone, &str),
    now: Timestamp,
) -> Due {
    let text = schedule.to_string();
    if record.when != text || record.zone != name {
        let old = Schedule::parse(&record.when).ok().zip(TimeZone::get(&record.zone).ok());
        let before = old.map_or(Due::NotYet, |(schedule, zone)| by(record, &schedule, &zone, now));
        (record.when, record.zone, record.since) = (text, name.to_owned(), now);
        return before;
    }
    by(record, schedule, zone, now)
}

fn by(record: &Record, schedule: &Schedule, zone: &TimeZone, now: Timestamp) -> Due {
    let at = schedule.last(zone, now);
    let tried = record.last.as_ref().is_some_and(|last| last.due.is_some_and(|due| due >= at));
    if at > record.since && !met(record, at) && !tried {
        return Due::Now { at };
    }
    match again(record) {
        Some((at, from)) if now >= from => Due::Now { at },
        Some(_) | None => Due::NotYet,
    }
}

/// Returns for which time the last run is tried again, and from when on.
fn again(record: &Record) -> Option<(Timestamp, Timestamp)> {
    let last = record.last.as_ref().filter(|last| last.attempt < ATTEMPTS)?;
    let due = last.due.filter(|due| !met(record, *due))?;
    match last.outcome {
        Some(Ended::Done | Ended::Failed) => None,
        Some(Ended::Again) => Some((due, last.ended.unwrap_or(last.begun) + signed(PAUSE))),
        // It was killed: whoever runs it holds its lock, and the caller has it.
        None => Some((due, last.begun)),
    }
}

/// Tells whether a run for `at`, or one that was begun later, has ended well.
fn met(record: &Record, at: Timestamp) -> bool {
    let success = record.last_success.as_ref();
    success.is_some_and(|run| run.begun >= at || run.due.is_some_and(|due| due >= at))
}

/// Returns when a job that is not due will be.
pub fn next(record: &Record, schedule: &Schedule, zone: &TimeZone, now: Timestamp) -> Timestamp {
    let regular = schedule.next(zone, now);
    again(record).map_or(regular, |(_, from)| from.min(regular))
}

/// Says how it stands with a job; `record` is `None` for one that nobody has looked after yet.
pub fn standing(
    record: Option<&Record>,
    job: &Job,
    zone: &TimeZone,
    now: Timestamp,
    running: bool,
) -> Standing {
    if running {
        return Standing::Running;
    }
    let Some(record) = record else { return Standing::Unseen };
    let at = job.when.last(zone, now);
    if at <= record.since {
        return match record.last.as_ref().map(|last| last.outcome) {
            None => Standing::New,
            Some(Some(Ended::Done)) => Standing::Met,
            // Nobody runs it any more: one without an end was killed.
            Some(Some(Ended::Failed | Ended::Again) | None) => Standing::Failed,
        };
    }
    if met(record, at) {
        let failed = record.failures > 0;
        return if failed { Standing::Failed } else { Standing::Met };
    }
    let grace = GRACE.min(job.when.period()) + job.timeout;
    if now > at + signed(grace) {
        return Standing::Overdue;
    }
    match record.last.as_ref() {
        Some(last) if last.outcome != Some(Ended::Done) => Standing::Failed,
        Some(_) | None => Standing::Due,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::jobs::Work;
    use jiff::SignedDuration;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn job(when: &str) -> Job {
        Job {
            cluster: Some("inventory".to_owned()),
            name: "full".to_owned(),
            when: Schedule::parse(when).unwrap(),
            timeout: Duration::from_secs(3600),
            work: Work::Full,
        }
    }

    /// A station whose clock the test moves: what `run --due` does, with a job that ends as it is told.
    struct Station {
        record: Record,
        job: Job,
        zone: String,
        now: Timestamp,
        /// Until when the run that holds the lock runs, and how it will end.
        running: Option<(Timestamp, Ended)>,
        /// Each run: when it began, and for which time.
        runs: Vec<(String, String)>,
    }

    impl Station {
        fn new(when: &str, zone: &str, now: &str) -> Self {
            let job = job(when);
            let record = Record::new("shop", &job, zone, at(now));
            Self { record, job, zone: zone.to_owned(), now: at(now), running: None, runs: Vec::new() }
        }

        /// Looks once; a run that begins takes so many minutes and ends so.
        fn tick(&mut self, minutes: i64, ends: Option<Ended>) {
            if let Some((until, ended)) = self.running {
                if self.now < until {
                    return;
                }
                self.record.end(ended, 0, until);
                self.running = None;
            }
            let zone = TimeZone::get(&self.zone).unwrap();
            if let Due::Now { at } = decide(&mut self.record, &self.job.when, (&zone, &self.zone), self.now) {
                self.record.begin(Some(at), self.now);
                self.runs.push((self.now.to_string(), at.to_string()));
                // Without an end it is killed at once.
                self.running = ends.map(|ended| (self.now + SignedDuration::from_mins(minutes), ended));
            }
        }

        /// Looks every five minutes until `end`.
        fn until(&mut self, end: &str, minutes: i64, ends: Option<Ended>) {
            while self.now < at(end) {
                self.now += SignedDuration::from_mins(5);
                self.tick(minutes, ends);
            }
        }

        fn due(&self) -> Vec<&str> {
            self.runs.iter().map(|(_, due)| due.as_str()).collect()
        }
    }

    #[test]
    fn a_month_of_a_daily_job_has_a_run_a_day_through_a_change_of_the_clocks() {
        let mut station = Station::new("daily 02:30", "Europe/Berlin", "2026-10-10T00:00:00Z");
        station.until("2026-11-10T00:00:00Z", 20, Some(Ended::Done));
        assert_eq!(station.runs.len(), 31);
        assert_eq!(
            station.due()[14..17],
            ["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
        );
        assert!(station.runs.iter().all(|(begun, due)| begun == due));
    }

    #[test]
    fn a_job_that_is_new_waits_for_its_first_time() {
        let mut station = Station::new("weekly Sun 04:00", "UTC", "2026-11-23T00:00:00Z");
        station.until("2026-11-28T23:00:00Z", 5, Some(Ended::Done));
        assert!(station.runs.is_empty());
        station.until("2026-11-30T00:00:00Z", 5, Some(Ended::Done));
        assert_eq!(station.due(), ["2026-11-29T04:00:00Z"]);
    }

    #[test]
    fn what_was_missed_is_run_once_when_the_station_is_back() {
        let mut station = Station::new("every 1 h", "UTC", "2026-11-01T00:30:00Z");
        station.until("2026-11-01T02:00:00Z", 5, Some(Ended::Done));
        // Four days without power.
        station.now = at("2026-11-05T09:17:00Z");
        station.tick(5, Some(Ended::Done));
        station.until("2026-11-05T10:30:00Z", 5, Some(Ended::Done));
        assert_eq!(
            station.due(),
            ["2026-11-01T01:00:00Z", "2026-11-01T02:00:00Z", "2026-11-05T09:00:00Z", "2026-11-05T10:00:00Z"]
        );
    }

    #[test]
    fn a_run_that_outlasts_its_period_is_never_run_beside_itself_and_the_next_one_follows_it() {
        let mut station = Station::new("every 1 h", "UTC", "2026-11-01T00:30:00Z");
        station.until("2026-11-01T01:00:00Z", 150, Some(Ended::Done));
        station.until("2026-11-01T05:00:00Z", 20, Some(Ended::Done));
        let begun: Vec<&str> = station.runs.iter().map(|(begun, _)| begun.as_str()).collect();
        // From 01:00 to 03:30; 02:00 and 03:00 passed meanwhile and are run once.
        assert_eq!(
            begun,
            ["2026-11-01T01:00:00Z", "2026-11-01T03:30:00Z", "2026-11-01T04:00:00Z", "2026-11-01T05:00:00Z"]
        );
        assert_eq!(station.due()[1], "2026-11-01T03:00:00Z");
    }

    #[test]
    fn what_failed_waits_for_its_next_time() {
        let mut station = Station::new("daily 02:00", "UTC", "2026-11-01T00:00:00Z");
        station.until("2026-11-03T23:00:00Z", 5, Some(Ended::Failed));
        assert_eq!(station.due(), ["2026-11-01T02:00:00Z", "2026-11-02T02:00:00Z", "2026-11-03T02:00:00Z"]);
        assert_eq!(station.record.failures, 3);
        station.until("2026-11-04T03:00:00Z", 5, Some(Ended::Done));
        assert_eq!(station.record.failures, 0);
    }

    #[test]
    fn what_was_killed_or_cut_off_is_tried_again_and_not_for_ever() {
        let mut station = Station::new("daily 02:00", "UTC", "2026-11-01T00:00:00Z");
        station.until("2026-11-01T02:00:00Z", 5, None);
        station.until("2026-11-01T23:00:00Z", 5, Some(Ended::Again));
        let begun: Vec<&str> = station.runs.iter().map(|(begun, _)| &begun[11..16]).collect();
        // Killed at 02:00; then each try ends after 5 minutes, and the next one comes 10 minutes later.
        assert_eq!(begun, ["02:00", "02:05", "02:20", "02:35", "02:50", "03:05"]);
        assert!(station.due().iter().all(|due| *due == "2026-11-01T02:00:00Z"));
        station.until("2026-11-02T02:00:00Z", 5, Some(Ended::Done));
        assert_eq!(station.due().last(), Some(&"2026-11-02T02:00:00Z"));
    }

    #[test]
    fn a_changed_zone_neither_repeats_nor_loses_a_run() {
        let mut station = Station::new("daily 02:00", "Europe/Berlin", "2026-11-01T12:00:00Z");
        station.until("2026-11-10T12:00:00Z", 5, Some(Ended::Done));
        assert_eq!(station.due().last(), Some(&"2026-11-10T01:00:00Z"));
        station.zone = "America/New_York".to_owned();
        // 02:00 in New York was at 07:00 today, before the zone was changed: not again today.
        station.until("2026-11-12T12:00:00Z", 5, Some(Ended::Done));
        assert_eq!(station.due()[9..], ["2026-11-11T07:00:00Z", "2026-11-12T07:00:00Z"]);
        assert_eq!(station.runs.len(), 11);
    }

    #[test]
    fn what_was_due_by_the_old_schedule_is_done_although_the_file_has_another_one_now() {
        let mut station = Station::new("daily 02:00", "UTC", "2026-11-01T12:00:00Z");
        station.until("2026-11-01T23:00:00Z", 5, Some(Ended::Done));
        // Down over 02:00, and back with another schedule.
        station.now = at("2026-11-02T08:00:00Z");
        station.job = job("daily 06:00");
        station.until("2026-11-03T07:00:00Z", 5, Some(Ended::Done));
        assert_eq!(station.due(), ["2026-11-02T02:00:00Z", "2026-11-03T06:00:00Z"]);
    }

    #[test]
    fn a_run_that_somebody_wanted_after_the_time_counts_for_it_and_one_before_does_not() {
        let mut station = Station::new("daily 02:00", "UTC", "2026-11-01T00:00:00Z");
        for wanted in ["2026-11-01T01:50:00Z", "2026-11-01T05:00:00Z"] {
            station.now = at(wanted);
            station.record.begin(None, station.now);
            station.record.end(Ended::Done, 0, station.now);
        }
        station.tick(5, Some(Ended::Done));
        assert!(station.runs.is_empty(), "the run at 05:00 was after 02:00");
        station.now = at("2026-11-02T01:50:00Z");
        station.record.begin(None, station.now);
        station.record.end(Ended::Done, 0, station.now);
        station.until("2026-11-02T02:30:00Z", 5, Some(Ended::Done));
        assert_eq!(station.due(), ["2026-11-02T02:00:00Z"]);
    }

    #[test]
    fn a_clock_that_is_set_back_runs_nothing_twice() {
        let mut station = Station::new("every 1 h", "UTC", "2026-11-01T00:30:00Z");
        station.until("2026-11-01T04:05:00Z", 5, Some(Ended::Done));
        let before = station.runs.len();
        station.now = at("2026-11-01T02:10:00Z");
        station.until("2026-11-01T04:05:00Z", 5, Some(Ended::Done));
        assert_eq!(station.runs.len(), before);
    }

    #[test]
    fn a_job_is_overdue_when_its_time_has_long_passed_without_a_run_that_ended_well() {
        let mut station = Station::new("daily 02:00", "UTC", "2026-11-01T00:00:00Z");
        let utc = TimeZone::UTC;
        let says = |station: &Station, now: &str, running| {
            standing(Some(&station.record), &station.job, &utc, at(now), running)
        };
        assert_eq!(standing(None, &station.job, &utc, at("2026-11-01T00:00:00Z"), false), Standing::Unseen);
        assert_eq!(says(&station, "2026-11-01T01:00:00Z", false), Standing::New);
        assert_eq!(says(&station, "2026-11-01T02:30:00Z", false), Standing::Due);
        assert_eq!(says(&station, "2026-11-01T04:01:00Z", false), Standing::Overdue);
        assert_eq!(says(&station, "2026-11-01T04:01:00Z", true), Standing::Running);
        station.until("2026-11-01T03:00:00Z", 5, Some(Ended::Done));
        assert_eq!(says(&station, "2026-11-02T01:59:00Z", false), Standing::Met);
        station.until("2026-11-02T03:00:00Z", 5, Some(Ended::Failed));
        assert_eq!(says(&station, "2026-11-02T03:00:00Z", false), Standing::Failed);
        assert_eq!(says(&station, "2026-11-02T06:00:00Z", false), Standing::Overdue);
    }
}
