//! How far a guest's clock is from the host's, from one exchange of messages
//! (RFC 5905, section 8), and how well that is known.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::error::ClientError;
use crate::reply;

/// How far two clocks may drift apart in an exchange, parts in a million: what
/// adjtimex(2) lets a clock be slewed by.
const DRIFT_PPM: u64 = 500;
/// What a reading in the guest may be off by, and a correction of its clock: it
/// goes in steps of its source, the longest a third of this (acpi_pm, 3.58 MHz),
/// and is corrected in microseconds.
const GUEST_READING_NANOS: u64 = 1_000;

/// A moment, by both clocks of the host.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// CLOCK_REALTIME, nanoseconds since 1970.
    realtime: i64,
    /// CLOCK_MONOTONIC, read before it.
    monotonic: Instant,
    /// The time between the two readings, at most.
    reading: Duration,
}

impl Moment {
    /// Reads the clocks.
    #[must_use]
    pub fn now() -> Self {
        let monotonic = Instant::now();
        let now = clock_gettime(ClockId::Realtime);
        let reading = monotonic.elapsed();
        Self {
            realtime: now
                .tv_sec
                .saturating_mul(1_000_000_000)
                .saturating_add(now.tv_nsec),
            monotonic,
            reading,
        }
    }

    /// CLOCK_REALTIME, nanoseconds since 1970.
    #[must_use]
    pub fn realtime_nanos(&self) -> i64 {
        self.realtime
    }
}

/// A request and its answer: two moments of the host, and what the guest's
/// clock showed between them.
#[derive(Debug, Clone, Copy)]
pub struct Exchange {
    /// The guest cannot have read its clock before.
    pub(crate) begun: Moment,
    /// The guest cannot have read its clock after.
    pub(crate) answered: Moment,
    /// The guest's clock when it received the request, nanoseconds since 1970.
    pub(crate) guest_received: i64,
    /// The guest's clock when it answered, nanoseconds since 1970.
    pub(crate) guest_answered: i64,
}

/// What an exchange says about the guest's clock, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// Guest clock minus host clock, at equal ways there and back.
    pub nanos: i64,
    /// The true offset is no further than this from it: half the time the
    /// bytes were under way, and what readings and drift may add.
    pub error_nanos: u64,
}

impl Offset {
    /// No guest's clock is further off than this.
    #[must_use]
    pub fn bound_nanos(&self) -> u64 {
        self.nanos.unsigned_abs().saturating_add(self.error_nanos)
    }
}

impl Exchange {
    /// Says that the guest did not run before `moment`: then the request was
    /// not under way before it either, whenever it was written.
    pub fn not_before(&mut self, moment: Moment) {
        if moment.monotonic > self.begun.monotonic {
            self.begun = moment;
        }
    }

    /// From the begin to the answer by the host's clock.
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        self.answered
            .monotonic
            .saturating_duration_since(self.begun.monotonic)
    }

    /// The estimate.
    ///
    /// # Errors
    /// [`ClientError::Malformed`] when the guest claims more time than passed,
    /// or times that no clock shows.
    pub fn offset(&self) -> Result<Offset, ClientError> {
        self.estimate()
            .ok_or_else(|| reply::malformed("Thaw", "the receipt's times cannot be"))
    }

    /// What the guest's clock should have shown when it answered.
    #[must_use]
    pub fn corrected_nanos(&self, offset: &Offset) -> i64 {
        self.guest_answered.saturating_sub(offset.nanos)
    }

    fn estimate(&self) -> Option<Offset> {
        let round_trip = nanos(self.round_trip());
        let readings = nanos(self.begun.reading).saturating_add(nanos(self.answered.reading));
        let drift = (round_trip / 1_000_000).saturating_mul(DRIFT_PPM);
        let inexact = readings
            .saturating_add(drift)
            .saturating_add(GUEST_READING_NANOS);
        // One axis: where the host's clock was set meanwhile, its latest word
        // counts.
        let answered = self.answered.realtime;
        let begun = answered.checked_sub_unsigned(round_trip)?;
        let found = estimate(
            begun,
            self.guest_received,
            self.guest_answered,
            answered,
            inexact,
        )?;
        Some(Offset {
            error_nanos: found.error_nanos.checked_add(inexact)?,
            ..found
        })
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// NTP's estimate from four timestamps, all nanoseconds. A guest may have spent
/// up to `inexact` longer on the request than the exchange took, by readings
/// that are not exact; none when it claims more.
fn estimate(
    begun: i64,
    guest_received: i64,
    guest_answered: i64,
    answered: i64,
    inexact: u64,
) -> Option<Offset> {
    let [begun, guest_received, guest_answered, answered] =
        [begun, guest_received, guest_answered, answered].map(i128::from);
    let spent = guest_answered - guest_received;
    let delay = (answered - begun) - spent;
    if spent < 0 || delay < -i128::from(inexact) {
        return None;
    }
    let doubled = (guest_received - begun) + (guest_answered - answered);
    Some(Offset {
        nanos: i64::try_from(doubled / 2).ok()?,
        // Rounded up, with the half that the division above may have cut off.
        error_nanos: u64::try_from(delay.max(0) / 2).ok()?.checked_add(1)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_equal_clock_and_equal_ways_give_no_offset() {
        let found = estimate(1_000, 1_100, 1_200, 1_300, 0).unwrap();
        assert_eq!((found.nanos, found.error_nanos), (0, 101));
    }

    #[test]
    fn a_slow_way_there_is_half_seen_and_wholly_within_the_error() {
        // The guest's clock was set to the time of the sending on arrival, 80
        // later; the way back took 20.
        let found = estimate(1_000, 1_000, 1_050, 1_150, 0).unwrap();
        assert_eq!(found.nanos, -50);
        assert!(80_u64.abs_diff(found.nanos.unsigned_abs()) <= found.error_nanos);
    }

    #[test]
    fn a_guest_that_claims_more_time_than_passed_is_refused() {
        assert_eq!(estimate(0, 0, 11, 10, 0), None);
        assert!(estimate(0, 0, 11, 10, 1).is_some());
        assert_eq!(estimate(0, 5, 4, 10, 100), None);
    }

    #[test]
    fn a_guest_that_was_resumed_late_is_known_better() {
        let begun = Moment::now();
        let resumed = Moment {
            realtime: begun.realtime + 1_000_000_000,
            monotonic: begun.monotonic + Duration::from_secs(1),
            reading: Duration::ZERO,
        };
        let answered = Moment {
            realtime: begun.realtime + 1_200_000_000,
            monotonic: begun.monotonic + Duration::from_millis(1200),
            reading: Duration::ZERO,
        };
        let mut exchange = Exchange {
            begun,
            answered,
            guest_received: begun.realtime,
            guest_answered: begun.realtime,
        };
        let before = exchange.offset().unwrap();
        exchange.not_before(resumed);
        let after = exchange.offset().unwrap();
        assert!(after.error_nanos < before.error_nanos / 5);
        assert_eq!(exchange.round_trip(), Duration::from_millis(200));
        // The guest's clock is 1.1 s late, give or take half the 200 ms.
        assert_eq!(after.nanos, -1_100_000_000);
        exchange.not_before(begun);
        assert_eq!(exchange.round_trip(), Duration::from_millis(200));
    }

    proptest! {
        #[test]
        fn the_true_offset_lies_within_the_error(
            begun in 0_i64..1 << 60, there in 0_i64..1 << 40, back in 0_i64..1 << 40,
            spent in 0_i64..1 << 40, offset in -(1_i64 << 50)..1 << 50,
        ) {
            let received = begun + there + offset;
            let answered = begun + there + spent + back;
            let found = estimate(begun, received, received + spent, answered, 0).unwrap();
            prop_assert!(found.nanos.abs_diff(offset) <= found.error_nanos);
            prop_assert!(offset.unsigned_abs() <= found.bound_nanos());
            // What is left once the guest's clock is moved by the estimate.
            let left = offset - found.nanos;
            prop_assert!(left.unsigned_abs() <= found.error_nanos);
        }

        #[test]
        fn any_times_of_a_guest_are_taken_or_refused_without_panic(
            begun: i64, received: i64, guest_answered: i64, answered: i64, inexact: u64,
        ) {
            let _ = estimate(begun, received, guest_answered, answered, inexact);
        }
    }
}
