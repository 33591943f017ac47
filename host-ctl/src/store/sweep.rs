//! Removes what dead makers left in the store: staging directories nobody
//! holds, blobs nobody names or uses, locks and memories of what is gone.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::FlockOperation;

use super::check::open_read_only;
use super::{Sha256, Store, StoreError};
use crate::config::TemplateDigest;
use crate::host::{
    CallFailed, Finding, Lock, LockError, explain, failed, flock_now, is_still_at, open_directory,
    read_record, remove_tree,
};

impl Store {
    /// Removes what nobody owns any more. Safe beside live builds and clones.
    ///
    /// # Errors
    /// When the store itself cannot be read; trouble with one entry is a
    /// finding and does not keep the sweep from the others.
    pub fn sweep(&self) -> Result<Vec<Finding>, StoreError> {
        let mut findings = self.sweep_staging()?;
        findings.extend(self.sweep_blobs()?);
        self.sweep_locks()?;
        self.forget_missing()?;
        self.forget_cold_boots()?;
        Ok(findings)
    }

    fn sweep_staging(&self) -> Result<Vec<Finding>, StoreError> {
        let staging = self.staging();
        let parent = open_directory(&staging).map_err(failed("open", &staging))?;
        // While somebody makes one it may lack its lock: the next sweep then.
        if !flock_now(&parent, FlockOperation::NonBlockingLockExclusive)
            .map_err(failed("flock", &staging))?
        {
            return Ok(Vec::new());
        }
        let names = names_in(&staging)?;
        Ok(names
            .iter()
            .filter_map(|name| sweep_staged(&parent, &staging, name))
            .collect())
    }

    fn sweep_blobs(&self) -> Result<Vec<Finding>, StoreError> {
        let blobs = self.blobs();
        // Locked first, then looked for in the manifests: whoever publishes
        // holds its blobs until its manifest is in place.
        let mut unused: Vec<(OsString, File)> = Vec::new();
        for name in names_in(&blobs)? {
            let path = blobs.join(&name);
            if let Ok(file) = open_read_only(&path)
                && flock_now(&file, FlockOperation::NonBlockingLockExclusive).unwrap_or(false)
                && is_still_at(&file, &path)?
            {
                unused.push((name, file));
            }
        }
        let Some(referenced) = self.referenced_blobs()? else {
            return Ok(vec![Finding::kept(
                blobs.display().to_string(),
                "a manifest cannot be read, so any blob may be needed",
            )]);
        };
        let mut findings = Vec::new();
        for (name, _file) in unused {
            let path = blobs.join(&name);
            let Some(Ok(sha256)) = name.to_str().map(str::parse::<Sha256>) else {
                let reason = "not named like a blob";
                findings.push(Finding::kept(path.display().to_string(), reason));
                continue;
            };
            if !referenced.contains(&sha256) {
                fs::remove_file(&path).map_err(failed("unlink", &path))?;
                let reason = "no template names it and nobody uses it";
                findings.push(Finding::removed(path.display().to_string(), reason));
            }
        }
        Ok(findings)
    }

    /// The blobs that manifests name, whoever sealed them; `None` when one
    /// cannot be read.
    fn referenced_blobs(&self) -> Result<Option<BTreeSet<Sha256>>, CallFailed> {
        let mut referenced = BTreeSet::new();
        for digest in self.digests()? {
            let path = self
                .templates()
                .join(digest.as_str())
                .join(super::template::MANIFEST);
            let Ok(manifest) = read_record::<serde_json::Value>(&path) else {
                // Removed meanwhile: it needs nothing any more.
                if path.exists() {
                    return Ok(None);
                }
                continue;
            };
            let blobs = manifest.pointer("/manifest/blobs");
            for blob in blobs
                .and_then(serde_json::Value::as_array)
                .into_iter()
                .flatten()
            {
                let name = blob.get("name").and_then(serde_json::Value::as_str);
                if let Some(Ok(sha256)) = name.map(str::parse) {
                    referenced.insert(sha256);
                }
            }
        }
        Ok(Some(referenced))
    }

    /// Locks of templates that are neither there nor being built.
    fn sweep_locks(&self) -> Result<(), StoreError> {
        for name in names_in(&self.locks())? {
            let digest = name.to_str().and_then(|name| name.strip_suffix(".lock"));
            let Some(Ok(digest)) = digest.map(str::parse::<TemplateDigest>) else {
                continue;
            };
            let path = self.template_lock(&digest);
            match Lock::try_acquire_existing(&path, "gc") {
                Ok(_lock) if !self.templates().join(digest.as_str()).exists() => {
                    // Who waits for it finds it gone and asks for a new one.
                    fs::remove_file(&path).map_err(failed("unlink", &path))?;
                }
                Ok(_) | Err(LockError::Held { .. }) => {}
                Err(error) if path.exists() => return Err(error.into()),
                Err(_) => {}
            }
        }
        Ok(())
    }
}

fn sweep_staged(parent: &File, staging: &Path, name: &OsStr) -> Option<Finding> {
    let path = staging.join(name);
    let subject = path.display().to_string();
    // Published, or removed by its maker, meanwhile.
    let directory = match open_directory(&path) {
        Ok(directory) => directory,
        Err(rustix::io::Errno::NOENT) => return None,
        Err(error) => return Some(Finding::kept(subject, explain(&error))),
    };
    match flock_now(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(true) => {}
        Ok(false) => return None,
        Err(error) => return Some(Finding::kept(subject, explain(&error))),
    }
    Some(match remove_tree(parent.as_fd(), staging, name) {
        Ok(()) => Finding::removed(subject, "its maker is dead"),
        Err(error) => Finding::kept(subject, explain(&error)),
    })
}

fn names_in(directory: &Path) -> Result<Vec<OsString>, CallFailed> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("opendir", directory))? {
        names.push(entry.map_err(failed("readdir", directory))?.file_name());
    }
    names.sort();
    Ok(names)
}
