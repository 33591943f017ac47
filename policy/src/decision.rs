//! What a policy is asked, and what it answers.

use std::fmt;

use serde_json::Value;

use crate::state::State;

/// One rule to be asked, with the request it is asked about.
#[derive(Clone, PartialEq)]
pub struct Question {
    /// The rule below `data.agent_policy`: a request's protobuf message name.
    pub rule: &'static str,
    /// The request as the rule sees it.
    pub input: Value,
}

/// Names the rule only: an input is a request, and requests are never shown whole.
impl fmt::Debug for Question {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Question")
            .field("rule", &self.rule)
            .finish_non_exhaustive()
    }
}

/// A policy's answer.
#[derive(Debug)]
#[must_use]
pub enum Decision {
    /// The request may be carried out.
    Allowed(Allowed),
    /// It may not.
    Denied(Denial),
}

/// The terms under which a request was allowed.
#[derive(Debug, Default)]
pub struct Allowed {
    /// What would have denied the request, had the policy not set
    /// `AllowRequestsFailingPolicy`. To be logged as a warning.
    pub overridden: Option<Denial>,
    /// What the decision changed in the policy's state, if anything.
    pub reservation: Option<Reservation>,
}

/// Which rule denied a request, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Denial {
    /// The rule that denies.
    pub rule: String,
    /// A sentence naming the rule, with what it printed, at most 4 KiB of it.
    pub reason: String,
}

/// A change of a policy's state by a decision. It stays in force unless it is
/// withdrawn; dropping it keeps it.
pub struct Reservation {
    pub(crate) before: State,
    /// The number of the state this decision made.
    pub(crate) version: u64,
}

/// Shows no state: it holds what policies remember of requests.
impl fmt::Debug for Reservation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Reservation")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
