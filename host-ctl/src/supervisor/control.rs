//! The control protocol: what a client may ask of a supervisor over
//! `control.sock`. One JSON object a line, each answered by one line, in
//! order; nothing in them comes from the guest.

use crate::config::{TemplateDigest, TemplateName};
use crate::sandbox::state::State;
use crate::timeline::Report;
use serde::{Deserialize, Serialize};

/// A request. Variants without fields are written with braces: serde refuses
/// unknown fields only in those.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// How the sandbox is.
    Inspect {},
    /// Stops the vCPUs.
    Pause {},
    /// Lets the vCPUs run again.
    Resume {},
    /// Ends the sandbox: asks the guest first and kills the VM when it has not
    /// gone within `grace_millis`. Zero kills at once.
    Stop {
        /// Milliseconds the guest has to power off by itself.
        grace_millis: u64,
    },
    /// Ends the sandbox by making a template of it.
    Save {
        /// By which name it is to be found.
        name: TemplateName,
    },
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "lowercase", deny_unknown_fields)]
pub enum Reply {
    /// Done, or this is how it is.
    Status(Status),
    /// The sandbox is a template now.
    Saved(Box<SavedSandbox>),
    /// Refused or failed; nothing was changed unless the text says so.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// How a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its state.
    pub state: State,
    /// Whether the agent can be reached at this moment.
    pub agent_connected: bool,
    /// How many times the agent was dialled again since the supervisor began.
    pub redials: u64,
}

/// A template that was a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSandbox {
    /// Its digest.
    pub digest: TemplateDigest,
    /// The template the sandbox was a clone of.
    pub parent: Option<TemplateDigest>,
    /// How many saves lie between it and the boot.
    pub generation: u32,
    /// Bytes the VMM has written: the memory, and the state of its devices.
    pub saved_bytes: u64,
    /// Microseconds of the VMM's save.
    pub save_micros: u64,
    /// Bytes of memory that are not zero.
    pub touched_bytes: u64,
    /// Microseconds from the first fsync to the durable name.
    pub publish_micros: u64,
    /// Where the time went.
    pub timeline: Report,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_request() -> impl Strategy<Value = Request> {
        prop_oneof![
            Just(Request::Inspect {}),
            Just(Request::Pause {}),
            Just(Request::Resume {}),
            any::<u64>().prop_map(|grace_millis| Request::Stop { grace_millis }),
            "[a-z]{1,20}".prop_map(|name| Request::Save {
                name: name.parse().unwrap()
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_request_survives_its_text(request in any_request()) {
            let text = serde_json::to_string(&request).unwrap();
            prop_assert!(!text.contains('\n'));
            prop_assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        }

        #[test]
        fn a_failure_is_one_line_whatever_its_reason(reason in "\\PC*|.*\n.*") {
            let reply = Reply::Failed { reason };
            let text = serde_json::to_string(&reply).unwrap();
            prop_assert!(!text.contains('\n'));
            prop_assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
        }
    }

    #[test]
    fn unknown_verbs_and_fields_are_refused() {
        for text in [
            r#"{"verb":"explode"}"#,
            r#"{"verb":"inspect","extra":1}"#,
            r#"{"verb":"stop"}"#,
            r#"{"verb":"save","name":"../x"}"#,
            r#"{}"#,
            r#"[]"#,
        ] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_wire_form_is_stable() {
        let stop = Request::Stop { grace_millis: 500 };
        assert_eq!(
            serde_json::to_string(&stop).unwrap(),
            r#"{"verb":"stop","grace_millis":500}"#
        );
    }
}
