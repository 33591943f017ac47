//! A request as a policy sees it: the JSON that the existing agent's policies
//! are written against, made by reflection.
//!
//! - the names of the .proto file verbatim (`container_id`, `OCI`), but
//!   `type` is `type_`, as the generated Rust field is called;
//! - every field is there: an absent sub-message, or an absent `optional`
//!   scalar, is null;
//! - an enum is its number, repeated is an array, a map an object, bytes an
//!   array of numbers; 64-bit integers are plain numbers.

use protobuf::reflect::{
    FieldDescriptor, ReflectFieldRef, ReflectValueRef, RuntimeFieldType, RuntimeType,
};
use protobuf::{MessageDyn, MessageFull};
use serde_json::{Map, Value};

/// The most values an input may consist of, each byte of a bytes field being
/// one. As JSON in the engine a value costs some tens of bytes, so that 4 MiB
/// of bytes, which is the largest ttrpc message, would cost a small guest its
/// memory. No client sends a tenth of this in a message that is shown whole.
const MAX_VALUES: usize = 1 << 20;

/// How deep messages may be nested. The deepest of the API is a sixth of it.
const MAX_DEPTH: usize = 32;

/// A request that cannot be shown to a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// It is too large.
    #[error("the request is too large to be judged: more than {limit} values")]
    TooLarge {
        /// The most values it may consist of.
        limit: usize,
    },
    /// Its messages are nested too deeply.
    #[error("the request is too large to be judged: nested deeper than {limit} messages")]
    TooDeep {
        /// How deep they may be nested.
        limit: usize,
    },
    /// The target of a symlink to be made is not UTF-8.
    #[error("CopyFileRequest: the symlink's target is not UTF-8")]
    SymlinkTarget,
}

/// `message` as a policy sees it.
pub(crate) fn of(message: &impl MessageFull) -> Result<Value, InputError> {
    let mut converter = Converter {
        values_left: MAX_VALUES,
    };
    converter.message(message, 0)
}

struct Converter {
    values_left: usize,
}

impl Converter {
    fn message(&mut self, message: &dyn MessageDyn, depth: usize) -> Result<Value, InputError> {
        if depth > MAX_DEPTH {
            return Err(InputError::TooDeep { limit: MAX_DEPTH });
        }
        let descriptor = message.descriptor_dyn();
        let mut object = Map::new();
        for field in descriptor.fields() {
            let value = self.field(&field, message, depth)?;
            object.insert(key(field.name()).to_string(), value);
        }
        Ok(Value::Object(object))
    }

    fn field(
        &mut self,
        field: &FieldDescriptor,
        message: &dyn MessageDyn,
        depth: usize,
    ) -> Result<Value, InputError> {
        match field.get_reflect(message) {
            ReflectFieldRef::Optional(value) => match value.value() {
                Some(value) => self.value(value, depth),
                None if is_nullable(field) => self.scalar(Value::Null),
                None => self.value(field.singular_default_value(), depth),
            },
            ReflectFieldRef::Repeated(values) => {
                self.take(1)?;
                let values = (&values).into_iter();
                let array: Result<_, _> = values.map(|value| self.value(value, depth)).collect();
                Ok(Value::Array(array?))
            }
            ReflectFieldRef::Map(entries) => {
                self.take(1)?;
                let entries = (&entries).into_iter();
                let object: Result<_, _> = entries
                    .map(|(key, value)| Ok((key.to_string(), self.value(value, depth)?)))
                    .collect();
                Ok(Value::Object(object?))
            }
        }
    }

    fn value(&mut self, value: ReflectValueRef<'_>, depth: usize) -> Result<Value, InputError> {
        match value {
            ReflectValueRef::U32(number) => self.scalar(number),
            ReflectValueRef::U64(number) => self.scalar(number),
            ReflectValueRef::I32(number) => self.scalar(number),
            ReflectValueRef::I64(number) => self.scalar(number),
            ReflectValueRef::F32(number) => self.scalar(number),
            ReflectValueRef::F64(number) => self.scalar(number),
            ReflectValueRef::Bool(truth) => self.scalar(truth),
            ReflectValueRef::Enum(_, number) => self.scalar(number),
            ReflectValueRef::String(text) => self.scalar(text),
            ReflectValueRef::Bytes(bytes) => {
                self.take(bytes.len().saturating_add(1))?;
                Ok(bytes.iter().copied().map(Value::from).collect())
            }
            ReflectValueRef::Message(message) => {
                self.take(1)?;
                self.message(&*message, depth + 1)
            }
        }
    }

    fn scalar(&mut self, value: impl Into<Value>) -> Result<Value, InputError> {
        self.take(1)?;
        Ok(value.into())
    }

    fn take(&mut self, values: usize) -> Result<(), InputError> {
        self.values_left = self
            .values_left
            .checked_sub(values)
            .ok_or(InputError::TooLarge { limit: MAX_VALUES })?;
        Ok(())
    }
}

/// The generated Rust field's name. `type` is the only keyword of Rust among
/// the API's field names; a test holds that.
fn key(name: &str) -> &str {
    if name == "type" { "type_" } else { name }
}

/// Whether an absent field is null, and not its default value.
fn is_nullable(field: &FieldDescriptor) -> bool {
    field.proto().proto3_optional()
        || matches!(
            field.runtime_field_type(),
            RuntimeFieldType::Singular(RuntimeType::Message(_))
        )
}

#[cfg(test)]
mod tests;
