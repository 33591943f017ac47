//! Kernels, initrds and disks, kept once by their content.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags};

use super::copy::copy;
use super::share::share_with_vmms;
use super::{Sha256, Store, StoreError};
use crate::host::{failed, flock_within, is_still_at, sync_directory};

/// How long an import waits for a sweep that looks at the same blob.
const SWEEP_WAIT: Duration = Duration::from_secs(10);

/// A kept file. While this value lives no sweep removes it, whether or not a
/// template names it yet.
#[derive(Debug)]
pub struct Blob {
    sha256: Sha256,
    path: PathBuf,
    /// Locked shared; a sweep wants it exclusive.
    _lock: File,
}

impl Blob {
    /// The digest of the content, which also is the name.
    #[must_use]
    pub fn sha256(&self) -> &Sha256 {
        &self.sha256
    }

    /// Where a VMM finds it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Store {
    /// Keeps a file: by reflink where the filesystem can, else by a copy that
    /// keeps holes. An unchanged file that is kept already costs two stats.
    /// Symlinks are followed: the path is the user's own.
    ///
    /// # Errors
    /// When it is not a regular file, or a call fails; nothing is left then.
    pub fn import(&self, source: &Path) -> Result<Blob, StoreError> {
        let file = open_regular(source)?;
        let sha256 = self.sha256_of(source, &file)?;
        if let Some(blob) = self.blob(&sha256)? {
            return Ok(blob);
        }
        self.copy_in(source, &file)
    }

    /// A kept file by its digest; `None` when there is none, or it is damaged.
    ///
    /// # Errors
    /// When a call fails.
    pub fn blob(&self, sha256: &Sha256) -> Result<Option<Blob>, StoreError> {
        let path = self.blob_path(sha256);
        let file = match open_blob(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path)(error).into()),
        };
        let Some(file) = flock_within(file, FlockOperation::LockShared, SWEEP_WAIT)
            .map_err(failed("flock", &path))?
        else {
            return Err(StoreError::SweepBusy(path));
        };
        // A sweep may have removed it while we waited.
        if !is_still_at(&file, &path)? || self.sha256_of(&path, &file)? != *sha256 {
            return Ok(None);
        }
        Ok(Some(Blob {
            sha256: sha256.clone(),
            path,
            _lock: file,
        }))
    }

    /// Where a kept file lies, or would.
    #[must_use]
    pub fn blob_path(&self, sha256: &Sha256) -> PathBuf {
        self.blobs().join(sha256.as_str())
    }

    fn copy_in(&self, source: &Path, file: &File) -> Result<Blob, StoreError> {
        let staging = self.stage()?;
        let draft = staging.path().join("blob");
        let copied = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .map_err(failed("open", &draft))?;
        copy(file, &copied).map_err(failed("copy", source))?;
        // The copy is what will be used, so the copy is what is hashed.
        self.keep(&draft)
    }

    /// Keeps a file that lies in a staging directory, which it leaves.
    pub(super) fn keep(&self, draft: &Path) -> Result<Blob, StoreError> {
        let file = open_blob(draft).map_err(failed("open", draft))?;
        let sha256 = Sha256::of_file(&file).map_err(failed("read", draft))?;
        file.set_permissions(Permissions::from_mode(0o400))
            .map_err(failed("chmod", draft))?;
        share_with_vmms(&file, draft, 0o400)?;
        file.sync_all().map_err(failed("fsync", draft))?;
        // Locked before it has its name, so that no sweep comes in between.
        let lock = flock_within(file, FlockOperation::LockShared, SWEEP_WAIT)
            .map_err(failed("flock", draft))?
            .ok_or_else(|| StoreError::SweepBusy(draft.to_owned()))?;
        let path = self.blob_path(&sha256);
        fs::rename(draft, &path).map_err(failed("rename", &path))?;
        sync_directory(&self.blobs())?;
        let metadata = lock.metadata().map_err(failed("fstat", &path))?;
        self.remember(&path, &metadata, &sha256);
        Ok(Blob {
            sha256,
            path,
            _lock: lock,
        })
    }
}

fn open_regular(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .read(true)
        // A FIFO would wait for its other end.
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(failed("open", path))?;
    let metadata = file.metadata().map_err(failed("fstat", path))?;
    if metadata.is_file() {
        Ok(file)
    } else {
        Err(StoreError::NotRegular(path.to_owned()))
    }
}

fn open_blob(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
}
