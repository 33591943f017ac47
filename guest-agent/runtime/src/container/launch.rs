//! One launch, from the agent's side: a stage is spawned, clones, and is gone;
//! the clone sets itself up and says that it is ready.
//!
//! It blocks, up to its deadline, and runs on a thread of its own. Whatever
//! fails, neither process outlives it.

use super::STAGE_WORD;
use super::channel::Channel;
use super::error::{LaunchError, StartError};
use super::id_mapping;
use super::message::{Go, InitOrder, Report, StageOrder};
use super::program::Program;
use crate::process::{ChildStdio, Process, reap_now};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Uid, fchown, fstat};
use rustix::process::WaitIdOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// How long a killed child is waited for, in seconds. One that hangs in the
/// kernel for longer stays a zombie; nothing of it runs.
const REAP_SECONDS: i64 = 5;

/// What to launch.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) stage_order: StageOrder,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) init_order: InitOrder,
    pub(super) stdio: Option<ChildStdio>,
    /// The process's user, if its user namespace is not the agent's.
    pub(super) mapped_user: Option<u32>,
}

/// A clone that is ready. Dropping it kills and reaps it.
#[derive(Debug)]
pub(super) struct Newborn {
    clone: Unwatched,
    pub(super) channel: Channel,
    pub(super) master: Option<OwnedFd>,
    /// Whether it waits for hooks and is not ready before [`Newborn::proceed`].
    pub(super) is_waiting: bool,
}

impl Launch {
    pub(super) fn run(self, program: &Program, deadline: Instant) -> Result<Newborn, LaunchError> {
        let copy = program.sealed()?;
        let (ours, theirs) = UnixStream::pair().map_err(LaunchError::system("socketpair"))?;
        let mut channel = Channel::new(ours);
        channel.set_deadline(deadline);
        let stage = Command::new(copy.path())
            .arg0("guest-agent")
            .arg(STAGE_WORD)
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map(Stage)
            .map_err(LaunchError::system("execute the agent's copy"))?;
        let descriptors: Vec<_> = self.descriptors.iter().map(AsFd::as_fd).collect();
        channel.send(&self.stage_order, &descriptors)?;
        let clone = cloned(&mut channel)?;
        // It has nothing else to do.
        drop(stage);
        let stdio: Vec<BorrowedFd<'_>> = match &self.stdio {
            Some(stdio) => stdio.as_fds().to_vec(),
            None => Vec::new(),
        };
        if let Some(user) = self.mapped_user {
            give_streams(&stdio, user, clone.pid)
                .map_err(LaunchError::system("give the streams to the process"))?;
        }
        channel.send(&self.init_order, &stdio)?;
        let newborn = Newborn {
            clone,
            channel,
            master: None,
            is_waiting: false,
        };
        newborn.advance()
    }
}

/// Makes the streams of a process in a user namespace its user's, as it could
/// not itself: there they are nobody's.
fn give_streams(streams: &[BorrowedFd<'_>], user: u32, pid: i32) -> io::Result<()> {
    let mappings = std::fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    let mappings = id_mapping::parse(&mappings).unwrap_or_default();
    // One who stands for nobody is refused when the process is to become him.
    let Some(owner) = id_mapping::outside(&mappings, user) else {
        return Ok(());
    };
    for stream in streams {
        if FileType::from_raw_mode(fstat(stream)?.st_mode) == FileType::Fifo {
            fchown(stream, Some(Uid::from_raw(owner)), None)?;
        }
    }
    Ok(())
}

fn cloned(channel: &mut Channel) -> Result<Unwatched, LaunchError> {
    match channel.receive()? {
        Some((Report::Cloned { pid }, descriptors)) => {
            let pidfd = descriptors.into_iter().next();
            let pidfd = pidfd.ok_or(LaunchError::Protocol)?;
            let pidfd = Some(pidfd);
            Ok(Unwatched { pid, pidfd })
        }
        Some((Report::Failed(failure), _)) => Err(failure.into()),
        Some(_) => Err(LaunchError::Protocol),
        None => Err(LaunchError::Ended),
    }
}

/// Waits until the child has executed its program, which closes its end of the
/// channel, or says that it cannot. One that is killed before it says that it
/// will do it closes its end, too, and has executed nothing.
pub(super) fn executed(channel: &mut Channel, program: String) -> Result<(), StartError> {
    let mut next = channel.receive().map_err(LaunchError::from)?;
    let executing = matches!(next, Some((Report::Executing, _)));
    if executing {
        next = channel.receive().map_err(LaunchError::from)?;
    }
    match next {
        None if executing => Ok(()),
        None => Err(LaunchError::Ended.into()),
        Some((Report::ExecFailed { errno }, _)) => Err(StartError::Execute {
            program,
            source: io::Error::from_raw_os_error(errno),
        }),
        Some((Report::Failed(failure), _)) => Err(LaunchError::Child(failure).into()),
        Some(_) => Err(LaunchError::Protocol.into()),
    }
}

impl Newborn {
    /// Up to where it is ready, or waits for hooks.
    fn advance(mut self) -> Result<Self, LaunchError> {
        match self.channel.receive()? {
            Some((Report::Ready, descriptors)) => {
                self.master = descriptors.into_iter().next();
                self.is_waiting = false;
                Ok(self)
            }
            Some((Report::Mounted, _)) if !self.is_waiting => {
                self.is_waiting = true;
                Ok(self)
            }
            Some((Report::Failed(failure), _)) => Err(failure.into()),
            Some(_) => Err(LaunchError::Protocol),
            None => Err(LaunchError::Ended),
        }
    }

    /// Has it go on after its hooks, up to where it is ready.
    pub(super) fn proceed(mut self, deadline: Instant) -> Result<Self, LaunchError> {
        self.channel.set_deadline(deadline);
        self.channel.send(&Go, &[])?;
        self.advance()
    }

    /// Its process id in the agent's namespace.
    pub(super) fn pid(&self) -> i32 {
        self.clone.pid
    }

    /// Has it live, and be reaped when it ends. To be called in a tokio
    /// runtime.
    pub(super) fn into_process(mut self) -> io::Result<(Process, Channel)> {
        let pidfd = self.clone.pidfd()?.try_clone_to_owned()?;
        let process = Process::adopt(self.clone.pid, pidfd)?;
        self.clone.pidfd = None;
        Ok((process, self.channel))
    }
}

/// The stage, which is killed and reaped when it is done with.
#[derive(Debug)]
struct Stage(Child);

impl Drop for Stage {
    fn drop(&mut self) {
        // It may have ended by itself, and is then only reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A child of the agent's that nobody else knows of yet.
#[derive(Debug)]
struct Unwatched {
    pid: i32,
    /// None once it is another's to reap.
    pidfd: Option<OwnedFd>,
}

impl Unwatched {
    fn pidfd(&self) -> io::Result<BorrowedFd<'_>> {
        let pidfd = self.pidfd.as_ref().map(AsFd::as_fd);
        pidfd.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Drop for Unwatched {
    fn drop(&mut self) {
        let Some(pidfd) = &self.pidfd else { return };
        // It may have ended by itself, and is then only reaped.
        let _ = guest_kernel::signal::send(pidfd.as_fd(), nix::libc::SIGKILL);
        let mut watched = [PollFd::new(pidfd, PollFlags::IN)];
        let deadline = Timespec {
            tv_sec: REAP_SECONDS,
            tv_nsec: 0,
        };
        let _ = rustix::io::retry_on_intr(|| poll(&mut watched, Some(&deadline)));
        let _ = reap_now(pidfd.as_fd(), WaitIdOptions::NOHANG);
    }
}
