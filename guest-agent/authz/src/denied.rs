//! Why a request did not pass the gate, and the status a client gets for it.

use policy::{Denial, PolicyError};
use ttrpc::Code;

use crate::input::InputError;

/// A request that did not pass the gate. Nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// A rule of the policy denies it.
    #[error("{message} is blocked by policy: {}", .denial.reason)]
    Policy {
        /// The request's message name.
        message: &'static str,
        /// The rule that denies, and why.
        denial: Denial,
    },
    /// The policy could not decide.
    #[error("{message}: internal error")]
    Undecided {
        /// The request's message name.
        message: &'static str,
        /// What went wrong.
        #[source]
        source: PolicyError,
    },
    /// The request cannot be shown to a policy.
    #[error("{message}: internal error")]
    Unjudgeable {
        /// The request's message name.
        message: &'static str,
        /// What is wrong with it.
        #[source]
        source: InputError,
    },
    /// The sandbox is quiesced and the request is not one of those answered then.
    #[error(
        "{message} is refused: from Quiesce to the end of Thaw only Health, GetGuestDetails and Thaw are answered"
    )]
    Quiesced {
        /// The request's message name.
        message: &'static str,
    },
}

impl Denied {
    /// The status code a client gets.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Policy { .. } => Code::PERMISSION_DENIED,
            Self::Undecided { .. } | Self::Unjudgeable { .. } => Code::INTERNAL,
            Self::Quiesced { .. } => Code::FAILED_PRECONDITION,
        }
    }
}

/// A policy that was not taken over. The one in force is still in force.
#[derive(Debug, thiserror::Error)]
pub enum SetPolicyError {
    /// The policy in force does not allow it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The new policy cannot be loaded.
    #[error("SetPolicyRequest: unusable policy")]
    Unusable(#[source] PolicyError),
    /// Too many policies are in force already, one on top of the other.
    #[error("SetPolicyRequest: {limit} policies are in force, no more are taken")]
    TooManyLayers {
        /// How many there may be.
        limit: usize,
    },
}

impl SetPolicyError {
    /// The status code a client gets.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Denied(denied) => denied.code(),
            Self::Unusable(_) => Code::INVALID_ARGUMENT,
            Self::TooManyLayers { .. } => Code::FAILED_PRECONDITION,
        }
    }
}

impl From<Denied> for ttrpc::Error {
    fn from(denied: Denied) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(denied.code(), chain(&denied)))
    }
}

impl From<SetPolicyError> for ttrpc::Error {
    fn from(error: SetPolicyError) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), chain(&error)))
    }
}

/// An error with its causes, on one line: `a: b: c`.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
