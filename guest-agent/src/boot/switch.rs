//! From the kernel's initramfs to the root that stays.

use super::mounts;
use super::root_disk::{RootDisk, RootError};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::mount::{MountFlags, mount, mount_move};
use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

const NEW_ROOT: &str = "/newroot";
/// The agent in an initrd, and on a tmpfs root.
const INITRD_AGENT: &str = "/init";
const AGENT: &str = "/sbin/guest-agent";
/// What the kernel's initramfs is, by linux/magic.h: of either kind.
const RAMFS_MAGIC: i64 = 0x8584_58f6;
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Why a root cannot be moved to.
#[derive(Debug, thiserror::Error)]
pub(super) enum SwitchError {
    #[error("{call} {path}")]
    Path {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Root(#[from] RootError),
}

/// Whether the root is what the kernel unpacked an initrd into.
pub(super) fn on_initramfs() -> Result<bool, SwitchError> {
    let stat =
        rustix::fs::statfs("/").map_err(|source| path_error("statfs", "/")(source.into()))?;
    Ok([RAMFS_MAGIC, TMPFS_MAGIC].contains(&stat.f_type))
}

/// Makes a tmpfs the root, with the agent and /etc in it; the agent's path.
pub(super) fn to_tmpfs() -> Result<PathBuf, SwitchError> {
    create_directory(NEW_ROOT)?;
    mount_tmpfs(NEW_ROOT, c"mode=755")?;
    for directory in ["sbin", "etc", "tmp", "root", "proc", "sys", "dev", "run"] {
        create_directory(&format!("{NEW_ROOT}/{directory}"))?;
    }
    copy(INITRD_AGENT, &format!("{NEW_ROOT}{AGENT}"))?;
    copy_tree(Path::new("/etc"), &Path::new(NEW_ROOT).join("etc"))?;
    enter_new_root()?;
    Ok(AGENT.into())
}

/// Makes a disk the root.
pub(super) fn to_disk(disk: &RootDisk) -> Result<(), SwitchError> {
    create_directory(NEW_ROOT)?;
    disk.mount(NEW_ROOT)?;
    enter_new_root()
}

/// Puts a tmpfs over the places of a root disk where the agent writes: /etc,
/// with what is in it, /tmp and /root. All else that it writes lies in /run.
pub(super) fn cover_read_only() -> Result<(), SwitchError> {
    mount_tmpfs("/tmp", c"mode=755")?;
    copy_tree(Path::new("/etc"), Path::new("/tmp"))?;
    move_mount("/tmp", "/etc")?;
    mount_tmpfs("/tmp", c"mode=1777")?;
    mount_tmpfs("/root", c"mode=700")
}

fn mount_tmpfs(path: &str, options: &CStr) -> Result<(), SwitchError> {
    mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(options))
        .map_err(|source| path_error("mount tmpfs on", path)(source.into()))
}

fn move_mount(from: &str, to: &str) -> Result<(), SwitchError> {
    mount_move(from, to).map_err(|source| path_error("move mount to", to)(source.into()))
}

/// Moves to what is mounted on [`NEW_ROOT`], and empties the initramfs, whose
/// memory would otherwise stay taken for ever.
fn enter_new_root() -> Result<(), SwitchError> {
    for path in mounts::early_paths() {
        move_mount(path, &format!("{NEW_ROOT}{path}"))?;
    }
    let old_root = rustix::fs::open("/", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
        .map_err(|source| path_error("open", "/")(source.into()))?;
    let device = rustix::fs::fstat(&old_root)
        .map_err(|source| path_error("stat", "/")(source.into()))?
        .st_dev;
    std::env::set_current_dir(NEW_ROOT).map_err(path_error("chdir", NEW_ROOT))?;
    empty_directory(&old_root, device);
    move_mount(".", "/")?;
    rustix::process::chroot(".").map_err(|source| path_error("chroot", ".")(source.into()))?;
    std::env::set_current_dir("/").map_err(path_error("chdir", "/"))
}

fn create_directory(path: &str) -> Result<(), SwitchError> {
    std::fs::create_dir_all(path).map_err(path_error("mkdir", path))
}

fn copy(from: &str, to: &str) -> Result<(), SwitchError> {
    std::fs::copy(from, to)
        .map(drop)
        .map_err(path_error("copy", from))
}

/// Copies regular files, directories and symbolic links; /etc of a guest image
/// holds no other.
fn copy_tree(from: &Path, to: &Path) -> Result<(), SwitchError> {
    std::fs::create_dir_all(to).map_err(path_error("mkdir", to))?;
    for entry in std::fs::read_dir(from).map_err(path_error("list", from))? {
        let entry = entry.map_err(path_error("list", from))?;
        let target = to.join(entry.file_name());
        let kind = entry
            .file_type()
            .map_err(path_error("stat", entry.path()))?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_file() {
            std::fs::copy(entry.path(), &target).map_err(path_error("copy", entry.path()))?;
        } else if kind.is_symlink() {
            std::fs::read_link(entry.path())
                .and_then(|to| std::os::unix::fs::symlink(to, &target))
                .map_err(path_error("copy", entry.path()))?;
        }
    }
    Ok(())
}

/// Removes what lies on `device` below `directory`. Best effort: what stays
/// behind costs memory and nothing else.
fn empty_directory(directory: impl AsFd, device: u64) {
    let Ok(entries) = Dir::read_from(&directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let Ok(child) = openat(&directory, name, flags, Mode::empty()) else {
                continue;
            };
            // A mount point belongs to the new root's world, not to this one.
            if rustix::fs::fstat(&child).map(|stat| stat.st_dev).ok() != Some(device) {
                continue;
            }
            empty_directory(&child, device);
        }
        let flags = match entry.file_type() {
            FileType::Directory => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        // Best effort, as said above.
        let _ = unlinkat(&directory, name, flags);
    }
}

fn path_error(
    call: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> SwitchError {
    let path = path.into();
    move |source| SwitchError::Path { call, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_lies_in_etc_is_copied_with_its_links_and_modes() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/file"), "x").unwrap();
        let mode = fs::Permissions::from_mode(0o440);
        fs::set_permissions(from.join("a/b/file"), mode).unwrap();
        std::os::unix::fs::symlink("../nowhere", from.join("a/link")).unwrap();
        copy_tree(&from, &to).unwrap();
        let copied = fs::metadata(to.join("a/b/file")).unwrap();
        assert_eq!(copied.permissions().mode() & 0o777, 0o440);
        let link = fs::read_link(to.join("a/link")).unwrap();
        assert_eq!(link, Path::new("../nowhere"));
    }
}
