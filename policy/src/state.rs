//! What a policy remembers between decisions: the document `data.pstate`.
//!
//! A rule changes it by JSON Patch operations (RFC 6902) in its answer. Of
//! these `add`, `replace` and `remove` are carried out; `move`, `copy` and
//! `test` are refused by name: what they would do can be said in Rego, where
//! it is judged together with the request. Paths (RFC 6901) must lie below
//! `/pstate/`, so that no operation can reach anything else.

use serde_json::{Map, Value};

/// A state operation that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// `ops` is not a list of objects with `op` and `path`.
    #[error("ops is not a list of JSON Patch operations")]
    Shape,
    /// An operation this engine does not know.
    #[error("operation {op:?} is not supported: only add, replace and remove are")]
    Operation {
        /// The operation's name.
        op: String,
    },
    /// `add` or `replace` without a value.
    #[error("{op} {path}: no value is given")]
    NoValue {
        /// The operation's name.
        op: String,
        /// Its path.
        path: String,
    },
    /// A path that does not lie below `/pstate/`, or is no JSON pointer.
    #[error("{path:?} is not a JSON pointer below /pstate/")]
    Path {
        /// The path.
        path: String,
    },
    /// A path whose parent, or, but for `add`, whose target does not exist.
    #[error("{op} {path}: no such place in the state")]
    Missing {
        /// The operation's name.
        op: String,
        /// Its path.
        path: String,
    },
}

/// The data document: `{"pstate": {..}}`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct State(Value);

impl State {
    /// The state of a policy that has decided nothing yet.
    pub(crate) fn empty() -> Self {
        Self(Value::Object(Map::from_iter([(
            "pstate".to_string(),
            Value::Object(Map::new()),
        )])))
    }

    /// The whole document, as the engine takes it.
    pub(crate) fn document(&self) -> &Value {
        &self.0
    }

    /// The state after `operations`, carried out in their order; all or none.
    pub(crate) fn after(&self, operations: &Value) -> Result<Self, StateError> {
        let mut next = self.clone();
        for operation in operations.as_array().ok_or(StateError::Shape)? {
            next.apply(operation)?;
        }
        Ok(next)
    }

    fn apply(&mut self, operation: &Value) -> Result<(), StateError> {
        let text = |key: &str| operation.get(key).and_then(Value::as_str);
        let (Some(op), Some(path)) = (text("op"), text("path")) else {
            return Err(StateError::Shape);
        };
        if !matches!(op, "add" | "replace" | "remove") {
            return Err(StateError::Operation { op: op.to_string() });
        }
        let missing = || StateError::Missing {
            op: op.to_string(),
            path: path.to_string(),
        };
        let (parent, key) = split(path)?;
        let parent = self.0.pointer_mut(parent).ok_or_else(missing)?;
        if op == "remove" {
            return remove(parent, &key).ok_or_else(missing);
        }
        let value = operation.get("value").ok_or_else(|| StateError::NoValue {
            op: op.to_string(),
            path: path.to_string(),
        })?;
        match op {
            "add" => add(parent, key, value.clone()),
            _ => replace(parent, &key, value.clone()),
        }
        .ok_or_else(missing)
    }
}

/// The pointer to the parent and the unescaped last token.
fn split(path: &str) -> Result<(&str, String), StateError> {
    let wrong = || StateError::Path {
        path: path.to_string(),
    };
    if !path.starts_with("/pstate/") {
        return Err(wrong());
    }
    let (parent, last) = path.rsplit_once('/').ok_or_else(wrong)?;
    Ok((parent, last.replace("~1", "/").replace("~0", "~")))
}

fn add(parent: &mut Value, key: String, value: Value) -> Option<()> {
    match parent {
        Value::Object(members) => {
            members.insert(key, value);
        }
        Value::Array(elements) if key == "-" => elements.push(value),
        Value::Array(elements) => {
            let index = index(&key).filter(|index| *index <= elements.len())?;
            elements.insert(index, value);
        }
        _ => return None,
    }
    Some(())
}

fn replace(parent: &mut Value, key: &str, value: Value) -> Option<()> {
    let place = match parent {
        Value::Object(members) => members.get_mut(key)?,
        Value::Array(elements) => elements.get_mut(index(key)?)?,
        _ => return None,
    };
    *place = value;
    Some(())
}

fn remove(parent: &mut Value, key: &str) -> Option<()> {
    match parent {
        Value::Object(members) => members.remove(key).map(drop),
        Value::Array(elements) => {
            let index = index(key).filter(|index| *index < elements.len())?;
            elements.remove(index);
            Some(())
        }
        _ => None,
    }
}

/// An array index as RFC 6901, section 4 has it: digits, no leading zero.
fn index(key: &str) -> Option<usize> {
    let plain = key == "0" || !key.starts_with('0');
    let digits = key.bytes().all(|byte| byte.is_ascii_digit());
    (plain && digits).then(|| key.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn after(operations: &Value) -> Result<Value, StateError> {
        State::empty()
            .after(operations)
            .map(|state| state.document()["pstate"].clone())
    }

    #[test]
    fn operations_are_carried_out_in_order() {
        let operations = json!([
            {"op": "add", "path": "/pstate/names", "value": ["b"]},
            {"op": "add", "path": "/pstate/names/0", "value": "a"},
            {"op": "add", "path": "/pstate/names/-", "value": "c"},
            {"op": "replace", "path": "/pstate/names/1", "value": "B"},
            {"op": "add", "path": "/pstate/a~1b~0c", "value": null},
            {"op": "add", "path": "/pstate/gone", "value": 1},
            {"op": "remove", "path": "/pstate/gone"},
            {"op": "remove", "path": "/pstate/names/2"},
        ]);
        assert_eq!(
            after(&operations),
            Ok(json!({"names": ["a", "B"], "a/b~c": null}))
        );
    }

    #[test]
    fn an_unsupported_operation_is_refused_by_name() {
        for op in ["move", "copy", "test", "Add", ""] {
            let operations =
                json!([{"op": op, "path": "/pstate/a", "from": "/pstate/b", "value": 1}]);
            assert_eq!(
                after(&operations),
                Err(StateError::Operation { op: op.to_string() })
            );
        }
    }

    #[test]
    fn no_operation_reaches_anything_but_the_state() {
        for path in [
            "",
            "/",
            "/pstate",
            "/agent_policy/x",
            "pstate/x",
            "/pstatex/y",
        ] {
            let operations = json!([{"op": "add", "path": path, "value": {}}]);
            let wrong = StateError::Path {
                path: path.to_string(),
            };
            assert_eq!(after(&operations), Err(wrong));
        }
    }

    #[test]
    fn a_missing_place_or_value_is_an_error() {
        let missing = [
            json!({"op": "add", "path": "/pstate/a/b", "value": 1}),
            json!({"op": "replace", "path": "/pstate/a", "value": 1}),
            json!({"op": "remove", "path": "/pstate/a"}),
        ];
        for operation in missing {
            assert!(matches!(
                after(&json!([operation])),
                Err(StateError::Missing { .. })
            ));
        }
        let operation = json!([{"op": "add", "path": "/pstate/a"}]);
        assert!(matches!(after(&operation), Err(StateError::NoValue { .. })));
        for shape in [json!({}), json!([1]), json!([{"op": "add"}]), json!(null)] {
            assert_eq!(after(&shape), Err(StateError::Shape));
        }
    }

    #[test]
    fn only_plain_numbers_are_indices() {
        let list = json!({"op": "add", "path": "/pstate/l", "value": [1, 2]});
        for key in ["01", "+1", "-", "2", "", "18446744073709551616"] {
            let operation =
                json!({"op": "replace", "path": format!("/pstate/l/{key}"), "value": 9});
            assert!(after(&json!([list, operation])).is_err(), "{key}");
        }
    }

    proptest! {
        #[test]
        fn what_was_added_can_be_removed(key in "[a-z~/]{1,8}", value in any::<i64>()) {
            let path = format!("/pstate/{}", key.replace('~', "~0").replace('/', "~1"));
            let added = State::empty().after(&json!([{"op": "add", "path": &path, "value": value}])).unwrap();
            prop_assert_eq!(&added.document()["pstate"][&key], &json!(value));
            prop_assert_eq!(added.after(&json!([{"op": "remove", "path": &path}])), Ok(State::empty()));
        }

        #[test]
        fn no_operation_panics(op in "add|replace|remove|x", path in "(/(pstate|[a0-9~-]{0,3})){0,4}") {
            let before = json!([{"op": "add", "path": "/pstate/a", "value": [[], {}]}]);
            let state = State::empty().after(&before).unwrap();
            if let Ok(next) = state.after(&json!([{"op": op, "path": path, "value": []}])) {
                prop_assert!(next.document().as_object().unwrap().len() == 1);
                prop_assert!(next.document()["pstate"].is_object());
            }
        }
    }
}
