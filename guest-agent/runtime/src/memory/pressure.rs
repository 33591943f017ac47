//! Who waits for memory: counted between two readings, or told by the kernel
//! when it is too much.

use super::{MemoryError, failed};
use guest_kernel::readiness;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Over which time the kernel counts for an alarm; it takes 0.5 to 10 s.
const WINDOW: Duration = Duration::from_secs(1);

/// How long some task has waited for memory, up to a moment.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    waited: Duration,
    at: Instant,
}

impl Reading {
    /// Reads a `memory.pressure` of cgroup v2, or [`super::PRESSURE`].
    ///
    /// # Errors
    /// [`MemoryError::Missing`] where the kernel does not count: the file is not
    /// there, or says EOPNOTSUPP. Otherwise those of the file.
    pub fn of(file: &Path) -> Result<Self, MemoryError> {
        let at = Instant::now();
        let text = fs::read_to_string(file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::Unsupported => {
                MemoryError::Missing("pressure stall information (CONFIG_PSI, psi=1)")
            }
            _ => failed("read", file)(error),
        })?;
        let waited = parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into());
        let waited = waited.map_err(failed("parse", file))?;
        Ok(Self { waited, at })
    }

    /// Whether more than `limit` hundredths of the time since `before` were
    /// waited.
    #[must_use]
    pub fn exceeds(&self, before: &Self, limit: u8) -> bool {
        let waited = self.waited.saturating_sub(before.waited).as_nanos();
        let passed = self.at.saturating_duration_since(before.at).as_nanos();
        waited * 100 > passed * u128::from(limit)
    }
}

/// The time of the line `some`, which counts when one task waits, in
/// microseconds.
fn parse(text: &str) -> Option<Duration> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = line
        .split(' ')
        .find_map(|word| word.strip_prefix("total="))?;
    Some(Duration::from_micros(total.parse().ok()?))
}

/// Rung by the kernel when the guest waits for memory for too long.
#[derive(Debug)]
pub struct PressureAlarm {
    descriptor: AsyncFd<Arc<OwnedFd>>,
}

impl PressureAlarm {
    /// Rings when more than `limit` hundredths of a second were waited within
    /// one. To be called in a tokio runtime; this and the end of it wait for the
    /// kernel.
    ///
    /// # Errors
    /// Those of the file [`super::PRESSURE`].
    pub fn set(limit: u8) -> Result<Self, MemoryError> {
        let opened = File::options().read(true).write(true).open(super::PRESSURE);
        let mut file = opened.map_err(failed("open", super::PRESSURE))?;
        let set = file.write_all(alarm(limit).as_bytes());
        set.map_err(failed("write", super::PRESSURE))?;
        let watched = readiness::watch(Arc::new(file.into()), Interest::PRIORITY);
        let descriptor = watched.map_err(failed("watch", super::PRESSURE))?;
        Ok(Self { descriptor })
    }

    /// Waits until it rings.
    pub async fn rings(&self) {
        // The kernel says POLLERR where it does not count: that is no pressure,
        // and no reason to wait less.
        if let Ok(mut ready) = self.descriptor.ready(Interest::PRIORITY).await {
            ready.clear_ready();
        }
    }
}

/// A limit of nothing is any at all: the kernel takes no zero. The last byte ends
/// the text: whatever it is, the kernel writes a zero over it.
fn alarm(limit: u8) -> String {
    let window = WINDOW.as_micros();
    let waited = (window * u128::from(limit.min(100)) / 100).max(1);
    format!("some {waited} {window}\0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "some avg10=0.31 avg60=0.12 avg300=0.05 total=1234567\n\
         full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";

    #[test]
    fn the_time_that_some_have_waited_is_read_and_no_other() {
        assert_eq!(parse(TEXT), Some(Duration::from_micros(1_234_567)));
        assert_eq!(parse("full avg10=0.00 total=7\n"), None);
        assert_eq!(parse("some avg10=0.00 total=x\n"), None);
    }

    #[test]
    fn an_alarm_is_one_that_the_kernel_takes() {
        assert_eq!(alarm(0), "some 1 1000000\0");
        assert_eq!(alarm(5), "some 50000 1000000\0");
        assert_eq!(alarm(255), "some 1000000 1000000\0");
    }

    proptest! {
        #[test]
        fn the_share_of_a_period_is_what_counts(
            passed in 1..1_000_000_000_u64, share in 0..=100_u64, limit in 0..=100_u8, start in any::<u32>(),
        ) {
            let at = Instant::now();
            let start = Duration::from_micros(start.into());
            let before = Reading { waited: start, at };
            let waited = start + Duration::from_micros(passed * share / 100);
            let after = Reading { waited, at: at + Duration::from_micros(passed) };
            prop_assert_eq!(
                after.exceeds(&before, limit),
                (passed * share / 100) * 100 > passed * u64::from(limit)
            );
            // A count that began anew is none.
            let anew = Reading { waited: Duration::ZERO, ..after };
            prop_assert!(!anew.exceeds(&before, limit));
        }
    }
}
