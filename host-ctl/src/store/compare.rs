//! Says which field of a template is not as wanted.

use std::fmt;

use serde_json::Value;

use super::{CloneRefusal, Requirements, StoreError};

/// Most characters of a value that a message shows.
const SHOWN: usize = 100;

/// A field that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where, such as `machine.disks[0].image`.
    pub field: String,
    /// What is wanted there.
    pub wanted: String,
    /// What the template has there.
    pub have: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference {
            field,
            wanted,
            have,
        } = self;
        write!(formatter, "{field}: wanted {wanted}, it has {have}")
    }
}

impl From<Difference> for CloneRefusal {
    fn from(difference: Difference) -> CloneRefusal {
        CloneRefusal::Differs {
            field: difference.field,
            wanted: difference.wanted,
            have: difference.have,
        }
    }
}

/// The first field, in alphabetical order, in which a template is not as
/// wanted; `None` when it serves. Works on the saved form, so that no field
/// can be forgotten here.
///
/// # Errors
/// When one of them cannot be JSON, which no value of this type is.
pub fn compare(
    wanted: &Requirements,
    have: &Requirements,
) -> Result<Option<Difference>, StoreError> {
    let wanted = serde_json::to_value(wanted).map_err(StoreError::Serialize)?;
    let have = serde_json::to_value(have).map_err(StoreError::Serialize)?;
    Ok(first_difference("", &wanted, &have))
}

fn first_difference(field: &str, wanted: &Value, have: &Value) -> Option<Difference> {
    match (wanted, have) {
        (Value::Object(wanted), Value::Object(have)) => wanted
            .keys()
            .chain(have.keys().filter(|key| !wanted.contains_key(*key)))
            .find_map(|key| {
                let dot = if field.is_empty() { "" } else { "." };
                let field = format!("{field}{dot}{key}");
                let [wanted, have] =
                    [wanted, have].map(|object| object.get(key).unwrap_or(&Value::Null));
                first_difference(&field, wanted, have)
            }),
        (Value::Array(wanted), Value::Array(have)) => {
            (0..wanted.len().max(have.len())).find_map(|index| {
                let [wanted, have] =
                    [wanted, have].map(|array| array.get(index).unwrap_or(&Value::Null));
                first_difference(&format!("{field}[{index}]"), wanted, have)
            })
        }
        _ if wanted == have => None,
        _ => Some(Difference {
            field: field.to_owned(),
            wanted: shown(wanted),
            have: shown(have),
        }),
    }
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => "nothing".to_owned(),
        other => other.to_string(),
    };
    if text.chars().count() <= SHOWN {
        return text;
    }
    let mut short: String = text.chars().take(SHOWN).collect();
    short.push_str("...");
    short
}
