//! The gate itself: phase and policies under one lock, so that a decision and
//! a change of what decides never overlap.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use policy::{Decision, Denial, Policy, PolicyDigest, Question, RegoPolicy, Reservation};
use protocols::wire::agent::SetPolicyRequest;
use protocols::wire::lifecycle::QuiesceRequest;

use crate::authorized::Authorized;
use crate::denied::{Denied, SetPolicyError};
use crate::phase::{Phase, PhaseGuard};
use crate::request::Request;

/// How many policies may be in force, one on top of the other. Each has an
/// engine of its own, and a guest is small.
const MAX_LAYERS: usize = 4;

/// Where requests are authorised. Cheap to clone; all clones are one gate.
///
/// Decisions are serial, and short: nothing in here waits.
#[derive(Clone, Debug)]
pub struct Gate {
    shared: Arc<Shared>,
}

/// What all clones of a gate share.
#[derive(Debug)]
pub(crate) struct Shared(Mutex<State>);

impl Shared {
    /// The state is changed by single assignments only, so a panic elsewhere
    /// cannot leave it half changed; a policy whose engine panicked fails for
    /// good by itself.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What decides.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    /// Every one of them must allow. Never empty.
    layers: Vec<Policy>,
    /// Once sealed, a policy is never replaced: a later one is a further layer.
    sealed: bool,
}

impl Gate {
    /// A gate that serves, with `policy` in force.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let state = State {
            phase: Phase::Serving,
            layers: vec![policy],
            sealed: false,
        };
        Self {
            shared: Arc::new(Shared(Mutex::new(state))),
        }
    }

    /// Asks whether `message` may be carried out: the phase first, then each
    /// policy for the message's own rule and for the rules of what it amounts
    /// to. What a rule changes in its policy's state counts at once, for the
    /// next request.
    ///
    /// # Errors
    /// See [`Denied`]; then no policy's state has changed.
    pub fn authorize<T: Request>(&self, message: T) -> Result<Authorized<T>, Denied> {
        let overridden = self.shared.lock().judge(&message)?.overridden;
        Ok(Authorized::new(message, overridden))
    }

    /// Starts the phase [`Phase::Quiesced`], in one step: a request is either
    /// authorised before it, or refused. What was authorised before may still
    /// be running; the caller waits for its own recipes after this call. Also
    /// seals the policies: from now on a later policy can only forbid more.
    /// Takes the authorised request to see that there is one.
    ///
    /// # Errors
    /// [`Denied::Quiesced`] if the sandbox is quiesced already: of two that
    /// race, one gets the guard.
    pub fn quiesce(&self, _: &Authorized<QuiesceRequest>) -> Result<PhaseGuard, Denied> {
        let mut state = self.shared.lock();
        if state.phase == Phase::Quiesced {
            return Err(Denied::Quiesced {
                message: QuiesceRequest::RULE,
            });
        }
        state.phase = Phase::Quiesced;
        state.seal();
        Ok(PhaseGuard {
            shared: Arc::clone(&self.shared),
        })
    }

    /// The phase at this moment; it may be over when the caller looks at it.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.shared.lock().phase
    }

    /// The policies in force, by name and digest, for logs.
    #[must_use]
    pub fn policies(&self) -> Vec<(String, PolicyDigest)> {
        let state = self.shared.lock();
        let layers = state.layers.iter();
        layers
            .map(|policy| (policy.name().to_string(), policy.digest()))
            .collect()
    }

    /// Authorises a SetPolicy and carries it out, in one step: no other
    /// request is judged in between, by either policy. The new policy starts
    /// with an empty state. Until the gate is sealed it replaces the one in
    /// force; from then on it is a further layer.
    ///
    /// # Errors
    /// See [`SetPolicyError`]; then nothing has changed.
    pub fn set_policy(&self, message: &SetPolicyRequest) -> Result<PolicyDigest, SetPolicyError> {
        let mut state = self.shared.lock();
        let verdict = state.judge(message)?;
        let added = RegoPolicy::from_source("SetPolicy", &message.policy)
            .map_err(SetPolicyError::Unusable)
            .and_then(|policy| state.add(Policy::Rego(policy)));
        if added.is_err() {
            state.withdraw(verdict.reservations);
        }
        added
    }
}

/// The terms under which all layers allowed a request.
#[derive(Default)]
struct Verdict {
    overridden: Option<Denial>,
    /// What each layer changed in its state, by the layer's place.
    reservations: Vec<(usize, Reservation)>,
}

impl State {
    fn judge<T: Request>(&self, message: &T) -> Result<Verdict, Denied> {
        if self.phase == Phase::Quiesced && !T::WHILE_QUIESCED {
            return Err(Denied::Quiesced { message: T::RULE });
        }
        // The usual case on a small guest: no policy looks, so nothing is
        // built for it to look at.
        if !self.layers.iter().any(Policy::looks_at_requests) {
            return Ok(Verdict::default());
        }
        let questions =
            crate::request::questions(message).map_err(|source| Denied::Unjudgeable {
                message: T::RULE,
                source,
            })?;
        self.ask(T::RULE, &questions)
    }

    /// Every layer must allow; unless all do, none has changed its state.
    fn ask(&self, message: &'static str, questions: &[Question]) -> Result<Verdict, Denied> {
        let mut verdict = Verdict::default();
        for (place, policy) in self.layers.iter().enumerate() {
            let denied = match policy.decide_all(questions) {
                Ok(Decision::Allowed(allowed)) => {
                    verdict.overridden = verdict.overridden.or(allowed.overridden);
                    verdict
                        .reservations
                        .extend(allowed.reservation.map(|change| (place, change)));
                    continue;
                }
                Ok(Decision::Denied(denial)) => Denied::Policy { message, denial },
                Err(source) => Denied::Undecided { message, source },
            };
            self.withdraw(verdict.reservations);
            return Err(denied);
        }
        Ok(verdict)
    }

    /// Takes back what the decision just made has changed. No other decision
    /// came in between, so every change is its layer's last one.
    fn withdraw(&self, reservations: Vec<(usize, Reservation)>) {
        for (place, reservation) in reservations {
            if let Some(policy) = self.layers.get(place) {
                policy.withdraw(reservation);
            }
        }
    }

    fn add(&mut self, policy: Policy) -> Result<PolicyDigest, SetPolicyError> {
        let digest = policy.digest();
        if !self.sealed {
            self.layers = vec![policy];
            return Ok(digest);
        }
        if self.layers.len() >= MAX_LAYERS {
            return Err(SetPolicyError::TooManyLayers { limit: MAX_LAYERS });
        }
        policy.seal();
        self.layers.push(policy);
        Ok(digest)
    }

    fn seal(&mut self) {
        self.sealed = true;
        self.layers.iter().for_each(Policy::seal);
    }
}
