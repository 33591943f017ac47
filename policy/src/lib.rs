//! Policies and their decisions.
//!
//! A policy answers one question: may this request, described as JSON, be
//! carried out? There are two kinds: the built-in allow-all, in force until a
//! policy is given, and a policy in Rego. This package knows neither wire nor
//! agent; who asks, and with which input, is the gate's business.
//!
//! ```
//! use policy::{Decision, Policy, RegoPolicy};
//!
//! let source = "package agent_policy\n default StartContainerRequest := false";
//! let policy = Policy::Rego(RegoPolicy::from_source("example", source)?);
//! let decision = policy.decide("StartContainerRequest", &serde_json::json!({}))?;
//! assert!(matches!(decision, Decision::Denied(_)));
//! # Ok::<(), policy::PolicyError>(())
//! ```

mod decision;
mod digest;
mod error;
pub mod ready;
mod rego;
mod state;

pub use decision::{Allowed, Decision, Denial, Question, Reservation};
pub use digest::PolicyDigest;
pub use error::PolicyError;
pub use rego::{LIFECYCLE_RULES, MAX_SOURCE_BYTES, RegoPolicy};
pub use state::StateError;

use serde_json::Value;

/// The name of the built-in policy, as logs show it. There is exactly one.
pub const BUILT_IN_NAME: &str = "allow-all (built-in)";

/// What decides over requests.
#[derive(Debug)]
pub enum Policy {
    /// The built-in policy [`BUILT_IN_NAME`]: allows every request and looks
    /// at none. No engine exists while it is in force.
    AllowAll,
    /// A policy written in Rego.
    Rego(RegoPolicy),
}

impl Policy {
    /// The name to show in logs: [`BUILT_IN_NAME`], or the one a Rego policy
    /// was given.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::AllowAll => BUILT_IN_NAME,
            Self::Rego(policy) => policy.name(),
        }
    }

    /// The SHA-256 of a Rego policy's source, or of [`BUILT_IN_NAME`].
    #[must_use]
    pub fn digest(&self) -> PolicyDigest {
        match self {
            Self::AllowAll => PolicyDigest::of(BUILT_IN_NAME.as_bytes()),
            Self::Rego(policy) => policy.digest(),
        }
    }

    /// Whether a decision depends on the request. If not, its input need not
    /// be built.
    #[must_use]
    pub fn looks_at_requests(&self) -> bool {
        matches!(self, Self::Rego(_))
    }

    /// Whether `rule` allows a request described by `input`.
    ///
    /// # Errors
    /// See [`RegoPolicy::decide`]; the built-in policy never fails.
    pub fn decide(&self, rule: &str, input: &Value) -> Result<Decision, PolicyError> {
        match self {
            Self::AllowAll => Ok(Decision::Allowed(Allowed::default())),
            Self::Rego(policy) => policy.decide(rule, input),
        }
    }

    /// Whether every one of `questions` is allowed, all or none: unless all
    /// are, no state changes.
    ///
    /// # Errors
    /// See [`RegoPolicy::decide_all`]; the built-in policy never fails.
    pub fn decide_all(&self, questions: &[Question]) -> Result<Decision, PolicyError> {
        match self {
            Self::AllowAll => Ok(Decision::Allowed(Allowed::default())),
            Self::Rego(policy) => policy.decide_all(questions),
        }
    }

    /// Takes back what an allowing decision changed in the policy's state;
    /// see [`RegoPolicy::withdraw`].
    pub fn withdraw(&self, reservation: Reservation) -> bool {
        match self {
            Self::AllowAll => false,
            Self::Rego(policy) => policy.withdraw(reservation),
        }
    }

    /// From now on `AllowRequestsFailingPolicy` counts as false. One way.
    pub fn seal(&self) {
        if let Self::Rego(policy) = self {
            policy.seal();
        }
    }
}
