//! The value of `synchronous_standby_names`: whom a commit waits for.

/// `ANY 1 (a, "b")`, `FIRST 2 (a, b)`, `2 (a, b)` or `a, b`.
///
/// Mirrors `syncrep_gram.y`; PostgreSQL docs, "synchronous_standby_names".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynchronousNames {
    /// `ANY` or `FIRST`.
    pub method: &'static str,
    /// How many must confirm.
    pub count: u32,
    /// As they are written; empty if nobody is waited for.
    pub names: Vec<String>,
}

impl SynchronousNames {
    /// Parses a value; `None` if it cannot be read.
    ///
    /// ```
    /// use pgherd::pg::synchronous::SynchronousNames;
    /// let found = SynchronousNames::parse("ANY 2 (s1, \"shop-b\")").unwrap();
    /// assert_eq!((found.method, found.count), ("ANY", 2));
    /// assert_eq!(found.plain().collect::<Vec<_>>(), ["s1", "shop-b"]);
    /// assert_eq!(SynchronousNames::parse("s1, s2").unwrap().count, 1);
    /// assert!(SynchronousNames::parse("").unwrap().names.is_empty());
    /// assert!(SynchronousNames::parse("ANY x (s1)").is_none());
    /// ```
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let upper = text.to_ascii_uppercase();
        let (method, rest) = match (upper.strip_prefix("ANY "), upper.strip_prefix("FIRST ")) {
            (Some(_), _) => ("ANY", text[4..].trim_start()),
            (None, Some(_)) => ("FIRST", text[6..].trim_start()),
            (None, None) => ("FIRST", text),
        };
        let (count, list) = match rest.split_once('(') {
            Some((count, list)) => (count.trim().parse().ok()?, list.trim_end().strip_suffix(')')?),
            None => (1, rest),
        };
        // A comma in a quoted name would need more than this.
        let plain = |name: &str| !name.trim_matches('"').contains(['"', '(', ')']) && !name.is_empty();
        let names: Vec<String> =
            list.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        names.iter().all(|name| plain(name)).then_some(Self { method, count, names })
    }

    /// Returns the names without their quotes.
    pub fn plain(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| name.trim_matches('"'))
    }
}
