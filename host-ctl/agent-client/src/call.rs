//! One unary call: its deadline, and what its failure means.

use std::time::Duration;

use protocols::LinkError;
use protocols::text::escape_untrusted;
use ttrpc::context::Context;
use ttrpc::proto::Code;

use crate::error::{ClientError, StatusCode};

/// Longest text of the agent that an error shows, characters.
const MAX_MESSAGE: usize = 2048;

/// What the agent is told of the deadline beyond our own, so that ours is the
/// one that passes first.
const SERVER_SLACK: Duration = Duration::from_secs(1);

/// Runs `work` with the context it is to send, at most `deadline` long.
pub(crate) async fn call<T, F>(
    name: &'static str,
    deadline: Duration,
    work: impl FnOnce(Context) -> F,
) -> Result<T, ClientError>
where
    F: Future<Output = ttrpc::Result<T>>,
{
    let nanos = i64::try_from((deadline + SERVER_SLACK).as_nanos()).unwrap_or(i64::MAX);
    match tokio::time::timeout(deadline, work(ttrpc::context::with_timeout(nanos))).await {
        Ok(answer) => answer.map_err(|error| meaning(name, deadline, error)),
        Err(_) => Err(ClientError::Deadline {
            call: name,
            after: deadline,
        }),
    }
}

fn meaning(call: &'static str, deadline: Duration, error: ttrpc::Error) -> ClientError {
    let malformed = |reason: &str| ClientError::Malformed {
        call,
        reason: escape_untrusted(reason, MAX_MESSAGE),
    };
    match error {
        ttrpc::Error::RpcStatus(status) => {
            // The library's own answer to a reply beyond its limit.
            if status.message.contains("exceed maximum message size") {
                return malformed("larger than a message may be");
            }
            match status_code(status.code()) {
                Some(code) => ClientError::Status {
                    call,
                    code,
                    message: escape_untrusted(&status.message, MAX_MESSAGE),
                },
                None => malformed("an error that says it is none"),
            }
        }
        // The library has no kinds for these; its texts are its interface.
        ttrpc::Error::Others(text) if text.starts_with("Unpack") => malformed(&text),
        ttrpc::Error::Others(text) if text.contains("malformed packet") => malformed(&text),
        ttrpc::Error::Others(text) if text.starts_with("Request deadline") => {
            ClientError::Deadline {
                call,
                after: deadline,
            }
        }
        ttrpc::Error::Others(text) if text.contains("exceed maximum message size") => {
            ClientError::TooLarge { call }
        }
        // All else that is no status is the end of the connection.
        other => ClientError::Dead {
            call,
            reason: escape_untrusted(&other.to_string(), MAX_MESSAGE),
        },
    }
}

fn status_code(code: Code) -> Option<StatusCode> {
    Some(match code {
        Code::OK => return None,
        Code::CANCELLED => StatusCode::Cancelled,
        Code::UNKNOWN => StatusCode::Unknown,
        Code::INVALID_ARGUMENT => StatusCode::InvalidArgument,
        Code::DEADLINE_EXCEEDED => StatusCode::DeadlineExceeded,
        Code::NOT_FOUND => StatusCode::NotFound,
        Code::ALREADY_EXISTS => StatusCode::AlreadyExists,
        Code::PERMISSION_DENIED => StatusCode::PermissionDenied,
        Code::RESOURCE_EXHAUSTED => StatusCode::ResourceExhausted,
        Code::FAILED_PRECONDITION => StatusCode::FailedPrecondition,
        Code::ABORTED => StatusCode::Aborted,
        Code::OUT_OF_RANGE => StatusCode::OutOfRange,
        Code::UNIMPLEMENTED => StatusCode::Unimplemented,
        Code::INTERNAL => StatusCode::Internal,
        Code::UNAVAILABLE => StatusCode::Unavailable,
        Code::DATA_LOSS => StatusCode::DataLoss,
        Code::UNAUTHENTICATED => StatusCode::Unauthenticated,
    })
}

/// What a link's failure means for a call.
pub(crate) fn link_error(call: &'static str, error: LinkError) -> ClientError {
    match error {
        LinkError::Deadline { after, .. } => ClientError::Deadline { call, after },
        LinkError::Closed => ClientError::Dead {
            call,
            reason: LinkError::Closed.to_string(),
        },
        source => ClientError::Open { call, source },
    }
}
