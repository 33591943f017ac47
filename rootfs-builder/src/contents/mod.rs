//! What lies in a guest image, whatever its format: the agent, kernel modules, a
//! policy, files, and a manifest of all that.
//!
//! Read everything, check everything, then put it together: a recipe yields
//! entries or an error, and writes nothing itself.

use crate::archive::{Archive, ArchiveError, Content, Entry, EntryPath, PathError};
use crate::base::{Base, BaseError, Loaded};
use crate::elf::{self, ElfError};
use crate::input::{self, InputError};
use crate::manifest::{self, Input, Kind, Manifest, Role};
use crate::modules::{Module, ModuleDirectory, ModuleError};
use crate::packages::{self, Package};
use kernel_config::config::MAX_CONFIG_BYTES;
use kernel_config::{ConfigError, KernelConfig, Report};
use policy::{PolicyError, RegoPolicy};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The agent, as the kernel starts it from an initrd, and from a disk.
const INITRD_AGENT: &str = "init";
const DISK_INIT: &str = "sbin/init";
/// What that is a link to: the agent is called the same on every root.
const DISK_AGENT: &str = "sbin/guest-agent";
/// The modules PID 1 loads: one absolute path a line, in load order.
pub const MODULE_LIST: &str = "etc/tardigrade/modules";
/// Where the agent looks for its policy; the path is the Kata agent's.
pub const POLICY: &str = "etc/kata-opa/default-policy.rego";
/// What the image says about itself: the manifest, without what can be known
/// only from outside.
pub const MANIFEST: &str = "etc/tardigrade/image.json";
/// What a base must not have: the agent would take it for the builder's.
const RESERVED: [&str; 3] = [MODULE_LIST, POLICY, MANIFEST];
/// Mount points, and a place for temporary files. What a guest writes lies
/// below /run; on a read-only root PID 1 puts a tmpfs on /etc, /root and /tmp.
const DIRECTORIES: [(&str, u32); 7] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];
/// The largest agent or added file that is read, in bytes: far above the goal
/// for the agent, far below what a small VM has for its initrd.
const MAX_FILE_BYTES: usize = 256 << 20;

/// What goes into an image.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The static program that becomes /init, on a disk /sbin/init.
    pub agent: PathBuf,
    /// Its version, for the manifest.
    pub agent_version: Option<String>,
    /// What lies under all else.
    pub base: Base,
    /// Packages beyond those of the base itself.
    pub packages: Vec<String>,
    /// A directory laid out as /lib/modules/RELEASE; none for a kernel with
    /// all it needs built in.
    pub modules: Option<PathBuf>,
    /// Modules beyond those every guest loads.
    pub extra_modules: Vec<String>,
    /// The kernel it is for: named by its digest, not put in.
    pub kernel: Option<PathBuf>,
    /// The configuration of the kernel, to be checked for what the guest needs.
    pub kernel_config: Option<PathBuf>,
    /// A policy in Rego, in force from the agent's start.
    pub policy: Option<PathBuf>,
    /// Further files.
    pub files: Vec<AddedFile>,
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

/// The entries of an image and what is to be said about them.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Everything that lies in the image.
    pub archive: Archive,
    /// The machine its programs are for.
    pub machine: elf::Machine,
    /// Its description. What is known only of the finished image is not there
    /// yet.
    pub manifest: Manifest,
}

/// Why no image can be made of a recipe.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
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
    /// The base cannot be used.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The base has what only the builder puts there, having checked it.
    #[error("use the base: it has a /{0} of its own")]
    Reserved(EntryPath),
    /// An entry cannot be in the archive.
    #[error("put the archive together")]
    Archive(#[from] ArchiveError),
    /// A path of our own making is not in normal form.
    #[error("put the archive together")]
    Path(#[from] PathError),
    /// The manifest cannot be written as JSON.
    #[error("write the manifest")]
    Manifest(#[from] serde_json::Error),
}

/// Puts together what lies in an image of `kind`.
///
/// # Errors
/// See [`ContentsError`]. Nothing is written in any case.
pub fn assemble(recipe: &Recipe, kind: Kind) -> Result<Contents, ContentsError> {
    let mut assembly = Assembly::default();
    if let Some(kernel) = &recipe.kernel {
        let bytes = input::read_regular(kernel, MAX_FILE_BYTES)?;
        let input = Input::new(Role::Kernel, "kernel", &bytes);
        assembly.inputs.push(input);
    }
    let config = assembly.check_kernel(recipe.kernel_config.as_deref())?;
    let program = input::read_regular(&recipe.agent, MAX_FILE_BYTES)?;
    let agent = elf::static_program(&program).map_err(|source| ContentsError::Agent {
        path: recipe.agent.clone(),
        source,
    })?;
    let loaded = recipe
        .base
        .load(&recipe.packages, agent.0, recipe.source_date_epoch)?;
    assembly.start_from(loaded)?;
    let packages = packages::installed(&assembly.archive);
    assembly.add_directories()?;
    // On a disk the kernel has its own until /dev is mounted.
    if kind == Kind::Initrd {
        assembly.add_console()?;
    }
    assembly.add_agent(program, kind)?;
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
        return Err(ContentsError::Machine {
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
    assembly.finish(recipe, kind, agent, &modules, packages)
}

/// The archive and the list of inputs as they grow.
#[derive(Default)]
struct Assembly {
    archive: Archive,
    inputs: Vec<Input>,
    /// What of the base could not be kept as it was.
    changes: Vec<String>,
    /// Paths of the base: what is put there takes their place.
    base: BTreeSet<EntryPath>,
}

impl Assembly {
    fn check_kernel(&mut self, path: Option<&Path>) -> Result<Option<KernelConfig>, ContentsError> {
        let Some(path) = path else { return Ok(None) };
        let bytes = input::read_regular(path, MAX_CONFIG_BYTES)?;
        self.inputs
            .push(Input::new(Role::KernelConfig, "kernel-config", &bytes));
        let config: KernelConfig = text(path, &bytes)?.parse()?;
        let report = kernel_config::check(&config);
        if report.passes() {
            Ok(Some(config))
        } else {
            Err(ContentsError::Kernel(Box::new(report)))
        }
    }

    /// The base may come from anywhere: it holds no module that no guest may
    /// have, and nothing that the agent would take for ours.
    fn start_from(&mut self, loaded: Loaded) -> Result<(), ContentsError> {
        for path in RESERVED {
            let path = loaded.archive.real(&path.parse()?)?;
            if loaded.archive.get(&path).is_some() {
                return Err(ContentsError::Reserved(path));
            }
        }
        for (path, entry) in loaded.archive.entries() {
            if let Content::File(bytes) = &entry.content {
                refuse_forbidden(Some(path.name()), bytes)?;
            }
            self.base.insert(path.clone());
        }
        self.archive = loaded.archive;
        self.inputs.extend(loaded.inputs);
        self.changes = loaded.changes;
        Ok(())
    }

    /// Where the guest will find an entry of that path; what the base has there
    /// is taken away.
    fn make_room(&mut self, path: &EntryPath) -> Result<EntryPath, ContentsError> {
        let path = self.archive.real(path)?;
        let is_directory = |entry: &Entry| entry.content == Content::Directory;
        if !self.archive.get(&path).is_some_and(is_directory) && self.base.remove(&path) {
            self.archive.remove(&path);
            self.changes
                .push(format!("/{path}: what the base has there was replaced"));
        }
        Ok(path)
    }

    fn add_agent(&mut self, program: Vec<u8>, kind: Kind) -> Result<(), ContentsError> {
        let home = match kind {
            Kind::Initrd => INITRD_AGENT,
            Kind::Ext4 | Kind::Erofs => {
                let content = Content::Symlink("guest-agent".into());
                let permissions = 0o777;
                let init = Entry {
                    permissions,
                    content,
                };
                let path = self.make_room(&DISK_INIT.parse()?)?;
                self.archive.add(path, init)?;
                DISK_AGENT
            }
        };
        self.add(Role::Agent, home.parse()?, 0o755, program)
    }

    fn add_modules(&mut self, modules: &[Module]) -> Result<(), ContentsError> {
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
        let path = self.make_room(&MODULE_LIST.parse()?)?;
        Ok(self.archive.add(path, file(0o644, list.into_bytes()))?)
    }

    fn add_policy(&mut self, path: &Path) -> Result<(), ContentsError> {
        let bytes = input::read_regular(path, policy::MAX_SOURCE_BYTES)?;
        RegoPolicy::from_source(&path.display().to_string(), text(path, &bytes)?)?;
        self.add(Role::Policy, POLICY.parse()?, 0o644, bytes)
    }

    /// A module under another name is still a module: what a guest must not
    /// have is told by what the file says of itself.
    fn add_file(&mut self, added: &AddedFile) -> Result<(), ContentsError> {
        let bytes = input::read_regular(&added.source, MAX_FILE_BYTES)?;
        refuse_forbidden(None, &bytes)?;
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
    ) -> Result<(), ContentsError> {
        self.inputs
            .push(Input::new(role, format!("/{path}"), &bytes));
        let path = self.make_room(&path)?;
        Ok(self.archive.add(path, file(permissions, bytes))?)
    }

    fn add_directories(&mut self) -> Result<(), ContentsError> {
        for (path, permissions) in DIRECTORIES {
            let content = Content::Directory;
            let entry = Entry {
                permissions,
                content,
            };
            // A base's own takes our mode; what is no directory is in the way.
            let path = self.make_room(&path.parse()?)?;
            self.base.remove(&path);
            self.archive.put(path, entry)?;
        }
        Ok(())
    }

    /// The kernel opens it for PID 1 before anything is mounted; major and minor
    /// are those of Documentation/admin-guide/devices.txt.
    fn add_console(&mut self) -> Result<(), ContentsError> {
        let console = Entry {
            permissions: 0o600,
            content: Content::CharacterDevice { major: 5, minor: 1 },
        };
        let path = self.make_room(&"dev/console".parse()?)?;
        Ok(self.archive.add(path, console)?)
    }

    /// The manifest inside lists everything but itself.
    fn finish(
        mut self,
        recipe: &Recipe,
        kind: Kind,
        machine: elf::Machine,
        modules: &[Module],
        packages: Vec<Package>,
    ) -> Result<Contents, ContentsError> {
        let mut manifest = Manifest {
            format: manifest::FORMAT,
            kind,
            image: None,
            disk: None,
            spdx: None,
            kernel_release: modules.first().map(|module| module.release.clone()),
            agent_version: recipe.agent_version.clone(),
            source_date_epoch: recipe.source_date_epoch,
            inputs: self.inputs,
            packages,
            changes: self.changes,
            modules: modules.iter().map(|module| module.name.clone()).collect(),
            files: manifest::list(&self.archive),
        };
        let inside = serde_json::to_vec(&manifest)?;
        self.archive
            .add(self.archive.real(&MANIFEST.parse()?)?, file(0o444, inside))?;
        manifest.files = manifest::list(&self.archive);
        Ok(Contents {
            archive: self.archive,
            machine,
            manifest,
        })
    }
}

/// Told by what a file says of itself; and of a packed module, which says
/// nothing, by its name.
fn refuse_forbidden(name: Option<&str>, bytes: &[u8]) -> Result<(), ContentsError> {
    let called = name.and_then(|name| name.split_once(".ko."));
    let called = called.map(|(stem, _)| stem.replace('-', "_"));
    let module = match elf::module_info(bytes) {
        Ok(info) => Some(info.name),
        Err(_) => called,
    };
    match module.and_then(|name| kernel_config::requirement::forbidden_module(&name)) {
        Some(forbidden) => Err(ModuleError::Forbidden(*forbidden).into()),
        None => Ok(()),
    }
}

fn file(permissions: u32, bytes: Vec<u8>) -> Entry {
    Entry {
        permissions,
        content: Content::File(bytes),
    }
}

fn text<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, ContentsError> {
    std::str::from_utf8(bytes).map_err(|_| ContentsError::NotText(path.into()))
}

#[cfg(test)]
mod tests;
