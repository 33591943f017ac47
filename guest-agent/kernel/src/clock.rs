//! The system's clock, moved by a difference.

use std::io;

const NANOS_A_SECOND: i64 = 1_000_000_000;

/// Moves `CLOCK_REALTIME` by `nanos`, forwards positive, in one step: unlike a
/// time that is read, changed and set again it loses nothing, however long the
/// caller is kept from running meanwhile. `CLOCK_MONOTONIC` is not touched.
///
/// # Errors
/// Those of clock_adjtime(2): `EPERM` without CAP_SYS_TIME, `EINVAL` for a time
/// before the epoch.
pub fn offset_realtime(nanos: i64) -> io::Result<()> {
    // SAFETY: an all-zero `timex` is a valid value of its integer fields.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    // With ADJ_NANO the second part is in nanoseconds; it is never negative
    // (clock_adjtime(2), ADJ_SETOFFSET).
    change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    change.time.tv_sec = nanos.div_euclid(NANOS_A_SECOND);
    change.time.tv_usec = nanos.rem_euclid(NANOS_A_SECOND);
    // SAFETY: the call reads and writes the one `timex` it is given, which
    // lives throughout.
    let state = unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &raw mut change) };
    // Anything but -1 is the state of the clock, not an error.
    match state {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of no length, and still a call that only the privileged may make.
    #[test]
    fn a_step_of_nothing_is_taken_or_needs_a_capability() {
        match offset_realtime(0) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                eprintln!("skipped: the call needs CAP_SYS_TIME");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
