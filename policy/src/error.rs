//! Why a policy cannot be loaded, or cannot decide.

use crate::state::StateError;

/// A policy that cannot be loaded, or a decision that could not be made.
/// Neither ever allows anything.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The source is larger than the limit, in bytes.
    #[error("load policy {name}: {size} bytes of source, the limit is {limit}")]
    TooLarge {
        /// The policy's name.
        name: String,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The source is no valid Rego, or exceeds the limits on lines.
    #[error("parse policy {name}: {reason}")]
    Parse {
        /// The policy's name.
        name: String,
        /// The engine's message: line, column and what it expected.
        reason: String,
    },
    /// The source belongs to another package than `agent_policy`.
    #[error("load policy {name}: its package is {package}, not agent_policy")]
    Package {
        /// The policy's name.
        name: String,
        /// The package it names.
        package: String,
    },
    /// `AllowRequestsFailingPolicy` is neither true nor false.
    #[error("load policy {name}: AllowRequestsFailingPolicy is not a boolean")]
    Leniency {
        /// The policy's name.
        name: String,
    },
    /// A rule name that is no Rego identifier.
    #[error("ask policy: {rule:?} is not a rule name")]
    RuleName {
        /// The name.
        rule: String,
    },
    /// The engine failed, or took longer than a decision may take.
    #[error("evaluate rule {rule}: {reason}")]
    Evaluate {
        /// The rule that was asked.
        rule: String,
        /// The engine's message.
        reason: String,
    },
    /// A rule's value is neither a boolean nor an object with `allowed`.
    #[error("evaluate rule {rule}: its value is neither a boolean nor {{\"allowed\": boolean}}")]
    Value {
        /// The rule that was asked.
        rule: String,
    },
    /// A rule's state operations cannot be carried out.
    #[error("apply the state operations of rule {rule}")]
    State {
        /// The rule that was asked.
        rule: String,
        /// The operation at fault.
        #[source]
        source: StateError,
    },
    /// An earlier decision panicked; the engine is not trusted any more.
    #[error("ask policy {name}: its engine was lost in an earlier decision")]
    EngineLost {
        /// The policy's name.
        name: String,
    },
}
