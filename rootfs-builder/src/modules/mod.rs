//! Kernel modules: which files a kernel came with, and which of them, in which
//! order, the guest loads.

mod resolve;

use crate::elf::{ElfError, Machine};
use crate::input::{self, InputError};
use kernel_config::Forbidden;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

/// The largest module that is read, in bytes. The largest of a distribution,
/// a graphics driver with symbols, is a few MB.
pub const MAX_MODULE_BYTES: usize = 64 << 20;
/// The most directory entries that are looked at. A distribution's full kernel
/// has about 5000.
const MAX_ENTRIES: usize = 200_000;
/// The longest list of built-in modules, in bytes.
const MAX_LIST_BYTES: usize = 4 << 20;
/// How compressed modules end, which our PID 1 does not unpack.
const PACKED: [&str; 3] = [".ko.xz", ".ko.zst", ".ko.gz"];

/// Why the modules cannot go into an image.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A directory cannot be listed.
    #[error("list {path}")]
    List {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("read module")]
    Input(#[from] InputError),
    /// A file is no module.
    #[error("read module {path}")]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ElfError,
    },
    /// More files than any kernel has.
    #[error("list {0}: more than {MAX_ENTRIES} entries, this is not a directory of modules")]
    TooMany(PathBuf),
    /// Neither a file nor built in.
    #[error("find module {name} (for {wanted_by}): it is not in {directory}, nor built in")]
    Missing {
        /// The module.
        name: String,
        /// The module that depends on it, or "the guest".
        wanted_by: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// Two files of one name.
    #[error("find module {name}: both {first} and {second} are called so")]
    Ambiguous {
        /// The module.
        name: String,
        /// One of them.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Only there in a form PID 1 does not load.
    #[error("find module {name}: it is compressed ({path}), unpack it first")]
    Packed {
        /// The module.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// Modules that wait for each other.
    #[error("order modules: {0} depends on itself")]
    Circle(String),
    /// Modules of two kernels.
    #[error("module {name} is of kernel {found}, the others of {expected}")]
    Release {
        /// The odd one out.
        name: String,
        /// Its kernel.
        found: String,
        /// That of the first module.
        expected: String,
    },
    /// A module no guest may have.
    #[error("module {} is in no guest image: {}", .0.module, .0.why)]
    Forbidden(Forbidden),
    /// A file that is called like another module.
    #[error("read module {path}: it calls itself {name}")]
    Name {
        /// The file.
        path: PathBuf,
        /// Its name for itself.
        name: String,
    },
}

/// The modules of one kernel.
#[derive(Debug)]
pub struct ModuleDirectory {
    directory: PathBuf,
    files: BTreeMap<String, PathBuf>,
    packed: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

/// A module that goes into an image.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// Its file, byte for byte: it may carry a signature at its end.
    pub bytes: Vec<u8>,
    /// The kernel it is for.
    pub release: String,
    /// The machine it is for.
    pub machine: Machine,
}

impl ModuleDirectory {
    /// Looks through `directory`, which is laid out as `/lib/modules/RELEASE`.
    /// Symbolic links in it are not followed.
    ///
    /// # Errors
    /// When it cannot be listed, or two modules share a name.
    pub fn scan(directory: &Path) -> Result<Self, ModuleError> {
        let mut found = Self {
            directory: directory.into(),
            files: BTreeMap::new(),
            packed: BTreeMap::new(),
            built_in: read_built_in(directory)?,
        };
        let mut entries = 0;
        let mut pending = vec![directory.to_path_buf()];
        while let Some(path) = pending.pop() {
            let list_error = |source| ModuleError::List {
                path: path.clone(),
                source,
            };
            for entry in std::fs::read_dir(&path).map_err(list_error)? {
                let entry = entry.map_err(list_error)?;
                entries += 1;
                if entries > MAX_ENTRIES {
                    return Err(ModuleError::TooMany(directory.into()));
                }
                let kind = entry.file_type().map_err(list_error)?;
                if kind.is_dir() {
                    pending.push(entry.path());
                } else if kind.is_file() {
                    found.note(entry.path())?;
                }
            }
        }
        Ok(found)
    }

    fn note(&mut self, path: PathBuf) -> Result<(), ModuleError> {
        let Some(file_name) = path.file_name().and_then(|name| name.to_str()) else {
            return Ok(());
        };
        if let Some(stem) = file_name.strip_suffix(".ko") {
            let name = stem.replace('-', "_");
            if let Some(first) = self.files.insert(name.clone(), path.clone()) {
                return Err(ModuleError::Ambiguous {
                    name,
                    first,
                    second: path,
                });
            }
        } else if let Some(stem) = PACKED
            .iter()
            .find_map(|suffix| file_name.strip_suffix(suffix))
        {
            self.packed.insert(stem.replace('-', "_"), path);
        }
        Ok(())
    }
}

/// The names in `modules.builtin`, where the kernel's build left one.
fn read_built_in(directory: &Path) -> Result<BTreeSet<String>, ModuleError> {
    let path = directory.join("modules.builtin");
    let list = match input::read_regular(&path, MAX_LIST_BYTES) {
        Ok(list) => list,
        Err(InputError::Path { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(BTreeSet::new());
        }
        Err(error) => return Err(error.into()),
    };
    Ok(String::from_utf8_lossy(&list)
        .lines()
        .filter_map(|line| line.rsplit('/').next()?.strip_suffix(".ko"))
        .map(|stem| stem.replace('-', "_"))
        .collect())
}

#[cfg(test)]
mod tests;
