//! Timeline history files: `TIMELINE<TAB>SWITCHPOINT<TAB>REASON` a line.

use super::lsn::Lsn;
use super::timeline::TimelineId;

/// Where a timeline comes from: its ancestors, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: TimelineId,
    ancestors: Vec<Ancestor>,
}

/// One line of a history file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    pub timeline: TimelineId,
    /// Where the next timeline left this one: WAL from here on does not belong to the history.
    pub switchpoint: Lsn,
    pub reason: String,
}

/// A timeline of a history: where the history came onto it and where it left it; `None` at the ends of the history.
#[derive(Debug, Clone, Copy)]
struct Entry {
    timeline: TimelineId,
    begins: Option<Lsn>,
    ends: Option<Lsn>,
}

/// The text is not a timeline history file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    #[error("line {line} is not TIMELINE<TAB>SWITCHPOINT: {text:?}")]
    Syntax { line: usize, text: String },
    #[error("line {line} names timeline {found}, which does not lie between its ancestor and timeline {of}")]
    Order { line: usize, found: TimelineId, of: TimelineId },
}

impl TimelineHistory {
    /// Reads the history file of `timeline` (`00000003.history`). Timeline 1 has none: its history is the empty text.
    ///
    /// ```
    /// use pgherd::pg::{history::TimelineHistory, timeline::TimelineId};
    /// let text = "1\t0/3018170\tno recovery target specified\n";
    /// let history = TimelineHistory::parse(TimelineId::new(2).unwrap(), text).unwrap();
    /// assert!(history.is_ancestor(TimelineId::new(1).unwrap(), "0/3018170".parse().unwrap()));
    /// assert!(!history.is_ancestor(TimelineId::new(1).unwrap(), "0/3018171".parse().unwrap()));
    /// ```
    ///
    /// # Errors
    /// [`HistoryError`] names the line; ancestors must rise and stay below `timeline`.
    ///
    /// Mirrors `readTimeLineHistory` in `timeline.c`.
    pub fn parse(timeline: TimelineId, text: &str) -> Result<Self, HistoryError> {
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (index, text) in text.lines().enumerate() {
            let line = index + 1;
            let content = text.trim_start();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let ancestor =
                parse_line(content).ok_or_else(|| HistoryError::Syntax { line, text: text.to_owned() })?;
            let rises = ancestors.last().is_none_or(|last| last.timeline < ancestor.timeline);
            if !rises || ancestor.timeline >= timeline {
                return Err(HistoryError::Order { line, found: ancestor.timeline, of: timeline });
            }
            ancestors.push(ancestor);
        }
        Ok(Self { timeline, ancestors })
    }

    /// Returns the timeline that this is the history of.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Returns the ancestors, oldest first.
    pub fn ancestors(&self) -> &[Ancestor] {
        &self.ancestors
    }

    /// Returns where this history and another one part: the last timeline that both are on, and the point up to which they share its WAL,
    /// `None` where neither has left it. `None` for histories that share nothing.
    ///
    /// ```
    /// use pgherd::pg::{history::TimelineHistory, timeline::TimelineId};
    /// let timeline = |id| TimelineId::new(id).unwrap();
    /// let old = TimelineHistory::parse(timeline(1), "").unwrap();
    /// let new = TimelineHistory::parse(timeline(2), "1\t0/3018170\tno recovery target specified\n").unwrap();
    /// assert_eq!(new.parts_from(&old), Some((timeline(1), Some("0/3018170".parse().unwrap()))));
    /// ```
    ///
    /// Mirrors `findCommonAncestorTimeline` in `pg_rewind.c`.
    pub fn parts_from(&self, other: &Self) -> Option<(TimelineId, Option<Lsn>)> {
        let (own, theirs) = (self.entries(), other.entries());
        let same = |(one, another): &(Entry, Entry)| {
            one.timeline == another.timeline && one.begins == another.begins
        };
        let (one, another) = own.into_iter().zip(theirs).take_while(same).last()?;
        let end = match (one.ends, another.ends) {
            (Some(one), Some(another)) => Some(one.min(another)),
            (one, another) => one.or(another),
        };
        Some((one.timeline, end))
    }

    /// Each timeline of the history with where it begins and ends, the oldest first.
    fn entries(&self) -> Vec<Entry> {
        let mut begins = None;
        let mut entries = Vec::new();
        for ancestor in &self.ancestors {
            entries.push(Entry { timeline: ancestor.timeline, begins, ends: Some(ancestor.switchpoint) });
            begins = Some(ancestor.switchpoint);
        }
        entries.push(Entry { timeline: self.timeline, begins, ends: None });
        entries
    }

    /// Tells whether a node that has reached `reached` on `timeline` can follow this history: it is on it, and not past the point
    /// where the history left that timeline.
    pub fn is_ancestor(&self, timeline: TimelineId, reached: Lsn) -> bool {
        timeline == self.timeline
            || self
                .ancestors
                .iter()
                .any(|ancestor| ancestor.timeline == timeline && reached <= ancestor.switchpoint)
    }
}

/// Returns the last timeline that two histories share and where they part on it: what each has written from there on the other never had.
///
/// The point is `None` where both still write on that timeline: no history tells where they parted. `None` if they share nothing.
///
/// ```
/// use pgherd::pg::{history::{self, TimelineHistory}, timeline::TimelineId};
/// let id = |number| TimelineId::new(number).unwrap();
/// let old = TimelineHistory::parse(id(1), "").unwrap();
/// let new = TimelineHistory::parse(id(2), "1\t0/3018170\tno recovery target specified\n").unwrap();
/// assert_eq!(history::fork(&old, &new), Some((id(1), Some("0/3018170".parse().unwrap()))));
/// assert_eq!(history::fork(&old, &old), Some((id(1), None)));
/// ```
pub fn fork(one: &TimelineHistory, other: &TimelineHistory) -> Option<(TimelineId, Option<Lsn>)> {
    let spans = |history: &TimelineHistory| -> Vec<(TimelineId, Option<Lsn>)> {
        let ended = history.ancestors.iter().map(|ancestor| (ancestor.timeline, Some(ancestor.switchpoint)));
        ended.chain([(history.timeline, None)]).collect()
    };
    let mut parted = None;
    for ((timeline, end), (same, other_end)) in spans(one).into_iter().zip(spans(other)) {
        if timeline != same {
            break;
        }
        // Who still writes on it has no end.
        parted = Some((timeline, end.into_iter().chain(other_end).min()));
        if end != other_end {
            break;
        }
    }
    parted
}

fn parse_line(line: &str) -> Option<Ancestor> {
    let mut fields = line.splitn(3, '\t');
    let timeline = TimelineId::new(fields.next()?.trim().parse().ok()?)?;
    let switchpoint = fields.next()?.trim().parse().ok()?;
    Some(Ancestor { timeline, switchpoint, reason: fields.next().unwrap_or("").to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    const OF_4: &str = "1\t0/3018170\tno recovery target specified\n\n# kept by hand\n3\t1/A0\tbefore 2026-11-21 09:41:07+00\n";

    #[test]
    fn reads_ancestors_with_their_switchpoints() {
        let history = TimelineHistory::parse(timeline(4), OF_4).unwrap();
        let read: Vec<_> =
            history.ancestors().iter().map(|a| (a.timeline.as_u32(), a.switchpoint.to_string())).collect();
        assert_eq!(read, [(1, "0/3018170".to_owned()), (3, "1/A0".to_owned())]);
        assert_eq!(history.ancestors()[1].reason, "before 2026-11-21 09:41:07+00");
    }

    #[test]
    fn two_histories_part_where_the_first_of_them_left_what_they_share() {
        let of = |id: u32, text: &str| TimelineHistory::parse(timeline(id), text).unwrap();
        let at = |id: u32, lsn: &str| Some((timeline(id), Some(lsn.parse().unwrap())));
        let third = of(3, "1\t0/3000000\tx\n2\t0/5000000\tx\n");
        assert_eq!(fork(&third, &of(2, "1\t0/3000000\tx\n")), at(2, "0/5000000"));
        assert_eq!(fork(&third, &of(1, "")), at(1, "0/3000000"));
        // Both were promoted, at different points and onto different timelines.
        assert_eq!(fork(&third, &of(4, "1\t0/2800000\tx\n")), at(1, "0/2800000"));
        // Both left it at the same point.
        assert_eq!(fork(&of(2, "1\t0/3000000\tx\n"), &of(3, "1\t0/3000000\tx\n")), at(1, "0/3000000"));
        assert_eq!(fork(&third, &of(5, "4\t0/1\tx\n")), None);
    }

    #[test]
    fn a_lower_number_alone_does_not_make_an_ancestor() {
        let history = TimelineHistory::parse(timeline(4), OF_4).unwrap();
        assert!(!history.is_ancestor(timeline(2), Lsn::new(0)));
        assert!(history.is_ancestor(timeline(4), Lsn::new(u64::MAX)));
        assert!(history.is_ancestor(timeline(3), "1/A0".parse().unwrap()));
        assert!(!history.is_ancestor(timeline(3), "1/A1".parse().unwrap()));
    }

    #[test]
    fn timeline_1_has_no_ancestors() {
        let history = TimelineHistory::parse(timeline(1), "").unwrap();
        assert!(history.ancestors().is_empty());
        assert!(history.is_ancestor(history.timeline(), Lsn::new(7)));
    }

    #[test]
    fn two_histories_part_where_they_shared_wal_last() {
        let history = |id: u32, text: &str| TimelineHistory::parse(timeline(id), text).unwrap();
        let (one, two) = (history(1, ""), history(2, "1\t0/50\tx\n"));
        let other_two = history(2, "1\t0/40\tx\n");
        let three = history(3, "1\t0/50\tx\n2\t0/90\ty\n");
        let lsn = |text: &str| text.parse::<Lsn>().unwrap();
        assert_eq!(one.parts_from(&one), Some((timeline(1), None)));
        assert_eq!(two.parts_from(&one), Some((timeline(1), Some(lsn("0/50")))));
        assert_eq!(three.parts_from(&two), Some((timeline(2), Some(lsn("0/90")))));
        assert_eq!(three.parts_from(&one), Some((timeline(1), Some(lsn("0/50")))));
        // One number, two promotions.
        assert_eq!(three.parts_from(&other_two), Some((timeline(1), Some(lsn("0/40")))));
        assert_eq!(history(4, "3\t0/50\tx\n").parts_from(&one), None);
    }

    #[test]
    fn refuses_lines_out_of_order_and_lines_that_are_none() {
        let order = TimelineHistory::parse(timeline(4), "3\t0/1\tx\n1\t0/2\ty\n");
        assert_eq!(order, Err(HistoryError::Order { line: 2, found: timeline(1), of: timeline(4) }));
        let own = TimelineHistory::parse(timeline(4), "4\t0/1\tx\n");
        assert!(matches!(own, Err(HistoryError::Order { line: 1, .. })));
        for text in ["x\t0/1\tr", "1", "1\tzz\tr", "0\t0/1\tr"] {
            let result = TimelineHistory::parse(timeline(4), text);
            assert!(matches!(result, Err(HistoryError::Syntax { line: 1, .. })), "{text:?}");
        }
    }
}
