//! The cgroup of one hook of the guest's: what the hook has started can be found
//! by it, whoever its parent is by then.

use super::workload::{open_directory, read, remove, write};
use super::{CgroupError, failed};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

/// How often processes are moved that make others meanwhile.
const MOVES: usize = 16;

/// A place for a hook, to be killed or released.
#[derive(Debug)]
pub(crate) struct HookCgroup {
    path: PathBuf,
    /// Where what is left of a hook that has done its work lives on.
    guest: PathBuf,
}

impl HookCgroup {
    pub(super) fn create(path: PathBuf, guest: PathBuf) -> Result<Self, CgroupError> {
        fs::create_dir(&path).map_err(failed("mkdir", &path))?;
        Ok(Self { path, guest })
    }

    /// A descriptor for clone3(2) with CLONE_INTO_CGROUP.
    pub(crate) fn open(&self) -> Result<OwnedFd, CgroupError> {
        open_directory(&self.path)
    }

    /// Kills all that is in it, and removes it.
    ///
    /// # Errors
    /// [`CgroupError::Deadline`] if a process outlives the deadline.
    pub(crate) async fn kill(self, deadline: Duration) -> Result<(), CgroupError> {
        write(&self.path, "cgroup.kill", "1")?;
        remove(&self.path, deadline).await
    }

    /// Lets what is in it run on among the guest's processes, and removes it. If
    /// that cannot be, it stays, and goes with the whole workload's.
    pub(crate) fn release(self) {
        for _ in 0..MOVES {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            let left = read(&self.path, "cgroup.procs").unwrap_or_default();
            for pid in left.lines() {
                // It may have ended just now.
                let _ = write(&self.guest, "cgroup.procs", pid);
            }
        }
    }
}
