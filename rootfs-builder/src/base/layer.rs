//! Layers: what each adds to, changes in and takes from those below it.
//!
//! The rules are those of the OCI image specification's layer.md. Nothing is
//! unpacked onto this machine's disk: entries go into an [`Archive`], in which
//! a link leads nowhere but to an entry of the same image.

use super::tar::{Kind, Member, Reader, TarError};
use crate::archive::{Archive, ArchiveError, Content, Entry, EntryPath, PathError};
use std::collections::BTreeSet;
use std::io::{self, Read};

/// What unpacked layers may have in all, in bytes: they lie in memory.
const MAX_BYTES: u64 = 4 << 30;
/// And in entries. A full desktop has about a million.
const MAX_ENTRIES: u64 = 1_000_000;
/// How many directories may lie above an entry.
const MAX_DEPTH: usize = 128;
/// Of a name that takes something away.
const WHITEOUT: &str = ".wh.";
/// Of the name that takes all away that lower layers have in a directory.
const OPAQUE: &str = ".wh..wh..opq";
/// An attribute that belongs to the machine an image was made on.
const LOCAL_ATTRIBUTE: &[u8] = b"security.selinux";

/// Why a layer cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is no archive, or one with members that would not be kept.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A member whose path, or a hard link's target, would lie outside.
    #[error("keep a member")]
    Path(#[from] PathError),
    /// A name or a link's target is not UTF-8.
    #[error("keep {0}: it is not UTF-8")]
    NotText(String),
    /// A member that an image cannot hold.
    #[error("keep /{path}: {kind} have no place in an image")]
    Kind {
        /// Where it would lie.
        path: EntryPath,
        /// What it is, in the plural.
        kind: &'static str,
    },
    /// An extended attribute that would be lost.
    #[error("keep /{path}: its attribute {attribute} would be lost in the image")]
    Attribute {
        /// The member.
        path: EntryPath,
        /// The attribute's name, escaped.
        attribute: String,
    },
    /// A hard link to something that is no file of the image.
    #[error("keep /{0}: it is a hard link to /{1}, which is no file")]
    HardLink(EntryPath, EntryPath),
    /// A name that is reserved for taking something away, and does not.
    #[error("keep /{0}: names that start so are reserved")]
    Reserved(EntryPath),
    /// An entry cannot be in an image.
    #[error("put the base together")]
    Archive(#[from] ArchiveError),
    /// More than an image should have.
    #[error("the base has more than {0}")]
    TooMuch(&'static str),
}

/// Layers as they are put one on the other.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub(super) archive: Archive,
    /// What could not be kept as it was, a line each.
    pub(super) changes: Vec<String>,
    bytes: u64,
    entries: u64,
}

impl Layers {
    /// Puts a layer on top; returns what it was read from, at its end.
    pub(super) fn apply<R: Read>(&mut self, layer: R) -> Result<R, LayerError> {
        let mut reader = Reader::new(layer);
        // What this layer itself has, which its whiteouts do not take away.
        let mut own = BTreeSet::new();
        // What takes something away does so once, however often it is said.
        let mut gone = BTreeSet::new();
        while let Some(member) = reader.next(self.room())? {
            self.count(1, member.data.len() as u64)?;
            let Some(path) = normal(&member.path)? else {
                // The root: its mode is ours to set.
                continue;
            };
            if path.as_str().split('/').count() > MAX_DEPTH {
                return Err(LayerError::TooMuch("128 directories one in the other"));
            }
            let path = self.archive.real(&path)?;
            let name = path.name();
            if name.starts_with(WHITEOUT) && !gone.insert(path.clone()) {
                continue;
            }
            if name == OPAQUE {
                let above = path.parent();
                self.archive
                    .retain_below(above.as_ref(), |path| own.contains(path));
            } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                if hidden.is_empty() || hidden.starts_with(WHITEOUT) {
                    return Err(LayerError::Reserved(path));
                }
                let hidden = path.with_name(hidden)?;
                self.archive
                    .retain_below(Some(&hidden), |path| own.contains(path));
                if !own.contains(&hidden) {
                    self.archive.remove(&hidden);
                }
            } else {
                self.put(&path, member)?;
                own.extend(std::iter::successors(Some(path), EntryPath::parent));
            }
        }
        Ok(reader.drain()?)
    }

    fn put(&mut self, path: &EntryPath, member: Member) -> Result<(), LayerError> {
        let foreign = |name: &&Vec<u8>| name.as_slice() != LOCAL_ATTRIBUTE;
        if let Some(attribute) = member.attributes.iter().find(foreign) {
            return Err(LayerError::Attribute {
                path: path.clone(),
                attribute: attribute.escape_ascii().to_string(),
            });
        }
        let refuse = |kind| {
            let path = path.clone();
            Err(LayerError::Kind { path, kind })
        };
        let (user, group) = (member.user, member.group);
        let (permissions, content) = match member.kind {
            Kind::Directory => (member.permissions, Content::Directory),
            Kind::File => (member.permissions, Content::File(member.data)),
            Kind::Symlink => (0o777, Content::Symlink(text(&member.link)?)),
            Kind::HardLink => {
                let target = normal(&member.link)?.ok_or_else(|| PathError::of("/"))?;
                let target = self.archive.real(&target)?;
                match self.archive.get(&target) {
                    Some(entry) if matches!(&entry.content, Content::File(_)) => {
                        let entry = entry.clone();
                        (entry.permissions, entry.content)
                    }
                    // To a link or a directory: no packer needs that.
                    _ => return Err(LayerError::HardLink(path.clone(), target)),
                }
            }
            Kind::CharacterDevice | Kind::BlockDevice => return refuse("device nodes"),
            Kind::Fifo => return refuse("FIFOs"),
        };
        // A copy is memory, too.
        if let (Kind::HardLink, Content::File(bytes)) = (member.kind, &content) {
            self.count(0, bytes.len() as u64)?;
        }
        let kept = owned_by_root(permissions, user != 0, group != 0);
        if kept != permissions {
            self.changes.push(format!(
                "/{path}: mode {permissions:04o} became {kept:04o}, for its owner {user}:{group} \
                 became root"
            ));
        }
        let entry = Entry {
            permissions: kept,
            content,
        };
        Ok(self.archive.put(path.clone(), entry)?)
    }

    fn count(&mut self, entries: u64, bytes: u64) -> Result<(), LayerError> {
        self.entries += entries;
        self.bytes += bytes;
        if self.entries > MAX_ENTRIES {
            return Err(LayerError::TooMuch("a million entries"));
        }
        if self.bytes > MAX_BYTES {
            return Err(LayerError::TooMuch("4 GiB unpacked"));
        }
        Ok(())
    }

    /// What may still be unpacked, in bytes.
    pub(super) fn room(&self) -> u64 {
        MAX_BYTES - self.bytes
    }
}

/// The permissions of a file that is given to root: a program that ran as
/// another user would run as root.
pub(super) fn owned_by_root(permissions: u32, user_changes: bool, group_changes: bool) -> u32 {
    let user = if user_changes { 0o4000 } else { 0 };
    let group = if group_changes { 0o2000 } else { 0 };
    permissions & !(user | group)
}

/// None for the root itself.
fn normal(path: &[u8]) -> Result<Option<EntryPath>, LayerError> {
    let path = text(path)?;
    let path = path.strip_suffix('/').unwrap_or(&path);
    let path = path
        .strip_prefix('.')
        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
        .unwrap_or(path);
    match path {
        "" | "/" => Ok(None),
        path => Ok(Some(path.parse()?)),
    }
}

fn text(bytes: &[u8]) -> Result<String, LayerError> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| LayerError::NotText(bytes.escape_ascii().to_string()))
}

/// Reads at most so many bytes, and says so if there are more: a bomb is not
/// unpacked to its end.
pub(super) struct Capped<R> {
    pub(super) from: R,
    pub(super) left: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
