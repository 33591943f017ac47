//! Firecracker's version, and that of the states it writes.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, quote};
use crate::process::Confinement;
use crate::program::{printed, unusable};

/// The first version that can be told where the guest's console goes (PUT
/// /serial). Before, the console and the log share one stream.
const OLDEST: Version = Version::new(1, 14, 0);

/// The first version that can be told a restored VM's vsock socket
/// (`vsock_override`). Before, every clone would bind the saved VM's.
pub(crate) const MOVES_VSOCK: Version = Version::new(1, 16, 0);

/// A version (Firecracker follows semantic versioning).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// Patch level.
    pub patch: u16,
}

impl Version {
    const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A program's version, its text, and the version of the states it writes.
pub(super) struct Versions {
    pub(super) version: Version,
    pub(super) text: String,
    pub(super) state_format: String,
}

/// Asks a program for its versions, and refuses one that is too old.
pub(super) async fn ask(program: &Path, confinement: &Confinement) -> Result<Versions, Error> {
    let printed_version = printed(program, "--version", confinement).await?;
    let (version, text) = parse(&printed_version).ok_or_else(|| {
        let reason = format!("not firecracker's version: {}", quote(&printed_version));
        unusable(program, reason)
    })?;
    if version < OLDEST {
        let reason = format!("version {version} is older than {OLDEST}");
        return Err(unusable(program, reason));
    }
    let formats = printed(program, "--snapshot-version", confinement).await?;
    let format = formats
        .lines()
        .next()
        .and_then(|line| line.strip_prefix('v'));
    let format = format.ok_or_else(|| {
        let reason = format!("not a version of its states: {}", quote(&formats));
        unusable(program, reason)
    })?;
    Ok(Versions {
        version,
        text,
        state_format: quote(format),
    })
}

/// `Firecracker v1.16.1`, and on a development build more after a dash. Lines
/// of its log follow.
fn parse(printed: &str) -> Option<(Version, String)> {
    let text = printed.lines().next()?.strip_prefix("Firecracker v")?;
    let numbers = text.split(['-', '+', ' ']).next()?;
    let mut numbers = numbers.split('.').map(|number| number.parse().ok());
    let version = Version::new(numbers.next()??, numbers.next()??, numbers.next()??);
    Some((version, quote(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_with_and_without_what_follows_it() {
        for text in ["1.16.1", "1.16.1-dev", "1.16.1-12-gabc"] {
            let printed = format!("Firecracker v{text}\n\n2026 [x:main] exiting");
            let wanted = (Version::new(1, 16, 1), text.to_owned());
            assert_eq!(parse(&printed), Some(wanted));
        }
    }

    #[test]
    fn other_words_are_no_version() {
        for printed in ["", "Firecracker", "Firecracker v1.16", "Firecracker v1.x.1"] {
            assert_eq!(parse(printed), None, "{printed:?}");
        }
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(Version::new(1, 9, 0) < OLDEST);
        assert!(Version::new(1, 15, 9) < MOVES_VSOCK);
        assert!(Version::new(1, 16, 1) > MOVES_VSOCK);
    }

    #[tokio::test]
    async fn a_program_that_is_no_firecracker_is_refused() {
        let Err(error) = ask(Path::new("/bin/true"), &Confinement::Insecure).await else {
            panic!("taken for firecracker");
        };
        assert!(error.to_string().contains("not firecracker's"), "{error}");
    }
}
