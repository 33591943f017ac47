//! A VMM's process: followed by a pidfd, so that no other process is ever
//! waited for or killed in its place, and its end is seen at once.

mod cgroup;
mod confinement;
mod directory;
mod filter;
mod identity;
mod landlock;
mod mount;
mod spawn;
mod tap;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::Error;
use crate::vm::{VmExit, VmRecord};

pub(crate) use cgroup::Cgroup;
pub use cgroup::starts_in_cgroups;
pub use confinement::{Confined, Confinement};
pub(crate) use confinement::{Needs, User, share_with};
pub(crate) use directory::Given;
pub(crate) use filter::Filter;
pub(crate) use identity::Identity;
pub(crate) use landlock::landlock_version;
pub(crate) use spawn::{Keeps, Launch, spawn, watch};
pub(crate) use tap::open_taps;
pub use tap::{create_passing_tap, create_tap, open_tap};

/// How long a killed process may take to vanish: it only has to unmap its RAM.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// By when a process that is killed now has to be gone.
pub(crate) fn kill_deadline() -> Instant {
    Instant::now() + KILL_DEADLINE
}

/// A process we hold a pidfd of. A child is leashed: dropped, it is killed, as
/// long as it was not released. So nothing is left of a cancelled verb.
#[derive(Debug)]
pub(crate) struct Process {
    identity: Identity,
    descriptor: AsyncFd<OwnedFd>,
    leashed: bool,
    exit: Mutex<Option<VmExit>>,
}

impl Process {
    /// Follows a child that was just spawned and not waited for.
    pub(crate) fn child(pid: Pid) -> Result<Self, Error> {
        let followed = pidfd_open(pid, PidfdFlags::empty()).map_err(Error::process("pidfd_open"));
        let followed =
            followed.and_then(|descriptor| Self::new(Identity::of(pid)?, descriptor, true));
        if followed.is_err() {
            // Nobody else knows it: it is still our unreaped child, so its pid
            // can't be another's.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
        }
        followed
    }

    /// Follows the VMM of a record.
    pub(crate) fn of_record(record: &VmRecord) -> Result<Self, Error> {
        Self::found(&Identity {
            pid: record.pid,
            start_time: record.start_time,
            boot_id: record.boot_id.clone(),
        })
    }

    /// Follows this very process, and no other that might have its number by now.
    pub(crate) fn found(wanted: &Identity) -> Result<Self, Error> {
        let gone = |difference| Error::Identity {
            pid: wanted.pid,
            difference,
        };
        let pid = Pid::from_raw(wanted.pid).ok_or_else(|| gone("no process number"))?;
        // The pidfd first: what is read of /proc after it and is equal belongs
        // to the process of the pidfd, or that is dead, which the pidfd tells.
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Err(gone("there is no such process")),
            result => result.map_err(Error::process("pidfd_open"))?,
        };
        let found = Identity::of(pid)?;
        if let Some(difference) = wanted.difference(&found) {
            return Err(gone(difference));
        }
        let process = Self::new(found, descriptor, false)?;
        if process.is_over()? {
            return Err(gone("it has ended"));
        }
        Ok(process)
    }

    fn new(identity: Identity, descriptor: OwnedFd, leashed: bool) -> Result<Self, Error> {
        let descriptor = watch(descriptor).map_err(|source| Error::Process {
            call: "epoll_ctl pidfd",
            source,
        })?;
        Ok(Self {
            identity,
            descriptor,
            leashed,
            exit: Mutex::new(None),
        })
    }

    /// Lets it outlive us.
    pub(crate) fn release(&mut self) {
        self.leashed = false;
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Waits for the end, and reaps. Can be asked by many, and again.
    pub(crate) async fn exited(&self) -> Result<VmExit, Error> {
        // A pidfd is readable from the process's end on and for ever
        // (pidfd_open(2)): readiness is never cleared, every waiter sees it.
        let ready = self.descriptor.readable().await;
        let mut ready = ready.map_err(|source| Error::Process {
            call: "epoll_wait pidfd",
            source,
        })?;
        ready.retain_ready();
        self.reap()
    }

    /// Its end, if that comes within the deadline of its having been asked for;
    /// `asked` gives none where nothing was.
    pub(crate) async fn ended_within(
        &self,
        deadline: Duration,
        asked: impl Future<Output = Option<()>>,
    ) -> Option<VmExit> {
        let ended = async {
            asked.await?;
            self.exited().await.ok()
        };
        timeout(deadline, ended).await.ok().flatten()
    }

    /// Kills and reaps; one that is gone already is no error.
    pub(crate) async fn kill(&self) -> Result<VmExit, Error> {
        self.send_kill()?;
        self.gone_by(kill_deadline()).await
    }

    /// Waits for the end of a process that was sent the signal, and reaps.
    pub(crate) async fn gone_by(&self, deadline: Instant) -> Result<VmExit, Error> {
        let waited = timeout_at(deadline, self.exited()).await;
        waited.map_err(|_| Error::Deadline {
            waiting_for: "exit of a killed vmm",
            deadline: KILL_DEADLINE,
        })?
    }

    /// Sends the signal; one that is gone already is no error.
    pub(crate) fn send_kill(&self) -> Result<(), Error> {
        match pidfd_send_signal(self.descriptor.get_ref(), Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(Error::process("pidfd_send_signal")(errno)),
        }
    }

    fn is_over(&self) -> Result<bool, Error> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut descriptors = [PollFd::new(self.descriptor.get_ref(), PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let ready = poll(&mut descriptors, Some(&at_once)).map_err(Error::process("poll pidfd"))?;
        Ok(ready > 0)
    }

    fn reap(&self) -> Result<VmExit, Error> {
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(exit) = *exit {
            return Ok(exit);
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let found = match waitid(WaitId::PidFd(self.descriptor.get_ref().as_fd()), options) {
            Ok(Some(status)) => from_status(&status),
            // Not our child.
            Ok(None) | Err(Errno::CHILD) => VmExit::Unknown,
            Err(errno) => return Err(Error::process("waitid")(errno)),
        };
        *exit = Some(found);
        Ok(found)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.leashed && self.send_kill().is_ok() {
            // Blocks for as long as the kernel takes to unmap its memory.
            let _ = waitid(
                WaitId::PidFd(self.descriptor.get_ref().as_fd()),
                WaitIdOptions::EXITED,
            );
        }
    }
}

fn from_status(status: &WaitIdStatus) -> VmExit {
    let signal = status.terminating_signal().map(VmExit::Signalled);
    let code = || status.exit_status().map(VmExit::Exited);
    signal.or_else(code).unwrap_or(VmExit::Unknown)
}
