//! The guest's console, into a ring of bounded size. A connected console that
//! nobody reads stalls a guest that writes, so whoever connects reads on.

use crate::host::{Ring, Tail};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Bytes of the console read at once.
const CHUNK: usize = 4096;
/// How long the rest of a dead VMM's console may take to be read: it lies in
/// the socket's buffer already.
const REST_DEADLINE: Duration = Duration::from_secs(2);

/// A console that is read. Dropping it disconnects.
#[derive(Debug)]
pub struct Console {
    reader: JoinHandle<Tail>,
}

impl Console {
    /// Copies a VM's console into its ring until the VMM closes it. What goes
    /// wrong with it ends itself and nothing else. Must be called inside a
    /// runtime.
    #[must_use]
    pub fn keep(socket: PathBuf, log: PathBuf) -> Self {
        let reader = tokio::spawn(async move {
            match protocols::unix::connect(&socket).await {
                Ok(stream) => copy_to_ring(stream, &log).await,
                Err(_) => Tail::default(),
            }
        });
        Self { reader }
    }

    /// Reads the rest of what a VM that has ended said, and gives the end of
    /// it, fit for an error.
    pub async fn last_words(mut self) -> String {
        match timeout(REST_DEADLINE, &mut self.reader).await {
            Ok(Ok(tail)) => tail.text(),
            Ok(Err(_)) | Err(_) => Tail::default().text(),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn copy_to_ring(mut stream: impl AsyncRead + Unpin, log: &Path) -> Tail {
    let mut tail = Tail::default();
    let mut ring = Ring::open(log, Ring::HALF).ok();
    let mut chunk = [0; CHUNK];
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        tail.add(&chunk[..count]);
        if let Some(ring) = &mut ring {
            // A full disk loses output, and does not stop a guest that writes.
            let _ = ring.write_all(&chunk[..count]);
        }
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn a_guest_that_never_stops_talking_fills_no_disk() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        let endless = tokio::io::repeat(b'x').take(20 * Ring::HALF);
        run(copy_to_ring(endless, &log));
        let held = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum::<u64>();
        assert!((Ring::HALF..=2 * Ring::HALF).contains(&held), "{held}");
    }

    #[test]
    fn a_dead_guests_last_words_are_told_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("console.sock");
        let log = directory.path().join("console.log");
        let listener = protocols::unix::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        run(async {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let console = Console::keep(socket, log.clone());
            let (mut guest, _) = listener.accept().await.unwrap();
            guest.write_all(b"\x1b[31mKernel panic\r\n").await.unwrap();
            drop(guest);
            assert_eq!(console.last_words().await, "\\u{1b}[31mKernel panic");
        });
        assert!(std::fs::read(log).unwrap().ends_with(b"panic\r\n"));
    }

    #[test]
    fn without_a_console_there_are_no_last_words() {
        run(async {
            let nowhere = Console::keep("/nonexistent/socket".into(), "/nonexistent/log".into());
            assert_eq!(nowhere.last_words().await, "(nothing)");
        });
    }
}
