//! Names of containers and of the processes added to them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The longest id, in bytes: it becomes a directory's name, of which
/// `NAME_MAX` (255, limits.h) leaves room for a prefix.
const LENGTH_MAX: usize = 128;

/// An id that is not one. The text clients know it by is put before it by the
/// caller, together with the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Shorter or longer than allowed.
    #[error("not {least} to {LENGTH_MAX} characters long")]
    Length {
        /// The least allowed, in characters.
        least: usize,
    },
    /// Begins with something else than an ASCII letter or digit.
    #[error("does not begin with an ASCII letter or digit")]
    First,
    /// Holds something else than ASCII letters, digits, `.`, `-` and `_`.
    #[error("holds another character than ASCII letters, digits, '.', '-' and '_'")]
    Character,
}

fn check(text: &str, least: usize) -> Result<(), IdError> {
    if !(least..=LENGTH_MAX).contains(&text.len()) {
        return Err(IdError::Length { least });
    }
    let mut bytes = text.bytes();
    if !bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric())
    {
        return Err(IdError::First);
    }
    if !bytes.all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) {
        return Err(IdError::Character);
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $least:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                check(text, $least).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                check(&text, $least).map(|()| Self(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

id! {
    /// A container's id: 2 to 128 of ASCII letters, digits, `.`, `-`, `_`, the
    /// first a letter or digit. It is safe as one component of a path.
    ContainerId, 2
}

id! {
    /// The id of a process added to a container: as [`ContainerId`], from one
    /// character on.
    ExecId, 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_that_could_leave_a_directory_are_refused() {
        for text in ["", "a", "..", ".a", "a/b", "-a", "ab\0", "é1", "a b", "a\n"] {
            assert!(text.parse::<ContainerId>().is_err(), "{text:?}");
        }
        assert_eq!("a".parse::<ExecId>().unwrap().as_ref(), "a");
        assert!("x".repeat(129).parse::<ExecId>().is_err());
    }

    #[test]
    fn a_bad_id_does_not_come_in_by_deserialisation() {
        assert!(serde_json::from_str::<ContainerId>("\"../x\"").is_err());
    }

    proptest! {
        #[test]
        fn every_id_is_one_component_of_a_path(text in ".{0,140}") {
            if let Ok(id) = text.parse::<ContainerId>() {
                let path = std::path::Path::new(id.as_ref());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert_eq!(path.file_name().unwrap(), id.as_ref());
            }
        }
    }
}
