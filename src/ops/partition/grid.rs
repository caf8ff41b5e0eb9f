//! The grid of a set: where its periods begin, in the declared zone, and how bounds are read and written.
//!
//! Pure. A bound is a [`DateTime`]: what the clock shows for a `date` or a `timestamp`, UTC for a `timestamptz`.

use jiff::civil::{Date, DateTime, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::topology::partitions::{Every, Keep};

/// The type of the column that a set is partitioned by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    Date,
    Timestamp,
    Timestamptz,
}

impl KeyType {
    /// Reads PostgreSQL's name of a type; `None` for one that has no calendar.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "date" => Some(Self::Date),
            "timestamp without time zone" => Some(Self::Timestamp),
            "timestamp with time zone" => Some(Self::Timestamptz),
            _ => None,
        }
    }
}

/// One end of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bound {
    /// MINVALUE, or `-infinity`.
    Lowest,
    At(DateTime),
    /// MAXVALUE, or `infinity`.
    Highest,
}

/// A partition's bounds: from the first, up to and without the second.
pub type Range = (Bound, Bound);

/// Reads `FOR VALUES FROM ('2026-01-01 00:00:00+00') TO (MAXVALUE)` as a session with UTC and ISO shows it.
///
/// # Errors
/// The part that is not understood.
pub fn parse_bounds(text: &str) -> Result<Range, String> {
    let inner = text.strip_prefix("FOR VALUES FROM (").and_then(|rest| rest.strip_suffix(')'));
    let (from, to) = inner.and_then(|inner| inner.split_once(") TO (")).ok_or_else(|| text.to_owned())?;
    Ok((parse_bound(from)?, parse_bound(to)?))
}

fn parse_bound(text: &str) -> Result<Bound, String> {
    let unread = || text.to_owned();
    match text {
        "MINVALUE" | "'-infinity'" => return Ok(Bound::Lowest),
        "MAXVALUE" | "'infinity'" => return Ok(Bound::Highest),
        _ => {}
    }
    let value = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).ok_or_else(unread)?;
    let value = value.strip_suffix("+00").unwrap_or(value);
    let moment = value.parse::<DateTime>().or_else(|_| value.parse::<Date>().map(DateTime::from));
    moment.map(Bound::At).map_err(|_| unread())
}

/// Where the periods of a set begin.
#[derive(Debug, Clone)]
pub struct Grid {
    pub every: Every,
    pub key: KeyType,
    pub zone: TimeZone,
}

impl Grid {
    /// Returns the first day of the period that a day is in.
    pub fn floor(&self, day: Date) -> Date {
        let first = |month: i8| Date::new(day.year(), month, 1).expect("the first of a month is a day");
        match self.every {
            Every::Day => day,
            Every::Week => {
                let since = i64::from(day.weekday().since(Weekday::Monday));
                day.checked_sub(jiff::Span::new().days(since)).unwrap_or(Date::MIN)
            }
            Every::Month => first(day.month()),
            Every::Quarter => first((day.month() - 1) / 3 * 3 + 1),
            Every::Year => first(1),
        }
    }

    /// Returns the first day of the next period; the last day there is where the calendar ends.
    pub fn next(&self, start: Date) -> Date {
        start.checked_add(Keep { count: 1, unit: self.every }.span()).unwrap_or(Date::MAX)
    }

    /// Returns the present period's first day.
    pub fn present(&self, now: Timestamp) -> Date {
        self.floor(self.local(now).date())
    }

    fn local(&self, now: Timestamp) -> Zoned {
        now.to_zoned(self.zone.clone())
    }

    /// Returns the bound at which the period that begins on `start` begins. A midnight that the zone skips begins when the clock goes on.
    pub fn bound(&self, start: Date) -> DateTime {
        let midnight = DateTime::from(start);
        match self.key {
            KeyType::Date | KeyType::Timestamp => midnight,
            KeyType::Timestamptz => match self.zone.to_timestamp(midnight) {
                Ok(at) => TimeZone::UTC.to_datetime(at),
                // The ends of the calendar.
                Err(_) => midnight,
            },
        }
    }

    /// Returns the period that begins at a bound; `None` if none does.
    pub fn period_at(&self, bound: DateTime) -> Option<Date> {
        let local = self.day_of(bound);
        (self.floor(local) == local && self.bound(local) == bound).then_some(local)
    }

    /// Returns the day, in the zone, that a bound is on.
    pub fn day_of(&self, bound: DateTime) -> Date {
        match self.key {
            KeyType::Date | KeyType::Timestamp => bound.date(),
            KeyType::Timestamptz => {
                TimeZone::UTC.to_timestamp(bound).map_or(bound.date(), |at| self.local(at).date())
            }
        }
    }

    /// Returns the bound up to which partitions are no longer kept.
    pub fn cutoff(&self, now: Timestamp, keep: Keep) -> DateTime {
        match (keep.before(&self.local(now)), self.key) {
            (Some(then), KeyType::Date | KeyType::Timestamp) => then.datetime(),
            (Some(then), KeyType::Timestamptz) => TimeZone::UTC.to_datetime(then.timestamp()),
            (None, _) => DateTime::MIN,
        }
    }

    /// Writes a bound as it stands in a statement.
    pub fn literal(&self, bound: DateTime) -> String {
        match self.key {
            KeyType::Date => format!("'{}'", bound.date()),
            KeyType::Timestamp => format!("'{}'", bound.strftime("%Y-%m-%d %H:%M:%S")),
            KeyType::Timestamptz => format!("'{}+00'", bound.strftime("%Y-%m-%d %H:%M:%S")),
        }
    }

    /// Writes a bound for people.
    pub fn shown(&self, bound: Bound) -> String {
        match bound {
            Bound::Lowest => "MINVALUE".to_owned(),
            Bound::Highest => "MAXVALUE".to_owned(),
            Bound::At(at) if self.key == KeyType::Date => at.date().to_string(),
            Bound::At(at) if self.key == KeyType::Timestamp => at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            Bound::At(at) => at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::{date, datetime};

    use super::*;

    fn grid(every: Every, key: KeyType, zone: &str) -> Grid {
        Grid { every, key, zone: TimeZone::get(zone).unwrap() }
    }

    #[test]
    fn bounds_are_read_as_each_type_shows_them() {
        let at = |y, m, d| Bound::At(datetime(y, m, d, 0, 0, 0, 0));
        assert_eq!(
            parse_bounds("FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')"),
            Ok((at(2026, 1, 1), at(2026, 2, 1)))
        );
        assert_eq!(
            parse_bounds("FOR VALUES FROM ('2026-01-01 00:00:00+00') TO (MAXVALUE)"),
            Ok((at(2026, 1, 1), Bound::Highest))
        );
        assert_eq!(
            parse_bounds("FOR VALUES FROM ('-infinity') TO ('2026-01-01 05:30:00.5')"),
            Ok((Bound::Lowest, Bound::At(datetime(2026, 1, 1, 5, 30, 0, 500_000_000))))
        );
        for text in ["DEFAULT", "FOR VALUES IN ('a')", "FOR VALUES FROM ('4713-01-01 BC') TO ('2026-01-01')"]
        {
            assert!(parse_bounds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn periods_begin_at_the_midnights_of_the_zone() {
        let berlin = grid(Every::Month, KeyType::Timestamptz, "Europe/Berlin");
        assert_eq!(berlin.literal(berlin.bound(date(2026, 7, 1))), "'2026-06-30 22:00:00+00'");
        assert_eq!(berlin.literal(berlin.bound(date(2026, 12, 1))), "'2026-11-30 23:00:00+00'");
        assert_eq!(berlin.period_at(datetime(2026, 6, 30, 22, 0, 0, 0)), Some(date(2026, 7, 1)));
        assert_eq!(berlin.period_at(datetime(2026, 7, 1, 0, 0, 0, 0)), None);
        // The last hour of November in Berlin is December already in UTC's eyes of nobody: the zone decides.
        let last_second: Timestamp = "2026-11-30T22:59:59Z".parse().unwrap();
        assert_eq!(berlin.present(last_second), date(2026, 11, 1));
        let plain = grid(Every::Month, KeyType::Timestamp, "Europe/Berlin");
        assert_eq!(plain.literal(plain.bound(date(2026, 7, 1))), "'2026-07-01 00:00:00'");
        let day = grid(Every::Day, KeyType::Date, "Europe/Berlin");
        assert_eq!(day.literal(day.bound(date(2026, 7, 1))), "'2026-07-01'");
    }

    #[test]
    fn a_day_whose_midnight_the_zone_skips_begins_when_the_clock_goes_on() {
        // Clocks went from 23:59:59 to 01:00 there.
        let sao_paulo = grid(Every::Day, KeyType::Timestamptz, "America/Sao_Paulo");
        let day = date(2018, 11, 4);
        assert_eq!(sao_paulo.literal(sao_paulo.bound(day)), "'2018-11-04 03:00:00+00'");
        assert_eq!(sao_paulo.period_at(sao_paulo.bound(day)), Some(day));
        assert_eq!(sao_paulo.next(day), date(2018, 11, 5));
    }

    #[test]
    fn every_interval_has_its_own_beginnings() {
        let starts = |every| grid(every, KeyType::Date, "UTC").floor(date(2026, 11, 22));
        assert_eq!(starts(Every::Day), date(2026, 11, 22));
        assert_eq!(starts(Every::Week), date(2026, 11, 16));
        assert_eq!(starts(Every::Month), date(2026, 11, 1));
        assert_eq!(starts(Every::Quarter), date(2026, 10, 1));
        assert_eq!(starts(Every::Year), date(2026, 1, 1));
        assert_eq!(grid(Every::Quarter, KeyType::Date, "UTC").next(date(2026, 10, 1)), date(2027, 1, 1));
        let month = grid(Every::Month, KeyType::Date, "UTC");
        assert_eq!(month.period_at(datetime(2026, 11, 2, 0, 0, 0, 0)), None);
    }

    #[test]
    fn what_is_kept_is_counted_back_by_the_calendar() {
        let now: Timestamp = "2026-03-31T10:00:00Z".parse().unwrap();
        let keep = |text: &str| Keep::parse(text).unwrap();
        let utc = grid(Every::Month, KeyType::Timestamptz, "UTC");
        assert_eq!(utc.cutoff(now, keep("1 month")), datetime(2026, 2, 28, 10, 0, 0, 0));
        assert_eq!(utc.cutoff(now, keep("2 years")), datetime(2024, 3, 31, 10, 0, 0, 0));
        // Across the change to summer time, 7 days are 7 midnights and not 168 hours.
        let berlin = grid(Every::Day, KeyType::Timestamptz, "Europe/Berlin");
        assert_eq!(berlin.cutoff(now, keep("7 days")), datetime(2026, 3, 24, 11, 0, 0, 0));
    }
}
