//! Finds the state root and refuses one that others could tamper with.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use thiserror::Error;

use super::Paths;

/// Names the state root; when unset it is chosen by [`Paths::from_environment`].
const ROOT_VARIABLE: &str = "TARDIGRADE_HOME";
/// Anyone may write.
const WORLD_WRITABLE: u32 = 0o002;
/// In such a directory only a file's owner may rename or remove it (inode(7)).
const STICKY: u32 = 0o1000;

/// Why there is no usable state root.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// No variable says where to keep state.
    #[error("no state root: none of TARDIGRADE_HOME, XDG_STATE_HOME and HOME is set")]
    NoRoot,
    /// A relative root would name another directory in each process.
    #[error("state root {0}: want an absolute path")]
    Relative(PathBuf),
    /// No number that users could begin at.
    #[error("{variable}={value}: want the first of 65536 numbers above 65535")]
    Users {
        /// The variable.
        variable: &'static str,
        /// What it holds.
        value: String,
    },
    /// A directory could not be made.
    #[error("mkdir {path}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// What mkdir(2) said.
        #[source]
        source: io::Error,
    },
    /// A directory could not be looked at.
    #[error("stat {path}")]
    Inspect {
        /// The directory.
        path: PathBuf,
        /// What stat(2) said.
        #[source]
        source: io::Error,
    },
    /// Not a directory, or a symlink to one.
    #[error("{0}: not a directory")]
    NotDirectory(PathBuf),
    /// Somebody else's directory.
    #[error("{path}: belongs to uid {owner}, want {want}")]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The effective user.
        want: u32,
    },
    /// Others may enter.
    #[error("{path}: mode {mode:04o}, want 0700 (chmod 700 would mend it)")]
    Mode {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else could replace a directory on the way.
    #[error("{path}: below {ancestor}, where other users can rename it")]
    Exposed {
        /// The state root.
        path: PathBuf,
        /// The directory that lets others in.
        ancestor: PathBuf,
    },
}

impl Paths {
    /// The trees below `TARDIGRADE_HOME`, else for root below
    /// `/var/lib/tardigrade`, else below `tardigrade` in `XDG_STATE_HOME` or
    /// `~/.local/state` (XDG base directory specification). They are created
    /// when absent and checked.
    ///
    /// # Errors
    /// When no root is named, or it is not private to the effective user.
    pub fn from_environment() -> Result<Paths, ConfigError> {
        Paths::below(&root_from(&|name| env::var_os(name).map(PathBuf::from))?)
    }

    /// The trees below a given root, created when absent and checked.
    ///
    /// # Errors
    /// When the root is not private to the effective user.
    pub fn below(root: &Path) -> Result<Paths, ConfigError> {
        if !root.is_absolute() {
            return Err(ConfigError::Relative(root.to_owned()));
        }
        if let Some(parent) = root.parent() {
            create_parents(parent)?;
        }
        private_directory(root)?;
        // From here on every path is free of symlinks.
        let root = fs::canonicalize(root).map_err(inspect(root))?;
        check_ancestors(&root)?;
        let paths = Paths {
            store: root.join("store"),
            run: root.join("run"),
        };
        private_directory(&paths.store)?;
        private_directory(&paths.run)?;
        Ok(paths)
    }
}

/// Decides where the root is, given a way to look up variables.
fn root_from(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, ConfigError> {
    if let Some(root) = variable(ROOT_VARIABLE) {
        return Ok(root);
    }
    if geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/tardigrade"));
    }
    // The specification: a relative value is invalid and is to be ignored.
    let state = variable("XDG_STATE_HOME").filter(|path| path.is_absolute());
    state
        .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("tardigrade"))
        .ok_or(ConfigError::NoRoot)
}

fn create_parents(parent: &Path) -> Result<(), ConfigError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .map_err(|source| ConfigError::Create {
            path: parent.to_owned(),
            source,
        })
}

/// Makes a directory 0700, or checks that an existing one is so and ours.
pub(crate) fn private_directory(path: &Path) -> Result<(), ConfigError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => {
            return Err(ConfigError::Create {
                path: path.to_owned(),
                source,
            });
        }
    }
    let metadata = fs::symlink_metadata(path).map_err(inspect(path))?;
    if !metadata.is_dir() {
        return Err(ConfigError::NotDirectory(path.to_owned()));
    }
    let want = geteuid().as_raw();
    if metadata.uid() != want {
        return Err(ConfigError::Owner {
            path: path.to_owned(),
            owner: metadata.uid(),
            want,
        });
    }
    let mode = metadata.mode() & 0o777;
    if mode != 0o700 {
        return Err(ConfigError::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// Every directory above the root must be one in which strangers can neither
/// rename nor replace what lies on the way to it.
fn check_ancestors(root: &Path) -> Result<(), ConfigError> {
    for ancestor in root.ancestors().skip(1) {
        let metadata = fs::symlink_metadata(ancestor).map_err(inspect(ancestor))?;
        if is_exposed(metadata.uid(), metadata.mode(), geteuid().as_raw()) {
            return Err(ConfigError::Exposed {
                path: root.to_owned(),
                ancestor: ancestor.to_owned(),
            });
        }
    }
    Ok(())
}

/// Whether a directory of this owner and mode lets others than root and `user`
/// rename what lies in it.
fn is_exposed(owner: u32, mode: u32, user: u32) -> bool {
    let foreign = owner != 0 && owner != user;
    let open = mode & WORLD_WRITABLE != 0 && mode & STICKY == 0;
    foreign || open
}

fn inspect(path: &Path) -> impl FnOnce(io::Error) -> ConfigError + '_ {
    |source| ConfigError::Inspect {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_named_root_wins_and_a_relative_state_home_is_ignored() {
        let named = root_from(&|name| (name == ROOT_VARIABLE).then(|| "/x".into())).unwrap();
        assert_eq!(named, Path::new("/x"));
        if geteuid().is_root() {
            eprintln!("skipped: the choice for ordinary users, this is root");
            return;
        }
        let found = root_from(&|name| match name {
            "XDG_STATE_HOME" => Some("relative".into()),
            "HOME" => Some("/home/someone".into()),
            _ => None,
        });
        assert_eq!(
            found.unwrap(),
            Path::new("/home/someone/.local/state/tardigrade")
        );
    }

    #[test]
    fn trees_are_created_private_and_found_again() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("state");
        let paths = Paths::below(&root).unwrap();
        for tree in [&root, &paths.store, &paths.run] {
            assert_eq!(fs::metadata(tree).unwrap().mode() & 0o7777, 0o700);
        }
        assert_eq!(Paths::below(&root).unwrap(), paths);
    }

    #[test]
    fn a_root_that_others_may_enter_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("state");
        Paths::below(&root).unwrap();
        set_mode(&root, 0o755);
        assert!(matches!(
            Paths::below(&root),
            Err(ConfigError::Mode { mode: 0o755, .. })
        ));
    }

    #[test]
    fn a_root_below_a_world_writable_directory_is_refused_unless_sticky() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("state");
        set_mode(parent.path(), 0o777);
        assert!(matches!(
            Paths::below(&root),
            Err(ConfigError::Exposed { .. })
        ));
        set_mode(parent.path(), 0o1777);
        assert!(Paths::below(&root).is_ok());
    }

    #[test]
    fn the_way_to_an_ordinary_users_home_exposes_nothing() {
        const USER: u32 = 1000;
        for (owner, mode) in [(0, 0o755), (USER, 0o700), (USER, 0o755), (0, 0o1777)] {
            assert!(!is_exposed(owner, mode, USER), "{owner} {mode:o}");
        }
        for (owner, mode) in [(0, 0o777), (USER, 0o777), (1001, 0o755), (1001, 0o1777)] {
            assert!(is_exposed(owner, mode, USER), "{owner} {mode:o}");
        }
        // Root's own way must not lead through what a user owns.
        assert!(is_exposed(USER, 0o700, 0));
    }

    #[test]
    fn a_root_that_is_a_symlink_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("state");
        symlink(parent.path(), &root).unwrap();
        assert!(matches!(
            Paths::below(&root),
            Err(ConfigError::NotDirectory(_))
        ));
    }
}
