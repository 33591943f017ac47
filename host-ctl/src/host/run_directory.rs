//! A sandbox's run directory, as a guard: made private, held by a lock, and
//! removed by descriptor.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::Serialize;
use thiserror::Error;

use super::call::{CallFailed, failed};
use super::lock::{Lock, LockError, flock_within};
use super::record::{RecordError, write_record};
use super::tree::{TreeError, remove_tree};
use crate::config::{Paths, SandboxId, SandboxPaths};

/// How long a creation waits for a sweep that looks at unfinished directories.
const SWEEP_WAIT: Duration = Duration::from_secs(10);

/// How long taking over a sandbox waits for a sweep that just looks at it.
const LOOK_WAIT: Duration = Duration::from_secs(1);

/// Why a run directory could not be had.
#[derive(Debug, Error)]
pub enum RunDirectoryError {
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// The id is taken.
    #[error("sandbox {0}: exists already")]
    Exists(SandboxId),
    /// There is no such sandbox.
    #[error("sandbox {0}: not found")]
    NotFound(SandboxId),
    /// A symlink, a file or another user's directory lies there.
    #[error("{0}: not a directory of ours")]
    NotOurs(PathBuf),
    /// Somebody acts on it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A sweep took too long.
    #[error("{0}: a sweep still looks at unfinished directories")]
    SweepBusy(PathBuf),
    /// The record could not be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The tree could not be removed.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// A run directory whose lock this process holds. Dropping it releases the
/// lock and leaves the directory; [`RunDirectory::remove`] takes both away.
#[derive(Debug)]
pub struct RunDirectory {
    id: SandboxId,
    run: PathBuf,
    paths: SandboxPaths,
    _lock: Lock,
}

impl RunDirectory {
    /// Makes the directory, 0700, with one in it for the VMM, takes its lock and
    /// writes the first record.
    /// A sweep never sees one of these without the others, unless this process
    /// died in between.
    ///
    /// # Errors
    /// When the id is taken or a call fails; nothing is left then.
    pub fn create<R: Serialize>(
        paths: &Paths,
        id: &SandboxId,
        purpose: &str,
        first_record: &R,
    ) -> Result<RunDirectory, RunDirectoryError> {
        let run = enter(&paths.run)?;
        let files = paths.sandbox(id);
        match mkdirat(&run, id.as_str(), Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(RunDirectoryError::Exists(id.clone())),
            Err(error) => return Err(failed("mkdir", files.directory())(error).into()),
        }
        let made = Lock::try_acquire(&files.lock(), purpose)
            .map_err(RunDirectoryError::from)
            .and_then(|lock| {
                let vmm = files.vmm();
                mkdirat(CWD, &vmm, Mode::RWXU).map_err(failed("mkdir", &vmm))?;
                write_record(&files.record(), first_record)?;
                Ok(lock)
            });
        match made {
            Ok(lock) => Ok(RunDirectory {
                id: id.clone(),
                run: paths.run.clone(),
                paths: files,
                _lock: lock,
            }),
            Err(error) => {
                // The first failure is what counts.
                let _ = remove_tree(run.as_fd(), &paths.run, OsStr::new(id.as_str()));
                Err(error)
            }
        }
    }

    /// Takes the lock of an existing run directory, as a second supervisor does
    /// when the first one died.
    ///
    /// # Errors
    /// [`RunDirectoryError::NotFound`], or [`RunDirectoryError::Lock`] with its
    /// holder while somebody else acts on the sandbox.
    pub fn open(
        paths: &Paths,
        id: &SandboxId,
        purpose: &str,
    ) -> Result<RunDirectory, RunDirectoryError> {
        let files = paths.sandbox(id);
        check_ours(&files, id)?;
        let lock = Lock::acquire_existing(&files.lock(), purpose, LOOK_WAIT)?;
        Ok(RunDirectory {
            id: id.clone(),
            run: paths.run.clone(),
            paths: files,
            _lock: lock,
        })
    }

    /// Whose directory it is.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// The files in it.
    #[must_use]
    pub fn paths(&self) -> &SandboxPaths {
        &self.paths
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// When a call fails; the old record stays then.
    pub fn write_record<R: Serialize>(&self, record: &R) -> Result<(), RecordError> {
        write_record(&self.paths.record(), record)
    }

    /// Removes the directory with all it holds, then releases the lock.
    ///
    /// # Errors
    /// When something is mounted below it, or a call fails.
    pub fn remove(self) -> Result<(), RunDirectoryError> {
        let run = enter(&self.run)?;
        remove_tree(run.as_fd(), &self.run, OsStr::new(self.id.as_str()))?;
        Ok(())
    }
}

/// Opens the run tree to add or remove a directory: shared with others who do
/// so, excluded while a sweep looks at directories that are not whole.
fn enter(run: &Path) -> Result<File, RunDirectoryError> {
    let directory = open_directory(run).map_err(failed("open", run))?;
    flock_within(directory, FlockOperation::LockShared, SWEEP_WAIT)
        .map_err(failed("flock", run))?
        .ok_or_else(|| RunDirectoryError::SweepBusy(run.to_owned()))
}

/// The sandboxes that have a run directory, in order of their ids. What is not
/// a directory named by an id is left out.
///
/// # Errors
/// When the run tree cannot be read.
pub fn sandboxes(paths: &Paths) -> Result<Vec<SandboxId>, CallFailed> {
    let mut found = Vec::new();
    for entry in fs::read_dir(&paths.run).map_err(failed("opendir", &paths.run))? {
        let entry = entry.map_err(failed("readdir", &paths.run))?;
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let id = entry.file_name().to_str().map(str::parse::<SandboxId>);
        if let (true, Some(Ok(id))) = (is_directory, id) {
            found.push(id);
        }
    }
    found.sort();
    Ok(found)
}

fn check_ours(files: &SandboxPaths, id: &SandboxId) -> Result<(), RunDirectoryError> {
    let directory = files.directory();
    let metadata = match fs::symlink_metadata(directory) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RunDirectoryError::NotFound(id.clone()));
        }
        Err(error) => return Err(failed("stat", directory)(error).into()),
    };
    if metadata.is_dir() && metadata.uid() == geteuid().as_raw() {
        Ok(())
    } else {
        Err(RunDirectoryError::NotOurs(directory.to_owned()))
    }
}

pub(crate) fn open_directory(path: &Path) -> Result<File, Errno> {
    openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map(File::from)
}
