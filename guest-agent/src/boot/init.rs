//! PID 1: mounts and reaps, and runs no agent logic.
//!
//! The kernel starts it from the initramfs or from a root disk. It mounts
//! /proc, /sys and /dev and loads the modules the image lists. From the
//! initramfs it then moves to a root and executes again what is there:
//! `pivot_root(2)` refuses to leave the kernel's own rootfs, and containers
//! shall have a real `pivot_root`. That root is the disk that the command line
//! names, with an init of its own (which is, of our images, this program once
//! more); else a tmpfs with the agent in it. On the final root it mounts the
//! rest, starts the agent as its child and reaps every orphan. If the agent
//! ends, for whatever reason, the machine is powered off.

use super::configuration::ends_by_reset;
use super::mounts::{self, MountError};
use super::root_disk::{RootDisk, RootError};
use super::switch::{self, SwitchError};
use crate::service::error::with_causes;
use rustix::process::{Pid, Resource, Rlimit, WaitOptions, setrlimit, wait};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

/// What PID 1 calls itself once it stands on a tmpfs root. It is a first
/// argument, not a later one: those are words of the command line, whatever they
/// say, and the first one is the path of what the kernel executed.
const ON_TMPFS: &str = "tardigrade-init";
/// The modules to load, one path a line, in load order; written by
/// rootfs-builder.
const MODULE_LIST: &str = "/etc/tardigrade/modules";
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
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Switch(#[from] SwitchError),
    #[error("execute {path}")]
    Execute { path: PathBuf, source: io::Error },
    #[error("setrlimit RLIMIT_NOFILE")]
    Limit(#[source] io::Error),
    #[error("wait for children")]
    Wait(#[source] io::Error),
}

/// Runs as PID 1; returns only to have the kernel panic, which is the last
/// resort when even powering off fails.
pub(crate) fn run(name: Option<OsString>) -> ExitCode {
    let prepared = if name.as_deref() == Some(OsStr::new(ON_TMPFS)) {
        Ok(())
    } else {
        prepare_root()
    };
    match prepared.and_then(|()| supervise_agent()) {
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

/// Mounts, modules, and a root to stay on. Returns on that root, unless it has
/// an init to be executed.
fn prepare_root() -> Result<(), InitError> {
    mounts::mount_early()?;
    load_modules()?;
    if !switch::on_initramfs()? {
        return Ok(switch::cover_read_only()?);
    }
    let line = fs::read_to_string("/proc/cmdline").map_err(path_error("read", "/proc/cmdline"))?;
    match RootDisk::from_command_line(&line)? {
        None => {
            let agent = switch::to_tmpfs()?;
            Err(execute(Command::new(&agent).arg0(ON_TMPFS), agent))
        }
        Some(disk) => {
            switch::to_disk(&disk)?;
            let error = execute(&mut Command::new(&disk.init), disk.init.clone());
            // A program that cannot be read may be one that was tampered with.
            Err(disk.blame().map_or(error, InitError::Root))
        }
    }
}

fn execute(command: &mut Command, path: PathBuf) -> InitError {
    let source = command.env_clear().exec();
    InitError::Execute { path, source }
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
    // The program itself, wherever it lies.
    let path = std::env::current_exe().map_err(path_error("readlink", "/proc/self/exe"))?;
    let agent = Command::new(&path)
        .arg(super::serve::AGENT_WORD)
        .env_clear()
        .spawn()
        .map_err(|source| InitError::Execute { path, source })?;
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
