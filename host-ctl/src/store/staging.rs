//! Where a template is made: a directory that nobody finds by name, locked by
//! its maker, and gone when the maker gives up or dies.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, mkdirat};

use super::{Store, StoreError};
use crate::config::{hexadecimal, random_bytes};
use crate::host::{failed, flock_within, open_directory, remove_tree};

/// How long a maker waits for a sweep of the staging directories.
const SWEEP_WAIT: Duration = Duration::from_secs(10);

/// A directory in the making. Removed when dropped, unless it was published.
#[derive(Debug)]
pub struct Staging {
    parent: PathBuf,
    name: String,
    path: PathBuf,
    /// The directory itself; its flock(2) says that the maker lives.
    _lock: File,
    keep: bool,
}

impl Store {
    /// Makes a staging directory, 0700 and locked.
    ///
    /// # Errors
    /// When a call fails; nothing is left then.
    pub fn stage(&self) -> Result<Staging, StoreError> {
        let parent = self.staging();
        let name = hexadecimal(&random_bytes::<16>()?);
        let path = parent.join(&name);
        // Shared with other makers, excluded by a sweep: it never sees a
        // directory that is made but not locked yet.
        let directory = open_directory(&parent).map_err(failed("open", &parent))?;
        let directory = flock_within(directory, FlockOperation::LockShared, SWEEP_WAIT)
            .map_err(failed("flock", &parent))?
            .ok_or_else(|| StoreError::SweepBusy(parent.clone()))?;
        mkdirat(&directory, &name, Mode::RWXU).map_err(failed("mkdir", &path))?;
        let lock = open_directory(&path).map_err(failed("open", &path))?;
        flock_within(lock, FlockOperation::LockExclusive, SWEEP_WAIT)
            .map_err(failed("flock", &path))?
            .map(|lock| Staging {
                parent: parent.clone(),
                name,
                path,
                _lock: lock,
                keep: false,
            })
            .ok_or(StoreError::SweepBusy(parent))
    }
}

impl Staging {
    /// The directory; a VMM saves its state here.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the guest's RAM is to lie.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.path.join(Self::MEMORY)
    }

    /// Removes it, saying what went wrong where dropping would not.
    ///
    /// # Errors
    /// When the tree cannot be removed.
    pub fn discard(mut self) -> Result<(), StoreError> {
        self.keep = true;
        self.remove()
    }

    /// Leaves it for a sweep: something that could not be stopped may still
    /// use it.
    pub fn abandon(mut self) {
        self.keep = true;
    }

    /// It has another name now, or none.
    pub(super) fn release(&mut self) {
        self.keep = true;
    }

    fn remove(&self) -> Result<(), StoreError> {
        let parent = open_directory(&self.parent).map_err(failed("open", &self.parent))?;
        remove_tree(parent.as_fd(), &self.parent, OsStr::new(&self.name))?;
        Ok(())
    }

    /// File name of the guest's RAM in a template.
    pub const MEMORY: &'static str = "memory";
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.keep {
            // What could not be removed is found by the next sweep.
            let _ = self.remove();
        }
    }
}
