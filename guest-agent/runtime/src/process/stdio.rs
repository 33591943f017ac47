//! The agent's ends of a process's streams: asynchronous, never blocking.

use guest_kernel::readiness::watch;
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The most one read takes: what a pipe holds, pipe(7).
const CHUNK: usize = 64 * 1024;

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

impl WindowSize {
    /// TIOCSWINSZ on a terminal, ioctl_tty(2).
    pub(crate) fn apply(self, terminal: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let size = Winsize {
            ws_row: self.rows,
            ws_col: self.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(terminal, size)
    }
}

/// The agent's ends of a process's streams.
#[derive(Debug)]
pub struct Stdio {
    /// None unless it was asked for.
    pub stdin: Option<StdinWriter>,
    /// Of a terminal this is all output.
    pub stdout: Option<OutputReader>,
    /// None of a process with a terminal.
    pub stderr: Option<OutputReader>,
    /// The process's terminal, if it has one.
    pub terminal: Option<Terminal>,
}

/// Writes to a process's stdin.
#[derive(Debug)]
pub struct StdinWriter {
    end: Mutex<Option<Arc<AsyncFd<Arc<OwnedFd>>>>>,
}

/// Reads an output of a process.
#[derive(Debug)]
pub struct OutputReader {
    end: Arc<AsyncFd<Arc<OwnedFd>>>,
}

/// A process's terminal.
#[derive(Debug)]
pub struct Terminal {
    master: Arc<AsyncFd<Arc<OwnedFd>>>,
}

impl StdinWriter {
    /// Writes all of `data`; waits while the process does not read.
    ///
    /// # Errors
    /// `BrokenPipe` once it was closed, by either side.
    pub async fn write_all(&self, data: &[u8]) -> io::Result<()> {
        let end = self
            .end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let end = end.ok_or(io::ErrorKind::BrokenPipe)?;
        let mut rest = data;
        while !rest.is_empty() {
            let written = end
                .async_io(Interest::WRITABLE, |end| Ok(write(end, rest)?))
                .await?;
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Closes it: the process reads the end of the stream, once what was
    /// written before is read. A terminal goes on: it only takes no more input
    /// from here. Doing it twice is no error.
    pub fn close(&self) {
        self.end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

impl OutputReader {
    /// Reads what is there, at most `limit` bytes and 64 KiB, or waits for it;
    /// nothing is the end of the stream.
    ///
    /// # Errors
    /// Those of read(2).
    pub async fn read(&self, limit: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; limit.min(CHUNK)];
        let length = self
            .end
            .async_io(Interest::READABLE, |end| match read(end, &mut buffer) {
                // How a terminal tells that nothing has it open any more.
                Err(Errno::IO) => Ok(0),
                outcome => Ok(outcome?),
            })
            .await?;
        buffer.truncate(length);
        Ok(buffer)
    }
}

impl Terminal {
    /// Tells the terminal its size; its foreground processes get SIGWINCH.
    ///
    /// # Errors
    /// Those of the ioctl TIOCSWINSZ.
    pub fn resize(&self, size: WindowSize) -> io::Result<()> {
        Ok(size.apply(self.master.get_ref().as_fd())?)
    }
}

/// The process's ends of its streams.
#[derive(Debug)]
pub(crate) struct ChildStdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl ChildStdio {
    pub(crate) fn as_fds(&self) -> [BorrowedFd<'_>; 3] {
        [self.stdin.as_fd(), self.stdout.as_fd(), self.stderr.as_fd()]
    }
}

/// Three pipes; without `stdin` the process reads from /dev/null. To be called
/// in a tokio runtime.
pub(crate) fn pipes(stdin: bool) -> io::Result<(ChildStdio, Stdio)> {
    let (stdin, writer) = if stdin {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        (reader, Some(asynchronous(writer, Interest::WRITABLE)?))
    } else {
        let null = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        (null, None)
    };
    let (stdout_reader, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr_reader, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let reader = |end| -> io::Result<OutputReader> {
        let end = asynchronous(end, Interest::READABLE)?;
        Ok(OutputReader { end })
    };
    let ours = Stdio {
        stdin: writer.map(|end| StdinWriter {
            end: Mutex::new(Some(end)),
        }),
        stdout: Some(reader(stdout_reader)?),
        stderr: Some(reader(stderr_reader)?),
        terminal: None,
    };
    let theirs = ChildStdio {
        stdin,
        stdout,
        stderr,
    };
    Ok((theirs, ours))
}

impl Stdio {
    /// The streams of a process with a terminal, of which `master` is ours. To
    /// be called in a tokio runtime.
    pub(crate) fn of_terminal(master: OwnedFd, stdin: bool) -> io::Result<Self> {
        let master = asynchronous(master, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self {
            stdin: stdin.then(|| StdinWriter {
                end: Mutex::new(Some(Arc::clone(&master))),
            }),
            stdout: Some(OutputReader {
                end: Arc::clone(&master),
            }),
            stderr: None,
            terminal: Some(Terminal { master }),
        })
    }
}

fn asynchronous(end: OwnedFd, interest: Interest) -> io::Result<Arc<AsyncFd<Arc<OwnedFd>>>> {
    let flags = fcntl_getfl(&end)?;
    fcntl_setfl(&end, flags | OFlags::NONBLOCK)?;
    Ok(Arc::new(watch(Arc::new(end), interest)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_arrive_and_a_closed_stdin_is_an_end_of_stream() {
        let (theirs, ours) = pipes(true).unwrap();
        let stdin = ours.stdin.unwrap();
        stdin.write_all(b"hello").await.unwrap();
        stdin.close();
        stdin.close();
        let error = stdin.write_all(b"more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        let mut buffer = [0; 16];
        assert_eq!(read(&theirs.stdin, &mut buffer).unwrap(), 5);
        assert_eq!(read(&theirs.stdin, &mut buffer).unwrap(), 0);
    }

    #[tokio::test]
    async fn more_than_a_pipe_holds_is_written_when_it_is_read() {
        let (theirs, ours) = pipes(true).unwrap();
        let data = vec![7; 4 * CHUNK];
        let reader = tokio::task::spawn_blocking(move || {
            let mut total = 0;
            let mut buffer = [0; 1000];
            while let Ok(length @ 1..) = read(&theirs.stdin, &mut buffer) {
                total += length;
            }
            total
        });
        let stdin = ours.stdin.unwrap();
        stdin.write_all(&data).await.unwrap();
        stdin.close();
        assert_eq!(reader.await.unwrap(), data.len());
    }

    #[tokio::test]
    async fn a_read_takes_no_more_than_asked_for() {
        let (theirs, ours) = pipes(false).unwrap();
        write(&theirs.stdout, b"hello").unwrap();
        let stdout = ours.stdout.unwrap();
        assert_eq!(stdout.read(2).await.unwrap(), b"he");
        assert_eq!(stdout.read(usize::MAX).await.unwrap(), b"llo");
        drop(theirs);
        assert_eq!(stdout.read(10).await.unwrap(), b"");
    }
}
