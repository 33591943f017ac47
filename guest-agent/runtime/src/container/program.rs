//! The sealed copy of the agent's program that children run.
//!
//! It lies in memory and nothing can write it: what a container could reach by
//! /proc/PID/exe of a process that has entered it is this copy, not the agent.

use super::error::LaunchError;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What is shown of it in /proc.
const NAME: &str = "guest-agent";

/// A program, and its copy once a first child needs it.
#[derive(Debug)]
pub(super) struct Program {
    original: File,
    copy: Mutex<Option<Arc<SealedCopy>>>,
}

/// A program that can be executed and not be changed.
#[derive(Debug)]
pub(super) struct SealedCopy(OwnedFd);

impl Program {
    pub(super) fn new(original: File) -> Self {
        Self {
            original,
            copy: Mutex::default(),
        }
    }

    /// The copy, made at the first call. It blocks for as long as the copying
    /// takes.
    pub(super) fn sealed(&self) -> Result<Arc<SealedCopy>, LaunchError> {
        let mut copy = self.copy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = &*copy {
            return Ok(Arc::clone(copy));
        }
        let made = seal(&self.original).map_err(LaunchError::system("copy the agent's program"))?;
        Ok(Arc::clone(copy.insert(Arc::new(SealedCopy(made)))))
    }
}

impl SealedCopy {
    /// A path that leads to it for this process, and for a child of it until it
    /// has executed it.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

fn seal(original: &File) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // From Linux 6.3 on one says whether it is to be executed; before that the
    // flag is unknown, and every memory file can be.
    let copy = match memfd_create(NAME, flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create(NAME, flags),
        outcome => outcome,
    }?;
    let mut copy = File::from(copy);
    // Each copy begins at the start, whatever was read of it before.
    io::Seek::rewind(&mut &*original)?;
    io::copy(&mut &*original, &mut copy)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_made_once_and_cannot_be_written() {
        let original = File::open("/proc/self/exe").unwrap();
        let length = original.metadata().unwrap().len();
        let program = Program::new(original);
        let copy = program.sealed().unwrap();
        assert!(Arc::ptr_eq(&copy, &program.sealed().unwrap()));
        assert_eq!(std::fs::metadata(copy.path()).unwrap().len(), length);
        let opened = std::fs::OpenOptions::new().write(true).open(copy.path());
        let error = opened
            .and_then(|mut file| io::Write::write_all(&mut file, b"x"))
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
