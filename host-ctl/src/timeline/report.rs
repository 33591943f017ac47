//! A finished timeline: nesting, coverage and a table for people.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// One named stretch of time, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// What was done, or waited for.
    pub name: String,
    /// When it began.
    pub start: u64,
    /// When it ended, never before `start`.
    pub end: u64,
}

impl Span {
    /// How long it took, in nanoseconds.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// The spans of one operation, ordered by their begin, outer before inner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// All spans.
    pub spans: Vec<Span>,
}

/// A span and its place in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// The span.
    pub span: &'a Span,
    /// How many spans enclose it.
    pub depth: usize,
    /// Whether it encloses none.
    pub leaf: bool,
}

impl Report {
    pub(super) fn new(mut spans: Vec<Span>) -> Report {
        // Stable: of two equal spans the one opened first stays the outer one.
        spans.sort_by(|a, b| a.start.cmp(&b.start).then(b.end.cmp(&a.end)));
        Report { spans }
    }

    /// From the first begin to the last end, in nanoseconds.
    #[must_use]
    pub fn wall(&self) -> u64 {
        let start = self.spans.iter().map(|span| span.start).min();
        let end = self.spans.iter().map(|span| span.end).max();
        start.zip(end).map_or(0, |(start, end)| end - start)
    }

    /// Every span with its place: one lies within another when its times do.
    #[must_use]
    pub fn tree(&self) -> Vec<Row<'_>> {
        let mut enclosing: Vec<usize> = Vec::new();
        let mut rows: Vec<Row<'_>> = Vec::with_capacity(self.spans.len());
        for (index, span) in self.spans.iter().enumerate() {
            while enclosing
                .last()
                .is_some_and(|&outer| self.spans[outer].end < span.end)
            {
                enclosing.pop();
            }
            // A span that starts where its neighbour ended is not within it,
            // unless it has no length of its own to tell.
            while enclosing.last().is_some_and(|&outer| {
                self.spans[outer].end == span.start && self.spans[outer].start < span.start
            }) {
                enclosing.pop();
            }
            if let Some(&outer) = enclosing.last() {
                rows[outer].leaf = false;
            }
            rows.push(Row {
                span,
                depth: enclosing.len(),
                leaf: true,
            });
            enclosing.push(index);
        }
        rows
    }

    /// How much of the wall time the leaf spans explain, in per cent. Time
    /// under two leaves at once counts once.
    #[must_use]
    pub fn coverage(&self) -> f64 {
        let wall = self.wall();
        if wall == 0 {
            return 100.0;
        }
        let mut explained = 0;
        let mut reached = 0;
        for row in self.tree().iter().filter(|row| row.leaf) {
            explained += row.span.end.saturating_sub(row.span.start.max(reached));
            reached = reached.max(row.span.end);
        }
        percent(explained, wall)
    }

    /// A table for people: begin and length in milliseconds, share of the wall
    /// time, and the name indented by its depth.
    #[must_use]
    pub fn table(&self) -> String {
        let wall = self.wall();
        let origin = self.spans.first().map_or(0, |span| span.start);
        let mut table = String::from("   at ms    took ms      %  what\n");
        for row in self.tree() {
            // Writing to a String cannot fail.
            let _ = writeln!(
                table,
                "{:>8.2} {:>10.2} {:>6.1}  {:indent$}{}",
                milliseconds(row.span.start - origin),
                milliseconds(row.span.length()),
                percent(row.span.length(), wall.max(1)),
                "",
                row.span.name,
                indent = row.depth * 2,
            );
        }
        let _ = writeln!(
            table,
            "{:>8} {:>10.2} {:>6.1}  wall time, and how much of it the leaves explain",
            "",
            milliseconds(wall),
            self.coverage()
        );
        table
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a double holds 104 days of nanoseconds exactly"
)]
fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a double holds 104 days of nanoseconds exactly"
)]
fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(name: &str, start: u64, end: u64) -> Span {
        Span {
            name: name.to_owned(),
            start,
            end,
        }
    }

    #[test]
    fn leaves_explain_what_their_parent_does_not() {
        let report = Report::new(vec![
            span("clone", 0, 100),
            span("spawn", 0, 40),
            span("cont", 40, 90),
        ]);
        assert!((report.coverage() - 90.0).abs() < 1e-9);
        let leaves: Vec<_> = report
            .tree()
            .into_iter()
            .filter(|row| row.leaf)
            .map(|row| (row.depth, row.span.name.as_str()))
            .collect();
        assert_eq!(leaves, [(1, "spawn"), (1, "cont")]);
    }

    #[test]
    fn a_table_indents_children_and_ends_with_the_sum() {
        let table = Report::new(vec![
            span("clone", 0, 2_000_000),
            span("spawn", 0, 1_000_000),
        ])
        .table();
        assert!(table.contains("  clone\n"), "{table}");
        assert!(table.contains("    spawn\n"), "{table}");
        assert!(table.trim_end().ends_with("explain"), "{table}");
    }

    proptest! {
        #[test]
        fn coverage_is_a_share_whatever_the_spans(
            ends in proptest::collection::vec((0u64..1000, 0u64..1000), 0..20)
        ) {
            let spans = ends.iter().map(|&(a, b)| span("s", a.min(b), a.max(b))).collect();
            let report = Report::new(spans);
            prop_assert!((0.0..=100.0).contains(&report.coverage()));
            prop_assert_eq!(report.tree().len(), ends.len());
        }
    }
}
