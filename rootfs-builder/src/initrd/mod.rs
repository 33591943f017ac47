//! The recipe of the agent's initrd.
//!
//! Read everything, check everything, then put it together: a recipe yields
//! whole bytes or an error, and writes nothing itself.

use crate::archive::{Archive, ArchiveError, Content, Entry, EntryPath, PathError};
use crate::compression::Compression;
use crate::digest::Digest;
use crate::elf::{self, ElfError};
use crate::input::{self, InputError};
use crate::manifest::{self, Image, Input, Manifest, Role};
use crate::modules::{Module, ModuleDirectory, ModuleError};
use kernel_config::config::MAX_CONFIG_BYTES;
use kernel_config::{ConfigError, KernelConfig, Report};
use policy::{PolicyError, RegoPolicy};
use std::io;
use std::path::{Path, PathBuf};

/// The agent, as the kernel starts it.
const INIT: &str = "init";
/// The modules PID 1 loads: one absolute path a line, in load order.
pub const MODULE_LIST: &str = "etc/tardigrade/modules";
/// Where the agent looks for its policy; the path is the Kata agent's.
pub const POLICY: &str = "etc/kata-opa/default-policy.rego";
/// Mount points, and a place for temporary files.
const DIRECTORIES: [(&str, u32); 5] = [
    ("dev", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];
/// The largest agent or added file that is read, in bytes: far above the goal
/// for the agent, far below what a small VM has for its initrd.
const MAX_FILE_BYTES: usize = 256 << 20;

/// What goes into an initrd.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The static program that becomes /init.
    pub agent: PathBuf,
    /// Its version, for the manifest.
    pub agent_version: Option<String>,
    /// A directory laid out as /lib/modules/RELEASE; none for a kernel with
    /// all it needs built in.
    pub modules: Option<PathBuf>,
    /// Modules beyond those every guest loads.
    pub extra_modules: Vec<String>,
    /// The configuration of the kernel, to be checked for what the guest needs.
    pub kernel_config: Option<PathBuf>,
    /// A policy in Rego, in force from the agent's start.
    pub policy: Option<PathBuf>,
    /// Further files.
    pub files: Vec<AddedFile>,
    /// How the result is packed.
    pub compression: Compression,
    /// The time of every entry, in seconds since 1970.
    pub source_date_epoch: u32,
}

/// A file put in by request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedFile {
    /// Where it is read.
    pub source: PathBuf,
    /// Where it lies in the image.
    pub destination: EntryPath,
    /// The low twelve bits of its mode.
    pub permissions: u32,
}

/// An initrd's bytes and what is to be said about them.
#[derive(Clone, Debug)]
pub struct Initrd {
    /// The file.
    pub bytes: Vec<u8>,
    /// Its description.
    pub manifest: Manifest,
}

/// Why an initrd was not built.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// An input cannot be read.
    #[error("read an input")]
    Input(#[from] InputError),
    /// The agent cannot be PID 1 of an initrd.
    #[error("use {path} as the agent")]
    Agent {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ElfError,
    },
    /// The modules cannot be used.
    #[error("collect the kernel's modules")]
    Modules(#[from] ModuleError),
    /// Agent and modules are for different machines.
    #[error(
        "agent and kernel modules are for different machines (ELF machines {agent} and {modules})"
    )]
    Machine {
        /// The agent's.
        agent: u16,
        /// The modules'.
        modules: u16,
    },
    /// The kernel's configuration cannot be read.
    #[error("check the kernel's configuration")]
    Config(#[from] ConfigError),
    /// The kernel lacks something, or has something it must not have.
    #[error("check the kernel's configuration:\n{}", .0.to_string().trim_end())]
    Kernel(Box<Report>),
    /// The policy does not load.
    #[error("check the policy")]
    Policy(#[from] PolicyError),
    /// The policy or the configuration is not text.
    #[error("read {0}: it is not UTF-8 text")]
    NotText(PathBuf),
    /// An entry cannot be in the archive.
    #[error("put the archive together")]
    Archive(#[from] ArchiveError),
    /// A path of our own making is not in normal form.
    #[error("put the archive together")]
    Path(#[from] PathError),
    /// Packing failed.
    #[error("compress the archive")]
    Compress(#[source] io::Error),
}

/// Builds the initrd of `recipe`.
///
/// # Errors
/// See [`InitrdError`]. Nothing is written in any case.
pub fn build(recipe: &Recipe) -> Result<Initrd, InitrdError> {
    let mut assembly = Assembly::default();
    let config = assembly.check_kernel(recipe.kernel_config.as_deref())?;
    assembly.add_skeleton()?;
    let agent = assembly.add_agent(&recipe.agent)?;
    let modules = match &recipe.modules {
        Some(directory) => {
            let mut wanted: Vec<&str> =
                kernel_config::modules_in_load_order(config.as_ref()).collect();
            wanted.extend(recipe.extra_modules.iter().map(String::as_str));
            ModuleDirectory::scan(directory)?.resolve(wanted)?
        }
        None => Vec::new(),
    };
    if let Some(odd) = modules.iter().find(|module| module.machine != agent) {
        return Err(InitrdError::Machine {
            agent: agent.0,
            modules: odd.machine.0,
        });
    }
    assembly.add_modules(&modules)?;
    if let Some(policy) = &recipe.policy {
        assembly.add_policy(policy)?;
    }
    for file in &recipe.files {
        assembly.add_file(file)?;
    }
    assembly.finish(recipe, &modules)
}

/// The archive and the list of inputs as they grow.
#[derive(Default)]
struct Assembly {
    archive: Archive,
    inputs: Vec<Input>,
}

impl Assembly {
    fn check_kernel(&mut self, path: Option<&Path>) -> Result<Option<KernelConfig>, InitrdError> {
        let Some(path) = path else { return Ok(None) };
        let bytes = input::read_regular(path, MAX_CONFIG_BYTES)?;
        self.inputs
            .push(Input::new(Role::KernelConfig, "kernel-config", &bytes));
        let config: KernelConfig = text(path, &bytes)?.parse()?;
        let report = kernel_config::check(&config);
        if report.passes() {
            Ok(Some(config))
        } else {
            Err(InitrdError::Kernel(Box::new(report)))
        }
    }

    fn add_agent(&mut self, path: &Path) -> Result<elf::Machine, InitrdError> {
        let bytes = input::read_regular(path, MAX_FILE_BYTES)?;
        let machine = elf::static_program(&bytes).map_err(|source| InitrdError::Agent {
            path: path.into(),
            source,
        })?;
        self.add(Role::Agent, INIT.parse()?, 0o755, bytes)?;
        Ok(machine)
    }

    fn add_modules(&mut self, modules: &[Module]) -> Result<(), InitrdError> {
        if modules.is_empty() {
            return Ok(());
        }
        let mut list = String::new();
        for module in modules {
            let path = format!("/lib/modules/{}/{}.ko", module.release, module.name);
            list.push_str(&path);
            list.push('\n');
            self.add(Role::Module, path.parse()?, 0o644, module.bytes.clone())?;
        }
        self.archive
            .add(MODULE_LIST.parse()?, file(0o644, list.into_bytes()))?;
        Ok(())
    }

    fn add_policy(&mut self, path: &Path) -> Result<(), InitrdError> {
        let bytes = input::read_regular(path, policy::MAX_SOURCE_BYTES)?;
        RegoPolicy::from_source(&path.display().to_string(), text(path, &bytes)?)?;
        self.add(Role::Policy, POLICY.parse()?, 0o644, bytes)
    }

    /// A module under another name is still a module: what a guest must not
    /// have is told by what the file says of itself.
    fn add_file(&mut self, added: &AddedFile) -> Result<(), InitrdError> {
        let bytes = input::read_regular(&added.source, MAX_FILE_BYTES)?;
        if let Ok(info) = elf::module_info(&bytes)
            && let Some(forbidden) = kernel_config::requirement::forbidden_module(&info.name)
        {
            return Err(ModuleError::Forbidden(*forbidden).into());
        }
        self.add(
            Role::File,
            added.destination.clone(),
            added.permissions,
            bytes,
        )
    }

    fn add(
        &mut self,
        role: Role,
        path: EntryPath,
        permissions: u32,
        bytes: Vec<u8>,
    ) -> Result<(), InitrdError> {
        self.inputs
            .push(Input::new(role, format!("/{path}"), &bytes));
        self.archive.add(path, file(permissions, bytes))?;
        Ok(())
    }

    fn add_skeleton(&mut self) -> Result<(), InitrdError> {
        for (path, permissions) in DIRECTORIES {
            let content = Content::Directory;
            self.archive.add(
                path.parse()?,
                Entry {
                    permissions,
                    content,
                },
            )?;
        }
        // The kernel opens it for PID 1 before anything is mounted; major and
        // minor are those of Documentation/admin-guide/devices.txt.
        let console = Entry {
            permissions: 0o600,
            content: Content::CharacterDevice { major: 5, minor: 1 },
        };
        self.archive.add("dev/console".parse()?, console)?;
        Ok(())
    }

    fn finish(self, recipe: &Recipe, modules: &[Module]) -> Result<Initrd, InitrdError> {
        let bytes = recipe
            .compression
            .pack(self.archive.to_bytes(recipe.source_date_epoch))
            .map_err(InitrdError::Compress)?;
        let manifest = Manifest {
            format: manifest::FORMAT,
            image: Image {
                sha256: Digest::of(&bytes),
                size: bytes.len() as u64,
                compression: recipe.compression,
            },
            kernel_release: modules.first().map(|module| module.release.clone()),
            agent_version: recipe.agent_version.clone(),
            source_date_epoch: recipe.source_date_epoch,
            inputs: self.inputs,
            modules: modules.iter().map(|module| module.name.clone()).collect(),
            files: manifest::list(&self.archive),
        };
        Ok(Initrd { bytes, manifest })
    }
}

fn file(permissions: u32, bytes: Vec<u8>) -> Entry {
    Entry {
        permissions,
        content: Content::File(bytes),
    }
}

fn text<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, InitrdError> {
    std::str::from_utf8(bytes).map_err(|_| InitrdError::NotText(path.into()))
}

#[cfg(test)]
mod tests;
