//! Waiting for a socket that a VMM binds itself.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::error::Error;
use crate::process::watch;

/// How much is read of what happened: what it was does not matter.
const READ_SIZE: usize = 4 << 10;

/// Tells when it is worth a try to connect. The socket's file appears a moment
/// before anyone listens on it, and nothing tells when that begins, but the VMM
/// logs a line then: both are watched (inotify(7)).
pub(super) struct Arrival(AsyncFd<OwnedFd>);

impl Arrival {
    /// Watches from now on for files in `directory` and lines in `log`.
    pub(super) fn watch(directory: &Path, log: &File) -> Result<Self, Error> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let queue = inotify::init(flags).map_err(Error::process("inotify_init"))?;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |errno: Errno| Error::path("inotify_add_watch", path)(errno.into())
        };
        inotify::add_watch(&queue, directory, inotify::WatchFlags::CREATE)
            .map_err(failed(directory))?;
        // The open file, and not what its path names by now.
        let log = format!("/proc/self/fd/{}", log.as_raw_fd());
        inotify::add_watch(&queue, log.as_str(), inotify::WatchFlags::MODIFY)
            .map_err(failed(log.as_ref()))?;
        let queue = watch(queue).map_err(|source| Error::Process {
            call: "epoll_ctl inotify",
            source,
        })?;
        Ok(Self(queue))
    }

    /// Closes the queue, and does not wait for that: the kernel lets a grace
    /// period pass before close(2) returns, tens of milliseconds. Must be called
    /// inside a runtime.
    pub(super) fn leave(self) {
        let queue = self.0.into_inner();
        tokio::task::spawn_blocking(move || drop(queue));
    }

    /// Waits for something to have happened since the last time.
    pub(super) async fn next(&mut self) -> Result<(), Error> {
        let failed = |source| Error::Process {
            call: "read inotify",
            source,
        };
        loop {
            let mut ready = self.0.readable().await.map_err(failed)?;
            let read = ready.try_io(|queue| {
                let mut events = [0; READ_SIZE];
                rustix::io::read(queue, &mut events).map_err(io::Error::from)
            });
            match read {
                Ok(read) => return read.map(drop).map_err(failed),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::open_log;
    use std::io::Write;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_new_file_and_a_new_line_are_told_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let mut log = open_log(&elsewhere.path().join("log")).unwrap();
        let mut arrival = Arrival::watch(directory.path(), &log).unwrap();
        let quiet = timeout(Duration::from_millis(20), arrival.next()).await;
        assert!(quiet.is_err(), "nothing has happened");
        std::fs::write(directory.path().join("file"), b"").unwrap();
        arrival.next().await.unwrap();
        log.write_all(b"line\n").unwrap();
        arrival.next().await.unwrap();
        let quiet = timeout(Duration::from_millis(20), arrival.next()).await;
        assert!(quiet.is_err(), "all of it was told");
    }
}
