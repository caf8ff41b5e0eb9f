//! When something runs, in the file's own words: `daily 02:00`, `every 6 h`, `weekly Sun 04:00`, `monthly 1 05:00`, `quarterly 1 05:00`.
//!
//! Pure: the time and the zone are handed in. A clock time that the zone leaves out counts at the instant after the gap, one that it has
//! twice counts the first time; `every` counts instants since 1970 in UTC, so that no change of the clocks moves it.

use std::fmt;
use std::time::Duration;

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::units::parse_duration;

/// What one writes for when something runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Minutes that divide an hour, or hours that divide a day.
    Every(Minutes),
    Daily(Time),
    Weekly(Weekday, Time),
    Monthly(DayOfMonth, Time),
    /// In January, April, July and October.
    Quarterly(DayOfMonth, Time),
}

/// A number of minutes that divides an hour or a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minutes(i64);

/// A day that every month has: 1 to 28.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayOfMonth(i8);

/// Why a text is no schedule: a fragment, and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct ScheduleError {
    pub what: String,
    pub hint: &'static str,
}

const EXAMPLES: &str = "Write \"every 6 h\", \"daily 02:00\", \"weekly Sun 04:00\", \"monthly 1 05:00\" or \"quarterly 1 05:00\".";
const EVERY: &str = "Write minutes that divide an hour or hours that divide a day, such as \"every 15 min\" or \"every 6 h\"; from a day on \"daily 02:00\".";
const DAYS: [(&str, Weekday); 7] = [
    ("Mon", Weekday::Monday),
    ("Tue", Weekday::Tuesday),
    ("Wed", Weekday::Wednesday),
    ("Thu", Weekday::Thursday),
    ("Fri", Weekday::Friday),
    ("Sat", Weekday::Saturday),
    ("Sun", Weekday::Sunday),
];
const QUARTERS: [i8; 4] = [1, 4, 7, 10];
/// No schedule of a clock time leaves out more days: a quarter, and a day on each side for zones.
const LONGEST: i64 = 95;

impl Schedule {
    /// Reads a schedule.
    ///
    /// ```
    /// use pgherd::topology::schedule::Schedule;
    /// assert_eq!(Schedule::parse("weekly  Sun 04:00").unwrap().to_string(), "weekly Sun 04:00");
    /// assert!(Schedule::parse("monthly 31 05:00").is_err());
    /// ```
    ///
    /// # Errors
    /// When it is none; the error says what to write.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let wrong = |what: String, hint| ScheduleError { what, hint };
        match words.as_slice() {
            ["every", span @ ..] if !span.is_empty() => {
                let span = span.join(" ");
                let every = parse_duration(&span).map_err(|error| wrong(error.to_string(), EVERY))?.as_secs();
                let divides = every > 0 && every.is_multiple_of(60) && {
                    let minutes = every / 60;
                    60_u64.is_multiple_of(minutes)
                        || minutes.is_multiple_of(60) && 1440_u64.is_multiple_of(minutes)
                };
                if !divides || every >= 86_400 {
                    return Err(wrong(format!("\"every {span}\" does not divide an hour or a day"), EVERY));
                }
                Ok(Self::Every(Minutes(i64::try_from(every / 60).expect("less than a day"))))
            }
            ["daily", time] => Ok(Self::Daily(clock(time)?)),
            ["weekly", day, time] => {
                let named = DAYS.iter().find(|(name, _)| name == day);
                let (_, day) = named.ok_or_else(|| {
                    wrong(
                        format!("\"{day}\" is no day of the week"),
                        "Write Mon, Tue, Wed, Thu, Fri, Sat or Sun.",
                    )
                })?;
                Ok(Self::Weekly(*day, clock(time)?))
            }
            ["monthly", day, time] => Ok(Self::Monthly(day_of_month(day)?, clock(time)?)),
            ["quarterly", day, time] => Ok(Self::Quarterly(day_of_month(day)?, clock(time)?)),
            ["hourly", ..] => Err(wrong(format!("\"{text}\" is no schedule"), "Write \"every 1 h\".")),
            [] | [_, ..] => Err(wrong(format!("\"{text}\" is no schedule"), EXAMPLES)),
        }
    }

    /// Returns the first time after `after`.
    pub fn next(&self, zone: &TimeZone, after: Timestamp) -> Timestamp {
        let Self::Every(minutes) = self else {
            let from = day(zone, after) - 1.day();
            let days = (0..LONGEST + 2).filter_map(|ahead| from.checked_add(ahead.days()).ok());
            let times = days.filter_map(|day| self.on(day)).map(|(day, time)| instant(zone, day, time));
            return times.into_iter().find(|at| *at > after).expect("every quarter has each of them");
        };
        minutes.floor(after) + minutes.span()
    }

    /// Returns the last time that is not after `now`.
    pub fn last(&self, zone: &TimeZone, now: Timestamp) -> Timestamp {
        let Self::Every(minutes) = self else {
            let from = day(zone, now) + 1.day();
            let days = (0..LONGEST + 2).filter_map(|back| from.checked_sub(back.days()).ok());
            let times = days.filter_map(|day| self.on(day)).map(|(day, time)| instant(zone, day, time));
            return times.into_iter().find(|at| *at <= now).expect("every quarter has each of them");
        };
        minutes.floor(now)
    }

    /// The clock time of a day, if it is one of this schedule.
    fn on(&self, day: Date) -> Option<(Date, Time)> {
        let time = match self {
            Self::Every(_) => None,
            Self::Daily(time) => Some(*time),
            Self::Weekly(weekday, time) => (day.weekday() == *weekday).then_some(*time),
            Self::Monthly(number, time) => (day.day() == number.0).then_some(*time),
            Self::Quarterly(number, time) => {
                (day.day() == number.0 && QUARTERS.contains(&day.month())).then_some(*time)
            }
        };
        time.map(|time| (day, time))
    }

    /// Returns how long it is from one time to the next, at most and without what the clocks do.
    pub fn period(&self) -> Duration {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        match self {
            Self::Every(minutes) => Duration::from_secs(minutes.0.unsigned_abs() * 60),
            Self::Daily(_) => days(1),
            Self::Weekly(..) => days(7),
            Self::Monthly(..) => days(31),
            Self::Quarterly(..) => days(92),
        }
    }

    /// Returns the minutes past the hour at which it can be due, by the clock of its zone: their greatest common divisor with an hour.
    pub fn grain(&self) -> u32 {
        let minute = match self {
            Self::Every(minutes) => minutes.0,
            Self::Daily(time) | Self::Weekly(_, time) | Self::Monthly(_, time) | Self::Quarterly(_, time) => {
                i64::from(time.minute())
            }
        };
        let (mut a, mut b) = (60, minute);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        u32::try_from(a).expect("a divisor of 60")
    }

    /// Returns it as systemd.time(7) has it, for `OnCalendar=`.
    pub fn on_calendar(&self, zone: &str) -> String {
        match self {
            Self::Every(Minutes(minutes @ ..60)) => format!("*-*-* *:00/{minutes}:00 UTC"),
            Self::Every(Minutes(minutes)) => format!("*-*-* 00/{}:00:00 UTC", minutes / 60),
            Self::Daily(time) => format!("*-*-* {}:00 {zone}", hand(*time)),
            Self::Weekly(day, time) => format!("{} *-*-* {}:00 {zone}", name(*day), hand(*time)),
            Self::Monthly(day, time) => format!("*-*-{:02} {}:00 {zone}", day.0, hand(*time)),
            Self::Quarterly(day, time) => format!("*-01,04,07,10-{:02} {}:00 {zone}", day.0, hand(*time)),
        }
    }
}

impl Minutes {
    fn span(self) -> SignedDuration {
        SignedDuration::from_mins(self.0)
    }

    fn floor(self, at: Timestamp) -> Timestamp {
        let seconds = self.0 * 60;
        let floor = at.as_second().div_euclid(seconds) * seconds;
        Timestamp::from_second(floor).expect("not further from now than a day")
    }
}

fn day(zone: &TimeZone, at: Timestamp) -> Date {
    zone.to_datetime(at).date()
}

/// Returns when the clocks of `zone` show a time of a day.
fn instant(zone: &TimeZone, day: Date, time: Time) -> Timestamp {
    let clock = day.to_datetime(time);
    let far = "schedules are asked for times that clocks show";
    match zone.to_ambiguous_timestamp(clock).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(clock).expect(far),
        AmbiguousOffset::Fold { before, .. } => before.to_timestamp(clock).expect(far),
        AmbiguousOffset::Gap { after, .. } => {
            // By the new offset the clock time lies before the change, by the old one after it.
            let earlier = after.to_timestamp(clock).expect(far);
            zone.following(earlier).next().map_or(earlier, |change| change.timestamp())
        }
    }
}

fn clock(text: &str) -> Result<Time, ScheduleError> {
    let digits = |part: &str| {
        (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse::<i8>().ok())?
    };
    let parts = text.split_once(':').and_then(|(hour, minute)| Some((digits(hour)?, digits(minute)?)));
    parts.and_then(|(hour, minute)| Time::new(hour, minute, 0, 0).ok()).ok_or_else(|| ScheduleError {
        what: format!("\"{text}\" is no time of a day"),
        hint: "Write hours and minutes, such as 02:00 or 23:30.",
    })
}

fn day_of_month(text: &str) -> Result<DayOfMonth, ScheduleError> {
    let day = text.parse::<i8>().ok().filter(|day| (1..=28).contains(day) && !text.starts_with(['+', '0']));
    day.map(DayOfMonth).ok_or_else(|| ScheduleError {
        what: format!("\"{text}\" is no day that every month has"),
        hint: "Write a day from 1 to 28.",
    })
}

fn hand(time: Time) -> String {
    format!("{:02}:{:02}", time.hour(), time.minute())
}

fn name(day: Weekday) -> &'static str {
    DAYS.iter().find(|(_, known)| *known == day).map(|(name, _)| *name).expect("a week has seven days")
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(Minutes(minutes @ ..60)) => write!(f, "every {minutes} min"),
            Self::Every(Minutes(minutes)) => write!(f, "every {} h", minutes / 60),
            Self::Daily(time) => write!(f, "daily {}", hand(*time)),
            Self::Weekly(day, time) => write!(f, "weekly {} {}", name(*day), hand(*time)),
            Self::Monthly(day, time) => write!(f, "monthly {} {}", day.0, hand(*time)),
            Self::Quarterly(day, time) => write!(f, "quarterly {} {}", day.0, hand(*time)),
        }
    }
}

impl Serialize for Schedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Schedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(schedule: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
        let (schedule, zone) = (Schedule::parse(schedule).unwrap(), TimeZone::get(zone).unwrap());
        let mut at: Timestamp = from.parse().unwrap();
        let mut found = Vec::new();
        for _ in 0..count {
            at = schedule.next(&zone, at);
            assert_eq!(schedule.last(&zone, at), at, "the last time at a time is that time");
            found.push(at.to_string());
        }
        found
    }

    #[test]
    fn every_word_reads_as_it_is_written() {
        for text in [
            "every 5 min",
            "every 6 h",
            "daily 02:00",
            "weekly Sun 04:00",
            "monthly 28 05:00",
            "quarterly 1 23:59",
        ] {
            assert_eq!(Schedule::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Schedule::parse("every 60 min").unwrap().to_string(), "every 1 h");
    }

    #[test]
    fn what_no_clock_or_month_has_is_refused() {
        for text in [
            "",
            "daily",
            "daily 2:00",
            "daily 24:00",
            "daily 02:60",
            "daily 02:00 UTC",
            "weekly 04:00",
            "weekly sun 04:00",
            "weekly Sunday 04:00",
            "monthly 29 05:00",
            "monthly 0 05:00",
            "monthly 05:00",
            "quarterly 01 05:00",
            "every",
            "every 0 min",
            "every 7 h",
            "every 90 min",
            "every 7 min",
            "every 30 s",
            "every 1 d",
            "every 5 m",
            "hourly",
            "02:00",
            "@daily",
            "0 2 * * *",
        ] {
            let error = Schedule::parse(text).unwrap_err();
            assert!(error.hint.starts_with("Write "), "{text}: {error:?}");
        }
    }

    #[test]
    fn a_day_a_week_a_month_and_a_quarter_follow_the_calendar() {
        assert_eq!(
            times("daily 02:00", "Europe/Berlin", "2026-11-21T12:00:00Z", 2),
            ["2026-11-22T01:00:00Z", "2026-11-23T01:00:00Z"]
        );
        assert_eq!(
            times("weekly Sun 04:00", "UTC", "2026-11-22T04:00:00Z", 2),
            ["2026-11-29T04:00:00Z", "2026-12-06T04:00:00Z"]
        );
        assert_eq!(
            times("monthly 28 05:00", "UTC", "2027-01-29T00:00:00Z", 2),
            ["2027-02-28T05:00:00Z", "2027-03-28T05:00:00Z"]
        );
        assert_eq!(
            times("quarterly 1 05:00", "UTC", "2026-10-01T05:00:00Z", 2),
            ["2027-01-01T05:00:00Z", "2027-04-01T05:00:00Z"]
        );
        // Where the date is already tomorrow's, and where it is still yesterday's.
        assert_eq!(
            times("monthly 1 00:30", "Pacific/Kiritimati", "2026-11-30T00:00:00Z", 1),
            ["2026-11-30T10:30:00Z"]
        );
        assert_eq!(
            times("daily 23:30", "Pacific/Pago_Pago", "2026-11-22T10:00:00Z", 1),
            ["2026-11-22T10:30:00Z"]
        );
    }

    #[test]
    fn a_time_that_the_clocks_leave_out_runs_once_at_the_next_instant() {
        // In Berlin on 2027-03-28 the clocks go from 02:00 to 03:00, at 01:00 UTC.
        assert_eq!(
            times("daily 02:30", "Europe/Berlin", "2027-03-27T00:00:00Z", 3),
            ["2027-03-27T01:30:00Z", "2027-03-28T01:00:00Z", "2027-03-29T00:30:00Z"]
        );
        // Samoa had no 30 December 2011 at all.
        assert_eq!(
            times("daily 12:00", "Pacific/Apia", "2011-12-29T20:00:00Z", 3),
            ["2011-12-29T22:00:00Z", "2011-12-30T10:00:00Z", "2011-12-30T22:00:00Z"]
        );
    }

    #[test]
    fn a_time_that_the_clocks_show_twice_runs_once() {
        // In Berlin on 2026-10-25 the clocks go from 03:00 back to 02:00, at 01:00 UTC.
        assert_eq!(
            times("daily 02:30", "Europe/Berlin", "2026-10-24T00:00:00Z", 3),
            ["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
        );
    }

    #[test]
    fn what_runs_every_so_often_is_not_moved_by_the_clocks() {
        for zone in ["UTC", "Europe/Berlin", "Asia/Kathmandu"] {
            assert_eq!(
                times("every 6 h", zone, "2026-10-24T20:00:00Z", 3),
                ["2026-10-25T00:00:00Z", "2026-10-25T06:00:00Z", "2026-10-25T12:00:00Z"]
            );
        }
        assert_eq!(times("every 20 min", "UTC", "2026-10-24T20:20:00.5Z", 1), ["2026-10-24T20:40:00Z"]);
    }

    #[test]
    fn a_century_of_days_has_each_day_once() {
        let (schedule, zone) =
            (Schedule::parse("daily 02:30").unwrap(), TimeZone::get("America/New_York").unwrap());
        let mut at: Timestamp = "2000-01-01T00:00:00Z".parse().unwrap();
        let mut before = day(&zone, at);
        for _ in 0..36_500 {
            at = schedule.next(&zone, at);
            let today = day(&zone, at);
            assert_eq!(today, before + 1.day());
            before = today;
        }
    }

    #[test]
    fn systemd_reads_the_same_times() {
        let calendar = |text: &str| Schedule::parse(text).unwrap().on_calendar("Europe/Berlin");
        assert_eq!(calendar("every 15 min"), "*-*-* *:00/15:00 UTC");
        assert_eq!(calendar("every 6 h"), "*-*-* 00/6:00:00 UTC");
        assert_eq!(calendar("daily 02:00"), "*-*-* 02:00:00 Europe/Berlin");
        assert_eq!(calendar("weekly Sun 04:00"), "Sun *-*-* 04:00:00 Europe/Berlin");
        assert_eq!(calendar("monthly 1 05:00"), "*-*-01 05:00:00 Europe/Berlin");
        assert_eq!(calendar("quarterly 1 05:00"), "*-01,04,07,10-01 05:00:00 Europe/Berlin");
    }

    #[test]
    fn a_tick_is_as_fine_as_the_times_are() {
        for (text, grain) in [
            ("daily 02:00", 60),
            ("daily 02:30", 30),
            ("weekly Sun 04:07", 1),
            ("every 6 h", 60),
            ("every 20 min", 20),
        ] {
            assert_eq!(Schedule::parse(text).unwrap().grain(), grain, "{text}");
        }
    }
}
