//! What can go wrong with a call.

use std::fmt;
use std::io;
use std::time::Duration;

use protocols::LinkError;

/// Why a call gave no result. All text of the agent is escaped and bounded.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection is gone, or was never there: whatever was asked may or
    /// may not have happened, and nothing more can be asked on this client.
    #[error("{call}: the connection to the agent is dead: {reason}")]
    Dead {
        /// The RPC.
        call: &'static str,
        /// What was noticed of it.
        reason: String,
    },
    /// The agent answered with an error.
    #[error("{call}: {code}: {message}")]
    Status {
        /// The RPC.
        call: &'static str,
        /// The kind of error.
        code: StatusCode,
        /// The agent's own words.
        message: String,
    },
    /// No answer in time: whatever was asked may or may not have happened.
    #[error("{call}: no answer within {after:?}")]
    Deadline {
        /// The RPC.
        call: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The answer is none: not decodable, or beyond its bounds.
    #[error("{call}: malformed reply: {reason}")]
    Malformed {
        /// The RPC.
        call: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The request is larger than a message may be (4 MiB, ttrpc).
    #[error("{call}: request too large")]
    TooLarge {
        /// The RPC.
        call: &'static str,
    },
    /// No stream to the agent could be opened.
    #[error("{call}: open a stream to the agent")]
    Open {
        /// The RPC.
        call: &'static str,
        /// Why.
        source: LinkError,
    },
    /// The host has no randomness to give.
    #[error("draw randomness: getrandom")]
    Random(#[source] io::Error),
}

impl ClientError {
    /// Whether the connection is gone, so that asking again needs a new one.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self, Self::Dead { .. } | Self::Open { .. })
    }

    /// The status, if the agent answered with one.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// The status codes of gRPC, which ttrpc shares
/// (google/rpc/code.proto).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the standard's")]
pub enum StatusCode {
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl fmt::Display for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown error",
            Self::InvalidArgument => "invalid argument",
            Self::DeadlineExceeded => "deadline exceeded",
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::PermissionDenied => "permission denied",
            Self::ResourceExhausted => "resource exhausted",
            Self::FailedPrecondition => "failed precondition",
            Self::Aborted => "aborted",
            Self::OutOfRange => "out of range",
            Self::Unimplemented => "not implemented",
            Self::Internal => "internal error",
            Self::Unavailable => "unavailable",
            Self::DataLoss => "data loss",
            Self::Unauthenticated => "not authenticated",
        };
        f.write_str(name)
    }
}
