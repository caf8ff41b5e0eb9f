//! How a run of `health` ended: with a judgement, or with the reason why there is none.

use jiff::Timestamp;
use serde::Serialize;

use crate::error::Error;
use crate::ops::health::Health;

/// How a run ended.
#[derive(Debug, Clone, Copy)]
pub enum Ended<'a> {
    Judged(&'a Health),
    /// It came to no judgement, so nothing is known.
    Failed(&'a Failed),
}

/// Why a run came to no judgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// A lowercase fact, with its place in the topology where it has one.
    pub what: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// `None` where the topology could not be read.
    pub herd: Option<String>,
    /// When the herd was judged last, where that is remembered.
    pub last_success: Option<Timestamp>,
}

impl From<&Error> for Failed {
    fn from(error: &Error) -> Self {
        Self {
            what: error.what().to_owned(),
            detail: error.detail_text().map(str::to_owned),
            hint: error.hint_text().map(str::to_owned),
            herd: None,
            last_success: None,
        }
    }
}

impl Failed {
    /// Returns its lines as an operator reads them.
    pub fn lines(&self) -> Vec<String> {
        let detail = self.detail.as_ref().map(|detail| format!("DETAIL: {detail}"));
        let hint = self.hint.as_ref().map(|hint| format!("HINT:   {hint}"));
        [Some(format!("ERROR:  {}", self.what)), detail, hint].into_iter().flatten().collect()
    }
}
