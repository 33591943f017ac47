//! The bounds of what an agent may answer.

use protocols::text::escape_untrusted;

use crate::error::ClientError;

/// Most entries of a list in a reply.
pub(crate) const MAX_LIST: usize = 64;

/// Longest name in a reply, bytes.
pub(crate) const MAX_NAME: usize = 64;

/// Longest phrase for people in a reply, bytes.
pub(crate) const MAX_SENTENCE: usize = 256;

/// Longest path in a reply, bytes: PATH_MAX of limits.h.
pub(crate) const MAX_PATH: usize = 4096;

/// A list that is not too long.
pub(crate) fn list<T>(call: &'static str, list: Vec<T>) -> Result<Vec<T>, ClientError> {
    if list.len() <= MAX_LIST {
        Ok(list)
    } else {
        Err(malformed(call, "a list is too long"))
    }
}

/// A text of at most `limit` bytes, escaped.
pub(crate) fn text(call: &'static str, text: &str, limit: usize) -> Result<String, ClientError> {
    if text.len() <= limit {
        Ok(escape_untrusted(text, limit))
    } else {
        Err(malformed(call, "a text is too long"))
    }
}

/// Several of them.
pub(crate) fn texts(
    call: &'static str,
    found: Vec<String>,
    limit: usize,
) -> Result<Vec<String>, ClientError> {
    list(call, found)?
        .iter()
        .map(|found| text(call, found, limit))
        .collect()
}

/// Bytes that name something.
pub(crate) fn sixteen(call: &'static str, bytes: &[u8]) -> Result<[u8; 16], ClientError> {
    bytes
        .try_into()
        .map_err(|_| malformed(call, "an id is not 16 bytes"))
}

pub(crate) fn malformed(call: &'static str, reason: &str) -> ClientError {
    ClientError::Malformed {
        call,
        reason: reason.to_owned(),
    }
}
