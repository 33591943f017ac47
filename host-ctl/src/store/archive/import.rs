//! Making a template of an archive: verified, measured, written to a staging
//! directory, compared with what it says of itself, and published.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::process::geteuid;

use super::chunks::{Reader, is_forged};
use super::contents::{Contents, Entry};
use super::key::{ArchiveKey, Kind};
use super::{ArchiveError, runs};
use crate::host::failed;
use crate::store::check::hash_file;
use crate::store::{Blob, BuildLock, Claim, Draft, SavedImport, Store, Template};
use crate::timeline::Timeline;

/// Most bytes of what an archive says of itself, as of any record.
const MOST_CONTENTS: u32 = 1 << 20;
/// How long the same template's build is waited for.
const CLAIM_DEADLINE: Duration = Duration::from_secs(60);

/// Whose archives are taken.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Those made with this secret.
    Key(ArchiveKey),
    /// Anybody's: whoever made it can have put anything into the guest, and the
    /// VMM reads a state that they wrote.
    Anybody,
}

/// What became of an archive.
#[derive(Debug)]
pub struct Imported {
    /// The template.
    pub template: Template,
    /// Whether this store has made the same itself, and keeps that.
    pub existing: bool,
    /// Who made it, if that was another user: its clones and theirs have
    /// [`super::LEAKS`] in common.
    pub shared_with: Option<u32>,
}

impl Store {
    /// Makes a template of an archive. It is this user's then, whoever made it.
    ///
    /// `limit` is how many bytes its files may take, holes included; they must be
    /// free, too. With `share` another user's is taken. `writes_memory` tells of a
    /// kind of VMM whether this host's opens a template's memory for writing, as
    /// in [`Draft`]: what it was where the archive comes from is nothing to us.
    ///
    /// # Errors
    /// When it is not trusted, not whole, too large, or another's. Nothing is
    /// left of the template then.
    pub fn import_template(
        &self,
        from: &Path,
        trust: &Trust,
        share: bool,
        limit: u64,
        writes_memory: impl FnOnce(&str) -> bool,
    ) -> Result<Imported, ArchiveError> {
        let file = open_archive(from)?;
        let mut input = begin(BufReader::new(file), trust)?;
        let mut contents = read_contents(&mut input)?;
        let declared = contents.check()?;
        if declared > limit {
            return Err(ArchiveError::Limit { declared, limit });
        }
        let user = geteuid().as_raw();
        let owner = std::mem::replace(&mut contents.requirements.owner, user);
        if owner != user && !share {
            return Err(ArchiveError::Owner { owner, user });
        }
        let shared_with = (owner != user).then_some(owner);
        let lock = match self.claim(&contents.requirements, CLAIM_DEADLINE)? {
            Claim::Build(lock) => lock,
            Claim::Existing(template) => {
                return Ok(Imported {
                    template: *template,
                    existing: true,
                    shared_with,
                });
            }
        };
        let drafted = (owner, writes_memory(&contents.requirements.vmm.kind));
        let template = self.unpack(&mut input, (&contents, drafted), declared, &lock)?;
        Ok(Imported {
            template,
            existing: false,
            shared_with,
        })
    }

    fn unpack(
        &self,
        input: &mut Reader<impl Read>,
        (contents, (owner, memory_opened_for_writing)): (&Contents, (u32, bool)),
        declared: u64,
        lock: &BuildLock,
    ) -> Result<Template, ArchiveError> {
        let staging = self.stage()?;
        check_room(staging.path(), declared)?;
        for entry in &contents.files {
            read_file(input, entry, staging.path())?;
        }
        let mut blobs = Vec::new();
        for entry in &contents.blobs {
            blobs.push(self.read_blob(input, entry)?);
        }
        if !input.is_at_end().map_err(stream)? {
            return Err(ArchiveError::Contents("something follows it".to_owned()));
        }
        let draft = Draft {
            agent_version: contents.agent_version.clone(),
            quiesce_id: contents.quiesce_id()?,
            blobs: &blobs,
            memory_opened_for_writing,
            imported: Some(SavedImport { owner }),
        };
        let published = self.publish(staging, lock, &draft, &Timeline::new())?;
        Ok(published.template)
    }

    /// A kept file, out of a staging directory of its own: a blob that no
    /// template names is a sweep's.
    fn read_blob(
        &self,
        input: &mut Reader<impl Read>,
        entry: &Entry,
    ) -> Result<Blob, ArchiveError> {
        let staging = self.stage()?;
        read_file(input, entry, staging.path())?;
        match self.blob(&entry.sha256)? {
            Some(blob) => Ok(blob),
            None => Ok(self.keep(&staging.path().join(&entry.name))?),
        }
    }
}

fn open_archive(path: &Path) -> Result<File, ArchiveError> {
    let file = OpenOptions::new()
        .read(true)
        // A FIFO would wait for its other end.
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(failed("open", path))?;
    if file.metadata().map_err(failed("fstat", path))?.is_file() {
        Ok(file)
    } else {
        Err(ArchiveError::Unknown)
    }
}

/// Reads how it begins, and refuses what is not trusted.
fn begin<R: Read>(input: R, trust: &Trust) -> Result<Reader<R>, ArchiveError> {
    let key = match trust {
        Trust::Key(key) => Some(key),
        Trust::Anybody => None,
    };
    let (kind, reader) = Reader::begin(input, key)?;
    match (kind, trust) {
        (Kind::Plain, Trust::Key(_)) => Err(ArchiveError::Untrusted(
            "it is not signed, by this key or any; --trust-unsigned alone takes it",
        )),
        (Kind::Encrypted, Trust::Anybody) => Err(ArchiveError::Untrusted(
            "it is encrypted: only --key-file opens it",
        )),
        _ => Ok(reader),
    }
}

fn read_contents(input: &mut impl Read) -> Result<Contents, ArchiveError> {
    let mut length = [0; 4];
    input.read_exact(&mut length).map_err(stream)?;
    let length = u32::from_be_bytes(length);
    if length > MOST_CONTENTS {
        return Err(ArchiveError::Contents(format!("{length} bytes of it")));
    }
    let mut text = Vec::new();
    let read = input.take(length.into()).read_to_end(&mut text);
    read.map_err(stream)?;
    serde_json::from_slice(&text).map_err(|error| ArchiveError::Contents(error.to_string()))
}

/// Reads one file into a directory that nobody else gets at, and compares it with
/// its digest.
fn read_file(input: &mut impl Read, entry: &Entry, directory: &Path) -> Result<(), ArchiveError> {
    let path = directory.join(&entry.name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&path)
        .map_err(failed("create", &path))?;
    let damaged = || ArchiveError::Damaged(entry.name.clone());
    runs::read(input, entry.size, &file)
        .map_err(stream)?
        .ok_or_else(damaged)?;
    let (found, _) = hash_file(&file, entry.hashing).map_err(failed("read", &path))?;
    if found == entry.sha256 {
        Ok(())
    } else {
        Err(damaged())
    }
}

/// Refuses a disk that has no room for all of it, holes included: a clone does
/// not write to them, but a copy of the file may.
fn check_room(path: &Path, declared: u64) -> Result<(), ArchiveError> {
    let found = rustix::fs::statvfs(path)
        .map_err(io::Error::from)
        .map_err(failed("statvfs", path))?;
    let limit = found.f_bavail.saturating_mul(found.f_frsize);
    if declared > limit {
        return Err(ArchiveError::Limit { declared, limit });
    }
    Ok(())
}

fn stream(error: io::Error) -> ArchiveError {
    if is_forged(&error) {
        ArchiveError::Forged
    } else {
        ArchiveError::Stream("read", error)
    }
}
