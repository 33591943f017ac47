//! Memory that the workload holds and does not use, taken back before the
//! guest runs out of it; and memory in pieces, put together.
//!
//! Both are judged by the kernel's pressure stall information
//! (Documentation/accounting/psi.rst): who waits for memory is left alone. The
//! names and the meaning of the settings are those of the Kata agent.
//!
//! All of it blocks, for one piece of work at a time: [`Reclaim::round`] asks
//! between two of them whether to go on, and compaction is a process of its own
//! ([`compact_main`]) that can be killed.

mod compaction;
mod generations;
mod pressure;
mod reclaim;
mod settings;

pub use compaction::{Compaction, UNNUMBERED, compact_main, compaction_is_there};
pub use pressure::{PressureAlarm, Reading};
pub use reclaim::{Reclaim, Reclaimed};
pub use settings::{
    CompactionChange, CompactionSettings, OutOfRange, ReclaimChange, ReclaimSettings,
};

use std::io;
use std::path::PathBuf;

/// The word that a copy of the agent is started with to compact memory.
pub const COMPACT_WORD: &str = "compact-memory";
/// Who has waited for memory, in the whole guest.
pub const PRESSURE: &str = "/proc/pressure/memory";

/// What the kernel did not do.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A file cannot be read, written or understood.
    #[error("{call} {path}")]
    File {
        /// What was tried.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel has nothing to do it with.
    #[error("the kernel has no {0}")]
    Missing(&'static str),
}

fn failed(call: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> MemoryError {
    let path = path.into();
    move |source| MemoryError::File { call, path, source }
}
