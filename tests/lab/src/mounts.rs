//! The view of this machine's root that the nested host gets: everything that
//! is mounted, read-only.
//!
//! It is made in a mount namespace of the file system daemon's own, so that it
//! ends with the daemon and nobody else ever sees it.

use crate::error::{At, LabError};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_bind_recursive, mount_remount};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

const MOUNTS: &str = "/proc/self/mountinfo";
/// The flags of a single mount, by their names in mountinfo. A user who is root
/// only in a user namespace may not drop them: mount_namespaces(7).
const FLAGS: [(&[u8], MountFlags); 5] = [
    (b"nosuid", MountFlags::NOSUID),
    (b"nodev", MountFlags::NODEV),
    (b"noexec", MountFlags::NOEXEC),
    (b"noatime", MountFlags::NOATIME),
    (b"nodiratime", MountFlags::NODIRATIME),
];

/// A line of mountinfo: proc_pid_mountinfo(5).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    flags: MountFlags,
}

/// Binds / and all that is mounted below it to `directory` and makes every
/// mount of the copy read-only.
///
/// # Errors
/// When there is no mount namespace of our own to do it in, or the kernel
/// refuses.
pub(crate) fn bind_root(directory: &Path) -> Result<(), LabError> {
    let failed = |action, path: &Path| {
        let path = path.into();
        move |source| LabError::Mount {
            action,
            path,
            source,
        }
    };
    mount_bind_recursive("/", directory).map_err(failed("bind / to", directory))?;
    let table = std::fs::read(MOUNTS).at("read", MOUNTS)?;
    for (point, flags) in points(&table, directory) {
        let flags = flags | MountFlags::BIND | MountFlags::RDONLY;
        match mount_remount(&point, flags, "") {
            Ok(()) => {}
            // Hidden below a later mount, gone, or in a directory this user may
            // not enter: the nested host cannot reach it either.
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => {}
            Err(error) => return Err(failed("make read-only", &point)(error)),
        }
    }
    Ok(())
}

/// The mount points in `directory`, each with the flags of all that is mounted
/// there: where one mount covers another, a path leads to the upper one, whose
/// flags may not be dropped for the lower one's.
fn points(table: &[u8], directory: &Path) -> BTreeMap<PathBuf, MountFlags> {
    let mut points = BTreeMap::new();
    for mount in table.split(|&byte| byte == b'\n').filter_map(parse) {
        if mount.point.starts_with(directory) {
            *points.entry(mount.point).or_insert(MountFlags::empty()) |= mount.flags;
        }
    }
    points
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ').skip(4);
    let point = fields.next()?;
    let options = fields.next()?;
    let flags = options
        .split(|&byte| byte == b',')
        .filter_map(|option| FLAGS.iter().find(|(name, _)| *name == option))
        .fold(MountFlags::empty(), |flags, (_, flag)| flags | *flag);
    Some(Mount {
        point: OsString::from_vec(unescape(point)).into(),
        flags,
    })
}

/// Space, tab, line feed and backslash are written as three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                plain.push(code);
                rest = &after[3..];
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    plain
}

/// How mountinfo writes a path; for tests.
#[cfg(test)]
fn escape(path: &Path) -> Vec<u8> {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
        .iter()
        .flat_map(|&byte| match byte {
            b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
            _ => vec![byte],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mount_has_a_point_and_flags() {
        let line = b"36 35 98:0 /mnt1 /mnt\\0402 rw,nosuid,noatime master:1 - ext3 /dev/root rw";
        let mount = parse(line).unwrap();
        assert_eq!(mount.point, Path::new("/mnt 2"));
        assert_eq!(mount.flags, MountFlags::NOSUID | MountFlags::NOATIME);
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 98:0 / /mnt"), None);
    }

    #[test]
    fn a_mount_over_another_keeps_its_flags() {
        let table = b"1 0 0:1 / /v rw - ext4 / rw\n\
            2 1 0:2 / /v/misc rw,relatime - autofs misc rw\n\
            3 2 0:3 / /v/misc rw,nosuid,noexec - binfmt_misc misc rw\n\
            4 1 0:4 / /view rw,nodev - tmpfs tmpfs rw\n";
        let found: Vec<_> = points(table, Path::new("/v")).into_iter().collect();
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        let root = (PathBuf::from("/v"), MountFlags::empty());
        assert_eq!(found, [root, ("/v/misc".into(), flags)]);
    }

    proptest! {
        #[test]
        fn any_path_survives_the_table(bytes in proptest::collection::vec(1_u8.., 1..40)) {
            let path = PathBuf::from(OsString::from_vec(bytes.clone()));
            prop_assert_eq!(unescape(&escape(&path)), bytes);
        }

        #[test]
        fn no_line_is_too_odd(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&line);
        }
    }
}
