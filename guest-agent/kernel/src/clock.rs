//! The system's clock, moved by a difference.

use std::io;

const NANOS_A_MICRO: i64 = 1_000;
const MICROS_A_SECOND: i64 = 1_000_000;

/// Moves `CLOCK_REALTIME` by `nanos`, rounded to microseconds, forwards
/// positive, in one step: unlike a time that is read, changed and set again it
/// loses nothing, however long the caller is kept from running meanwhile.
/// `CLOCK_MONOTONIC` is not touched.
///
/// # Errors
/// Those of clock_adjtime(2): `EPERM` without CAP_SYS_TIME, `EINVAL` for a time
/// before the epoch.
pub fn offset_realtime(nanos: i64) -> io::Result<()> {
    // SAFETY: an all-zero `timex` is a valid value of its integer fields.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    // Not with ADJ_NANO: the kernel would keep to that unit in what it tells
    // others (STA_NANO), who ask in microseconds.
    change.modes = libc::ADJ_SETOFFSET;
    let half = NANOS_A_MICRO / 2;
    let micros = nanos.saturating_add(half).div_euclid(NANOS_A_MICRO);
    // The second part is never negative (clock_adjtime(2), ADJ_SETOFFSET).
    change.time.tv_sec = micros.div_euclid(MICROS_A_SECOND);
    change.time.tv_usec = micros.rem_euclid(MICROS_A_SECOND);
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
