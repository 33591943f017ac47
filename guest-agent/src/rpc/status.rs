//! The one table that picks the ttrpc code of a failed request.

use super::convert::ConvertError;
use crate::service::error::{ServiceError, with_causes};
use guest_runtime::network::NetworkError;
use guest_runtime::shared_files::SharedFileError;
use ttrpc::Code;

impl From<ServiceError> for ttrpc::Error {
    fn from(error: ServiceError) -> Self {
        let code = match &error {
            ServiceError::UnknownContainer(_) | ServiceError::Correction { .. } => {
                Code::INVALID_ARGUMENT
            }
            ServiceError::UnknownProcess { .. } => Code::NOT_FOUND,
            ServiceError::AlreadyExists(_) => Code::ALREADY_EXISTS,
            ServiceError::WrongState { .. } | ServiceError::OutsideGuest { .. } => {
                Code::FAILED_PRECONDITION
            }
            ServiceError::Unavailable { .. } | ServiceError::MemoryAgentUnavailable { .. } => {
                Code::UNAVAILABLE
            }
            ServiceError::Deadline { .. } => Code::DEADLINE_EXCEEDED,
            ServiceError::TooManyQuestions => Code::RESOURCE_EXHAUSTED,
            ServiceError::Network(NetworkError::LinkNotFound { .. }) => Code::NOT_FOUND,
            ServiceError::SharedFile(SharedFileError::Link { .. }) => Code::INVALID_ARGUMENT,
            ServiceError::Create { .. }
            | ServiceError::Start { .. }
            | ServiceError::Exec { .. }
            | ServiceError::Hook(_)
            | ServiceError::GuestHooks(_)
            | ServiceError::Storage(_)
            | ServiceError::Network(_)
            | ServiceError::SharedFile(_)
            | ServiceError::Hotplug(_)
            | ServiceError::NoProgram { .. }
            | ServiceError::Program { .. }
            | ServiceError::MemoryAgentDisabled
            | ServiceError::System { .. }
            | ServiceError::RecipePanicked => Code::INTERNAL,
        };
        status(code, &error)
    }
}

impl From<ConvertError> for ttrpc::Error {
    fn from(error: ConvertError) -> Self {
        let code = match &error {
            ConvertError::Unsupported { .. } => Code::UNIMPLEMENTED,
            _ => Code::INVALID_ARGUMENT,
        };
        status(code, &error)
    }
}

fn status(code: Code, error: &dyn std::error::Error) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, with_causes(error)))
}
