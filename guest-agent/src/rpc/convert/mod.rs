//! From wire messages to the service's requests and back: fallible and pure.
//! No input panics, no value is silently dropped: what cannot be done is
//! refused by name.

mod additions;
#[cfg(test)]
mod arbitrary;
pub(super) mod container;
pub(super) mod control;
mod device;
pub(super) mod diagnostics;
pub(super) mod files;
mod hooks;
mod hotplug;
pub(super) mod lifecycle;
pub(super) mod machine;
pub(super) mod network;
pub(super) mod process;
mod resources;
mod seccomp;
#[cfg(test)]
mod tests;

/// A message that is no request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConvertError {
    #[error("missing {field}")]
    Missing { field: &'static str },
    #[error("{field}: {value:?}: {reason}")]
    Value {
        field: &'static str,
        value: String,
        reason: String,
    },
    /// The text is what clients know it by.
    #[error("unsupported diagnostic log_type: {0}")]
    DiagnosticLog(String),
    #[error("{feature} is not supported")]
    Unsupported { feature: String },
}

/// For `map_err` on a parse: the field, what it held (bounded, it may be
/// anything), and why it cannot be.
fn invalid<E: std::fmt::Display>(
    field: &'static str,
    value: &str,
) -> impl FnOnce(E) -> ConvertError {
    let value = value.chars().take(128).collect();
    move |reason| ConvertError::Value {
        field,
        value,
        reason: reason.to_string(),
    }
}

/// Refuses a feature by name where it is asked for.
fn refuse(asked: bool, feature: &str) -> Result<(), ConvertError> {
    if asked {
        return Err(ConvertError::Unsupported {
            feature: feature.into(),
        });
    }
    Ok(())
}

fn unsupported(feature: impl Into<String>) -> ConvertError {
    ConvertError::Unsupported {
        feature: feature.into(),
    }
}
