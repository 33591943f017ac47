//! A failed system call on a path, shown the way strace would.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A system call on a path failed.
#[derive(Debug, Error)]
#[error("{call} {path}")]
pub struct CallFailed {
    /// The call.
    pub call: &'static str,
    /// What it was about.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// For `map_err`: names the call and the path.
pub(crate) fn failed<'a, S: Into<io::Error>>(
    call: &'static str,
    path: &'a Path,
) -> impl FnOnce(S) -> CallFailed + 'a {
    move |source| CallFailed {
        call,
        path: path.to_owned(),
        source: source.into(),
    }
}

/// An error and everything that caused it, on one line.
#[must_use]
pub fn explain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_is_explained_with_what_the_kernel_said() {
        let error = failed("open", Path::new("/x"))(rustix::io::Errno::NOENT);
        assert!(explain(&error).starts_with("open /x: No such file"));
    }
}
