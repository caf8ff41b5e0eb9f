//! A switchover that is to begin at a moment: nothing is held until then, and what is late is not done at all.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::clock::Clock;
use crate::engine::interrupt::Interrupt;
use crate::error::{Error, ErrorKind, Result};

/// Who waits longer forgets.
const LONGEST: SignedDuration = SignedDuration::from_hours(24);
/// A machine that slept past the moment by more than this does not make up for it: the window that was agreed upon is over.
const LATE: SignedDuration = SignedDuration::from_secs(60);
/// The clock is read this often, since a machine that sleeps stops every timer.
const LOOK: Duration = Duration::from_secs(1);

/// A moment to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appointment(Timestamp);

impl Appointment {
    /// Takes a moment that is yet to come, and not too far away.
    ///
    /// # Errors
    /// When it is past, or more than 24 h away.
    pub fn at(moment: Timestamp, now: Timestamp) -> Result<Self> {
        let cannot = |why: String| {
            Error::usage(format!("cannot switch over at {moment:.0}: {why}"))
                .detail(format!("It is {now:.0} now. Nothing was changed."))
                .hint("Give a moment within the next 24 h, such as --at \"2026-11-22 05:00:00\"; the topology says of which zone.")
        };
        let away = moment.duration_since(now);
        if away <= SignedDuration::ZERO {
            return Err(cannot("that is past".to_owned()));
        }
        if away > LONGEST {
            return Err(cannot("that is more than 24 h away".to_owned()));
        }
        Ok(Self(moment))
    }

    /// Returns the moment.
    pub fn moment(self) -> Timestamp {
        self.0
    }

    /// Waits for the moment.
    ///
    /// # Errors
    /// [`ErrorKind::Interrupted`] on request, [`ErrorKind::Refused`] if the machine slept past it.
    pub async fn wait(self, clock: &dyn Clock, interrupt: &Interrupt) -> Result<()> {
        loop {
            let left = self.0.duration_since(clock.now());
            if left < -LATE {
                return Err(Error::refused(format!(
                    "the moment for the switchover, {:.0}, was missed",
                    self.0
                ))
                .detail(format!("It is {:.0} now: this machine has slept. Nothing was changed.", clock.now()))
                .hint("Do it now without --at, or name another moment."));
            }
            let Ok(left) = Duration::try_from(left) else { return Ok(()) };
            if left.is_zero() {
                return Ok(());
            }
            tokio::select! {
                () = interrupt.asked(1) => {
                    return Err(Error::new(ErrorKind::Interrupted, "interrupted while waiting for the moment of the switchover")
                        .detail("Nothing was changed."));
                }
                () = tokio::time::sleep(left.min(LOOK)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn now() -> Timestamp {
        "2026-11-22T04:00:00Z".parse().unwrap()
    }

    /// A clock that jumps by an hour after so many seconds, as that of a machine that slept.
    #[derive(Debug)]
    struct Sleeper {
        begun: Instant,
        after: Duration,
    }

    impl Clock for Sleeper {
        fn now(&self) -> Timestamp {
            let gone = self.begun.elapsed();
            let slept = if gone >= self.after { Duration::from_secs(3600) } else { Duration::ZERO };
            now() + SignedDuration::try_from(gone + slept).unwrap()
        }
    }

    fn sleeper(after: u64) -> Sleeper {
        Sleeper { begun: Instant::now(), after: Duration::from_secs(after) }
    }

    #[test]
    fn a_moment_is_taken_within_the_next_day_and_not_before_now() {
        let at = |text: &str| Appointment::at(text.parse().unwrap(), now());
        assert!(at("2026-11-22T04:00:01Z").is_ok() && at("2026-11-23T04:00:00Z").is_ok());
        let told = |text: &str| at(text).unwrap_err().what().to_owned();
        assert_eq!(told("2026-11-22T04:00:00Z"), "cannot switch over at 2026-11-22T04:00:00Z: that is past");
        assert_eq!(
            told("2026-11-23T04:00:01Z"),
            "cannot switch over at 2026-11-23T04:00:01Z: that is more than 24 h away"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_moment_is_waited_for_and_one_that_was_slept_through_is_missed() {
        let appointment = Appointment::at("2026-11-22T04:30:00Z".parse().unwrap(), now()).unwrap();
        let begun = Instant::now();
        appointment.wait(&sleeper(1_000_000), &Interrupt::new()).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_secs(1800));
        let missed = appointment.wait(&sleeper(60), &Interrupt::new()).await.unwrap_err();
        assert_eq!(missed.kind(), ErrorKind::Refused);
        assert_eq!(missed.what(), "the moment for the switchover, 2026-11-22T04:30:00Z, was missed");
    }

    #[tokio::test(start_paused = true)]
    async fn an_interrupt_ends_the_wait() {
        let appointment = Appointment::at("2026-11-22T04:30:00Z".parse().unwrap(), now()).unwrap();
        let interrupt = Interrupt::new();
        interrupt.ask();
        let error = appointment.wait(&sleeper(1_000_000), &interrupt).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
    }
}
