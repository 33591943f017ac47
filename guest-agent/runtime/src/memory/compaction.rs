//! Free memory in pieces that are too small, put together by the kernel
//! (/proc/sys/vm/compact_memory).

use super::{CompactionSettings, MemoryError, failed};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

const COMPACT: &str = "/proc/sys/vm/compact_memory";
/// How [`compact_main`] ends for an error that has no number, or none that a
/// process can end with: no error of the kernel's has this one.
pub const UNNUMBERED: u8 = u8::MAX;
/// Free memory by its pieces' size and its use, for root alone.
const FREE: &str = "/proc/pagetypeinfo";

/// Decides when memory is to be put together.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Compaction {
    /// Pages in small pieces that the last one has left.
    left: u64,
    /// Periods since then.
    skipped: u64,
}

/// Whether the kernel can do it, and counts what it needs.
///
/// # Errors
/// What the kernel has not, or what of it cannot be read.
pub fn compaction_is_there() -> Result<(), MemoryError> {
    super::Reading::of(Path::new(super::PRESSURE))?;
    if [COMPACT, FREE].iter().all(|path| Path::new(path).exists()) {
        return Ok(());
    }
    Err(MemoryError::Missing("compaction (CONFIG_COMPACTION)"))
}

/// Has the kernel put all memory together, and ends when it has, with an error's
/// number if it has not: the work of a process of its own, which SIGKILL ends at
/// any point.
#[must_use]
pub fn compact_main() -> ExitCode {
    let compacted = OpenOptions::new()
        .write(true)
        .open(COMPACT)
        .and_then(|mut file| file.write_all(b"1"));
    match compacted {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.raw_os_error().map(u8::try_from) {
            Some(Ok(errno)) => errno.into(),
            _ => UNNUMBERED.into(),
        },
    }
}

impl Compaction {
    /// Whether it is time for one; to be asked once a calm period, with what
    /// [`Compaction::in_small_pieces`] says.
    pub fn is_due(&mut self, small: u64, settings: &CompactionSettings) -> bool {
        // Of what was put to use since then nothing has to be put together.
        self.left = self.left.min(small);
        let is_due = small - self.left > settings.threshold || self.skipped >= settings.force_times;
        if !is_due {
            self.skipped = self.skipped.saturating_add(1);
        }
        is_due
    }

    /// One has ended, whole or not.
    pub fn ended(&mut self, small: u64) {
        self.left = small;
        self.skipped = 0;
    }

    /// How many free pages that can be moved to are in pieces smaller than
    /// `order`.
    ///
    /// # Errors
    /// Those of /proc/pagetypeinfo.
    pub fn in_small_pieces(order: u32) -> Result<u64, MemoryError> {
        let text = fs::read_to_string(FREE).map_err(failed("read", FREE))?;
        Ok(small_pages(&text, order))
    }
}

/// Of lines `Node 0, zone Normal, type Movable N N ...`, with a number of pieces
/// for each order.
fn small_pages(text: &str, order: u32) -> u64 {
    let mut pages: u64 = 0;
    for line in text.lines() {
        let Some((_, counts)) = line.split_once("Movable") else {
            continue;
        };
        let smaller = counts.split_whitespace().zip(0..order.min(u64::BITS));
        for (count, order) in smaller {
            // More than the kernel has counted is as many as it has.
            let count: u64 = count.trim_start_matches('>').parse().unwrap_or(0);
            pages = pages.saturating_add(count.saturating_mul(1 << order));
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "Page block order: 9\nPages per block:  512\n\n\
        Free pages count per migrate type at order       0      1      2      3\n\
        Node    0, zone      DMA, type    Unmovable      9      9      9      9\n\
        Node    0, zone      DMA, type      Movable      1      2      3      4\n\
        Node    0, zone   Normal, type      Movable >100000      0      0      1\n\n\
        Number of blocks type     Unmovable      Movable\n\
        Node 0, zone      DMA            3            5\n";

    #[test]
    fn the_pages_in_small_pieces_are_counted_where_pages_can_be_moved() {
        assert_eq!(small_pages(TEXT, 0), 0);
        assert_eq!(small_pages(TEXT, 1), 100_001);
        assert_eq!(small_pages(TEXT, 3), 100_000 + 1 + 4 + 12);
        assert_eq!(small_pages(TEXT, 10), 100_000 + 1 + 4 + 12 + 32 + 8);
    }

    proptest! {
        #[test]
        fn one_is_due_when_pieces_have_grown_or_was_skipped_often_enough(
            rounds in prop::collection::vec(0..10_000_u64, 1..60),
            threshold in 0..5_000_u64, force_times in 0..20_u64,
        ) {
            let settings = CompactionSettings { threshold, force_times, ..CompactionSettings::default() };
            let mut compaction = Compaction::default();
            let (mut least, mut skipped) = (0, 0);
            for small in rounds {
                least = small.min(least);
                let expected = small > least + threshold || skipped >= force_times;
                prop_assert_eq!(compaction.is_due(small, &settings), expected);
                if expected {
                    let after = small / 2;
                    compaction.ended(after);
                    (least, skipped) = (after, 0);
                } else {
                    skipped += 1;
                }
            }
        }

        #[test]
        fn no_text_is_too_strange(text in "(Movable|>|[0-9]{1,20}| |\n){0,40}", order in any::<u32>()) {
            let _ = small_pages(&text, order);
        }
    }
}
