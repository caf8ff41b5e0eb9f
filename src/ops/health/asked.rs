//! A fact, or why it is not known.

/// Why something is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The server does not answer; another check says why.
    NotUp,
    /// The role that asks may not see it.
    NotGranted { role: String, grant: String },
    /// A fragment.
    Failed(String),
}

/// A fact, or why it is not known.
pub type Asked<T> = std::result::Result<T, Why>;
