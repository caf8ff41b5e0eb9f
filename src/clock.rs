//! Time as something that is handed in, so that a test can hold it.

use jiff::Timestamp;

/// Tells what time it is.
pub trait Clock: Send + Sync + std::fmt::Debug {
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// Reads a moment as people and servers write it: `2026-11-21 09:41:07.5 UTC`, `…+02`, `…Z`, `2026-11-21T09:41:07+02:00`; without an
/// offset it is a clock time in `zone`, an IANA name.
///
/// ```
/// use pgherd::clock::parse_moment;
/// let utc = parse_moment("2026-11-21 09:41:07.25 UTC", "UTC").unwrap();
/// assert_eq!(parse_moment("2026-11-21T10:41:07.25+01", "UTC").unwrap(), utc);
/// assert_eq!(parse_moment("2026-11-21 10:41:07.25", "Europe/Berlin").unwrap(), utc);
/// assert!(parse_moment("2026-10-25 02:30:00", "Europe/Berlin").is_err());
/// ```
///
/// # Errors
/// A fragment that says what was expected; also for a clock time that the zone has twice or not at all.
pub fn parse_moment(text: &str, zone: &str) -> Result<Timestamp, String> {
    const EXPECTED: &str =
        "expected a moment such as \"2026-11-21 09:41:07.5 UTC\" or 2026-11-21T09:41:07+01:00";
    let text = text.trim();
    let utc = text
        .strip_suffix("UTC")
        .or_else(|| text.strip_suffix("GMT"))
        .map(|rest| format!("{}Z", rest.trim_end()));
    let normal = utc.as_deref().unwrap_or(text);
    if let Ok(moment) = normal.parse::<Timestamp>() {
        return Ok(moment);
    }
    let clock: jiff::civil::DateTime = normal.parse().map_err(|_| EXPECTED.to_owned())?;
    if normal.ends_with('Z') {
        return Err(EXPECTED.to_owned());
    }
    let zone_found =
        jiff::tz::TimeZone::get(zone).map_err(|_| format!("the time zone {zone} is not known here"))?;
    zone_found.to_ambiguous_timestamp(clock).unambiguous().map_err(|_| {
        format!("the clocks of {zone} showed {clock} twice or not at all; add an offset, such as +01 or UTC")
    })
}
