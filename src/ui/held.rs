//! Output that is held back until it is known whether anybody should read it: a job is silent unless it fails.

use std::collections::VecDeque;

/// No more lines are kept; the oldest go first, since the error is at the end.
const MOST: usize = 10_000;

/// Where a line goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output.
    Data,
    /// Standard error.
    Messages,
}

#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) lines: VecDeque<(Stream, String)>,
    /// How many were left out.
    pub(super) lost: usize,
}

impl Held {
    pub(super) fn keep(&mut self, stream: Stream, text: String) {
        if self.lines.len() == MOST {
            self.lines.pop_front();
            self.lost += 1;
        }
        self.lines.push_back((stream, text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_endless_output_the_end_is_kept() {
        let mut held = Held::default();
        for line in 0..MOST + 3 {
            held.keep(Stream::Messages, line.to_string());
        }
        assert_eq!((held.lost, held.lines.len()), (3, MOST));
        assert_eq!(held.lines.back().unwrap().1, (MOST + 2).to_string());
    }
}
