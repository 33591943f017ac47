//! Files that the host copies into the guest, all below one directory. A file
//! comes in pieces and is seen whole or not at all.
//!
//! Containers have parts of that directory mounted, and may write some: a link
//! that one of them puts on the way would have the host's file land in another's
//! part. So no symbolic link is followed (openat2(2), RESOLVE_NO_SYMLINKS), one
//! that has the file's own name gives way, and what was opened is what is
//! changed.
//!
//! All of it blocks and belongs on a thread of its own.

use crate::remove::remove_directory_at;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, fchown, linkat, mkdirat,
    open, openat, openat2, renameat, symlinkat, unlinkat,
};
use rustix::io::{Errno, pwrite};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Instant;

/// Files under way at once. The one that waits longest for its next piece gives
/// way to a further one.
const UNFINISHED_MAX: usize = 64;
/// How often a path is resolved that was changed meanwhile, openat2(2).
const ATTEMPTS: usize = 16;
/// The permission bits of inode(7).
const PERMISSIONS: u32 = 0o7777;

/// One piece of a file, or a whole directory or symbolic link.
#[derive(Debug)]
pub struct SharedFile {
    /// Below the directory; see [`relative`].
    pub path: PathBuf,
    /// What it is to be.
    pub content: Content,
    /// The permission bits it is to have.
    pub mode: u32,
    /// Those of directories that are made on the way.
    pub directory_mode: u32,
    /// Its owner, and that of directories that are made on the way.
    pub uid: Option<u32>,
    /// Its group, and that of directories that are made on the way.
    pub gid: Option<u32>,
}

/// What there is to be at a path.
#[derive(Debug)]
pub enum Content {
    /// A directory; one that is there keeps what is in it.
    Directory,
    /// A symbolic link, in the place of whatever is there.
    Symlink {
        /// Where it leads.
        target: OsString,
    },
    /// A regular file, in the place of whatever is there once it is whole.
    Regular {
        /// The size of the whole file, in bytes.
        size: u64,
        /// Where this piece begins, in bytes.
        offset: u64,
        /// The piece, which ends within the size.
        data: Vec<u8>,
    },
}

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SharedFileError {
    /// Its path leads through a symbolic link.
    #[error("{} leads through a symbolic link", path.display())]
    Link {
        /// Its path, below the directory.
        path: PathBuf,
    },
    /// Something on the way failed.
    #[error("{call} {}", path.display())]
    Path {
        /// What was tried.
        call: &'static str,
        /// On what, below the directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The files below one directory.
#[derive(Debug)]
pub struct SharedFiles {
    directory: PathBuf,
    unfinished: Mutex<HashMap<PathBuf, Arc<Unfinished>>>,
}

/// A file of which pieces are missing. It has no name: when it is given up,
/// nothing is left of it.
#[derive(Debug)]
struct Unfinished {
    size: u64,
    pieces: Mutex<Pieces>,
}

/// What of it has come.
#[derive(Debug)]
struct Pieces {
    file: OwnedFd,
    received: Ranges,
    touched: Instant,
}

/// Bytes that are there: disjoint, in order, and not adjoining.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    fn insert(&mut self, start: u64, end: u64) {
        if start == end {
            return;
        }
        let (mut start, mut end) = (start, end);
        self.0.retain(|&(from, to)| {
            let apart = to < start || end < from;
            if !apart {
                start = start.min(from);
                end = end.max(to);
            }
            apart
        });
        let at = self.0.partition_point(|&(from, _)| from < start);
        self.0.insert(at, (start, end));
    }

    fn are_all_of(&self, size: u64) -> bool {
        size == 0 || self.0 == [(0, size)]
    }

    fn hold_the_first(&self) -> bool {
        self.0.first().is_some_and(|&(start, _)| start == 0)
    }
}

/// `path` relative to `directory`, if it is below it and in its normal form: no
/// `.`, no `..`, no empty name.
#[must_use]
pub fn relative(directory: &str, path: &str) -> Option<PathBuf> {
    let below = path.strip_prefix(directory)?.strip_prefix('/')?;
    let is_name = |name: &str| !matches!(name, "" | "." | "..") && !name.contains('\0');
    below.split('/').all(is_name).then(|| below.into())
}

impl SharedFiles {
    /// Those below `directory`, which is made when the first comes.
    #[must_use]
    pub fn below(directory: &Path) -> Self {
        Self {
            directory: directory.into(),
            unfinished: Mutex::default(),
        }
    }

    /// Puts a file in its place, or a piece of it aside until the others are
    /// there.
    ///
    /// # Errors
    /// [`SharedFileError::Link`], or what the kernel refuses.
    pub fn place(&self, file: &SharedFile) -> Result<(), SharedFileError> {
        let root = self.root()?;
        let tree = Tree { root: &root, file };
        let parent = tree.parent().map_err(failed(file))?;
        let placed = match &file.content {
            Content::Directory => tree.place_directory(&parent),
            Content::Symlink { target } => tree.place_symlink(&parent, target),
            Content::Regular { size, offset, data } => {
                self.take_piece(&tree, &parent, *size, *offset, data)
            }
        };
        placed.map_err(failed(file))
    }

    fn root(&self) -> Result<OwnedFd, SharedFileError> {
        let failed = |call| {
            move |source| SharedFileError::Path {
                call,
                path: self.directory.clone(),
                source,
            }
        };
        std::fs::create_dir_all(&self.directory).map_err(failed("mkdir"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(&self.directory, flags, Mode::empty())
            .map_err(io::Error::from)
            .map_err(failed("open"))
    }

    fn take_piece(
        &self,
        tree: &Tree<'_>,
        parent: &OwnedFd,
        size: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Failure> {
        let own = self.unfinished(tree, parent, size, offset)?;
        let mut pieces = own.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        write_all(&pieces.file, data, offset).map_err(at("write"))?;
        let end = offset.saturating_add(data.len() as u64);
        pieces.received.insert(offset, end);
        pieces.touched = Instant::now();
        if !pieces.received.are_all_of(size) {
            return Ok(());
        }
        // Whole, or broken for good: either way a next piece is a new file's.
        self.forget(&tree.file.path, &own);
        tree.set_owner_and_mode(&pieces.file)?;
        let aside = tree.aside();
        let nameless = format!("/proc/self/fd/{}", pieces.file.as_raw_fd());
        linkat(CWD, nameless, parent, &aside, AtFlags::SYMLINK_FOLLOW).map_err(at("link"))?;
        tree.move_into_place(parent, &aside)
    }

    /// Another that has begun meanwhile stays.
    fn forget(&self, path: &Path, one: &Arc<Unfinished>) {
        let mut all = self.lock();
        if all.get(path).is_some_and(|found| Arc::ptr_eq(found, one)) {
            all.remove(path);
        }
    }

    /// What there is of a file, or a new one. The first piece coming again
    /// begins it anew, as does another size.
    fn unfinished(
        &self,
        tree: &Tree<'_>,
        parent: &OwnedFd,
        size: u64,
        offset: u64,
    ) -> Result<Arc<Unfinished>, Failure> {
        let mut all = self.lock();
        if let Some(found) = all.get(&tree.file.path) {
            // One whose piece is being written goes on.
            let goes_on = match found.pieces.try_lock() {
                Ok(pieces) => !(offset == 0 && pieces.received.hold_the_first()),
                Err(TryLockError::WouldBlock) => true,
                Err(TryLockError::Poisoned(_)) => false,
            };
            if goes_on && found.size == size {
                return Ok(Arc::clone(found));
            }
        }
        if all.len() >= UNFINISHED_MAX {
            let touched =
                |one: &Unfinished| one.pieces.try_lock().ok().map(|pieces| pieces.touched);
            let idle = all
                .iter()
                .filter_map(|(path, one)| Some((touched(one)?, path.clone())));
            if let Some((_, path)) = idle.min() {
                all.remove(&path);
            }
        }
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(parent, ".", flags, Mode::RUSR | Mode::WUSR).map_err(at("open"))?;
        let pieces = Mutex::new(Pieces {
            file,
            received: Ranges::default(),
            touched: Instant::now(),
        });
        let new = Arc::new(Unfinished { size, pieces });
        all.insert(tree.file.path.clone(), Arc::clone(&new));
        Ok(new)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Arc<Unfinished>>> {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The call that failed, and why.
type Failure = (&'static str, Errno);

const RESOLVE: &str = "openat2";

fn failed(file: &SharedFile) -> impl FnOnce(Failure) -> SharedFileError {
    let path = file.path.clone();
    move |failure| match failure {
        (RESOLVE, Errno::LOOP) => SharedFileError::Link { path },
        (call, errno) => SharedFileError::Path {
            call,
            path,
            source: errno.into(),
        },
    }
}

fn at(call: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |errno| (call, errno)
}

fn write_all(file: &OwnedFd, data: &[u8], offset: u64) -> Result<(), Errno> {
    let (mut rest, mut offset) = (data, offset);
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| pwrite(file, rest, offset))?;
        rest = rest.get(written..).unwrap_or_default();
        offset = offset.saturating_add(written as u64);
    }
    Ok(())
}

/// A directory below another; that one itself if the path is empty.
fn open_directory(above: &OwnedFd, path: impl AsRef<Path>) -> Result<OwnedFd, Failure> {
    let path = match path.as_ref() {
        path if path.as_os_str().is_empty() => Path::new("."),
        path => path,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    for _ in 0..ATTEMPTS {
        match openat2(above, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            outcome => return outcome.map_err(at(RESOLVE)),
        }
    }
    Err((RESOLVE, Errno::AGAIN))
}

/// The directory, and the file that is to go into it.
struct Tree<'a> {
    root: &'a OwnedFd,
    file: &'a SharedFile,
}

impl Tree<'_> {
    fn name(&self) -> &OsStr {
        self.file.path.file_name().unwrap_or_default()
    }

    /// A name that nothing else has, beside the file's own.
    fn aside(&self) -> String {
        let mut random = [0; 8];
        // Fewer than 256 bytes are never returned short, random(7); a name that
        // is taken is refused by the kernel.
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        format!(".tardigrade-{:016x}", u64::from_ne_bytes(random))
    }

    /// The directory it goes into; what is missing above it is made.
    fn parent(&self) -> Result<OwnedFd, Failure> {
        let path = self.file.path.parent().unwrap_or(Path::new(""));
        match open_directory(self.root, path) {
            Err((_, Errno::NOENT)) => {}
            outcome => return outcome,
        }
        let mut above = open_directory(self.root, Path::new(""))?;
        for name in path {
            above = match open_directory(&above, name) {
                Err((_, Errno::NOENT)) => self.make_directory(&above, name)?,
                outcome => outcome?,
            };
        }
        Ok(above)
    }

    fn make_directory(&self, above: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Failure> {
        match mkdirat(above, name, Mode::RWXU) {
            Ok(()) => {}
            // Somebody else was quicker; whose it is, it stays.
            Err(Errno::EXIST) => return open_directory(above, name),
            Err(errno) => return Err(("mkdir", errno)),
        }
        let made = open_directory(above, name)?;
        self.give(&made, self.file.directory_mode & 0o777)?;
        Ok(made)
    }

    fn place_directory(&self, parent: &OwnedFd) -> Result<(), Failure> {
        let made = match mkdirat(parent, self.name(), Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => open_directory(parent, self.name()),
            Err(errno) => Err(("mkdir", errno)),
        };
        let directory = match made {
            // A file or a link: out of the way with it.
            Err((_, Errno::NOTDIR | Errno::LOOP)) => {
                unlinkat(parent, self.name(), AtFlags::empty()).map_err(at("unlink"))?;
                mkdirat(parent, self.name(), Mode::RWXU).map_err(at("mkdir"))?;
                open_directory(parent, self.name())?
            }
            outcome => outcome?,
        };
        self.set_owner_and_mode(&directory)
    }

    fn place_symlink(&self, parent: &OwnedFd, target: &OsStr) -> Result<(), Failure> {
        let aside = self.aside();
        symlinkat(target, parent, &aside).map_err(at("symlink"))?;
        let (uid, gid) = self.owner();
        let owned = chownat(parent, &aside, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        if let Err(errno) = owned {
            // The failure before is the one to tell.
            let _ = unlinkat(parent, &aside, AtFlags::empty());
            return Err(("chown", errno));
        }
        self.move_into_place(parent, &aside)
    }

    /// Has what is beside the file's name take it, at once. A directory that
    /// has the name is removed before, with all that is in it.
    fn move_into_place(&self, parent: &OwnedFd, aside: &str) -> Result<(), Failure> {
        let renamed = match renameat(parent, aside, parent, self.name()) {
            Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
                remove_directory_at(parent.as_fd(), Path::new(self.name()))
                    .map_err(at("remove the directory in place of"))
                    .and_then(|()| {
                        renameat(parent, aside, parent, self.name()).map_err(at("rename to"))
                    })
            }
            outcome => outcome.map_err(at("rename to")),
        };
        if renamed.is_err() {
            // The failure before is the one to tell.
            let _ = unlinkat(parent, aside, AtFlags::empty());
        }
        renamed
    }

    fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        let SharedFile { uid, gid, .. } = self.file;
        (uid.map(Uid::from_raw), gid.map(Gid::from_raw))
    }

    fn set_owner_and_mode(&self, file: &OwnedFd) -> Result<(), Failure> {
        self.give(file, self.file.mode & PERMISSIONS)
    }

    /// First the owner: to change it takes the set-user-id bits away.
    fn give(&self, file: &OwnedFd, mode: u32) -> Result<(), Failure> {
        let (uid, gid) = self.owner();
        fchown(file, uid, gid).map_err(at("chown"))?;
        fchmod(file, Mode::from_raw_mode(mode)).map_err(at("chmod"))
    }
}

#[cfg(test)]
mod tests;
