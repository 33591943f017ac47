//! What the host side does to the host: processes, run directories, records
//! and locks, each with an identity that lets [`sweep`] finish what a kill
//! began without touching anything that is not ours. [`network`] is what it
//! does to the host's links.

mod call;
mod cgroup;
mod cpu;
mod lock;
pub mod network;
mod process;
mod record;
mod ring;
mod run_directory;
mod sweep;
mod tail;
mod tree;

pub use call::{CallFailed, explain};
pub use cgroup::{CgroupRecord, Cgroups, Limits, Unlimited};
pub use cpu::{cpu, tsc_khz};
pub use lock::{Holder, Lock, LockError};
pub use process::{ProcessError, ProcessIdentity, kill_all};
pub use record::{
    RECORD_LIMIT, RecordError, RecordHead, Stage, read_record, write_record, write_shared_record,
};
pub use ring::Ring;
pub use run_directory::{RunDirectory, RunDirectoryError, sandboxes};
pub use sweep::{Action, Finding, sweep};
pub use tail::Tail;
pub use tree::{TreeError, remove_tree};

pub(crate) use call::failed;
pub(crate) use lock::{flock_now, flock_within, is_still_at};
pub(crate) use record::{read_bounded, sync_directory, write_atomically};
pub(crate) use run_directory::open_directory;

#[cfg(test)]
mod tests;
