//! Where the time of a verb went: its leaf steps on the host's own clock.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// One leaf step of a verb: a system call or a VMM call that was waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// What was waited for.
    pub name: Cow<'static, str>,
    /// When it began, in nanoseconds of CLOCK_MONOTONIC (clock_gettime(2)).
    pub start_ns: u64,
    /// How long it took, in nanoseconds.
    pub duration_ns: u64,
}

/// Now, in nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    // Neither field is negative: the clock starts at boot (clock_gettime(2)).
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// The spans of the verb that ran last.
#[derive(Debug, Default)]
pub(crate) struct Timeline(Mutex<Vec<Span>>);

impl Timeline {
    /// Forgets the verb before.
    pub(crate) fn restart(&self) {
        self.locked().clear();
    }

    /// Notes a step that lasted from `start` until now; returns now, which is
    /// where the next step begins.
    pub(crate) fn since(&self, name: impl Into<Cow<'static, str>>, start: u64) -> u64 {
        self.between(name, start, now())
    }

    /// Notes a step that lasted from `start` to `end`; returns `end`.
    pub(crate) fn between(&self, name: impl Into<Cow<'static, str>>, start: u64, end: u64) -> u64 {
        self.locked().push(Span {
            name: name.into(),
            start_ns: start,
            duration_ns: end.saturating_sub(start),
        });
        end
    }

    /// The steps so far, in the order they ended.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.locked().clone()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Vec<Span>> {
        // A panic elsewhere can't leave a half-written list behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
