//! Turns a staging directory into a template: all of it, durable and under its
//! name at once, or nothing.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::check::{describe, hash_file, open_read_only};
use super::share::share_with_vmms;
use super::template::MANIFEST;
use super::{
    Blob, CloneRefusal, Hashing, Manifest, Requirements, SavedFile, SavedImport, Staging, Store,
    StoreError, Template,
};
use crate::config::TemplateDigest;
use crate::host::{Lock, failed, sync_directory, write_atomically};
use crate::timeline::Timeline;

/// The right to build one template, or the template that somebody else built.
#[derive(Debug)]
pub enum Claim {
    /// Nobody else builds it while this lives.
    Build(Box<BuildLock>),
    /// It is there, and its files are as published.
    Existing(Box<Template>),
}

/// Held while one template is built.
#[derive(Debug)]
pub struct BuildLock {
    digest: TemplateDigest,
    requirements: Requirements,
    _lock: Lock,
}

/// What a template is published with.
#[derive(Debug)]
pub struct Draft<'a> {
    /// Version of the agent inside.
    pub agent_version: String,
    /// Names the freeze.
    pub quiesce_id: [u8; 16],
    /// What the template needs beside its own files. They are kept until the
    /// manifest that names them is in place.
    pub blobs: &'a [Blob],
    /// Whether the VMM opens a template's RAM for writing although it maps it
    /// privately (QEMU before 8.2): an owner that is not root then needs the
    /// permission to.
    pub memory_opened_for_writing: bool,
    /// Where it comes from, if it was not made here.
    pub imported: Option<SavedImport>,
}

/// A template that was just published, and what that cost.
#[derive(Debug)]
pub struct Published {
    /// The template.
    pub template: Template,
    /// Bytes of RAM that were not zero, the measure of the cost.
    pub touched_bytes: u64,
    /// Time spent on publishing.
    pub took: Duration,
}

impl Store {
    /// Asks for the right to build a template. Waits while somebody else
    /// builds the same one, and then gives what they made.
    ///
    /// # Errors
    /// [`StoreError::Lock`] when the other build outlives the deadline.
    pub fn claim(
        &self,
        requirements: &Requirements,
        deadline: Duration,
    ) -> Result<Claim, StoreError> {
        let digest = requirements.digest()?;
        if let Some(template) = self.usable(&digest) {
            return Ok(Claim::Existing(Box::new(template)));
        }
        let purpose = format!("build template {}", digest.short());
        let lock = Lock::acquire(&self.template_lock(&digest), &purpose, deadline)?;
        match self.usable(&digest) {
            Some(template) => Ok(Claim::Existing(Box::new(template))),
            None => Ok(Claim::Build(Box::new(BuildLock {
                digest,
                requirements: requirements.clone(),
                _lock: lock,
            }))),
        }
    }

    /// A template that is there, whole, and made here. Any other is built anew.
    fn usable(&self, digest: &TemplateDigest) -> Option<Template> {
        let template = self.load(digest).ok()?;
        if template.manifest().imported.is_some() {
            return None;
        }
        self.check(&template).ok()?;
        Some(template)
    }

    /// Publishes what was saved in a staging directory: files read-only and
    /// fsynced, hashed, described by a sealed manifest, renamed into place.
    /// Replaces a damaged or imported template of the same digest. The VM that saved it
    /// must be dead.
    ///
    /// # Errors
    /// When a call fails, a full disk for instance; nothing is left then.
    pub fn publish(
        &self,
        mut staging: Staging,
        claim: &BuildLock,
        draft: &Draft<'_>,
        timeline: &Timeline,
    ) -> Result<Published, StoreError> {
        let begin = crate::timeline::now();
        let (files, touched_bytes) = {
            let _span = timeline.step("build: fsync and hash");
            let memory_mode = memory_mode(draft.memory_opened_for_writing);
            seal_files(staging.path(), memory_mode, timeline)?
        };
        let manifest = Manifest {
            requirements: claim.requirements.clone(),
            agent_version: draft.agent_version.clone(),
            quiesce_id: crate::config::hexadecimal(&draft.quiesce_id),
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            touched_bytes,
            files,
            blobs: describe_blobs(draft.blobs)?,
            imported: draft.imported,
        };
        {
            let _span = timeline.step("build: write the manifest");
            let sealed = self.seal(manifest)?;
            let text = serde_json::to_vec_pretty(&sealed).map_err(StoreError::Serialize)?;
            // Also makes every name in the directory durable.
            write_atomically(&staging.path().join(MANIFEST), &text, 0o400)?;
        }
        {
            let _span = timeline.step("build: rename into place");
            self.put_in_place(&mut staging, &claim.digest)?;
        }
        let template = self.load(&claim.digest).map_err(unreadable)?;
        Ok(Published {
            template,
            touched_bytes,
            took: Duration::from_nanos(crate::timeline::now().saturating_sub(begin)),
        })
    }

    fn put_in_place(
        &self,
        staging: &mut Staging,
        digest: &TemplateDigest,
    ) -> Result<(), StoreError> {
        let target = self.templates().join(digest.as_str());
        match renameat_with(CWD, staging.path(), CWD, &target, RenameFlags::NOREPLACE) {
            Ok(()) => staging.release(),
            // One that is not usable: they change places, and dropping the staging
            // directory removes it.
            Err(Errno::EXIST) => {
                renameat_with(CWD, staging.path(), CWD, &target, RenameFlags::EXCHANGE)
                    .map_err(failed("rename", &target))?;
            }
            Err(error) => return Err(failed("rename", &target)(error).into()),
        }
        sync_directory(&self.templates())?;
        Ok(())
    }
}

/// What cannot be read back right after it was written.
fn unreadable(refusal: CloneRefusal) -> StoreError {
    match refusal {
        CloneRefusal::Call(error) => error.into(),
        CloneRefusal::Manifest(error) => error.into(),
        CloneRefusal::Store(error) => *error,
        other => StoreError::NotFound(other.to_string()),
    }
}

fn memory_mode(opened_for_writing: bool) -> u32 {
    if opened_for_writing { 0o600 } else { 0o400 }
}

/// Makes every file read-only, durable and known by its digest. Gives the
/// files and how many bytes of memory are not zero.
fn seal_files(
    directory: &Path,
    memory_mode: u32,
    timeline: &Timeline,
) -> Result<(Vec<SavedFile>, u64), StoreError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("opendir", directory))? {
        let entry = entry.map_err(failed("readdir", directory))?;
        match entry.file_name().into_string() {
            Ok(name) => names.push(name),
            Err(_) => return Err(StoreError::NotRegular(entry.path())),
        }
    }
    names.sort();
    let mut files = Vec::new();
    let mut touched = 0;
    for name in names {
        let path = directory.join(&name);
        let is_memory = name == Staging::MEMORY;
        let (hashing, mode) = if is_memory {
            (Hashing::Pages, memory_mode)
        } else {
            (Hashing::Whole, 0o400)
        };
        let (file, bytes) = seal_file(&path, &name, hashing, mode, timeline)?;
        if is_memory {
            touched = bytes;
        }
        files.push(file);
    }
    let has_memory = files.iter().any(|file| file.name == Staging::MEMORY);
    if !has_memory || files.len() < 2 {
        return Err(StoreError::Empty(directory.to_owned()));
    }
    Ok((files, touched))
}

fn seal_file(
    path: &Path,
    name: &str,
    hashing: Hashing,
    mode: u32,
    timeline: &Timeline,
) -> Result<(SavedFile, u64), StoreError> {
    let file = open_read_only(path).map_err(failed("open", path))?;
    if !is_regular(&file).map_err(failed("fstat", path))? {
        return Err(StoreError::NotRegular(path.to_owned()));
    }
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(failed("chmod", path))?;
    if name == Staging::MEMORY {
        share_with_vmms(&file, path, mode)?;
    }
    {
        let _span = timeline.span(format!("fsync {name}"));
        file.sync_all().map_err(failed("fsync", path))?;
    }
    let _span = timeline.span(format!("sha256 of {name}"));
    let (sha256, bytes) = hash_file(&file, hashing).map_err(failed("read", path))?;
    let metadata = file.metadata().map_err(failed("fstat", path))?;
    Ok((describe(name, &metadata, hashing, sha256), bytes))
}

fn is_regular(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.is_file())
}

fn describe_blobs(blobs: &[Blob]) -> Result<Vec<SavedFile>, StoreError> {
    let mut described: Vec<SavedFile> = Vec::new();
    for blob in blobs {
        let name = blob.sha256().as_str();
        if described.iter().any(|file| file.name == name) {
            continue;
        }
        let metadata = fs::symlink_metadata(blob.path()).map_err(failed("stat", blob.path()))?;
        described.push(describe(
            name,
            &metadata,
            Hashing::Whole,
            blob.sha256().clone(),
        ));
    }
    Ok(described)
}
