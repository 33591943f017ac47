//! PID 1: mounts and reaps, and runs no agent logic.
//!
//! The kernel starts it from the initramfs. It mounts /proc, /sys and /dev,
//! loads the modules the image lists, moves to a tmpfs root and executes
//! itself again from there: `pivot_root(2)` refuses to leave the kernel's own
//! rootfs, and containers shall have a real `pivot_root`. The second time it
//! mounts the rest, starts the agent as its child and reaps every orphan. If
//! the agent ends, for whatever reason, the machine is powered off.

use super::configuration::ends_by_reset;
use super::mounts::{self, MountError};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{Pid, Resource, Rlimit, WaitOptions, setrlimit, wait};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

/// What PID 1 executes itself as, once it stands on the final root.
const SECOND_STAGE: &str = "init";
/// The agent on the final root.
const AGENT: &str = "/sbin/guest-agent";
/// The modules to load, one path a line, in load order; written by
/// rootfs-builder.
const MODULE_LIST: &str = "/etc/tardigrade/modules";
const NEW_ROOT: &str = "/newroot";
/// How long dirty data may take to be written before the power goes off.
const SYNC_DEADLINE: Duration = Duration::from_secs(10);
/// Open files a process may have, until it asks for more and up to which it
/// may: what distributions give their services (the kernel gives 4096).
const OPEN_FILES_SOFT: u64 = 1024;
const OPEN_FILES_HARD: u64 = 1 << 20;

/// Why PID 1 gave up.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("{call} {path}")]
    Path {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("load module {path}")]
    Module { path: PathBuf, source: io::Error },
    #[error("execute {AGENT}")]
    Execute(#[source] io::Error),
    #[error("setrlimit RLIMIT_NOFILE")]
    Limit(#[source] io::Error),
    #[error("wait for children")]
    Wait(#[source] io::Error),
}

/// Runs as PID 1; returns only to have the kernel panic, which is the last
/// resort when even powering off fails.
pub(crate) fn run(stage: Option<&OsStr>) -> ExitCode {
    let outcome = if stage == Some(OsStr::new(SECOND_STAGE)) {
        supervise_agent()
    } else {
        prepare_root().map(|never| match never {})
    };
    match outcome {
        Ok(status) if status.success() => console("the agent has ended, powering off"),
        Ok(status) => console(&format!("the agent died ({status}), powering off")),
        Err(error) => console(&format!("init: {}", with_causes(&error))),
    }
    sync();
    if let Err(error) = end_machine() {
        console(&format!("reboot: {error}"));
    }
    ExitCode::FAILURE
}

/// Off; or by a reset, where the command line says that there is no power to
/// turn off. Without /proc nobody has said so.
fn end_machine() -> io::Result<()> {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if ends_by_reset(&line) {
        guest_kernel::reboot::reset()
    } else {
        guest_kernel::reboot::power_off()
    }
}

/// On the initramfs: mounts, modules, a new root, and the exec of the second
/// stage there.
fn prepare_root() -> Result<std::convert::Infallible, InitError> {
    mounts::mount_early()?;
    load_modules()?;
    switch_root()?;
    Err(InitError::Execute(
        Command::new(AGENT).arg(SECOND_STAGE).env_clear().exec(),
    ))
}

fn load_modules() -> Result<(), InitError> {
    let list = match std::fs::read_to_string(MODULE_LIST) {
        Ok(list) => list,
        // A kernel with everything built in comes with no list.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(path_error("read", MODULE_LIST)(source)),
    };
    for path in list.lines().filter(|line| !line.is_empty()) {
        let file = std::fs::File::open(path).map_err(path_error("open", path))?;
        match guest_kernel::module::load(file.as_fd()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                return Err(InitError::Module {
                    path: path.into(),
                    source,
                });
            }
        }
    }
    Ok(())
}

/// Makes a tmpfs the root, with the agent and /etc in it, and empties the
/// initramfs, whose memory would otherwise stay taken for ever.
fn switch_root() -> Result<(), InitError> {
    create_directory(NEW_ROOT)?;
    mount(
        "tmpfs",
        NEW_ROOT,
        "tmpfs",
        MountFlags::empty(),
        Some(c"mode=755"),
    )
    .map_err(|source| path_error("mount tmpfs on", NEW_ROOT)(source.into()))?;
    for directory in ["sbin", "etc", "tmp", "root", "proc", "sys", "dev", "run"] {
        create_directory(&format!("{NEW_ROOT}/{directory}"))?;
    }
    copy("/init", &format!("{NEW_ROOT}{AGENT}"))?;
    copy_tree(Path::new("/etc"), &Path::new(NEW_ROOT).join("etc"))?;
    for path in mounts::early_paths() {
        let target = format!("{NEW_ROOT}{path}");
        mount_move(path, &target)
            .map_err(|source| path_error("move mount to", &target)(source.into()))?;
    }
    let old_root = rustix::fs::open("/", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
        .map_err(|source| path_error("open", "/")(source.into()))?;
    let device = rustix::fs::fstat(&old_root)
        .map_err(|source| path_error("stat", "/")(source.into()))?
        .st_dev;
    std::env::set_current_dir(NEW_ROOT).map_err(path_error("chdir", NEW_ROOT))?;
    empty_directory(&old_root, device);
    mount_move(".", "/").map_err(|source| path_error("move mount to", "/")(source.into()))?;
    rustix::process::chroot(".").map_err(|source| path_error("chroot", ".")(source.into()))?;
    std::env::set_current_dir("/").map_err(path_error("chdir", "/"))
}

fn create_directory(path: &str) -> Result<(), InitError> {
    std::fs::create_dir_all(path).map_err(path_error("mkdir", path))
}

fn copy(from: &str, to: &str) -> Result<(), InitError> {
    std::fs::copy(from, to)
        .map(drop)
        .map_err(path_error("copy", from))
}

/// Copies regular files and directories; /etc of a guest image holds no other.
fn copy_tree(from: &Path, to: &Path) -> Result<(), InitError> {
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

/// On the final root: the remaining mounts, the agent, and reaping until the
/// agent ends.
fn supervise_agent() -> Result<ExitStatus, InitError> {
    mounts::mount_late()?;
    // The terminals of the guest itself; a container has its own devpts.
    let _ = std::fs::remove_file("/dev/ptmx");
    std::os::unix::fs::symlink("pts/ptmx", "/dev/ptmx")
        .map_err(path_error("symlink", "/dev/ptmx"))?;
    let files = Rlimit {
        current: Some(OPEN_FILES_SOFT),
        maximum: Some(OPEN_FILES_HARD),
    };
    setrlimit(Resource::Nofile, files).map_err(|source| InitError::Limit(source.into()))?;
    let agent = Command::new(AGENT)
        .arg(super::serve::AGENT_WORD)
        .env_clear()
        .spawn()
        .map_err(InitError::Execute)?;
    let agent = Pid::from_child(&agent);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == agent => {
                return Ok(ExitStatus::from_raw(status.as_raw()));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(source) => return Err(InitError::Wait(source.into())),
        }
    }
}

fn path_error(call: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> InitError {
    let path = path.into();
    move |source| InitError::Path { call, path, source }
}

/// sync(2), in a thread that is not waited for longer than a file system
/// deserves: a dead one does not keep the machine on.
fn sync() {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        rustix::fs::sync();
        done.send(()).ok();
    });
    if wait.recv_timeout(SYNC_DEADLINE).is_err() {
        console("sync takes too long, powering off without it");
    }
}

/// One line to the console; PID 1 has no other way to speak, and nobody to
/// tell when it cannot.
fn console(line: &str) {
    let _ = writeln!(io::stderr(), "tardigrade: {line}");
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
