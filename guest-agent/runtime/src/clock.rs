//! The steps of a thaw and of a release that give the guest the host's time.

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use std::io;

const NANOS_A_SECOND: i64 = 1_000_000_000;

/// `CLOCK_REALTIME`, in nanoseconds since the epoch; the ends of `i64`, years
/// 1677 and 2262, for a clock beyond them.
#[must_use]
pub fn realtime_nanos() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec
        .saturating_mul(NANOS_A_SECOND)
        .saturating_add(now.tv_nsec)
}

/// Steps `CLOCK_REALTIME` to `nanos` since the epoch, and returns by how many
/// nanoseconds it moved. `CLOCK_MONOTONIC` is not touched.
///
/// # Errors
/// `EINVAL` for a time before the epoch or the boot, `EPERM` without
/// CAP_SYS_TIME (clock_settime(2)).
pub fn step_realtime(nanos: i64) -> io::Result<i64> {
    if nanos < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let time = Timespec {
        tv_sec: nanos / NANOS_A_SECOND,
        tv_nsec: nanos % NANOS_A_SECOND,
    };
    let before = realtime_nanos();
    clock_settime(ClockId::Realtime, time)?;
    Ok(nanos.saturating_sub(before))
}

/// Moves `CLOCK_REALTIME` by `nanos`, forwards positive, whatever it shows.
/// `CLOCK_MONOTONIC` is not touched.
///
/// # Errors
/// `EINVAL` for a time before the epoch, `EPERM` without CAP_SYS_TIME
/// (clock_adjtime(2)).
pub fn move_realtime(nanos: i64) -> io::Result<()> {
    guest_kernel::clock::offset_realtime(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_the_epoch_is_refused() {
        let error = step_realtime(-1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn the_time_is_after_this_was_written() {
        assert!(realtime_nanos() > 1_700_000_000 * NANOS_A_SECOND);
    }
}
