//! Exclusive rights that end with their holder: flock(2) on a small file that
//! says who holds it. The kernel releases the lock when the process dies, so
//! there is no such thing as a stale lock.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::call::{CallFailed, failed};
use super::process::{ProcessError, ProcessIdentity};

/// Most bytes read of what a holder wrote about itself.
const HOLDER_LIMIT: u64 = 4096;

/// Why a lock was not taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("{path}: held by {}", describe(holder.as_ref()))]
    Held {
        /// The lock.
        path: PathBuf,
        /// Who, when it could be read.
        holder: Option<Holder>,
    },
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// The caller's own identity could not be read.
    #[error("identify the holder")]
    Identity(#[from] ProcessError),
}

/// Who holds a lock, for messages only: what counts is the kernel's lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub process: ProcessIdentity,
    /// What it does meanwhile.
    pub purpose: String,
}

fn describe(holder: Option<&Holder>) -> String {
    holder.map_or_else(
        || "another process".to_owned(),
        |holder| format!("process {} ({})", holder.process.pid, holder.purpose),
    )
}

/// A held lock; released when dropped, and by the kernel when the process dies.
#[derive(Debug)]
pub struct Lock {
    /// Closed on drop, which releases the lock.
    _file: File,
}

impl Lock {
    /// Takes the lock at once, or says who has it. The file is created 0600
    /// when absent and never removed by the lock itself.
    ///
    /// # Errors
    /// [`LockError::Held`] when another holder has it.
    pub fn try_acquire(path: &Path, purpose: &str) -> Result<Lock, LockError> {
        Lock::take(path, purpose, true)
    }

    /// As [`Lock::try_acquire`], but the file must exist.
    ///
    /// # Errors
    /// [`LockError::Call`] with `ENOENT` when there is no such lock.
    pub fn try_acquire_existing(path: &Path, purpose: &str) -> Result<Lock, LockError> {
        Lock::take(path, purpose, false)
    }

    fn take(path: &Path, purpose: &str, create: bool) -> Result<Lock, LockError> {
        loop {
            let file = open_lock_file(path, create)?;
            if !flock_now(&file, FlockOperation::NonBlockingLockExclusive)
                .map_err(failed("flock", path))?
            {
                return Err(LockError::Held {
                    path: path.to_owned(),
                    holder: Lock::holder(path),
                });
            }
            if is_still_at(&file, path)? {
                return Lock::claimed(file, path, purpose);
            }
        }
    }

    /// Takes the lock as soon as its holder lets go, at the latest after
    /// `deadline`. Blocks the calling thread.
    ///
    /// # Errors
    /// [`LockError::Held`] when the deadline passed.
    pub fn acquire(path: &Path, purpose: &str, deadline: Duration) -> Result<Lock, LockError> {
        Lock::wait(path, purpose, deadline, true)
    }

    /// As [`Lock::acquire`], but the file must exist.
    ///
    /// # Errors
    /// [`LockError::Call`] with `ENOENT` when there is no such lock.
    pub fn acquire_existing(
        path: &Path,
        purpose: &str,
        deadline: Duration,
    ) -> Result<Lock, LockError> {
        Lock::wait(path, purpose, deadline, false)
    }

    fn wait(
        path: &Path,
        purpose: &str,
        deadline: Duration,
        create: bool,
    ) -> Result<Lock, LockError> {
        let end = Instant::now() + deadline;
        loop {
            match Lock::take(path, purpose, create) {
                Err(LockError::Held { .. }) => {}
                done => return done,
            }
            let left = end.saturating_duration_since(Instant::now());
            let file = open_lock_file(path, create)?;
            match flock_within(file, FlockOperation::LockExclusive, left)
                .map_err(failed("flock", path))?
            {
                Some(file) if is_still_at(&file, path)? => {
                    return Lock::claimed(file, path, purpose);
                }
                // Its last holder removed the file: there is a new one to ask.
                Some(_) if Instant::now() < end => {}
                _ => {
                    return Err(LockError::Held {
                        path: path.to_owned(),
                        holder: Lock::holder(path),
                    });
                }
            }
        }
    }

    /// Who holds, or last held, the lock at a path.
    #[must_use]
    pub fn holder(path: &Path) -> Option<Holder> {
        let mut text = Vec::new();
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(no_surprises())
            .open(path)
            .ok()?;
        file.take(HOLDER_LIMIT).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn claimed(file: File, path: &Path, purpose: &str) -> Result<Lock, LockError> {
        let holder = Holder {
            process: ProcessIdentity::current()?,
            purpose: purpose.to_owned(),
        };
        let text = serde_json::to_vec(&holder)
            .map_err(io::Error::from)
            .map_err(failed("serialize", path))?;
        file.set_len(0).map_err(failed("ftruncate", path))?;
        file.write_all_at(&text, 0).map_err(failed("write", path))?;
        Ok(Lock { _file: file })
    }
}

/// No symlink, no wait for the other end of a FIFO.
fn no_surprises() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

fn open_lock_file(path: &Path, create: bool) -> Result<File, CallFailed> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(no_surprises())
        .open(path)
        .map_err(failed("open", path))
}

/// Whether a locked file still is the one that others would find and lock: its
/// directory may have been removed while we waited.
pub(crate) fn is_still_at(file: &File, path: &Path) -> Result<bool, CallFailed> {
    let ours = file.metadata().map_err(failed("fstat", path))?;
    match std::fs::symlink_metadata(path) {
        Ok(found) => Ok(found.dev() == ours.dev() && found.ino() == ours.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("stat", path)(error)),
    }
}

/// One non-blocking flock(2); `false` when somebody else is in the way.
pub(crate) fn flock_now(file: &impl AsFd, operation: FlockOperation) -> Result<bool, Errno> {
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A blocking flock(2), shared or exclusive, with a deadline, which the call
/// itself does not have: where it has to wait it waits in a thread of its own.
/// After the deadline that thread, should it get the lock after all, drops it.
pub(crate) fn flock_within(
    file: File,
    operation: FlockOperation,
    deadline: Duration,
) -> Result<Option<File>, Errno> {
    let at_once = match operation {
        FlockOperation::LockShared => FlockOperation::NonBlockingLockShared,
        _ => FlockOperation::NonBlockingLockExclusive,
    };
    if flock_now(&file, at_once)? {
        return Ok(Some(file));
    }
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let outcome = loop {
            match flock(&file, operation) {
                Err(Errno::INTR) => {}
                outcome => break outcome.map(|()| file),
            }
        };
        // A receiver that gave up drops the file, and with it the lock.
        let _ = sender.send(outcome);
    });
    match receiver.recv_timeout(deadline) {
        Ok(outcome) => outcome.map(Some),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_says_by_whom() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let lock = Lock::try_acquire(&path, "build redis").unwrap();
        let refused = Lock::try_acquire(&path, "second").unwrap_err().to_string();
        assert!(refused.contains("build redis"), "{refused}");
        assert!(refused.contains(&std::process::id().to_string()));
        drop(lock);
        assert!(Lock::try_acquire(&path, "third").is_ok());
    }

    #[test]
    fn a_waiter_gets_the_lock_when_it_is_released() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = Lock::try_acquire(&path, "first").unwrap();
        let waiter = thread::spawn({
            let path = path.clone();
            move || Lock::acquire(&path, "waiter", Duration::from_secs(20))
        });
        drop(held);
        assert!(waiter.join().unwrap().is_ok());
    }

    #[test]
    fn a_waiter_gives_up_at_its_deadline_and_leaves_no_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = Lock::try_acquire(&path, "first").unwrap();
        let began = Instant::now();
        let refused = Lock::acquire(&path, "second", Duration::from_millis(50));
        assert!(matches!(refused, Err(LockError::Held { .. })));
        assert!(began.elapsed() < Duration::from_secs(10));
        drop(held);
        assert!(Lock::acquire(&path, "third", Duration::from_secs(20)).is_ok());
    }

    #[test]
    fn a_symlink_is_no_lock_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert!(matches!(
            Lock::try_acquire(&path, "x"),
            Err(LockError::Call(_))
        ));
    }
}
