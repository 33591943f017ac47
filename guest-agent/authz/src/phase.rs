//! The phase of a sandbox: serving, or quiesced.
//!
//! ```text
//!            Gate::quiesce -> PhaseGuard
//!   Serving ----------------------------> Quiesced     Health, GetGuestDetails, Thaw
//!      ^                                     |
//!      +---------- PhaseGuard ends ----------+
//!          (Quiesce failed and was undone, or Thaw is complete)
//! ```
//!
//! A save happens in the phase Quiesced, so a clone wakes up in it.

use std::sync::Arc;

use crate::gate::Shared;

/// What a sandbox answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Every request the policy allows.
    Serving,
    /// Between Quiesce and the end of Thaw: only Health, GetGuestDetails and Thaw.
    Quiesced,
}

/// While this lives the sandbox is [`Phase::Quiesced`].
///
/// Quiesce keeps it beside the quiesce id it hands out; Thaw takes it from
/// there and, when it is complete, ends it. A Quiesce that fails drops it and
/// thereby serves again. There is at most one.
#[must_use = "dropping the guard ends the phase"]
pub struct PhaseGuard {
    pub(crate) shared: Arc<Shared>,
}

impl PhaseGuard {
    /// Ends the phase: from now on every request the policy allows is answered.
    pub fn end(self) {
        drop(self);
    }
}

impl Drop for PhaseGuard {
    fn drop(&mut self) {
        self.shared.lock().phase = Phase::Serving;
    }
}

impl std::fmt::Debug for PhaseGuard {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("PhaseGuard")
    }
}
