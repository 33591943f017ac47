//! The states of a sandbox and the events that move it between them. Pure: no
//! clock, no file, no VM.

use serde::{Deserialize, Serialize};

/// Where a sandbox stands. Drawn in [`super`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its record exists; its VM is being booted or restored.
    Created,
    /// Handed over: the workload runs.
    Running,
    /// The vCPUs are stopped on purpose. Not a failure.
    Paused,
    /// Its memory was written out, and never runs again on those files.
    Saved,
    /// No VM any more. Final.
    Stopped,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The recipe that booted or restored it has committed.
    HandedOver,
    /// The vCPUs were stopped.
    Paused,
    /// The vCPUs run again.
    Resumed,
    /// Memory and devices were written out.
    Saved,
    /// The VMM has ended, for whatever reason.
    Exited,
}

/// An event that cannot happen in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox that is {state} cannot be {event}")]
pub struct Refused {
    /// The state, unchanged.
    pub state: State,
    /// The event that was refused.
    pub event: Event,
}

impl State {
    /// Every state, for tables and tests.
    pub const ALL: [State; 5] = [
        State::Created,
        State::Running,
        State::Paused,
        State::Saved,
        State::Stopped,
    ];

    /// The state after `event`.
    ///
    /// # Errors
    /// [`Refused`] when the drawing in [`super`] has no such arrow.
    pub fn after(self, event: Event) -> Result<State, Refused> {
        match (self, event) {
            (State::Created, Event::HandedOver) | (State::Paused, Event::Resumed) => {
                Ok(State::Running)
            }
            (State::Running, Event::Paused) => Ok(State::Paused),
            (State::Paused, Event::Saved) => Ok(State::Saved),
            // Final, and therefore harmless to hear of twice.
            (_, Event::Exited) => Ok(State::Stopped),
            (state, event) => Err(Refused { state, event }),
        }
    }

    /// Whether a VM belongs to this state.
    #[must_use]
    pub fn has_vm(self) -> bool {
        self != State::Stopped
    }
}

impl Event {
    /// Every event, for tables and tests.
    pub const ALL: [Event; 5] = [
        Event::HandedOver,
        Event::Paused,
        Event::Resumed,
        Event::Saved,
        Event::Exited,
    ];
}

impl std::fmt::Display for State {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Saved => "saved",
            State::Stopped => "stopped",
        })
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Event::HandedOver => "handed over",
            Event::Paused => "paused",
            Event::Resumed => "resumed",
            Event::Saved => "saved",
            Event::Exited => "stopped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_event() -> impl Strategy<Value = Event> {
        proptest::sample::select(&Event::ALL[..])
    }

    /// Walks the events that are possible, and gives every state on the way.
    fn walk(events: &[Event]) -> Vec<State> {
        let mut states = vec![State::Created];
        for event in events {
            let now = states[states.len() - 1];
            states.push(now.after(*event).unwrap_or(now));
        }
        states
    }

    proptest! {
        #[test]
        fn a_stopped_sandbox_stays_stopped(events in prop::collection::vec(any_event(), 0..64)) {
            let states = walk(&events);
            if let Some(first) = states.iter().position(|state| *state == State::Stopped) {
                prop_assert!(states[first..].iter().all(|state| *state == State::Stopped));
            }
        }

        #[test]
        fn a_saved_sandbox_never_runs_again(events in prop::collection::vec(any_event(), 0..64)) {
            let states = walk(&events);
            if let Some(first) = states.iter().position(|state| *state == State::Saved) {
                prop_assert!(
                    states[first..]
                        .iter()
                        .all(|state| matches!(state, State::Saved | State::Stopped))
                );
            }
        }

        #[test]
        fn an_exit_stops_from_every_state(events in prop::collection::vec(any_event(), 0..64)) {
            for state in walk(&events) {
                prop_assert_eq!(state.after(Event::Exited), Ok(State::Stopped));
            }
        }

        #[test]
        fn nothing_runs_before_it_was_handed_over(
            events in prop::collection::vec(any_event(), 0..64)
        ) {
            let states = walk(&events);
            let running = states.iter().position(|state| *state == State::Running);
            let handed = events.iter().position(|event| *event == Event::HandedOver);
            if let Some(running) = running {
                prop_assert!(handed.is_some_and(|handed| handed < running));
            }
        }

        #[test]
        fn a_refusal_names_what_was_asked(
            state in proptest::sample::select(&State::ALL[..]),
            event in any_event(),
        ) {
            if let Err(refused) = state.after(event) {
                prop_assert_eq!(refused, Refused { state, event });
                prop_assert!(refused.to_string().contains(&state.to_string()));
            }
        }

        #[test]
        fn a_state_survives_its_text(state in proptest::sample::select(&State::ALL[..])) {
            let text = serde_json::to_string(&state).unwrap();
            prop_assert_eq!(&text, &format!("\"{state}\""));
            prop_assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
        }
    }

    #[test]
    fn every_arrow_of_the_drawing_and_no_other() {
        let arrows: Vec<_> = State::ALL
            .into_iter()
            .flat_map(|state| Event::ALL.map(|event| (state, event, state.after(event))))
            .filter_map(|(from, _, to)| to.ok().map(|to| (from, to)))
            .filter(|(from, to)| from != to && *to != State::Stopped)
            .collect();
        assert_eq!(
            arrows,
            [
                (State::Created, State::Running),
                (State::Running, State::Paused),
                (State::Paused, State::Running),
                (State::Paused, State::Saved),
            ]
        );
    }
}
