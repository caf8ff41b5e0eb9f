//! Server settings: how values are spelled, when two spellings mean the same, and which of them a standby must match.
//!
//! Knows how PostgreSQL reads `postgresql.conf`; reads no file itself.

/// What a standby must have at least as high as its primary, or it stops replaying.
///
/// Source: PostgreSQL docs, "Hot Standby", section "Administrator's Overview".
pub const STANDBY_FIVE: [&str; 5] = [
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_wal_senders",
    "max_worker_processes",
];

/// The unit that a bare number has in a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Byte,
    Kibibyte,
    /// A block of 8 KiB, with which every packaged server is built.
    Block,
    Mebibyte,
    Millisecond,
    Second,
    Minute,
}

// Of PostgreSQL's table of units (guc.c): what a number may carry, from large to small, in bytes and in microseconds.
const MEMORY: [(&str, f64); 5] =
    [("TB", 1_099_511_627_776.0), ("GB", 1_073_741_824.0), ("MB", 1_048_576.0), ("kB", 1024.0), ("B", 1.0)];
const TIME: [(&str, f64); 6] = [
    ("d", 86_400_000_000.0),
    ("h", 3_600_000_000.0),
    ("min", 60_000_000.0),
    ("s", 1_000_000.0),
    ("ms", 1000.0),
    ("us", 1.0),
];

impl Unit {
    /// Reads the column `unit` of `pg_settings`: `8kB`, `ms`, …
    fn parse(text: &str) -> Option<Self> {
        match text {
            "B" => Some(Self::Byte),
            "kB" => Some(Self::Kibibyte),
            "8kB" => Some(Self::Block),
            "MB" => Some(Self::Mebibyte),
            "ms" => Some(Self::Millisecond),
            "s" => Some(Self::Second),
            "min" => Some(Self::Minute),
            _ => None,
        }
    }

    fn table(self) -> &'static [(&'static str, f64)] {
        match self {
            Self::Byte | Self::Kibibyte | Self::Block | Self::Mebibyte => &MEMORY,
            Self::Millisecond | Self::Second | Self::Minute => &TIME,
        }
    }

    /// Bytes or microseconds.
    fn size(self) -> f64 {
        match self {
            Self::Byte => 1.0,
            Self::Kibibyte => 1024.0,
            Self::Block => 8192.0,
            Self::Mebibyte => 1_048_576.0,
            Self::Millisecond => 1000.0,
            Self::Second => 1_000_000.0,
            Self::Minute => 60_000_000.0,
        }
    }
}

/// Tells whether a value as people write it (`4MB`, `on`, `Replica`) means the `setting` that `pg_settings` shows with this `unit`
/// and `vartype`.
///
/// ```
/// use pgherd::pg::guc::same_value;
/// assert!(same_value("4MB", "4096", Some("kB"), "integer"));
/// assert!(same_value("yes", "on", None, "bool"));
/// assert!(!same_value("4MB", "4095", Some("kB"), "integer"));
/// ```
pub fn same_value(declared: &str, setting: &str, unit: Option<&str>, vartype: &str) -> bool {
    let unit = unit.and_then(Unit::parse);
    match vartype {
        "bool" => parse_bool(declared).is_some() && parse_bool(declared) == parse_bool(setting),
        "enum" => same_enum(declared, setting),
        "integer" => {
            // `setting` is already in the base unit and without one.
            let whole = |text| parse_number(text, unit).map(f64::round_ties_even);
            whole(declared).is_some() && whole(declared) == whole(setting)
        }
        // pg_settings shows six digits ("%g" in guc.c).
        "real" => match (parse_number(declared, unit), parse_number(setting, unit)) {
            (Some(one), Some(two)) => (one - two).abs() <= one.abs().max(two.abs()) * 5e-6,
            _ => false,
        },
        _ => declared == setting,
    }
}

/// Reads a boolean: `on`, `off`, `1`, `0`, or an unambiguous beginning of `true`, `false`, `yes` or `no`, in any case.
///
/// Mirrors `parse_bool_with_len` in `bool.c`.
pub fn parse_bool(text: &str) -> Option<bool> {
    let lower = text.to_ascii_lowercase();
    let begins = |word: &str, least: usize| lower.len() >= least && word.starts_with(&lower);
    if begins("true", 1) || begins("yes", 1) || begins("on", 2) || lower == "1" {
        Some(true)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || lower == "0" {
        Some(false)
    } else {
        None
    }
}

fn same_enum(declared: &str, setting: &str) -> bool {
    // Spellings that PostgreSQL takes and never shows (the hidden options in guc_tables.c).
    const HIDDEN: [(&str, &str); 4] =
        [("debug", "debug2"), ("archive", "replica"), ("hot_standby", "replica"), ("md5", "md5")];
    let is = |text: &str, word: &str| text.eq_ignore_ascii_case(word);
    is(declared, setting)
        || HIDDEN.iter().any(|(hidden, shown)| is(declared, hidden) && is(setting, shown))
        || match (parse_bool(declared), parse_bool(setting)) {
            (Some(one), Some(two)) => one == two,
            // wal_compression = on
            (Some(true), None) => is(setting, "pglz"),
            _ => false,
        }
}

/// Reads a number with or without a unit, and returns it in the base unit.
///
/// Mirrors `parse_int`, `parse_real` and `convert_to_base_unit` in `guc.c`: a value is rounded to a multiple of the next smaller unit.
fn parse_number(text: &str, base: Option<Unit>) -> Option<f64> {
    let text = text.trim();
    let (number, rest) = split_number(text)?;
    let rest = rest.trim();
    if rest.is_empty() {
        return Some(number);
    }
    let base = base?;
    let table = base.table();
    let place = table.iter().position(|(name, _)| *name == rest)?;
    let value = number * table[place].1 / base.size();
    Some(match table.get(place + 1) {
        Some((_, smaller)) => {
            let step = smaller / base.size();
            (value / step).round_ties_even() * step
        }
        None => value,
    })
}

/// Splits what C's `strtol` (base 0) or `strtod` takes off the beginning.
fn split_number(text: &str) -> Option<(f64, &str)> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
    if let Some(digits) = unsigned.strip_prefix("0x").or_else(|| unsigned.strip_prefix("0X")) {
        return radix(digits, 16).map(|(number, rest)| (sign * number, rest));
    }
    let end = unsigned.find(|c: char| !c.is_ascii_digit()).unwrap_or(unsigned.len());
    let point = unsigned[end..].starts_with('.');
    let mut stop = end;
    if point {
        let fraction = &unsigned[end + 1..];
        stop = end + 1 + fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
    }
    let exponent = exponent_length(&unsigned[stop..]);
    if !point && exponent == 0 && unsigned.starts_with('0') && end > 1 {
        return radix(unsigned, 8).map(|(number, rest)| (sign * number, rest));
    }
    stop += exponent;
    unsigned[..stop].parse().ok().map(|number: f64| (sign * number, &unsigned[stop..]))
}

fn radix(digits: &str, base: u32) -> Option<(f64, &str)> {
    let end = digits.find(|c: char| !c.is_digit(base)).unwrap_or(digits.len());
    let number = i32::from_str_radix(&digits[..end], base).ok()?;
    Some((f64::from(number), &digits[end..]))
}

/// Length of `e5`, `E-3`, …; 0 if there is no whole exponent.
fn exponent_length(text: &str) -> usize {
    let Some(rest) = text.strip_prefix(['e', 'E']) else {
        return 0;
    };
    let digits = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    let count = digits.bytes().take_while(u8::is_ascii_digit).count();
    if count == 0 { 0 } else { text.len() - digits.len() + count }
}

/// Tells whether PostgreSQL keeps the value of a setting as a list of quoted names, so that `ALTER SYSTEM` takes one literal
/// for each of them.
///
/// Mirrors `variable_is_guc_list_quote` in `dumputils.c`.
pub fn is_quoted_list(name: &str) -> bool {
    const QUOTED_LISTS: [&str; 6] = [
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    ];
    QUOTED_LISTS.iter().any(|list| list.eq_ignore_ascii_case(name))
}

/// Quotes a value for postgresql.conf.
///
/// ```
/// assert_eq!(pgherd::pg::guc::quote_value("it's\\x"), r"'it''s\\x'");
/// ```
pub fn quote_value(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n"))
}

/// Returns a value with what stands as a password in its connection string masked.
///
/// ```
/// use pgherd::pg::guc::without_password;
/// assert_eq!(without_password("host=a password='x y' port=1"), "host=a password=******** port=1");
/// assert_eq!(without_password("postgresql://u:x@a/"), "postgresql://u:********@a/");
/// ```
pub fn without_password(value: &str) -> String {
    const MASK: &str = "********";
    if let Some((scheme, rest)) = value.split_once("://")
        && let Some((user, host)) = rest.split_once('@')
        && let Some((user, _)) = user.split_once(':')
    {
        return format!("{scheme}://{user}:{MASK}@{}", without_password(host));
    }
    let Some(at) = value.find("password") else { return value.to_owned() };
    let (before, found) = value.split_at(at);
    let Some(secret) = found["password".len()..].trim_start().strip_prefix('=').map(str::trim_start) else {
        return format!("{before}password{}", without_password(&found["password".len()..]));
    };
    let mut quoted = false;
    let mut escaped = false;
    let end = secret.find(|letter: char| {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' => quoted = !quoted,
            _ => return !quoted && (letter.is_whitespace() || letter == '&'),
        }
        false
    });
    format!("{before}password={MASK}{}", without_password(&secret[end.unwrap_or(secret.len())..]))
}

/// A configuration file as PostgreSQL reads it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfFile {
    /// In the order of the file; the last one of a name wins.
    pub entries: Vec<ConfEntry>,
    /// Lines that PostgreSQL cannot read; with one of them a reload applies nothing and a start fails.
    pub errors: Vec<ConfError>,
}

/// A line that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfEntry {
    /// Counted from 1.
    pub line: usize,
    pub content: ConfContent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfContent {
    /// The name as it is written (PostgreSQL ignores its case) and the value without its quotes.
    Setting { name: String, value: String },
    /// `include 'FILE'`: missing is an error.
    Include(String),
    /// `include_if_exists 'FILE'`.
    IncludeIfExists(String),
    /// `include_dir 'DIRECTORY'`.
    IncludeDirectory(String),
}

/// A line that PostgreSQL cannot read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfError {
    /// Counted from 1.
    pub line: usize,
    /// What stands where the line goes wrong; empty at its end.
    pub near: String,
}

impl ConfFile {
    /// Reads a postgresql.conf, postgresql.auto.conf or included file.
    ///
    /// ```
    /// use pgherd::pg::guc::ConfFile;
    /// let file = ConfFile::parse("port = 5441 # ours\nport = '5442'\n");
    /// assert_eq!(file.value("Port"), Some("5442"));
    /// ```
    ///
    /// Mirrors the lexer and `ParseConfigFp` in `guc-file.l`.
    pub fn parse(text: &str) -> Self {
        let mut file = Self::default();
        for (index, line) in text.split('\n').enumerate() {
            match parse_line(line) {
                Ok(Some(content)) => file.entries.push(ConfEntry { line: index + 1, content }),
                Ok(None) => {}
                Err(near) => file.errors.push(ConfError { line: index + 1, near: near.to_owned() }),
            }
        }
        file
    }

    /// Returns names and values in the order of the file.
    pub fn settings(&self) -> Vec<(String, String)> {
        self.entries
            .iter()
            .filter_map(|entry| match &entry.content {
                ConfContent::Setting { name, value } => Some((name.to_ascii_lowercase(), value.clone())),
                ConfContent::Include(_)
                | ConfContent::IncludeIfExists(_)
                | ConfContent::IncludeDirectory(_) => None,
            })
            .collect()
    }

    /// Returns the value that wins in this file; included files are not looked at.
    pub fn value(&self, wanted: &str) -> Option<&str> {
        self.entries.iter().rev().find_map(|entry| match &entry.content {
            ConfContent::Setting { name, value } if name.eq_ignore_ascii_case(wanted) => Some(value.as_str()),
            ConfContent::Setting { .. }
            | ConfContent::Include(_)
            | ConfContent::IncludeIfExists(_)
            | ConfContent::IncludeDirectory(_) => None,
        })
    }
}

/// Reads one line; `Err` is what stands where it goes wrong.
fn parse_line(line: &str) -> Result<Option<ConfContent>, &str> {
    let rest = skip_blank(line);
    if rest.is_empty() {
        return Ok(None);
    }
    let name_length = identifier_length(rest);
    let (name, rest) = rest.split_at(name_length);
    if name.is_empty() {
        return Err(rest);
    }
    let rest = skip_blank(rest);
    let rest = skip_blank(rest.strip_prefix('=').unwrap_or(rest));
    let value_length = value_length(rest);
    let (value, rest) = rest.split_at(value_length);
    if value.is_empty() {
        return Err(rest);
    }
    let rest = skip_blank(rest);
    if !rest.is_empty() {
        return Err(rest);
    }
    let value = if value.starts_with('\'') { unquote(value) } else { value.to_owned() };
    Ok(Some(match name.to_ascii_lowercase().as_str() {
        "include" => ConfContent::Include(value),
        "include_if_exists" => ConfContent::IncludeIfExists(value),
        "include_dir" => ConfContent::IncludeDirectory(value),
        _ => ConfContent::Setting { name: name.to_owned(), value },
    }))
}

/// Skips blanks and a comment that goes to the end of the line.
fn skip_blank(text: &str) -> &str {
    let text = text.trim_start_matches([' ', '\t', '\r']);
    if text.starts_with('#') { "" } else { text }
}

fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

/// Length of `ID` or `ID.ID`.
fn identifier_length(text: &str) -> usize {
    let part = |text: &str| {
        if text.starts_with(is_letter) {
            text.find(|c: char| !is_letter(c) && !c.is_ascii_digit()).unwrap_or(text.len())
        } else {
            0
        }
    };
    let first = part(text);
    match text[first..].strip_prefix('.').map(part) {
        Some(second) if first > 0 && second > 0 => first + 1 + second,
        _ => first,
    }
}

/// Length of the longest value: a quoted string, a word, or a number with an optional unit; 0 if there is none.
fn value_length(text: &str) -> usize {
    match text.chars().next() {
        Some('\'') => quoted_length(text),
        Some(c) if is_letter(c) => {
            let more = |c: char| is_letter(c) || c.is_ascii_digit() || "-._:/".contains(c);
            text.find(|c| !more(c)).unwrap_or(text.len())
        }
        Some(_) => number_length(text),
        None => 0,
    }
}

fn quoted_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'\'', Some(b'\'')) | (b'\\', Some(_)) => at += 2,
            (b'\'', _) => return at + 1,
            _ => at += 1,
        }
    }
    0
}

/// Length of `-12kB`, `0x1F` or `1.5e3`. A number with a point takes no unit without quotes.
fn number_length(text: &str) -> usize {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let sign = text.len() - unsigned.len();
    let run = |from: usize, accept: fn(char) -> bool| {
        unsigned[from..].find(|c: char| !accept(c)).map_or(unsigned.len(), |end| from + end)
    };
    let digits = run(0, |c| c.is_ascii_digit());
    let mut integer = if digits > 0 { run(digits, |c| c.is_ascii_alphabetic()) } else { 0 };
    if unsigned.starts_with("0x") {
        let hex = run(2, |c| c.is_ascii_hexdigit());
        if hex > 2 {
            integer = integer.max(run(hex, |c| c.is_ascii_alphabetic()));
        }
    }
    let mut real = 0;
    if unsigned[digits..].starts_with('.') {
        real = run(digits + 1, |c| c.is_ascii_digit());
        real += exponent_length(&unsigned[real..]);
    }
    match integer.max(real) {
        0 => 0,
        length => sign + length,
    }
}

/// Takes the quotes and the escapes off.
///
/// Mirrors `DeescapeQuotedString` in `guc-file.l`.
fn unquote(quoted: &str) -> String {
    let inner = quoted.get(1..quoted.len() - 1).unwrap_or_default();
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.bytes().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            b'\\' => match rest.next() {
                Some(b'b') => bytes.push(8),
                Some(b'f') => bytes.push(12),
                Some(b'n') => bytes.push(b'\n'),
                Some(b'r') => bytes.push(b'\r'),
                Some(b't') => bytes.push(b'\t'),
                Some(first @ b'0'..=b'7') => {
                    let mut octal = first - b'0';
                    for _ in 0..2 {
                        if let Some(digit) = rest.next_if(|next| (b'0'..=b'7').contains(next)) {
                            octal = octal.wrapping_mul(8).wrapping_add(digit - b'0');
                        }
                    }
                    bytes.push(octal);
                }
                Some(other) => bytes.push(other),
                None => {}
            },
            b'\'' => {
                bytes.push(byte);
                rest.next_if_eq(&b'\'');
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_converted_before_values_are_compared() {
        for (declared, setting, unit) in [
            ("4MB", "4096", Some("kB")),
            ("4096kB", "4096", Some("kB")),
            ("4 MB", "4096", Some("kB")),
            ("128MB", "16384", Some("8kB")),
            ("1GB", "1024", Some("MB")),
            ("1.1GB", "1153024", Some("kB")),
            ("5min", "300", Some("s")),
            ("1500us", "2", Some("ms")),
            ("1d", "1440", Some("min")),
            ("16384", "16384", Some("8kB")),
            ("0x10", "16", None),
            ("010", "8", None),
            ("-1", "-1", Some("MB")),
            ("1e3", "1000", None),
        ] {
            assert!(same_value(declared, setting, unit, "integer"), "{declared} is {setting} {unit:?}");
        }
        for (declared, setting, unit) in [
            ("4MB", "4095", Some("kB")),
            ("4mb", "4096", Some("kB")),
            ("4MB", "4", None),
            ("5min", "300", Some("kB")),
            ("", "0", None),
            ("many", "0", None),
        ] {
            assert!(!same_value(declared, setting, unit, "integer"), "{declared} is not {setting} {unit:?}");
        }
    }

    #[test]
    fn booleans_enums_reals_and_strings_compare_each_in_their_way() {
        for yes in ["on", "TRUE", "t", "yes", "y", "1"] {
            assert!(same_value(yes, "on", None, "bool"), "{yes}");
            assert!(!same_value(yes, "off", None, "bool"), "{yes}");
        }
        assert!(!same_value("o", "on", None, "bool"));
        assert!(same_value("Replica", "replica", None, "enum"));
        assert!(same_value("yes", "on", None, "enum"));
        assert!(same_value("on", "pglz", None, "enum"));
        assert!(!same_value("remote_apply", "on", None, "enum"));
        assert!(same_value("1.1", "1.1", None, "real"));
        assert!(same_value("1.23456789", "1.23457", None, "real"));
        assert!(same_value("2ms", "2", Some("ms"), "real"));
        assert!(!same_value("1.1", "1.2", None, "real"));
        assert!(same_value("a, b", "a, b", None, "string"));
        assert!(!same_value("A", "a", None, "string"));
    }

    #[test]
    fn a_configuration_file_reads_as_postgresql_reads_it() {
        let text = "# a comment\n\
                    listen_addresses = '*'\t# what IP address(es)\n\
                    port 5432\r\n\
                    shared_buffers=128MB\n\
                    random_page_cost = 1.5e0\n\
                    log_line_prefix = '%m \\'[%p]'' \\101\\n'\n\
                    log_timezone = Etc/UTC\n\
                    my.thing = -0x1F\n\
                    include_dir 'conf.d'\n\
                    Include_If_Exists = 'more.conf'\n\
                    include pgherd.conf\n\
                    archive_mode = on # '\n";
        let set = |name: &str, value: &str| ConfContent::Setting { name: name.into(), value: value.into() };
        let found = ConfFile::parse(text);
        assert_eq!(found.errors, []);
        let contents: Vec<_> =
            found.entries.iter().map(|entry| (entry.line, entry.content.clone())).collect();
        assert_eq!(
            contents,
            [
                (2, set("listen_addresses", "*")),
                (3, set("port", "5432")),
                (4, set("shared_buffers", "128MB")),
                (5, set("random_page_cost", "1.5e0")),
                (6, set("log_line_prefix", "%m '[%p]' A\n")),
                (7, set("log_timezone", "Etc/UTC")),
                (8, set("my.thing", "-0x1F")),
                (9, ConfContent::IncludeDirectory("conf.d".into())),
                (10, ConfContent::IncludeIfExists("more.conf".into())),
                (11, ConfContent::Include("pgherd.conf".into())),
                (12, set("archive_mode", "on")),
            ]
        );
    }

    #[test]
    fn a_bad_line_is_named_and_the_rest_is_still_read() {
        let found = ConfFile::parse("port = \nwork_mem = 1.5MB\n= 3\nname = 'open\na b c\nport = 1\n");
        let errors: Vec<_> = found.errors.iter().map(|error| (error.line, error.near.as_str())).collect();
        assert_eq!(errors, [(1, ""), (2, "MB"), (3, "= 3"), (4, "'open"), (5, "c")]);
        assert_eq!(found.value("port"), Some("1"));
    }

    proptest! {
        #[test]
        fn every_quoted_value_reads_back(value in "[^\0]*") {
            let file = ConfFile::parse(&format!("name = {}", quote_value(&value)));
            prop_assert_eq!(file.value("name"), Some(value.as_str()));
        }

        #[test]
        fn no_text_breaks_the_reader(text in ".*") {
            ConfFile::parse(&text);
            parse_number(&text, Some(Unit::Second));
        }
    }
}
