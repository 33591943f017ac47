//! A policy written in Rego: its engine, its limits, its state.

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, PolicyLengthConfig};
use serde_json::Value;

use crate::decision::{Allowed, Decision, Denial, Question, Reservation};
use crate::digest::PolicyDigest;
use crate::error::PolicyError;
use crate::state::State;

/// The largest source taken, in bytes. The existing agent's limit, like the
/// two on lines below: generated policies are large and have long lines.
pub const MAX_SOURCE_BYTES: usize = 16 << 20;
const MAX_LINE_COLUMNS: u32 = 64 << 10;
const MAX_LINES: usize = 200_000;

/// How long one rule may be evaluated. Long enough for a generated policy in
/// a guest under plain emulation, shorter than its callers' minute.
const EVALUATION_DEADLINE: Duration = Duration::from_secs(30);
/// How many steps of an evaluation pass between two looks at the clock.
const DEADLINE_CHECK_STEPS: u32 = 4096;

/// How much of what a rule prints goes into a denial, in bytes.
const MAX_PRINTED_BYTES: usize = 4 << 10;

const PACKAGE: &str = "data.agent_policy";
const LENIENCY_RULE: &str = "AllowRequestsFailingPolicy";

/// The rules of `tardigrade.v1.Lifecycle`. A policy written for another agent
/// does not know them, so its `AllowRequestsFailingPolicy` does not count for
/// them: they are allowed by name or not at all.
pub const LIFECYCLE_RULES: [&str; 8] = [
    "QuiesceRequest",
    "ThawRequest",
    "ReleaseRequest",
    "ExecRequest",
    "CopyRequest",
    "ForwardRequest",
    "LogsRequest",
    "EventsRequest",
];

/// A policy in Rego (v1), package `agent_policy`.
///
/// Decisions are serial: each sees what all before it did to the state.
pub struct RegoPolicy {
    name: String,
    digest: PolicyDigest,
    // A std mutex: a decision never waits for anything but the processor.
    judge: Mutex<Box<Judge>>,
}

impl RegoPolicy {
    /// Loads `source`; `name` is for logs and messages.
    ///
    /// # Errors
    /// If the source exceeds [`MAX_SOURCE_BYTES`], 64 KiB a line or 200 000
    /// lines, does not parse, belongs to another package than `agent_policy`,
    /// or says something else than a boolean to `AllowRequestsFailingPolicy`.
    pub fn from_source(name: &str, source: &str) -> Result<Self, PolicyError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(PolicyError::TooLarge {
                name: name.to_string(),
                size: source.len(),
                limit: MAX_SOURCE_BYTES,
            });
        }
        Ok(Self {
            name: name.to_string(),
            digest: PolicyDigest::of(source.as_bytes()),
            judge: Mutex::new(Box::new(Judge::load(name, source)?)),
        })
    }

    /// The name given to [`RegoPolicy::from_source`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The SHA-256 of the source.
    #[must_use]
    pub fn digest(&self) -> PolicyDigest {
        self.digest
    }

    /// Whether `rule` allows a request described by `input`. A rule may answer
    /// with a boolean or with `{"allowed": boolean, "ops": [..]}`, whose `ops`
    /// change the state when it allows. An undefined rule denies.
    ///
    /// # Errors
    /// If the rule cannot be evaluated, answers anything else, or its state
    /// operations cannot be carried out; the state is then as before.
    pub fn decide(&self, rule: &str, input: &Value) -> Result<Decision, PolicyError> {
        self.judge()?.decide_each([(rule, input)])
    }

    /// Whether every one of `questions` is allowed. They are asked in order,
    /// up to the first that is denied; each sees the state the ones before it
    /// left. Unless all are allowed the state is as before.
    ///
    /// # Errors
    /// As for [`RegoPolicy::decide`].
    pub fn decide_all(&self, questions: &[Question]) -> Result<Decision, PolicyError> {
        self.judge()?.decide_each(
            questions
                .iter()
                .map(|question| (question.rule, &question.input)),
        )
    }

    /// Takes back what an allowing decision did to the state, for a request
    /// that provably left nothing behind. Only the last change can be taken
    /// back: what came after may rest on it, and then it stays. Says whether
    /// it was taken back.
    pub fn withdraw(&self, reservation: Reservation) -> bool {
        self.judge().is_ok_and(|mut judge| {
            judge.version == reservation.version && judge.put_state(reservation.before).is_ok()
        })
    }

    /// From now on `AllowRequestsFailingPolicy` counts as false. One way.
    pub fn seal(&self) {
        // A lost engine decides nothing any more, so there is nothing to seal.
        if let Ok(mut judge) = self.judge() {
            judge.lenient = false;
        }
    }

    fn judge(&self) -> Result<MutexGuard<'_, Box<Judge>>, PolicyError> {
        self.judge.lock().map_err(|_| PolicyError::EngineLost {
            name: self.name.clone(),
        })
    }
}

/// Shows neither source nor state: policies and what they remember of
/// requests are not for logs.
impl fmt::Debug for RegoPolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RegoPolicy")
            .field("name", &self.name)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

/// The engine and what changes with its decisions.
struct Judge {
    engine: Engine,
    state: State,
    /// Counts the changes of `state`.
    version: u64,
    /// What the policy says to `AllowRequestsFailingPolicy`, until sealed.
    lenient: bool,
}

/// What a rule's value says.
enum Answer {
    Undefined,
    Denied,
    Allowed { operations: Option<Value> },
}

impl Judge {
    fn load(name: &str, source: &str) -> Result<Self, PolicyError> {
        let mut judge = Self {
            engine: engine(),
            state: State::empty(),
            version: 0,
            lenient: false,
        };
        let unparsable = |reason| PolicyError::Parse {
            name: name.to_string(),
            reason,
        };
        let package = judge
            .engine
            .add_policy(name.to_string(), source.to_string())
            .map_err(|error| unparsable(format!("{error:#}")))?;
        if package != PACKAGE {
            return Err(PolicyError::Package {
                name: name.to_string(),
                package: package.trim_start_matches("data.").to_string(),
            });
        }
        judge.put_state(State::empty()).map_err(&unparsable)?;
        // The first evaluation also compiles the policy, so what is wrong
        // with it is found here.
        let leniency = judge
            .evaluate(LENIENCY_RULE, &Value::Object(serde_json::Map::new()))
            .map_err(unparsable)?;
        judge.lenient = match leniency {
            None => false,
            Some(regorus::Value::Bool(lenient)) => lenient,
            Some(_) => {
                return Err(PolicyError::Leniency {
                    name: name.to_string(),
                });
            }
        };
        judge.printed();
        Ok(judge)
    }

    fn decide_each<'q>(
        &mut self,
        questions: impl IntoIterator<Item = (&'q str, &'q Value)>,
    ) -> Result<Decision, PolicyError> {
        let (before, version) = (self.state.clone(), self.version);
        let mut overridden = None;
        for (rule, input) in questions {
            match self.decide_one(rule, input) {
                Ok(None) => {}
                Ok(Some(denial)) if self.lenient && !LIFECYCLE_RULES.contains(&rule) => {
                    overridden.get_or_insert(denial);
                }
                refused => {
                    if self.version != version {
                        self.put_state(before)
                            .map_err(|reason| evaluate(rule, reason))?;
                    }
                    return refused.map(|denial| match denial {
                        Some(denial) => Decision::Denied(denial),
                        None => Decision::Allowed(Allowed::default()),
                    });
                }
            }
        }
        let reservation = (self.version != version).then_some(Reservation {
            before,
            version: self.version,
        });
        Ok(Decision::Allowed(Allowed {
            overridden,
            reservation,
        }))
    }

    /// `None` if `rule` allows.
    fn decide_one(&mut self, rule: &str, input: &Value) -> Result<Option<Denial>, PolicyError> {
        if !is_identifier(rule) {
            return Err(PolicyError::RuleName {
                rule: rule.to_string(),
            });
        }
        let value = self
            .evaluate(rule, input)
            .map_err(|reason| evaluate(rule, reason));
        let printed = self.printed();
        let reason = match answer(rule, value?)? {
            Answer::Undefined => format!("rule {rule} is not defined"),
            Answer::Denied if printed.is_empty() => format!("rule {rule} denies"),
            Answer::Denied => format!("rule {rule} denies: {printed}"),
            Answer::Allowed { operations: None } => return Ok(None),
            Answer::Allowed {
                operations: Some(operations),
            } => {
                let next = self
                    .state
                    .after(&operations)
                    .map_err(|source| PolicyError::State {
                        rule: rule.to_string(),
                        source,
                    })?;
                self.put_state(next)
                    .map_err(|reason| evaluate(rule, reason))?;
                return Ok(None);
            }
        };
        Ok(Some(Denial {
            rule: rule.to_string(),
            reason,
        }))
    }

    /// The value of a rule; `None` if it is undefined.
    fn evaluate(&mut self, rule: &str, input: &Value) -> Result<Option<regorus::Value>, String> {
        self.engine.set_input(regorus::Value::from(input.clone()));
        let results = self.engine.eval_query(format!("{PACKAGE}.{rule}"), false);
        // The input may hold secrets and may be large: it is not kept.
        self.engine.set_input(regorus::Value::new_object());
        let mut values = results
            .map_err(|error| format!("{error:#}"))?
            .result
            .into_iter()
            .flat_map(|result| result.expressions)
            .map(|expression| expression.value);
        match (values.next(), values.next()) {
            (None | Some(regorus::Value::Undefined), None) => Ok(None),
            (Some(value), None) => Ok(Some(value)),
            _ => Err("it has several values".to_string()),
        }
    }

    fn put_state(&mut self, state: State) -> Result<(), String> {
        self.engine.clear_data();
        self.engine
            .add_data(regorus::Value::from(state.document().clone()))
            .map_err(|error| format!("{error:#}"))?;
        self.state = state;
        self.version += 1;
        Ok(())
    }

    /// What the last evaluation printed, bounded.
    fn printed(&mut self) -> String {
        // The engine can only fail here if it does not gather what is printed.
        let lines = self.engine.take_prints().unwrap_or_default();
        let mut printed = lines.join("; ");
        if printed.len() > MAX_PRINTED_BYTES {
            printed.truncate(printed.floor_char_boundary(MAX_PRINTED_BYTES));
            printed.push_str("..");
        }
        printed
    }
}

fn engine() -> Engine {
    const MAX_COL: NonZeroU32 = NonZeroU32::new(MAX_LINE_COLUMNS).expect("not zero");
    const MAX_FILE: NonZeroUsize = NonZeroUsize::new(MAX_SOURCE_BYTES).expect("not zero");
    const LINES: NonZeroUsize = NonZeroUsize::new(MAX_LINES).expect("not zero");
    const STEPS: NonZeroU32 = NonZeroU32::new(DEADLINE_CHECK_STEPS).expect("not zero");
    let mut engine = Engine::new();
    engine.set_strict_builtin_errors(false);
    engine.set_gather_prints(true);
    engine.set_policy_length_config(PolicyLengthConfig {
        max_col: MAX_COL,
        max_file_bytes: MAX_FILE,
        max_lines: LINES,
    });
    engine.set_execution_timer_config(ExecutionTimerConfig {
        limit: EVALUATION_DEADLINE,
        check_interval: STEPS,
    });
    engine
}

fn answer(rule: &str, value: Option<regorus::Value>) -> Result<Answer, PolicyError> {
    let wrong = || PolicyError::Value {
        rule: rule.to_string(),
    };
    let object = match value {
        None => return Ok(Answer::Undefined),
        Some(regorus::Value::Bool(false)) => return Ok(Answer::Denied),
        Some(regorus::Value::Bool(true)) => return Ok(Answer::Allowed { operations: None }),
        Some(object @ regorus::Value::Object(_)) => object,
        Some(_) => return Err(wrong()),
    };
    let mut object = serde_json::to_value(object).map_err(|_| wrong())?;
    match object.get("allowed").and_then(Value::as_bool) {
        Some(false) => Ok(Answer::Denied),
        Some(true) => Ok(Answer::Allowed {
            operations: object.get_mut("ops").map(Value::take).filter(|operations| {
                *operations != Value::Null && *operations != Value::Array(Vec::new())
            }),
        }),
        None => Err(wrong()),
    }
}

/// A rule's name becomes part of a query: it must be a name and nothing more.
fn is_identifier(rule: &str) -> bool {
    let mut letters = rule.bytes();
    letters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == b'_')
}

fn evaluate(rule: &str, reason: String) -> PolicyError {
    PolicyError::Evaluate {
        rule: rule.to_string(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_that_takes_too_long_is_an_error_and_the_next_decision_is_made() {
        let source = "package agent_policy
            default Slow := false
            Slow if { some a in numbers.range(1, 3000); some b in numbers.range(1, 3000); a * b < 0 }
            Quick := true";
        let mut judge = Judge::load("test", source).unwrap();
        judge
            .engine
            .set_execution_timer_config(ExecutionTimerConfig {
                limit: Duration::from_millis(20),
                check_interval: NonZeroU32::MIN,
            });
        let slow = judge.decide_one("Slow", &json!({}));
        assert!(matches!(slow, Err(PolicyError::Evaluate { .. })));
        assert!(matches!(judge.decide_one("Quick", &json!({})), Ok(None)));
    }
}
