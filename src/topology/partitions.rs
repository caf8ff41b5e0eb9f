//! Partitioned tables as the file declares them: what a set is, how its partitions are called, and how long they are kept.
//!
//! Pure. Which partitions there are is seen on the primary, and what follows from both is decided in `ops::partition`.

use std::fmt;

use jiff::Zoned;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::pg::ident::{MOST_BYTES, quote_identifier};

/// A table that is partitioned by time, and what becomes of its partitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionSet {
    pub table: TableName,
    pub database: String,
    /// The column that it is partitioned by.
    pub by: String,
    pub every: Every,
    /// How many periods after the present one have a partition; at least 1.
    pub ahead: u32,
    /// A partition stays until its last moment is so long ago; `None`: for ever.
    pub keep: Option<Keep>,
    pub then: Then,
    /// Rows that were exported stay in the repository until their last moment is so long ago; `None`: for ever.
    pub keep_exports: Option<Keep>,
    /// IANA name of the zone whose midnights are the bounds.
    pub timezone: String,
    pub default_partition: DefaultPolicy,
    /// Where new partitions are put, if not where PostgreSQL puts them by itself.
    pub tablespace: Option<String>,
    /// Whether a new partition is given the privileges that the table has.
    pub copies_grants: bool,
    pub names: NamePattern,
}

/// The name of a table with its schema, exactly as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

/// Why a text is not the name of a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableNameError {
    #[error("it has no schema")]
    NoSchema,
    #[error("it has more than a schema and a name")]
    TooManyParts,
    #[error("its double quotes do not match")]
    Quotes,
    #[error("one of its names is empty")]
    Empty,
    #[error("{0:?} has {1} bytes, PostgreSQL takes 63")]
    TooLong(String, usize),
}

impl TableName {
    /// Takes `SCHEMA.TABLE`; a name that holds a dot stands in double quotes. Nothing is folded to lower case.
    ///
    /// ```
    /// use pgherd::topology::partitions::TableName;
    /// assert_eq!(TableName::parse("orders.Events").unwrap().name, "Events");
    /// assert_eq!(TableName::parse("\"a.b\".\"say \"\"x\"\"\"").unwrap().name, "say \"x\"");
    /// assert!(TableName::parse("events").is_err());
    /// ```
    ///
    /// # Errors
    /// [`TableNameError`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, TableNameError> {
        let mut parts: Vec<String> = vec![String::new()];
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            let part = parts.last_mut().expect("there is always a last part");
            match c {
                '.' => parts.push(String::new()),
                '"' if part.is_empty() => loop {
                    match rest.next() {
                        Some('"') if rest.peek() == Some(&'"') => {
                            rest.next();
                            part.push('"');
                        }
                        Some('"') if matches!(rest.peek(), None | Some('.')) => break,
                        Some('"') | None => return Err(TableNameError::Quotes),
                        Some(c) => part.push(c),
                    }
                },
                c => part.push(c),
            }
        }
        if let Some(part) = parts.iter().find(|part| part.len() > MOST_BYTES) {
            return Err(TableNameError::TooLong(part.clone(), part.len()));
        }
        if parts.iter().any(String::is_empty) {
            return Err(TableNameError::Empty);
        }
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(schema), Some(name), None) => Ok(Self { schema, name }),
            (_, None, _) => Err(TableNameError::NoSchema),
            (_, _, Some(_)) | (None, _, _) => Err(TableNameError::TooManyParts),
        }
    }

    /// Returns it as it stands in a statement.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }

    /// Returns another table of the same schema.
    #[must_use]
    pub fn beside(&self, name: &str) -> Self {
        Self { schema: self.schema.clone(), name: name.to_owned() }
    }
}

impl fmt::Display for TableName {
    /// `orders.events`; a name with a dot or a quote in it is quoted, so that the text is read back as it was.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |name: &str| {
            if name.contains(['.', '"']) { quote_identifier(name) } else { name.to_owned() }
        };
        write!(f, "{}.{}", part(&self.schema), part(&self.name))
    }
}

impl std::str::FromStr for TableName {
    type Err = TableNameError;

    fn from_str(text: &str) -> Result<Self, TableNameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for TableName {
    type Error = TableNameError;

    fn try_from(text: String) -> Result<Self, TableNameError> {
        Self::parse(&text)
    }
}

impl From<TableName> for String {
    fn from(table: TableName) -> Self {
        table.to_string()
    }
}

/// How long the time of one partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Every {
    Day,
    Week,
    Month,
    Quarter,
    Year,
}

impl Every {
    /// Returns it as the file writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Quarter => "quarter",
            Self::Year => "year",
        }
    }

    /// How many of them are ten years: more partitions than that ahead fill the lock table and help nobody.
    pub const fn ten_years(self) -> u32 {
        match self {
            Self::Day => 3652,
            Self::Week => 521,
            Self::Month => 120,
            Self::Quarter => 40,
            Self::Year => 10,
        }
    }

    /// Days that it has at most.
    const fn most_days(self) -> u32 {
        match self {
            Self::Day => 1,
            Self::Week => 7,
            Self::Month => 31,
            Self::Quarter => 92,
            Self::Year => 366,
        }
    }
}

/// What becomes of a partition that is no longer kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// It becomes a table of its own, and stays.
    #[default]
    Detach,
    Drop,
    /// Its rows go to the repository first.
    ExportAndDrop,
}

impl Then {
    /// Returns it as the file writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Detach => "detach",
            Self::Drop => "drop",
            Self::ExportAndDrop => "export and drop",
        }
    }
}

/// What is done about a default partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefaultPolicy {
    /// None is made, and one that is there stays.
    #[default]
    Leave,
    /// One is made.
    Create,
    /// One that is there is an error.
    Refuse,
}

impl DefaultPolicy {
    /// Returns it as the file writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Leave => "leave",
            Self::Create => "create",
            Self::Refuse => "refuse",
        }
    }
}

/// A span of the calendar: `2 years`, `90 days`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keep {
    pub count: u32,
    pub unit: Every,
}

impl Keep {
    /// Reads `2 years`, `1 quarter`, `90 days`.
    ///
    /// # Errors
    /// A fragment that says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        const EXPECTED: &str =
            "a span of the calendar such as 90 days, 8 weeks, 18 months, 4 quarters or 2 years";
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let count = text[..digits].parse().map_err(|_| format!("expected {EXPECTED}"))?;
        let unit = match text[digits..].trim() {
            "" => return Err(format!("it has no unit, expected {EXPECTED}")),
            "m" => return Err("\"m\" could be minutes or months; write \"months\"".to_owned()),
            "day" | "days" => Every::Day,
            "week" | "weeks" => Every::Week,
            "month" | "months" => Every::Month,
            "quarter" | "quarters" => Every::Quarter,
            "year" | "years" => Every::Year,
            other => return Err(format!("it has the unknown unit {other:?}, expected {EXPECTED}")),
        };
        Ok(Self { count, unit })
    }

    /// Tells whether it is no longer than another one.
    pub fn is_within(self, other: Self) -> bool {
        match (self.months(), other.months()) {
            (Some(own), Some(other)) => own <= other,
            (_, _) => self.count * self.unit.most_days() <= other.count * other.unit.most_days(),
        }
    }

    /// Returns it in months; `None` if it is counted in days.
    fn months(self) -> Option<u32> {
        match self.unit {
            Every::Day | Every::Week => None,
            Every::Month => Some(self.count),
            Every::Quarter => Some(3 * self.count),
            Every::Year => Some(12 * self.count),
        }
    }

    /// Returns the moment that is so long before another one, by the calendar; `None` before there was one.
    pub fn before(self, now: &Zoned) -> Option<Zoned> {
        now.checked_sub(self.span()).ok()
    }

    /// Tells whether it is surely shorter than one `every`.
    pub fn is_shorter_than(self, every: Every) -> bool {
        // The same unit is compared by number; two units by the most days that each can have.
        if self.unit == every {
            self.count == 0
        } else {
            self.count * self.unit.most_days() < every.most_days()
        }
    }

    /// Returns it as a span that a date can be moved by.
    pub fn span(self) -> jiff::Span {
        let count = i64::from(self.count);
        match self.unit {
            Every::Day => jiff::Span::new().days(count),
            Every::Week => jiff::Span::new().weeks(count),
            Every::Month => jiff::Span::new().months(count),
            Every::Quarter => jiff::Span::new().months(3 * count),
            Every::Year => jiff::Span::new().years(count),
        }
    }
}

/// The longest span that is taken; a greater one is a slip of the pen.
pub const MOST_KEPT: u32 = 40_000;

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.count == 1 { "" } else { "s" };
        write!(f, "{} {}{plural}", self.count, self.unit.word())
    }
}

/// How partitions are called: `{table}_{year}_{month}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NamePattern(String);

/// What may stand in braces, and which of them tell one partition from the next.
const FIELDS: [&str; 6] = ["table", "year", "quarter", "month", "week", "day"];

impl NamePattern {
    /// Returns the pattern that is used where none is declared.
    pub fn usual(every: Every) -> Self {
        Self(
            match every {
                Every::Day => "{table}_{year}_{month}_{day}",
                Every::Week => "{table}_{year}_w{week}",
                Every::Month => "{table}_{year}_{month}",
                Every::Quarter => "{table}_{year}_q{quarter}",
                Every::Year => "{table}_{year}",
            }
            .to_owned(),
        )
    }

    /// Takes a pattern.
    ///
    /// # Errors
    /// A sentence, if it holds something else in braces or gives two partitions of `every` the same name.
    pub fn parse(text: &str, every: Every) -> Result<Self, String> {
        let mut fields = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let closed = after.split_once('}').filter(|_| !before.contains('}'));
            let Some((field, left)) = closed else { return Err("Its braces do not match.".to_owned()) };
            if !FIELDS.contains(&field) {
                return Err(format!("In braces stands one of {}.", FIELDS.join(", ")));
            }
            fields.push(field);
            rest = left;
        }
        if rest.contains('}') {
            return Err("Its braces do not match.".to_owned());
        }
        let needed: &[&str] = match every {
            Every::Day => &["year", "month", "day"],
            Every::Week => &["year", "week"],
            Every::Month => &["year", "month"],
            Every::Quarter => &["year", "quarter"],
            Every::Year => &["year"],
        };
        // The months and days of a quarter's first day tell quarters apart as well.
        let by_month = every == Every::Quarter && fields.contains(&"year") && fields.contains(&"month");
        match needed.iter().find(|needed| !fields.contains(needed)) {
            Some(missing) if !by_month => {
                Err(format!("Without {{{missing}}} two partitions would have the same name."))
            }
            Some(_) | None => Ok(Self(text.to_owned())),
        }
    }

    /// Returns the name of the partition of `table` whose period begins on `start`.
    pub fn name(&self, table: &str, start: Date, every: Every) -> String {
        let iso = start.iso_week_date();
        let year = if every == Every::Week { iso.year() } else { start.year() };
        self.0
            .replace("{year}", &format!("{year:04}"))
            .replace("{quarter}", &((start.month() - 1) / 3 + 1).to_string())
            .replace("{month}", &format!("{:02}", start.month()))
            .replace("{week}", &format!("{:02}", iso.week()))
            .replace("{day}", &format!("{:02}", start.day()))
            .replace("{table}", table)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns how a period is called for short: `2026-12`, `2026-w49`, `2026-q4`.
pub fn period(start: Date, every: Every) -> String {
    let pattern = match every {
        Every::Day => "{year}-{month}-{day}",
        Every::Week => "{year}-w{week}",
        Every::Month => "{year}-{month}",
        Every::Quarter => "{year}-q{quarter}",
        Every::Year => "{year}",
    };
    NamePattern(pattern.to_owned()).name("", start, every)
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    #[test]
    fn a_table_is_named_with_its_schema_and_read_back_as_it_was() {
        for text in ["orders.order_events", "Orders.Events", "\"a.b\".c", "a.\"say \"\"x\"\"\""] {
            assert_eq!(TableName::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(TableName::parse("\"Plain\".t").unwrap().to_string(), "Plain.t");
        for (text, error) in [
            ("events", TableNameError::NoSchema),
            ("a.b.c", TableNameError::TooManyParts),
            ("a.", TableNameError::Empty),
            ("\"a.b", TableNameError::Quotes),
            ("\"a\"x.b", TableNameError::Quotes),
        ] {
            assert_eq!(TableName::parse(text), Err(error), "{text}");
        }
        assert!(matches!(
            TableName::parse(&format!("s.{}", "x".repeat(64))),
            Err(TableNameError::TooLong(_, 64))
        ));
    }

    #[test]
    fn partitions_are_named_by_their_period() {
        let name = |every, start| NamePattern::usual(every).name("t", start, every);
        assert_eq!(name(Every::Day, date(2026, 12, 5)), "t_2026_12_05");
        assert_eq!(name(Every::Week, date(2026, 12, 28)), "t_2026_w53");
        assert_eq!(name(Every::Week, date(2024, 12, 30)), "t_2025_w01");
        assert_eq!(name(Every::Month, date(2026, 12, 1)), "t_2026_12");
        assert_eq!(name(Every::Quarter, date(2026, 10, 1)), "t_2026_q4");
        assert_eq!(name(Every::Year, date(2026, 1, 1)), "t_2026");
        assert_eq!(period(date(2026, 10, 1), Every::Quarter), "2026-q4");
        // The name of the table is put in last, so that braces in it are not fields.
        assert_eq!(
            NamePattern::usual(Every::Year).name("{day}", date(2026, 1, 1), Every::Year),
            "{day}_2026"
        );
    }

    #[test]
    fn a_pattern_that_names_two_partitions_alike_is_refused() {
        assert!(NamePattern::parse("{table}_p{year}{month}01", Every::Month).is_ok());
        assert!(NamePattern::parse("{table}_{year}_{month}", Every::Quarter).is_ok());
        assert!(NamePattern::parse("{table}_{year}", Every::Month).unwrap_err().contains("{month}"));
        assert!(NamePattern::parse("{table}_{year}_{month}", Every::Week).unwrap_err().contains("{week}"));
        for text in ["{tabel}_{year}", "{year", "year}", "}{year}"] {
            assert!(NamePattern::parse(text, Every::Year).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_kept_is_a_span_of_the_calendar() {
        assert_eq!(Keep::parse("2 years").unwrap().to_string(), "2 years");
        assert_eq!(Keep::parse("1quarter").unwrap().to_string(), "1 quarter");
        for text in ["2", "2 m", "years", "2 fortnights", "", "99999999999 days"] {
            assert!(Keep::parse(text).is_err(), "{text}");
        }
        let shorter = |text: &str, every| Keep::parse(text).unwrap().is_shorter_than(every);
        assert!(shorter("0 days", Every::Day) && shorter("20 days", Every::Month));
        assert!(!shorter("31 days", Every::Month) && !shorter("12 months", Every::Year));
        assert!(!shorter("1 year", Every::Year));
        let within = |one, other| Keep::parse(one).unwrap().is_within(Keep::parse(other).unwrap());
        assert!(within("2 years", "2 years") && within("90 days", "1 year"));
        assert!(!within("3 years", "2 years") && !within("3 years", "24 months"));
    }
}
