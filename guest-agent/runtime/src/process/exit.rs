//! How a process ends: awaited by pidfd, kept, and told to everyone who asks.

use guest_kernel::readiness::watch as watch_descriptor;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// SIGTERM, signal(7).
const SIGTERM: i32 = 15;
/// SIGKILL, signal(7).
const SIGKILL: i32 = 9;
/// What shells add to the number of the signal that ended a process.
const SIGNALLED: i32 = 128;
/// The code of a process whose end could not be learnt.
const LOST: i32 = 255;

/// How a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// By exit(2), with this code, 0 to 255.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// Something else has reaped it.
    Lost,
}

impl ExitStatus {
    /// As shells tell it: the code, or 128 and the signal's number; 255 if it
    /// is not known.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signalled(signal) => SIGNALLED + signal,
            Self::Lost => LOST,
        }
    }
}

/// A child of the agent, known by its pidfd: its process id may be another's
/// once it was reaped, its pidfd never is. Clones are handles of one process.
#[derive(Debug, Clone)]
pub struct Process {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Takes a child over, which is then reaped as soon as it ends, whether
    /// anyone waits or not. To be called in a tokio runtime.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn adopt(pid: i32, pidfd: OwnedFd) -> io::Result<Self> {
        let pidfd = Arc::new(pidfd);
        let (sender, exit) = watch::channel(None);
        let watched = watch_descriptor(Arc::clone(&pidfd), Interest::READABLE)?;
        tokio::spawn(async move {
            let status = reap(&watched).await;
            sender.send_replace(Some(status));
        });
        Ok(Self { pid, pidfd, exit })
    }

    /// Its process id in the agent's pid namespace. Once it has ended the
    /// number may be another's.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Refers to it for ever, pidfd_open(2).
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits for its end. The status stays: it may be asked for again, and by
    /// many.
    pub async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or(ExitStatus::Lost),
            // The task that reaps ends only with the runtime.
            Err(_) => ExitStatus::Lost,
        }
    }

    /// Whether it has ended and was reaped.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Sends a signal; 0 sends none. A process that has ended ignores it, which
    /// is no error. SIGTERM for the init process of a pid namespace that does
    /// not handle it becomes SIGKILL: the kernel would drop it
    /// (pid_namespaces(7)), and who sends it means the container to end.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2): `EINVAL` for a number that is no signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let signal = if signal == SIGTERM && self.would_drop_sigterm() {
            SIGKILL
        } else {
            signal
        };
        match guest_kernel::signal::send(self.pidfd(), signal) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
            outcome => outcome,
        }
    }

    fn would_drop_sigterm(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/status", self.pid))
            .is_ok_and(|status| is_deaf_init(&status))
    }
}

/// Whether /proc/PID/status (proc(5)) is that of a namespace's process 1 that
/// neither blocks, ignores nor handles SIGTERM.
fn is_deaf_init(status: &str) -> bool {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    };
    let sigterm = 1_u64 << (SIGTERM - 1);
    let has_sigterm = |name| {
        field(name)
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_none_or(|mask| mask & sigterm != 0)
    };
    // One number a pid namespace, the innermost last.
    let mut pids = field("NSpid").unwrap_or_default().split_whitespace();
    let nested = pids.next().is_some() && pids.next_back() == Some("1");
    nested && !["SigBlk", "SigIgn", "SigCgt"].into_iter().any(has_sigterm)
}

async fn reap(pidfd: &AsyncFd<Arc<OwnedFd>>) -> ExitStatus {
    loop {
        let Ok(mut ready) = pidfd.readable().await else {
            return ExitStatus::Lost;
        };
        match reap_now(pidfd.get_ref().as_fd(), WaitIdOptions::NOHANG) {
            Ok(Some(status)) => return status,
            Ok(None) => ready.clear_ready(),
            Err(_) => return ExitStatus::Lost,
        }
    }
}

/// waitid(2) for the end of a child.
pub(crate) fn reap_now(
    pidfd: BorrowedFd<'_>,
    options: WaitIdOptions,
) -> rustix::io::Result<Option<ExitStatus>> {
    let status = rustix::io::retry_on_intr(|| {
        waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | options)
    })?;
    Ok(status.map(|status| match status.exit_status() {
        Some(code) => ExitStatus::Exited(code),
        None => status
            .terminating_signal()
            .map_or(ExitStatus::Lost, ExitStatus::Signalled),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::process::Command;
    use std::time::Duration;

    #[expect(
        clippy::zombie_processes,
        reason = "the process is reaped by its pidfd"
    )]
    fn run(script: &str) -> Process {
        let child = Command::new("/bin/sh")
            .args(["-c", script])
            .spawn()
            .unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        Process::adopt(i32::try_from(child.id()).unwrap(), pidfd).unwrap()
    }

    #[tokio::test]
    async fn an_exit_status_is_told_to_all_and_again() {
        let process = run("exit 7");
        let other = process.clone();
        let (one, two) = tokio::join!(process.wait(), other.wait());
        assert_eq!((one, two), (ExitStatus::Exited(7), ExitStatus::Exited(7)));
        assert_eq!(process.wait().await.code(), 7);
        assert!(process.has_ended());
    }

    #[tokio::test]
    async fn an_exit_status_is_not_lost_when_nobody_waited() {
        let process = run("exit 3");
        let mut exit = process.exit.clone();
        exit.changed().await.unwrap();
        assert_eq!(process.wait().await, ExitStatus::Exited(3));
    }

    #[tokio::test]
    async fn a_signal_reaches_the_process_and_none_that_has_ended() {
        let process = run("exec sleep 1000");
        process.signal(0).unwrap();
        assert!(process.signal(10_000).is_err());
        process.signal(SIGTERM).unwrap();
        let status = tokio::time::timeout(Duration::from_secs(10), process.wait()).await;
        assert_eq!(status.unwrap().code(), 143);
        process.signal(SIGKILL).unwrap();
    }

    #[test]
    fn only_an_init_process_that_handles_no_sigterm_is_deaf() {
        let status = |pids, caught| {
            format!("Name:\tx\nNSpid:\t{pids}\nSigBlk:\t0\nSigIgn:\t0\nSigCgt:\t{caught}\n")
        };
        assert!(is_deaf_init(&status("100\t1", "0000000000000000")));
        assert!(!is_deaf_init(&status("100\t1", "0000000000004000")));
        assert!(!is_deaf_init(&status("100\t2", "0000000000000000")));
        assert!(!is_deaf_init(&status("1", "0000000000000000")));
        assert!(!is_deaf_init(""));
    }
}
