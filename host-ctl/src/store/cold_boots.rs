//! How often a template was wanted and something was booted in its place: a
//! small record beside the templates. Losing a count costs nothing but the
//! count, so nothing waits for it and nothing fails by it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::{Store, StoreError};
use crate::config::TemplateDigest;
use crate::host::{RecordError, failed, flock_within, open_directory, read_record, write_record};

/// How long one that counts waits for another.
const WAIT: Duration = Duration::from_secs(2);
/// Most of a reason that is kept, in characters.
const LONGEST_REASON: usize = 500;

/// The cold boots in place of a template's clones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColdBoots {
    /// How many there were.
    pub count: u64,
    /// When the last one was, in seconds since 1970.
    pub last: u64,
    /// Why.
    pub reason: String,
}

impl Store {
    /// Counts a cold boot. The record is replaced as a whole, by one at a time.
    ///
    /// # Errors
    /// When it could not be counted.
    pub fn count_cold_boot(&self, digest: &TemplateDigest, reason: &str) -> Result<(), StoreError> {
        let directory = self.cold_boots_directory();
        let lock = open_directory(&directory).map_err(failed("open", &directory))?;
        let lock = flock_within(lock, FlockOperation::LockExclusive, WAIT)
            .map_err(failed("flock", &directory))?;
        // Freed when this returns.
        let _lock = lock.ok_or(StoreError::SweepBusy(directory))?;
        let before = self.cold_boots(digest)?;
        let counted = ColdBoots {
            count: before.count.saturating_add(1),
            last: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            reason: reason.chars().take(LONGEST_REASON).collect(),
        };
        Ok(write_record(&self.cold_boots_record(digest), &counted)?)
    }

    /// The cold boots in place of this template's clones, since it was built.
    ///
    /// # Errors
    /// When the record is there and cannot be read.
    pub fn cold_boots(&self, digest: &TemplateDigest) -> Result<ColdBoots, StoreError> {
        match read_record(&self.cold_boots_record(digest)) {
            Ok(counted) => Ok(counted),
            // A damaged one is begun anew.
            Err(RecordError::Missing(_) | RecordError::Parse { .. }) => Ok(ColdBoots::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets the counts of templates that are gone.
    pub(super) fn forget_cold_boots(&self) -> Result<(), StoreError> {
        let directory = self.cold_boots_directory();
        let known = self.digests()?;
        for entry in fs::read_dir(&directory).map_err(failed("opendir", &directory))? {
            let entry = entry.map_err(failed("readdir", &directory))?;
            let name = entry.file_name();
            let digest = name.to_str().map(str::parse::<TemplateDigest>);
            if let Some(Ok(digest)) = digest
                && !known.contains(&digest)
            {
                // Gone already, or tried again by the next sweep.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    fn cold_boots_record(&self, digest: &TemplateDigest) -> PathBuf {
        self.cold_boots_directory().join(digest.as_str())
    }
}
