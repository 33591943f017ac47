//! Where the time of an operation went: named spans on one clock.
//!
//! All times are nanoseconds of CLOCK_MONOTONIC, which every process of a host
//! shares (clock_gettime(2)), so spans of the command line, the supervisor and
//! a hypervisor driver lie on one axis and can be put together afterwards.

mod fault;
mod report;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

pub use fault::step;
pub use report::{Report, Row, Span};

/// Collects the spans of one operation. Cheap to clone; clones share the spans.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    spans: Arc<Mutex<Vec<Open>>>,
}

/// A span that may still be running.
#[derive(Debug, Clone)]
struct Open {
    name: String,
    start: u64,
    end: Option<u64>,
}

/// Now, in nanoseconds of CLOCK_MONOTONIC.
#[must_use]
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    // Neither field is negative: the clock starts at boot (clock_gettime(2)).
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

impl Timeline {
    /// An empty timeline.
    #[must_use]
    pub fn new() -> Timeline {
        Timeline::default()
    }

    /// Starts a span that lasts until its guard is dropped.
    ///
    /// A leaf's name says what is waited for: a system call, a VMM call or a
    /// step of the guest.
    #[must_use = "the span ends when its guard is dropped"]
    pub fn span(&self, name: impl Into<String>) -> SpanGuard {
        let mut spans = self.lock();
        spans.push(Open {
            name: name.into(),
            start: now(),
            end: None,
        });
        SpanGuard {
            timeline: self.clone(),
            index: spans.len() - 1,
        }
    }

    /// Starts a span at which a fault test can kill this process: [`step`],
    /// then [`Timeline::span`].
    #[must_use = "the span ends when its guard is dropped"]
    pub fn step(&self, name: &'static str) -> SpanGuard {
        step(name);
        self.span(name)
    }

    /// Adds a span measured elsewhere, in nanoseconds of CLOCK_MONOTONIC.
    pub fn record(&self, name: impl Into<String>, start: u64, end: u64) {
        self.lock().push(Open {
            name: name.into(),
            start,
            end: Some(end.max(start)),
        });
    }

    /// Adds steps of which only the lengths are known, one after the other
    /// from `start`: this is how a guest, whose clock is its own, reports.
    pub fn record_sequence(&self, start: u64, steps: impl IntoIterator<Item = (String, Duration)>) {
        let mut at = start;
        for (name, length) in steps {
            let end = at.saturating_add(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX));
            self.record(name, at, end);
            at = end;
        }
    }

    /// Adds the spans of another process's report.
    pub fn absorb(&self, report: &Report) {
        for span in &report.spans {
            self.record(span.name.clone(), span.start, span.end);
        }
    }

    /// What was measured so far; spans still running end now.
    #[must_use]
    pub fn report(&self) -> Report {
        let now = now();
        let spans = self.lock().clone().into_iter().map(|open| Span {
            name: open.name,
            start: open.start,
            end: open.end.unwrap_or(now),
        });
        Report::new(spans.collect())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        // A span list is whole after every push, whoever panicked meanwhile.
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends its span when dropped.
#[derive(Debug)]
pub struct SpanGuard {
    timeline: Timeline,
    index: usize,
}

impl Drop for SpanGuard {
    fn drop(&mut self) {
        let end = now();
        if let Some(open) = self.timeline.lock().get_mut(self.index) {
            open.end = Some(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_opened_within_another_is_its_child() {
        let timeline = Timeline::new();
        {
            let _outer = timeline.span("outer");
            let _inner = timeline.span("inner");
        }
        let report = timeline.report();
        let depths: Vec<_> = report
            .tree()
            .iter()
            .map(|row| (row.depth, row.leaf))
            .collect();
        assert_eq!(depths, [(0, false), (1, true)]);
    }

    #[test]
    fn steps_of_known_length_follow_each_other() {
        let timeline = Timeline::new();
        timeline.record_sequence(
            100,
            [
                ("entropy".to_owned(), Duration::from_nanos(20)),
                ("clock".to_owned(), Duration::from_nanos(30)),
            ],
        );
        let spans = timeline.report().spans;
        assert_eq!((spans[0].start, spans[0].end), (100, 120));
        assert_eq!((spans[1].start, spans[1].end), (120, 150));
    }

    #[test]
    fn reports_of_two_processes_join_on_one_clock() {
        let supervisor = Timeline::new();
        drop(supervisor.span("qmp cont"));
        let client = Timeline::new();
        {
            let _whole = client.span("clone");
            client.absorb(&supervisor.report());
        }
        assert_eq!(client.report().spans.len(), 2);
    }
}
