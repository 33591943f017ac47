//! Which virtiofsd there is, and what it can do.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::process::Confinement;
use crate::program::{find as find_program, printed, unusable};

/// The variable that names the program.
const VARIABLE: &str = "VIRTIOFSD";
/// Its name.
const NAME: &str = "virtiofsd";
/// Where the distributions put it, which is on nobody's PATH. In the last one is
/// that of QEMU before 8.0.
const PLACES: [&str; 3] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
];
/// What it must have, beside what every version has: without them a guest's users
/// could only be the host's, which takes capabilities.
const NEEDED: [&str; 2] = ["--translate-uid", "--translate-gid"];
/// What it must have for a VM that is saved.
const MIGRATES: &str = "--migration-mode";
/// What says that it is the crate's.
const CRATES: &str = "--shared-dir";

/// A virtiofsd that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Virtiofsd {
    /// The program.
    pub program: PathBuf,
    /// Its version, as it gives it.
    pub version: String,
    /// Whether what a guest has open can be saved with it.
    pub migrates: bool,
}

/// Finds the virtiofsd of this host, which is asked what it is, confined as it
/// will be: the one that $VIRTIOFSD names, or else the first on PATH and in the
/// usual places that can be used.
///
/// # Errors
/// [`Error::Probe`] when there is none, or none that can be used;
/// [`Error::Confinement`] when it cannot be confined.
pub async fn find(confinement: &Confinement) -> Result<Virtiofsd, Error> {
    let named = std::env::var_os(VARIABLE).is_some();
    let first = find_program(None, VARIABLE, NAME);
    if named {
        return at(&first?, confinement).await;
    }
    let places = PLACES.map(PathBuf::from).into_iter();
    let candidates = first.into_iter().chain(places);
    first_of(candidates.filter(|path| path.is_file()), confinement).await
}

/// The first that can be used. One that cannot be executed is passed over as one
/// that is something else; but where nothing can be started as it is to be, the
/// next could not either.
async fn first_of(
    candidates: impl Iterator<Item = PathBuf>,
    confinement: &Confinement,
) -> Result<Virtiofsd, Error> {
    let mut refusals = Vec::new();
    for program in candidates {
        match at(&program, confinement).await {
            Err(Error::Probe { program, reason }) => {
                refusals.push(format!("{}: {reason}", program.display()));
            }
            Err(Error::Path { path, source, .. }) if path == program => {
                refusals.push(format!("{}: {source}", program.display()));
            }
            answered => return answered,
        }
    }
    let what = if refusals.is_empty() {
        format!("not on PATH nor in {}", PLACES.join(", "))
    } else {
        refusals.join("; ")
    };
    let reason = format!("{what}; ${VARIABLE} names one");
    Err(unusable(Path::new(NAME), reason))
}

/// What this program is and can do.
///
/// # Errors
/// Those of [`find`].
pub async fn at(program: &Path, confinement: &Confinement) -> Result<Virtiofsd, Error> {
    let help = printed(program, "--help", confinement).await?;
    let migrates = judge(&help).map_err(|reason| unusable(program, reason))?;
    let version = printed(program, "--version", confinement).await?;
    Ok(Virtiofsd {
        program: program.to_owned(),
        version: crate::error::quote(version.trim_start_matches(NAME)),
        migrates,
    })
}

/// Whether the program with this help can save what a guest has open.
///
/// # Errors
/// Why it cannot be used.
fn judge(help: &str) -> Result<bool, String> {
    let has = |option: &str| {
        let mut words = help.split(|letter: char| letter.is_whitespace() || letter == '=');
        words.any(|word| word.trim_end_matches(',') == option)
    };
    if !has(CRATES) {
        return Err("not the crate virtiofsd (qemu's serves as root only)".to_owned());
    }
    match NEEDED.iter().find(|option| !has(option)) {
        Some(option) => Err(format!("it has no {option}, and is too old")),
        None => Ok(has(MIGRATES)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "Usage: virtiofsd --shared-dir <SHARED_DIR> --socket-path <SOCKET_PATH>\n\n\
        Options:\n      --shared-dir <SHARED_DIR>\n          Shared directory path\n      \
        --translate-uid <TRANSLATE_UID>\n      --translate-gid <TRANSLATE_GID>\n          \
        Same as '--translate-uid', but for GIDs\n      --migration-mode <MIGRATION_MODE>\n";

    #[test]
    fn what_a_virtiofsd_can_do_is_read_from_its_help() {
        assert_eq!(judge(HELP), Ok(true));
        let older = HELP.replace("--migration-mode", "--other");
        assert_eq!(judge(&older), Ok(false));
        // Mentioned is not had.
        let oldest = HELP.replace("--translate-uid <", "--uid-map <");
        assert!(judge(&oldest).unwrap_err().contains("--translate-uid"));
    }

    #[test]
    fn qemus_program_of_that_name_is_told_from_the_crates() {
        let help = "usage: /usr/lib/qemu/virtiofsd [options]\n\n    --fd=FDNUM  vhost-user\n    \
            -o source=PATH             shared directory tree\n";
        assert!(judge(help).unwrap_err().contains("qemu's"));
    }

    #[tokio::test]
    async fn one_that_cannot_be_executed_does_not_end_the_search() {
        use std::fs::{self, Permissions};
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, text: &str, mode: u32| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        };
        let closed = make("closed", "", 0o644);
        let foreign = make("foreign", "#!/no/such/interpreter\n", 0o755);
        let other = make("other", "#!/bin/sh\necho another\n", 0o755);
        let script = format!("#!/bin/sh\ncat <<'END'\n{HELP}\nEND\n");
        let right = make("right", &script, 0o755);
        let all = [&closed, &foreign, &other, &right].map(Clone::clone);
        let found = first_of(all.into_iter(), &Confinement::Insecure).await;
        assert_eq!(found.unwrap().program, right);
        let none = [closed.clone(), other.clone()].into_iter();
        let error = first_of(none, &Confinement::Insecure).await.unwrap_err();
        let error = error.to_string();
        for refused in [&closed, &other] {
            assert!(error.contains(refused.to_str().unwrap()), "{error}");
        }
    }

    #[tokio::test]
    async fn a_program_that_is_none_is_named() {
        let error = at(Path::new("/bin/true"), &Confinement::Insecure).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("/bin/true: not the crate"), "{error}");
        let error = at(Path::new("/no/such"), &Confinement::Insecure).await;
        assert!(error.unwrap_err().to_string().contains("/no/such"));
    }
}
