//! Identifiers that cross functions, files and command lines, each with one
//! place that decides what is well formed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{hexadecimal, random_bytes};

/// Digits of a sandbox id: 48 random bits, unlikely to meet twice on one host
/// and still short enough to be typed.
const SANDBOX_ID_DIGITS: usize = 12;
/// Digits of a SHA-256 digest in hexadecimal.
const DIGEST_DIGITS: usize = 64;
/// Longest template name. It must differ from a digest and fit one file name.
const TEMPLATE_NAME_MAX: usize = 63;

/// Why a text is not the identifier it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// Not a sandbox id.
    #[error("sandbox id {0:?}: want 12 lower-case hexadecimal digits")]
    SandboxId(String),
    /// Not a template name.
    #[error(
        "template name {0:?}: want at most 63 of a-z and 0-9, with single . _ or - between them"
    )]
    TemplateName(String),
    /// Not a template digest.
    #[error("template digest {0:?}: want 64 lower-case hexadecimal digits")]
    TemplateDigest(String),
    /// The kernel gave no random bytes.
    #[error("getrandom: {0}")]
    Random(#[from] rustix::io::Errno),
}

/// Names one sandbox: its run directory and, as `tardigrade-<id>`, its VM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

impl SandboxId {
    /// A fresh id from getrandom(2).
    ///
    /// # Errors
    /// When the kernel refuses random bytes.
    pub fn random() -> Result<SandboxId, NameError> {
        let bytes = random_bytes::<{ SANDBOX_ID_DIGITS / 2 }>()?;
        Ok(SandboxId(hexadecimal(&bytes)))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The unique name of this sandbox's VM, which a VMM that takes one carries on
    /// its command line, so that it is found even when it was never recorded.
    #[must_use]
    pub fn vm_name(&self) -> String {
        format!("tardigrade-{}", self.0)
    }
}

impl FromStr for SandboxId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<SandboxId, NameError> {
        if text.len() == SANDBOX_ID_DIGITS && text.bytes().all(is_lower_hexadecimal) {
            Ok(SandboxId(text.to_owned()))
        } else {
            Err(NameError::SandboxId(shortened(text)))
        }
    }
}

/// A name a person gives to a template: a path component of an OCI image name
/// (OCI distribution specification, "Pulling manifests"), without slashes
/// because it is also the name of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TemplateName(String);

impl TemplateName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TemplateName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<TemplateName, NameError> {
        if text.len() <= TEMPLATE_NAME_MAX && is_name_component(text) {
            Ok(TemplateName(text.to_owned()))
        } else {
            Err(NameError::TemplateName(shortened(text)))
        }
    }
}

/// SHA-256 over everything that must match between a template and a wish for
/// one; also the name of the template's directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TemplateDigest(String);

impl TemplateDigest {
    /// The digest as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, for tables.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl FromStr for TemplateDigest {
    type Err = NameError;

    fn from_str(text: &str) -> Result<TemplateDigest, NameError> {
        if text.len() == DIGEST_DIGITS && text.bytes().all(is_lower_hexadecimal) {
            Ok(TemplateDigest(text.to_owned()))
        } else {
            Err(NameError::TemplateDigest(shortened(text)))
        }
    }
}

/// The conversions every identifier has.
macro_rules! identifier {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<$name, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    )+};
}

identifier!(SandboxId, TemplateName, TemplateDigest);

fn is_lower_hexadecimal(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn is_name_component(text: &str) -> bool {
    text.split(['.', '_', '-']).all(|part| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    })
}

/// What an error shows of a text that may be anything.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn random_ids_are_well_formed_and_differ() {
        let first = SandboxId::random().unwrap();
        assert_eq!(first.as_str().parse::<SandboxId>().unwrap(), first);
        assert_ne!(first, SandboxId::random().unwrap());
    }

    #[test]
    fn a_name_that_could_leave_its_folder_is_refused() {
        for text in ["", ".", "..", "a/b", "-a", "a-", "a..b", "A", "a b", "é"] {
            assert!(text.parse::<TemplateName>().is_err(), "{text:?}");
        }
        assert!("redis-7.2_warm".parse::<TemplateName>().is_ok());
    }

    proptest! {
        #[test]
        fn a_name_is_never_taken_for_a_digest(text in "[0-9a-f]{64}") {
            prop_assert!(text.parse::<TemplateDigest>().is_ok());
            prop_assert!(text.parse::<TemplateName>().is_err());
        }

        #[test]
        fn whatever_parses_prints_as_it_was(text in "\\PC{0,70}") {
            if let Ok(name) = text.parse::<TemplateName>() {
                prop_assert_eq!(name.as_str(), text.as_str());
                prop_assert!(!text.contains('/') && !text.starts_with('.'));
            }
            if let Ok(id) = text.parse::<SandboxId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
