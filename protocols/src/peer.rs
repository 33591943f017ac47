//! Who is at the other end of a Unix socket: what the kernel knows of the
//! process, not what it says of itself.

use std::fs::{Metadata, metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;

/// Whether the process at the other end of a Unix socket has this process's
/// own effective uid (SO_PEERCRED, unix(7)).
///
/// # Errors
/// What getsockopt(2) says.
pub fn is_same_user(stream: &UnixStream) -> io::Result<bool> {
    // Not by rustix, which has no word for the process id 0 that a peer outside
    // this pid namespace has.
    let peer = stream.peer_cred()?;
    Ok(peer.uid() == rustix::process::geteuid().as_raw())
}

/// Whether the process at the other end is one of ours: of this user, and in
/// the pid namespace that this process lives in. A confined VMM may have our
/// user, and never our pid namespace, which setns(2) leads nobody up into.
///
/// Before Linux 6.5 (SO_PEERPIDFD) a process that has ended and whose number
/// another has by now is taken for that other one.
///
/// # Errors
/// What getsockopt(2) or /proc say, or that the process has ended.
pub fn is_one_of_ours(stream: &UnixStream) -> io::Result<bool> {
    let peer = stream.peer_cred()?;
    if peer.uid() != rustix::process::geteuid().as_raw() {
        return Ok(false);
    }
    // 0: it is in no namespace that is visible from ours.
    let Some(pid) = peer.pid().and_then(Pid::from_raw) else {
        return Ok(false);
    };
    let process = open_peer(stream, pid)?;
    let theirs = metadata(format!("/proc/{}/ns/pid", pid.as_raw_nonzero()))?;
    let ours = metadata("/proc/self/ns/pid")?;
    // A number is free only when its process has ended: what was read of /proc
    // is of this process if it lives yet.
    Ok(lives(&process)? && is_same_file(&theirs, &ours))
}

/// A pidfd of whoever called connect(2).
fn open_peer(stream: &UnixStream, pid: Pid) -> io::Result<OwnedFd> {
    match getsockopt(stream, PeerPidfd) {
        Err(nix::errno::Errno::ENOPROTOOPT) => Ok(pidfd_open(pid, PidfdFlags::empty())?),
        opened => Ok(opened?),
    }
}

/// A pidfd is readable from its process's end on (pidfd_open(2)).
fn lives(process: &OwnedFd) -> io::Result<bool> {
    let borrowed = process.as_fd();
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let ended = poll(&mut [PollFd::new(&borrowed, PollFlags::IN)], Some(&at_once))?;
    Ok(ended == 0)
}

/// Of namespaces: what names them is a file for each (namespaces(7)).
fn is_same_file(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    const DIALLED: &str = "TARDIGRADE_TEST_DIAL";

    #[tokio::test]
    async fn a_process_of_ours_is_one_of_ours_and_one_that_has_ended_is_not() {
        let (stream, other) = UnixStream::pair().unwrap();
        assert!(is_same_user(&stream).unwrap());
        assert!(is_one_of_ours(&stream).unwrap());
        drop(other);

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let mut dialler = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "peer::tests::dials_and_ends", "--ignored"])
            .env(DIALLED, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        assert!(dialler.wait().unwrap().success());
        // Its connection lives in a child of its own.
        let (stream, _) = listener.accept().await.unwrap();
        assert!(is_same_user(&stream).unwrap());
        assert!(!is_one_of_ours(&stream).unwrap_or(false));
    }

    #[test]
    #[ignore = "the client of a_process_of_ours_is_one_of_ours_and_one_that_has_ended_is_not"]
    #[expect(clippy::zombie_processes, reason = "it is to outlive this process")]
    fn dials_and_ends() {
        let path = std::env::var_os(DIALLED).unwrap();
        let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        // Reads until the connection is closed.
        Command::new("cat")
            .stdin(OwnedFd::from(stream))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
    }
}
