//! QEMU's version.

use std::path::Path;

use crate::error::{Error, quote};
use crate::process::Confinement;
use crate::program::{Version, printed, unusable};

/// The oldest version whose behaviour was tried.
const OLDEST: Version = Version { major: 7, minor: 2 };

/// Asks a program for its version, and refuses one that is too old.
pub(super) async fn ask(
    program: &Path,
    confinement: &Confinement,
) -> Result<(Version, String), Error> {
    let failed = |reason: String| unusable(program, reason);
    let printed = printed(program, "--version", confinement).await?;
    let found = parse(&printed);
    let (version, text) =
        found.ok_or_else(|| failed(format!("not qemu's version: {}", quote(&printed))))?;
    if version < OLDEST {
        return Err(failed(format!("version {version} is older than {OLDEST}")));
    }
    Ok((version, text))
}

/// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`.
fn parse(printed: &str) -> Option<(Version, String)> {
    let text = printed
        .lines()
        .next()?
        .strip_prefix("QEMU emulator version ")?;
    Some((Version::parse(text)?, quote(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_with_and_without_a_packagers_part() {
        let wanted = Version { major: 7, minor: 2 };
        for text in ["7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", "7.2.0", "7.2"] {
            let printed = format!("QEMU emulator version {text}\nCopyright");
            assert_eq!(parse(&printed), Some((wanted, text.to_owned())));
        }
    }

    #[test]
    fn other_words_are_no_version() {
        for printed in [
            "",
            "qemu 7.2",
            "QEMU emulator version x.y",
            "QEMU emulator version 7",
        ] {
            assert_eq!(parse(printed), None, "{printed:?}");
        }
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(
            Version {
                major: 10,
                minor: 0
            } > Version { major: 8, minor: 2 }
        );
    }

    #[tokio::test]
    async fn a_program_that_is_no_qemu_is_refused() {
        let error = ask(Path::new("/bin/true"), &Confinement::Insecure)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("not qemu's version"), "{error}");
    }
}
