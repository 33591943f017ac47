//! Lines of JSON over a byte stream, bounded before anything is allocated for
//! them: how orders, outcomes and control requests travel.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes in the longest line: an order or a record with every container's
/// arguments and environment stays far below.
pub const LIMIT: usize = 1 << 20;

/// A line that is not a message.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Reading or writing failed.
    #[error("{call} a message")]
    Io {
        /// `read` or `write`.
        call: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The peer went on past [`LIMIT`] without a line break.
    #[error("a message longer than {LIMIT} bytes")]
    TooLong,
    /// The peer went away in the middle of a line.
    #[error("a message without its end")]
    Cut,
    /// The line is no JSON, or not of the expected shape.
    #[error("a message that cannot be understood")]
    Malformed(#[source] serde_json::Error),
}

/// Reads one message; `None` when the peer has closed between two of them.
///
/// # Errors
/// Any [`LineError`]; after one the stream is of no further use.
pub async fn read<T, R>(reader: &mut R) -> Result<Option<T>, LineError>
where
    T: DeserializeOwned,
    R: AsyncBufRead + Unpin,
{
    let mut line = Vec::new();
    loop {
        let available = reader.fill_buf().await.map_err(|source| LineError::Io {
            call: "read",
            source,
        })?;
        if available.is_empty() {
            return if line.is_empty() {
                Ok(None)
            } else {
                Err(LineError::Cut)
            };
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        if line.len() + part.len() > LIMIT {
            return Err(LineError::TooLong);
        }
        line.extend_from_slice(part);
        let taken = end.map_or(available.len(), |end| end + 1);
        reader.consume(taken);
        if end.is_some() {
            return serde_json::from_slice(&line)
                .map(Some)
                .map_err(LineError::Malformed);
        }
    }
}

/// Writes one message.
///
/// # Errors
/// [`LineError::Malformed`] for a value JSON cannot express, [`LineError::Io`]
/// when the peer is gone.
pub async fn write<T, W>(writer: &mut W, message: &T) -> Result<(), LineError>
where
    T: Serialize,
    W: AsyncWrite + Unpin,
{
    let line = encode(message)?;
    let failed = |source| LineError::Io {
        call: "write",
        source,
    };
    writer.write_all(&line).await.map_err(failed)?;
    writer.flush().await.map_err(failed)
}

/// One message with its line break.
///
/// # Errors
/// [`LineError::Malformed`] for a value JSON cannot express,
/// [`LineError::TooLong`] for one the peer would refuse.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, LineError> {
    let mut line = serde_json::to_vec(message).map_err(LineError::Malformed)?;
    if line.len() > LIMIT {
        return Err(LineError::TooLong);
    }
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::BufReader;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn all(bytes: &[u8], buffer: usize) -> Result<Vec<serde_json::Value>, LineError> {
        run(async {
            let mut reader = BufReader::with_capacity(buffer, bytes);
            let mut messages = Vec::new();
            while let Some(message) = read(&mut reader).await? {
                messages.push(message);
            }
            Ok(messages)
        })
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting_into_pieces(
            texts in prop::collection::vec("\\PC{0,200}", 0..8),
            buffer in 1_usize..64,
        ) {
            let mut bytes = Vec::new();
            for text in &texts {
                bytes.extend(encode(text).unwrap());
            }
            let messages = all(&bytes, buffer).unwrap();
            let back: Vec<_> = messages.iter().map(|message| message.as_str().unwrap()).collect();
            prop_assert_eq!(back, texts);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            buffer in 1_usize..64,
        ) {
            let _ = all(&bytes, buffer);
        }
    }

    #[test]
    fn an_endless_line_is_refused_at_the_limit() {
        let bytes = vec![b' '; LIMIT + 1];
        assert!(matches!(all(&bytes, 8192), Err(LineError::TooLong)));
        let mut longest = vec![b' '; LIMIT - 1];
        longest.extend(b"1\n");
        assert_eq!(all(&longest, 8192).unwrap(), [serde_json::json!(1)]);
    }

    #[test]
    fn half_a_message_is_an_error() {
        assert!(matches!(all(b"{\"a\":1", 8), Err(LineError::Cut)));
        assert!(matches!(all(b"{\"a\":\n", 8), Err(LineError::Malformed(_))));
        assert!(all(b"", 8).unwrap().is_empty());
    }
}
