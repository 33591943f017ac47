//! Files of the guest that a request names: opened without being led astray,
//! and read no further than asked for.
//!
//! All of it blocks and belongs on a thread of its own.

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, StatVfs, fstat, fstatvfs, openat2};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The first `limit` bytes of a regular file, found without following any
/// symbolic link; none if there is no such file.
///
/// # Errors
/// Those of openat2(2): `ELOOP` for a symbolic link; `EINVAL` for what is no
/// regular file.
pub fn read_head(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    // A FIFO is not waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(CWD, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT) => return Ok(None),
        file => file?,
    };
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL.into());
    }
    let mut head = Vec::new();
    File::from(file).take(limit).read_to_end(&mut head)?;
    Ok(Some(head))
}

/// How much of something there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// All of it.
    pub total: u64,
    /// What is used.
    pub used: u64,
    /// What whoever is not root can still have.
    pub available: u64,
}

/// The room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// In bytes.
    pub bytes: Usage,
    /// In inodes.
    pub inodes: Usage,
}

impl From<StatVfs> for Room {
    fn from(stat: StatVfs) -> Self {
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Self {
            bytes: Usage {
                total: bytes(stat.f_blocks),
                used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
                available: bytes(stat.f_bavail),
            },
            inodes: Usage {
                total: stat.f_files,
                used: stat.f_files.saturating_sub(stat.f_ffree),
                available: stat.f_favail,
            },
        }
    }
}

/// The room on the file system that `path` is on.
///
/// # Errors
/// Those of openat2(2) and fstatvfs(3).
pub fn room(path: &Path) -> io::Result<Room> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    Ok(fstatvfs(&file)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_more_than_the_head_of_a_regular_file_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        // 8 GiB, of which nothing is stored.
        File::create(path("large"))
            .unwrap()
            .set_len(8 << 30)
            .unwrap();
        let head = read_head(&path("large"), 4096).unwrap().unwrap();
        assert_eq!(head, [0; 4096]);
        assert_eq!(read_head(&path("missing"), 10).unwrap(), None);
        symlink("large", path("link")).unwrap();
        assert!(read_head(&path("link"), 10).is_err());
        symlink(directory.path(), path("up")).unwrap();
        assert!(read_head(&path("up").join("large"), 10).is_err());
        assert!(read_head(directory.path(), 10).is_err());
        let fifo = path("fifo");
        let made = rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0);
        made.unwrap();
        assert!(read_head(&fifo, 10).is_err());
    }

    #[test]
    fn what_is_used_and_what_is_free_are_all_there_is() {
        let room = room(Path::new("/proc/..")).unwrap();
        let bytes = room.bytes;
        assert!(bytes.total > 0 && bytes.used + bytes.available <= bytes.total);
        assert!(super::room(Path::new("/no/such/place")).is_err());
    }
}
