//! The process's session, its terminal, and its three streams.

use crate::container::destination::{find_with, is_in_devpts};
use crate::container::error::{Failure, Step};
use crate::process::WindowSize;
use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Of a devpts there are as many as containers: this is the container's own.
const MULTIPLEXER: &str = "/dev/pts/ptmx";

/// The two ends of a terminal.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
}

/// Opens a terminal of the tree `root`.
pub(super) fn open(root: BorrowedFd<'_>, size: Option<WindowSize>) -> Result<Pair, Failure> {
    open_pair(root, size).map_err(Failure::at(Step::Terminal, MULTIPLEXER))
}

fn open_pair(root: BorrowedFd<'_>, size: Option<WindowSize>) -> io::Result<Pair> {
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = find_with(
        root,
        Path::new(MULTIPLEXER),
        flags,
        ResolveFlags::NO_SYMLINKS,
    )?;
    // It goes to the agent: it must be a terminal and nothing else.
    if !is_in_devpts(master.as_fd())? {
        return Err(Errno::NOTTY.into());
    }
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    if let Some(size) = size {
        size.apply(master.as_fd())?;
    }
    Ok(Pair { master, slave })
}

/// A session of its own, without a controlling terminal.
pub(super) fn new_session() -> Result<(), Failure> {
    setsid()
        .map(drop)
        .map_err(|error| Failure::at(Step::Stdio, "setsid")(error.into()))
}

/// Makes the terminal the session's, and all three streams.
pub(super) fn control(slave: &OwnedFd) -> Result<(), Failure> {
    ioctl_tiocsctty(slave).map_err(|error| Failure::at(Step::Stdio, "TIOCSCTTY")(error.into()))?;
    put(slave.as_fd(), slave.as_fd(), slave.as_fd())
}

/// Makes the descriptors of the order the three streams.
pub(super) fn use_streams(stdio: &[OwnedFd]) -> Result<(), Failure> {
    let [stdin, stdout, stderr] = stdio else {
        return Err(Failure::at(Step::Stdio, "")(Errno::BADF.into()));
    };
    put(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())
}

fn put(
    stdin: BorrowedFd<'_>,
    stdout: BorrowedFd<'_>,
    stderr: BorrowedFd<'_>,
) -> Result<(), Failure> {
    dup2_stdin(stdin)
        .and_then(|()| dup2_stdout(stdout))
        .and_then(|()| dup2_stderr(stderr))
        .map_err(|error| Failure::at(Step::Stdio, "dup2")(error.into()))
}
