//! The hooks that a guest's image brings along: programs in directories that
//! are named after their kinds, run for every container.

use super::{HOOK_TIMEOUT, HookKind, HookSpec, Hooks};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The kinds that there is a directory for.
const KINDS: [HookKind; 3] = [HookKind::Prestart, HookKind::Poststart, HookKind::Poststop];
/// Entries of a directory: all that are hooks are run one after the other.
const ENTRIES_MAX: usize = 64;
/// Whoever may execute it: root may, then.
const EXECUTABLE: u32 = 0o111;

/// Hooks that cannot be found out.
#[derive(Debug, thiserror::Error)]
#[error("guest hooks: {call} {}", path.display())]
pub struct GuestHooksError {
    call: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Hooks {
    /// The regular, executable files of `directory/prestart`, `/poststart` and
    /// `/poststop`, by their names' order. Symbolic links are none; a directory
    /// that is not there holds none. It blocks.
    ///
    /// # Errors
    /// Those of openat2(2) and getdents64(2); `E2BIG` for a directory of more
    /// than 64 entries; `EILSEQ` for a hook whose name is not UTF-8.
    pub fn of_directory(directory: &Path) -> Result<Self, GuestHooksError> {
        let mut hooks = Self::default();
        let Some(all) =
            open(CWD, directory, ResolveFlags::NO_MAGICLINKS).map_err(failed("open", directory))?
        else {
            return Ok(hooks);
        };
        for kind in KINDS {
            let name = kind.to_string();
            let path = directory.join(&name);
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let found = open(&all, Path::new(&name), resolve).map_err(failed("open", &path))?;
            if let Some(found) = found {
                *hooks.of_mut(kind) = list(&found, &path, kind)?;
            }
        }
        Ok(hooks)
    }
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(Errno) -> GuestHooksError {
    let path = path.to_owned();
    move |errno| GuestHooksError {
        call,
        path,
        source: errno.into(),
    }
}

fn open(
    above: impl std::os::fd::AsFd,
    path: &Path,
    resolve: ResolveFlags,
) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat2(above, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT) => Ok(None),
        opened => opened.map(Some),
    }
}

fn list(
    directory: &OwnedFd,
    path: &Path,
    kind: HookKind,
) -> Result<Vec<HookSpec>, GuestHooksError> {
    let entries = Dir::read_from(directory).map_err(failed("list", path))?;
    let mut hooks = Vec::new();
    for (count, entry) in entries.enumerate() {
        let entry = entry.map_err(failed("list", path))?;
        // `.` and `..` are two more.
        if count >= ENTRIES_MAX + 2 {
            return Err(failed("list", path)(Errno::TOOBIG));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = match openat2(directory, entry.file_name(), flags, Mode::empty(), resolve) {
            Ok(file) => file,
            // A link; `..`; one that is gone meanwhile.
            Err(Errno::LOOP | Errno::XDEV | Errno::NOENT) => continue,
            Err(errno) => return Err(failed("open", path)(errno)),
        };
        let stat = fstat(&file).map_err(failed("stat", path))?;
        let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_regular || stat.st_mode & EXECUTABLE == 0 {
            continue;
        }
        let name = entry.file_name().to_str();
        let name = name.map_err(|_| failed("list", path)(Errno::ILSEQ))?;
        hooks.push(HookSpec {
            path: path.join(name),
            args: vec![name.to_owned(), kind.to_string()],
            env: Vec::new(),
            timeout: HOOK_TIMEOUT,
        });
    }
    hooks.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(hooks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn write(path: &Path, mode: u32) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_programs_are_hooks_by_the_directory_they_are_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        write(&path("prestart/20-second"), 0o755);
        write(&path("prestart/10-first"), 0o700);
        write(&path("prestart/not-executable"), 0o644);
        write(&path("poststop/last"), 0o755);
        // Of a kind that no directory is looked for.
        write(&path("createRuntime/other"), 0o755);
        fs::create_dir(path("prestart/directory")).unwrap();
        symlink("10-first", path("prestart/link")).unwrap();
        symlink("prestart", path("poststart")).unwrap();
        // The link in the place of a directory.
        assert!(Hooks::of_directory(directory.path()).is_err());
        fs::remove_file(path("poststart")).unwrap();
        let hooks = Hooks::of_directory(directory.path()).unwrap();
        let args = |hooks: &[HookSpec]| -> Vec<Vec<String>> {
            hooks.iter().map(|hook| hook.args.clone()).collect()
        };
        assert_eq!(
            args(&hooks.prestart),
            [["10-first", "prestart"], ["20-second", "prestart"]]
        );
        assert_eq!(args(&hooks.poststop), [["last", "poststop"]]);
        assert_eq!(hooks.poststop[0].path, path("poststop/last"));
        assert_eq!(hooks.poststop[0].timeout, HOOK_TIMEOUT);
        assert!(hooks.poststart.is_empty() && hooks.create_runtime.is_empty());
        assert!(hooks.validate().is_ok());
    }

    #[test]
    fn there_may_be_none_and_not_too_many() {
        let directory = tempfile::tempdir().unwrap();
        let none = Hooks::of_directory(&directory.path().join("missing")).unwrap();
        assert_eq!(none, Hooks::default());
        for number in 0..=ENTRIES_MAX {
            let found = Hooks::of_directory(directory.path()).unwrap();
            assert_eq!(found.poststart.len(), number);
            write(&directory.path().join(format!("poststart/{number}")), 0o755);
        }
        let error = Hooks::of_directory(directory.path()).unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(nix::libc::E2BIG));
        let file = directory.path().join("poststart/0");
        assert!(Hooks::of_directory(&file).is_err());
    }

    #[test]
    fn they_come_after_a_containers_own() {
        let named = |name: &str| HookSpec {
            path: name.into(),
            args: Vec::new(),
            env: Vec::new(),
            timeout: HOOK_TIMEOUT,
        };
        let mut own = Hooks {
            prestart: vec![named("own")],
            ..Hooks::default()
        };
        own.extend(&Hooks {
            prestart: vec![named("a"), named("b")],
            poststart: vec![named("c")],
            poststop: vec![named("d")],
            ..Hooks::default()
        });
        assert_eq!(own.prestart, [named("own"), named("a"), named("b")]);
        assert_eq!(own.poststart, [named("c")]);
        assert_eq!(own.poststop, [named("d")]);
    }
}
