//! Remembers which digest an unchanged file has, so that a kernel of 50 MB is
//! not hashed again for every command.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Sha256, Store};
use crate::host::{CallFailed, failed, read_record, write_atomically};

/// A file changed so recently may change again within the same tick of its
/// timestamps, unseen; 2 s is the coarsest tick in use (FAT).
const SETTLED: Duration = Duration::from_secs(2);

/// What is remembered of one file. Any write changes its ctime (inode(7)),
/// which nobody can set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    /// Where it was, to find out whether it still is there.
    path: PathBuf,
    size: u64,
    mtime_nanos: i128,
    ctime_nanos: i128,
    sha256: Sha256,
}

impl Store {
    /// The digest of a program or another file that is not kept here, hashed
    /// only when it is new or changed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn digest_of(&self, path: &Path) -> Result<Sha256, CallFailed> {
        let file = File::open(path).map_err(failed("open", path))?;
        self.sha256_of(path, &file)
    }

    /// The digest of a file, hashed only when it is new or changed.
    pub(super) fn sha256_of(&self, path: &Path, file: &File) -> Result<Sha256, CallFailed> {
        let metadata = file.metadata().map_err(failed("fstat", path))?;
        if let Some(known) = self.remembered(&metadata) {
            return Ok(known);
        }
        let sha256 = Sha256::of_file(file).map_err(failed("read", path))?;
        let after = file.metadata().map_err(failed("fstat", path))?;
        if key(&metadata) == key(&after) && is_settled(&after) {
            self.remember(path, &after, &sha256);
        }
        Ok(sha256)
    }

    /// Remembers a digest that was just computed of a file nobody writes.
    pub(super) fn remember(&self, path: &Path, metadata: &Metadata, sha256: &Sha256) {
        let (size, mtime_nanos, ctime_nanos) = key(metadata);
        let remembered = Remembered {
            path: path.to_owned(),
            size,
            mtime_nanos,
            ctime_nanos,
            sha256: sha256.clone(),
        };
        // A memory that could not be written costs time later, nothing else.
        if let Ok(text) = serde_json::to_vec(&remembered) {
            let _ = write_atomically(&self.hash_record(metadata), &text, 0o600);
        }
    }

    fn remembered(&self, metadata: &Metadata) -> Option<Sha256> {
        let known: Remembered = read_record(&self.hash_record(metadata)).ok()?;
        let same = (known.size, known.mtime_nanos, known.ctime_nanos) == key(metadata);
        same.then_some(known.sha256)
    }

    fn hash_record(&self, metadata: &Metadata) -> PathBuf {
        self.hashes()
            .join(format!("{}-{}", metadata.dev(), metadata.ino()))
    }

    /// Forgets files that are gone.
    pub(super) fn forget_missing(&self) -> Result<(), CallFailed> {
        let hashes = self.hashes();
        for entry in fs::read_dir(&hashes).map_err(failed("opendir", &hashes))? {
            let path = entry.map_err(failed("readdir", &hashes))?.path();
            let current = read_record::<Remembered>(&path).is_ok_and(|known| {
                fs::metadata(&known.path).is_ok_and(|found| self.hash_record(&found) == path)
            });
            if !current {
                // Gone already, or tried again by the next sweep.
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }
}

fn key(metadata: &Metadata) -> (u64, i128, i128) {
    (
        metadata.len(),
        nanos(metadata.mtime(), metadata.mtime_nsec()),
        nanos(metadata.ctime(), metadata.ctime_nsec()),
    )
}

/// A timestamp of stat(2) as nanoseconds since 1970.
pub(super) fn nanos(seconds: i64, nanoseconds: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}

fn is_settled(metadata: &Metadata) -> bool {
    let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else {
        return false;
    };
    let changed = nanos(metadata.ctime(), metadata.ctime_nsec());
    i128::try_from(now.as_nanos())
        .is_ok_and(|now| now - changed > i128::from(SETTLED.as_secs()) * 1_000_000_000)
}
