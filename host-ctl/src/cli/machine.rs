//! From the options of `run` and `template build` to a sandbox of files that
//! are there.

use super::CliError;
use super::arguments::{GuestImage, MachineArguments};
use crate::sandbox::spec::{ContainerPlan, SandboxSpec};
use std::path::{Path, PathBuf};

/// The variables that name the guest's files when no option does.
pub(super) const KERNEL_VARIABLE: &str = "TARDIGRADE_KERNEL";
pub(super) const INITRD_VARIABLE: &str = "TARDIGRADE_INITRD";

impl GuestImage {
    /// The kernel's path, which need not exist.
    pub(super) fn kernel(&self) -> Option<PathBuf> {
        named(self.kernel.as_deref(), KERNEL_VARIABLE)
    }

    /// The initrd's path, which need not exist.
    pub(super) fn initrd(&self) -> Option<PathBuf> {
        named(self.initrd.as_deref(), INITRD_VARIABLE)
    }
}

impl MachineArguments {
    /// The sandbox; every file of it exists.
    pub(super) fn spec(&self) -> Result<SandboxSpec, CliError> {
        let missing = |what: &str, hint| CliError::Missing {
            what: format!("no {what}"),
            hint,
        };
        let kernel = self.guest.kernel();
        let initrd = self.guest.initrd();
        let kernel =
            kernel.ok_or_else(|| missing("kernel", "give --kernel or set TARDIGRADE_KERNEL"))?;
        let initrd =
            initrd.ok_or_else(|| missing("initrd", "give --initrd or set TARDIGRADE_INITRD"))?;
        Ok(SandboxSpec {
            vcpus: self.cpus,
            memory_mib: self.memory,
            kernel: existing("kernel", &kernel)?,
            initrd: existing("initrd", &initrd)?,
            disks: vec![existing("root file system", &self.rootfs)?],
            containers: vec![ContainerPlan {
                id: self.container.clone(),
                disk: 0,
                args: self.command.clone(),
                env: self.env.clone(),
                cwd: self.cwd.clone(),
            }],
        })
    }
}

/// The file an option names, else the one a variable does.
fn named(option: Option<&Path>, variable: &str) -> Option<PathBuf> {
    let from_environment = || std::env::var_os(variable).map(PathBuf::from);
    option.map(Path::to_owned).or_else(from_environment)
}

/// The absolute path of a regular file.
fn existing(what: &'static str, path: &Path) -> Result<PathBuf, CliError> {
    let failed = |reason: String| CliError::File {
        what,
        path: path.to_owned(),
        reason,
    };
    let absolute = path
        .canonicalize()
        .map_err(|error| failed(error.to_string()))?;
    if absolute.is_file() {
        Ok(absolute)
    } else {
        Err(failed("not a regular file".into()))
    }
}
