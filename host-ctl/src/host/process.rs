//! Which process is meant, beyond its reusable number.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::call::{CallFailed, failed};

/// Index of `starttime`, field 22 of proc_pid_stat(5), after the command name.
const START_TIME: usize = 19;

/// Why a process could not be identified or ended.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// A file of /proc could not be read.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// /proc/PID/stat is not as proc_pid_stat(5) says.
    #[error("parse /proc/{0}/stat")]
    Stat(i32),
    /// No such process, or another one that has its number now.
    #[error("process {0} is gone")]
    Gone(i32),
    /// The kernel refused a handle or a signal.
    #[error("{call} {pid}")]
    Signal {
        /// The call.
        call: &'static str,
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// Killed, but not dead within the deadline (an uninterruptible wait).
    #[error("process {pid} still there {waited:?} after SIGKILL")]
    Lingers {
        /// The process.
        pid: i32,
        /// How long was waited.
        waited: Duration,
    },
}

/// One process and no other: a number is reused, the same number with the same
/// start time in the same boot of the host is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5), field 22).
    pub start_time: u64,
    /// Which boot, from /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
}

impl ProcessIdentity {
    /// The identity of a process that runs now.
    ///
    /// # Errors
    /// [`ProcessError::Gone`] when there is none, or it is dead already.
    pub fn capture(pid: i32) -> Result<ProcessIdentity, ProcessError> {
        Ok(ProcessIdentity {
            pid,
            start_time: live_start_time(pid)?,
            boot_id: boot_id()?,
        })
    }

    /// The identity of the calling process.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn current() -> Result<ProcessIdentity, ProcessError> {
        ProcessIdentity::capture(getpid().as_raw_nonzero().get())
    }

    /// Whether this very process still runs. A zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        ProcessIdentity::capture(self.pid).is_ok_and(|found| found == *self)
    }

    /// A pidfd of this very process: checked after it was opened, so that it
    /// can never name another.
    ///
    /// # Errors
    /// [`ProcessError::Gone`] when it is dead.
    pub fn open(&self) -> Result<OwnedFd, ProcessError> {
        let pid = Pid::from_raw(self.pid).ok_or(ProcessError::Gone(self.pid))?;
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(Errno::SRCH) => return Err(ProcessError::Gone(self.pid)),
            Err(source) => return Err(self.refused("pidfd_open", source)),
        };
        if self.is_alive() {
            Ok(descriptor)
        } else {
            Err(ProcessError::Gone(self.pid))
        }
    }

    /// Kills this very process and waits until it is dead. Says whether there
    /// was anything to kill.
    ///
    /// # Errors
    /// When the kernel refuses the signal, or the process outlives the deadline.
    pub fn kill(&self, deadline: Duration) -> Result<bool, ProcessError> {
        let signalled = self.send_kill()?;
        self.gone_by(signalled, Instant::now() + deadline, deadline)
    }

    /// Gives none where there is nothing to kill.
    fn send_kill(&self) -> Result<Option<OwnedFd>, ProcessError> {
        let descriptor = match self.open() {
            Ok(descriptor) => descriptor,
            Err(ProcessError::Gone(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        match pidfd_send_signal(&descriptor, Signal::KILL) {
            Ok(()) => Ok(Some(descriptor)),
            Err(Errno::SRCH) => Ok(None),
            Err(source) => Err(self.refused("pidfd_send_signal", source)),
        }
    }

    fn gone_by(
        &self,
        signalled: Option<OwnedFd>,
        end: Instant,
        waited: Duration,
    ) -> Result<bool, ProcessError> {
        let Some(descriptor) = signalled else {
            return Ok(false);
        };
        let left = end.saturating_duration_since(Instant::now());
        let is_gone = wait_readable(&descriptor, left);
        if is_gone.map_err(|source| self.refused("poll", source))? {
            Ok(true)
        } else {
            let pid = self.pid;
            Err(ProcessError::Lingers { pid, waited })
        }
    }

    fn refused(&self, call: &'static str, source: Errno) -> ProcessError {
        ProcessError::Signal {
            call,
            pid: self.pid,
            source,
        }
    }
}

/// Kills these very processes, and waits until they are dead: all are signalled
/// before any is waited for, and one that cannot be killed keeps none of the
/// others. Says of each, in their order, whether there was anything to kill.
pub fn kill_all(
    processes: &[ProcessIdentity],
    deadline: Duration,
) -> Vec<Result<bool, ProcessError>> {
    let signalled: Vec<_> = processes.iter().map(ProcessIdentity::send_kill).collect();
    let end = Instant::now() + deadline;
    let each = processes.iter().zip(signalled);
    each.map(|(process, signalled)| process.gone_by(signalled?, end, deadline))
        .collect()
}

/// A pidfd is readable once its process is dead (pidfd_open(2)).
fn wait_readable(descriptor: &OwnedFd, deadline: Duration) -> Result<bool, Errno> {
    let end = Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        let borrowed = descriptor.as_fd();
        match poll(&mut [PollFd::new(&borrowed, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn live_start_time(pid: i32) -> Result<u64, ProcessError> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let stat = match fs::read_to_string(&path) {
        Ok(stat) => stat,
        // ESRCH: it died between open(2) and read(2).
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) =>
        {
            return Err(ProcessError::Gone(pid));
        }
        Err(error) => return Err(failed("read", &path)(error).into()),
    };
    let (dead, start_time) = parse_stat(&stat).ok_or(ProcessError::Stat(pid))?;
    if dead {
        Err(ProcessError::Gone(pid))
    } else {
        Ok(start_time)
    }
}

/// Whether the process is dead, and its start time. The command name, which
/// the process chooses, may hold blanks and parentheses.
fn parse_stat(stat: &str) -> Option<(bool, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let dead = matches!(*fields.first()?, "Z" | "X" | "x");
    Some((dead, fields.get(START_TIME)?.parse().ok()?))
}

pub(super) fn boot_id() -> Result<String, ProcessError> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[test]
    fn a_killed_process_is_dead_and_killing_again_finds_nothing() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let identity = ProcessIdentity::capture(child.id().cast_signed()).unwrap();
        assert!(identity.is_alive());
        assert!(identity.kill(DEADLINE).unwrap());
        // Not reaped yet: a zombie counts as dead.
        assert!(!identity.is_alive());
        assert!(!identity.kill(DEADLINE).unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn one_that_cannot_be_killed_keeps_none_of_the_others_alive() {
        let mut children = [(); 2].map(|()| Command::new("sleep").arg("600").spawn().unwrap());
        let identity =
            |child: &std::process::Child| ProcessIdentity::capture(child.id().cast_signed());
        let mut gone = identity(&children[0]).unwrap();
        gone.start_time += 1;
        let living = children.each_ref().map(|child| identity(child).unwrap());
        let [one, other] = living;
        let first = ProcessIdentity::capture(1).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        // Only root may signal the first process: it is left out then.
        let refused = (!is_root).then_some(first);
        let expected = usize::from(refused.is_some());
        let all: Vec<_> = refused.into_iter().chain([gone, one, other]).collect();
        let killed = kill_all(&all, DEADLINE);
        let (refused, killed) = killed.split_at(expected);
        assert!(refused.iter().all(Result::is_err));
        let killed: Vec<bool> = killed
            .iter()
            .map(|killed| *killed.as_ref().unwrap())
            .collect();
        assert_eq!(killed, [false, true, true]);
        for child in &mut children {
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_process_that_reuses_a_number_survives() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let now = ProcessIdentity::capture(child.id().cast_signed()).unwrap();
        let earlier = ProcessIdentity {
            start_time: now.start_time - 1,
            ..now.clone()
        };
        let last_boot = ProcessIdentity {
            boot_id: "00000000-0000-0000-0000-000000000000".to_owned(),
            ..now.clone()
        };
        for stale in [earlier, last_boot] {
            assert!(!stale.is_alive());
            assert!(matches!(stale.open(), Err(ProcessError::Gone(_))));
            assert!(!stale.kill(DEADLINE).unwrap());
        }
        assert!(now.is_alive());
        now.kill(DEADLINE).unwrap();
        child.wait().unwrap();
    }

    proptest! {
        #[test]
        fn a_command_name_cannot_forge_the_start_time(name in "[ -~]{0,15}", start in any::<u64>()) {
            let middle = "0 ".repeat(START_TIME - 1);
            let stat = format!("7 ({name}) S {middle}{start} 0 0\n");
            prop_assert_eq!(parse_stat(&stat), Some((false, start)));
        }

        #[test]
        fn no_text_makes_the_parser_fail_badly(stat in "\\PC{0,200}") {
            let _ = parse_stat(&stat);
        }
    }
}
