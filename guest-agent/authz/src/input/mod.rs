//! A request as a policy sees it: the JSON that the existing agent's policies
//! are written against.
//!
//! - the names of the .proto file verbatim (`container_id`, `OCI`), but
//!   `type` is `type_`, as the generated Rust field is called;
//! - every field is there: an absent sub-message, or an absent `optional`
//!   scalar, is null;
//! - an enum is its number, repeated is an array, a map an object, bytes an
//!   array of numbers; 64-bit integers are plain numbers.
//!
//! The fields of each message come from the list the wire is generated with,
//! not from reflection, whose tables are a sixteenth of the agent; the tests
//! hold the one against the other.

use std::collections::HashMap;

use protobuf::{Enum, EnumOrUnknown, MessageField};
use serde_json::Value;

/// The most values an input may consist of, each byte of a bytes field being
/// one. As JSON in the engine a value costs some tens of bytes, so that 4 MiB
/// of bytes, which is the largest ttrpc message, would cost a small guest its
/// memory. No client sends a tenth of this in a message that is shown whole.
const MAX_VALUES: usize = 1 << 20;

/// A request that cannot be shown to a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// It is too large.
    #[error("the request is too large to be judged: more than {limit} values")]
    TooLarge {
        /// The most values it may consist of.
        limit: usize,
    },
    /// The target of a symlink to be made is not UTF-8.
    #[error("CopyFileRequest: the symlink's target is not UTF-8")]
    SymlinkTarget,
}

/// `message` as a policy sees it.
pub(crate) fn of(message: &impl Shown) -> Result<Value, InputError> {
    message.show(&mut Budget::new())
}

/// How many values an input may still have.
pub struct Budget(usize);

impl Budget {
    fn new() -> Self {
        Self(MAX_VALUES)
    }

    fn take(&mut self) -> Result<(), InputError> {
        self.0 = self.checked_after(1)?;
        Ok(())
    }

    /// What is left after so many values: looked at before they are made.
    fn checked_after(&self, values: usize) -> Result<usize, InputError> {
        let limit = MAX_VALUES;
        self.0
            .checked_sub(values)
            .ok_or(InputError::TooLarge { limit })
    }

    /// A message. No type of the wire has itself among its parts, so that
    /// nothing is nested deeper than the types are; a test holds that.
    fn object(&mut self, fields: &[(&str, &dyn Shown)]) -> Result<Value, InputError> {
        self.take()?;
        let shown = fields
            .iter()
            .map(|(name, field)| Ok(((*name).to_string(), field.show(self)?)));
        shown.collect::<Result<_, _>>().map(Value::Object)
    }
}

/// A message, or what one consists of.
pub trait Shown {
    /// It as a policy sees it.
    ///
    /// # Errors
    /// [`InputError::TooLarge`].
    fn show(&self, left: &mut Budget) -> Result<Value, InputError>;
}

macro_rules! messages {
    ($($message:ty { $($field:ident,)* })*) => {$(
        impl Shown for $message {
            fn show(&self, left: &mut Budget) -> Result<Value, InputError> {
                left.object(&[$((stringify!($field), &self.$field)),*])
            }
        }
    )*};
}

protocols::for_each_message!(messages);

macro_rules! scalars {
    ($($scalar:ty)*) => {$(
        impl Shown for $scalar {
            fn show(&self, left: &mut Budget) -> Result<Value, InputError> {
                left.take()?;
                Ok(Value::from(self.clone()))
            }
        }
    )*};
}

// A byte is an element of a bytes field.
scalars! { u8 u32 u64 i32 i64 f64 bool String }

impl<E: Enum> Shown for EnumOrUnknown<E> {
    fn show(&self, left: &mut Budget) -> Result<Value, InputError> {
        self.value().show(left)
    }
}

impl<T: Shown> Shown for Option<T> {
    fn show(&self, left: &mut Budget) -> Result<Value, InputError> {
        match self {
            Some(value) => value.show(left),
            None => {
                left.take()?;
                Ok(Value::Null)
            }
        }
    }
}

impl<T: Shown> Shown for MessageField<T> {
    fn show(&self, left: &mut Budget) -> Result<Value, InputError> {
        self.0.show(left)
    }
}

impl<T: Shown> Shown for Box<T> {
    fn show(&self, left: &mut Budget) -> Result<Value, InputError> {
        (**self).show(left)
    }
}

impl<T: Shown> Shown for Vec<T> {
    fn show(&self, left: &mut Budget) -> Result<Value, InputError> {
        left.take()?;
        left.checked_after(self.len())?;
        let values = self.iter().map(|value| value.show(left));
        values.collect::<Result<_, _>>().map(Value::Array)
    }
}

impl<T: Shown> Shown for HashMap<String, T> {
    fn show(&self, left: &mut Budget) -> Result<Value, InputError> {
        left.take()?;
        left.checked_after(self.len())?;
        let entries = self
            .iter()
            .map(|(key, value)| Ok((key.clone(), value.show(left)?)));
        entries.collect::<Result<_, _>>().map(Value::Object)
    }
}

#[cfg(test)]
mod tests;
