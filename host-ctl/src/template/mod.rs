//! Templates: sandboxes that were booted once, warmed and frozen.
//!
//! [`build`] makes one, as a list of steps that commits as a whole or leaves
//! nothing; [`save`](mod@save) makes one of a sandbox that was in use. [`plan_clone`] says whether a stored one can be cloned here and
//! now, and if not, why. Both agree on what must match through one function,
//! which turns a machine into its saved form. [`warm_up`] is what every sandbox
//! goes through that is booted to become a template, or in place of a clone.

mod build;
mod clone;
mod error;
mod freeze;
mod kept;
mod publish;
mod requirements;
pub mod save;
mod warm;
mod workshop;

pub use build::{Built, Cost, Recipe, STEPS, Workplace, build};
pub use clone::{ClonePlan, cold_spec, emptied_template, plan_clone};
pub use error::BuildError;
pub use warm::{WarmUpError, warm_up};
