//! What a first look at a machine behind ssh tells.

/// What was found behind a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) uid: u32,
    /// `x86_64`.
    pub(super) machine: String,
    /// Home of who logs in.
    pub(super) home: String,
    /// Who owns the nodes' files: user number, group number, home.
    pub(super) os_user: (u32, u32, String),
    /// `sudo -n` makes root of who logs in.
    pub(super) may_be_root: bool,
}
