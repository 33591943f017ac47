//! Lines from a peer that may send anything, of bounded length.

use std::io;

use tokio::net::UnixStream;

use crate::error::{MonitorError, quote};

/// The longest message taken. QEMU's own longest, the description of all its
/// commands, is never asked for; the others are below 64 KiB.
pub(super) const LONGEST_LINE: usize = 1 << 20;

/// How much is read at once.
const READ_SIZE: usize = 16 << 10;

/// Collects lines; what was read beyond a line is kept for the next.
#[derive(Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// How much of the buffer is known to have no line end.
    searched: usize,
}

impl Lines {
    /// The next line, without its end. Cancelling loses nothing.
    pub(super) async fn next(&mut self, stream: &UnixStream) -> Result<Vec<u8>, MonitorError> {
        loop {
            if let Some(line) = self.take() {
                return Ok(line);
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(MonitorError::Long(LONGEST_LINE));
            }
            stream.readable().await.map_err(reading)?;
            let mut part = [0; READ_SIZE];
            match stream.try_read(&mut part) {
                Ok(0) => return Err(MonitorError::Closed),
                Ok(length) => self.buffer.extend_from_slice(&part[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(MonitorError::Closed);
                }
                Err(error) => return Err(reading(error)),
            }
        }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let unseen = &self.buffer[self.searched..];
        let Some(length) = unseen.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return None;
        };
        let rest = self.buffer.split_off(self.searched + length + 1);
        self.searched = 0;
        Some(std::mem::replace(&mut self.buffer, rest))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "map_err passes it by value")]
fn reading(error: io::Error) -> MonitorError {
    MonitorError::Stream {
        call: "read",
        kind: error.kind(),
    }
}

/// A line that is no message, fit for an error.
pub(super) fn garbage(line: &[u8]) -> MonitorError {
    let start = &line[..line.len().min(64)];
    MonitorError::Garbage(quote(&String::from_utf8_lossy(start)))
}
