//! Directories made on the way to a mount point, and taken away again.

use super::{StorageError, failed};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Makes `path` and what is missing above it, and adds what was made to
/// `made`, outermost first.
pub(super) fn make(path: &Path, mode: u32, made: &mut Vec<PathBuf>) -> Result<(), StorageError> {
    let mut missing: Vec<&Path> = path
        .ancestors()
        .take_while(|ancestor| !ancestor.exists())
        .collect();
    missing.reverse();
    for directory in missing {
        match fs::DirBuilder::new().mode(mode).create(directory) {
            Ok(()) => made.push(directory.into()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("mkdir", directory)(errno(&error))),
        }
    }
    Ok(())
}

/// Removes directories, the innermost first. One that something was put into
/// is another's by now.
pub(super) fn remove_empty(made: &[PathBuf]) {
    for directory in made.iter().rev() {
        let _ = fs::remove_dir(directory);
    }
}

/// The type of the file system that is mounted on exactly `path`, if one is.
pub(super) fn mounted_on(path: &Path) -> Result<Option<String>, StorageError> {
    // The last one covers those before.
    let found = table()?
        .lines()
        .filter_map(parse)
        .rfind(|(point, _)| point == path);
    Ok(found.map(|(_, fstype)| fstype))
}

/// The mount points below `path`.
pub(super) fn mounts_below(path: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let points = table()?;
    let points = points.lines().filter_map(parse).map(|(point, _)| point);
    Ok(points
        .filter(|point| point != path && point.starts_with(path))
        .collect())
}

fn table() -> Result<String, StorageError> {
    let table = "/proc/thread-self/mountinfo";
    let mounts = fs::read(table).map_err(|error| failed("read", table)(errno(&error)))?;
    Ok(String::from_utf8_lossy(&mounts).into_owned())
}

/// Mount point and type of a line of mountinfo, proc(5).
fn parse(line: &str) -> Option<(PathBuf, String)> {
    let (head, tail) = line.split_once(" - ")?;
    let point = head.split(' ').nth(4)?;
    let fstype = tail.split(' ').next()?;
    Some((unescape(point), fstype.to_owned()))
}

/// The four characters the kernel writes in octal, as it writes them.
fn unescape(text: &str) -> PathBuf {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
        .into()
}

pub(super) fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_exact_place() {
        let line = "36 35 98:0 / /run/a\\040b rw,noatime master:1 shared:2 - tmpfs src rw";
        let expected = (PathBuf::from("/run/a b"), "tmpfs".to_owned());
        assert_eq!(parse(line), Some(expected));
        assert_eq!(
            mounted_on(Path::new("/proc")).unwrap().as_deref(),
            Some("proc")
        );
        assert_eq!(mounted_on(Path::new("/proc/self")).unwrap(), None);
    }
}
