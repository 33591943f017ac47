//! Names of archive entries.

use super::{MAX_NAME, TRAILER};
use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

/// A path inside an archive in its one normal form: relative to the root, no
/// empty, `.` or `..` component, no NUL, not too long for the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryPath(String);

/// A text that is no [`EntryPath`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("path {0:?} is not in normal form inside an archive")]
pub struct PathError(String);

impl EntryPath {
    /// The path without a leading slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory it lies in; none for what lies in the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let (parent, _) = self.0.rsplit_once('/')?;
        Some(Self(parent.to_owned()))
    }
}

impl EntryPath {
    /// Its last component.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// What lies beside it under another name.
    ///
    /// # Errors
    /// When that is no single component.
    pub fn with_name(&self, name: &str) -> Result<Self, PathError> {
        if name.contains('/') {
            return Err(PathError::of(name));
        }
        let above = &self.0[..self.0.len() - self.name().len()];
        format!("{above}{name}").parse()
    }
}

impl PathError {
    /// Of that text, or its start.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(text.chars().take(128).collect())
    }
}

impl FromStr for EntryPath {
    type Err = PathError;

    /// One leading slash is taken as the archive's root.
    fn from_str(text: &str) -> Result<Self, PathError> {
        let path = text.strip_prefix('/').unwrap_or(text);
        let normal = path.len() < MAX_NAME
            && path != TRAILER
            && !path.contains('\0')
            && path
                .split('/')
                .all(|component| !matches!(component, "" | "." | ".."));
        if normal {
            Ok(Self(path.to_owned()))
        } else {
            Err(PathError::of(text))
        }
    }
}

/// Sorted as its text is.
impl Borrow<str> for EntryPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}
