//! The last steps before the workload, and the step into it.

use crate::container::error::{Failure, Step};
use crate::container::spec::ProcessSpec;
use nix::unistd::execve;
use rustix::fs::Mode;
use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Where programs are searched if the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The usual file mode mask.
const DEFAULT_UMASK: u32 = 0o022;
/// The first descriptor that is not one of the three streams.
const FIRST_OTHER: u32 = 3;

/// What a process finds when it begins: default signals, the usual file mode
/// mask, and no descriptor but its three streams.
pub(super) fn prepare(umask: Option<u32>) -> Result<(), Failure> {
    guest_kernel::signal::reset_all().map_err(Failure::at(Step::Attributes, "signals"))?;
    rustix::process::umask(Mode::from_raw_mode(umask.unwrap_or(DEFAULT_UMASK)));
    guest_kernel::descriptor::close_on_exec_from(FIRST_OTHER)
        .map_err(Failure::at(Step::Descriptors, ""))
}

/// Becomes the program; returns only why it cannot.
pub(super) fn execute(process: &ProcessSpec) -> nix::Error {
    match try_execute(process) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// Whether there is a program to become; the filter may keep the answer of
/// execve(2) from being told.
pub(super) fn find(process: &ProcessSpec) -> Result<(), nix::Error> {
    let mut denied = None;
    for candidate in programs(process)? {
        match nix::unistd::access(&candidate, nix::unistd::AccessFlags::X_OK) {
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => {}
            Err(nix::Error::EACCES) => denied = Some(nix::Error::EACCES),
            outcome => return outcome,
        }
    }
    Err(denied.unwrap_or(nix::Error::ENOENT))
}

fn try_execute(process: &ProcessSpec) -> Result<std::convert::Infallible, nix::Error> {
    let arguments = terminated(&process.args)?;
    let environment = terminated(&process.env)?;
    let mut denied = None;
    for candidate in programs(process)? {
        let candidate = candidate.into_os_string().into_vec();
        let candidate = CString::new(candidate).map_err(|_| nix::Error::EINVAL)?;
        match execve(&candidate, &arguments, &environment) {
            // Not there: the next directory, execvp(3).
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => {}
            Err(nix::Error::EACCES) => denied = Some(nix::Error::EACCES),
            Err(error) => return Err(error),
            Ok(never) => return Ok(never),
        }
    }
    Err(denied.unwrap_or(nix::Error::ENOENT))
}

fn terminated(strings: &[String]) -> Result<Vec<CString>, nix::Error> {
    strings
        .iter()
        .map(|string| CString::new(string.as_str()).map_err(|_| nix::Error::EINVAL))
        .collect()
}

/// The paths to try, in order.
fn programs(process: &ProcessSpec) -> Result<Vec<PathBuf>, nix::Error> {
    if let Some(program) = &process.program {
        return Ok(vec![program.clone()]);
    }
    let program = process.args.first().ok_or(nix::Error::EINVAL)?;
    let candidates = candidates(program, &process.env);
    Ok(candidates.into_iter().map(Into::into).collect())
}

fn candidates(program: &str, env: &[String]) -> Vec<String> {
    if program.is_empty() {
        return Vec::new();
    }
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    env.iter()
        .find_map(|variable| variable.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH)
        .split(':')
        // An empty one is the working directory, execvp(3).
        .map(|directory| match directory {
            "" => format!("./{program}"),
            directory => format!("{directory}/{program}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_searched_in_the_path_of_its_own_environment() {
        let env = ["HOME=/x".to_owned(), "PATH=/a::/b".to_owned()];
        assert_eq!(candidates("sh", &env), ["/a/sh", "./sh", "/b/sh"]);
        assert_eq!(candidates("./sh", &env), ["./sh"]);
        assert!(candidates("", &env).is_empty());
        assert!(candidates("sh", &[]).contains(&"/bin/sh".to_owned()));
    }

    #[test]
    fn what_cannot_be_executed_says_why() {
        let run = |program: &str| {
            let mut process = ProcessSpec::guest_root();
            process.args = vec![program.to_owned()];
            assert_eq!(find(&process).is_err(), program != "/bin/nonsense");
            execute(&process)
        };
        assert_eq!(run("no-such-program"), nix::Error::ENOENT);
        assert_eq!(run("/etc/passwd"), nix::Error::EACCES);
        assert_eq!(run("a\0b"), nix::Error::EINVAL);
    }
}
