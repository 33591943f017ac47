//! The gate: the only maker of authorised requests.
//!
//! ```text
//!   wire message --Gate::authorize--> Authorized<Wire> --convert--> Authorized<Domain> --> service
//!                     |  |
//!                     |  +-- phase: Serving, or Quiesced (from Quiesce to the end of Thaw)
//!                     +----- policy: the request's own rule, then the rules of what it amounts to
//! ```
//!
//! An effect takes an [`Authorized`] value; only [`Gate::authorize`] makes
//! one, from a message of which [`Request`] has a line. So what was authorised
//! is what is executed, and a message without a line does not compile:
//!
//! - `request`: the table, one line a message;
//! - `equivalents`: what a new request amounts to in terms of old ones, so
//!   that no new path is weaker than the old one;
//! - `input`, `copy_file`: a request as the policy sees it;
//! - `gate`, `phase`: the decision;
//! - [`Authorized`], [`Denied`]: its two outcomes.
//!
//! The gate is not optional: no feature removes it, and the two methods that
//! it does not guard are named in [`EXEMPT_METHODS`].

mod authorized;
mod copy_file;
mod denied;
mod equivalents;
mod gate;
mod input;
mod phase;
mod request;

pub use authorized::Authorized;
pub use denied::{Denied, SetPolicyError};
pub use gate::Gate;
pub use input::InputError;
pub use phase::{Phase, PhaseGuard};
pub use request::{Request, questions, rules};

/// The methods that no policy is asked about, as (service, method): they say
/// that the agent lives and which version it has, and are answered in every
/// phase.
pub const EXEMPT_METHODS: [(&str, &str); 2] =
    [("grpc.Health", "Check"), ("grpc.Health", "Version")];
