//! The nested host's initrd: busybox, the modules that lead to the shared root,
//! two scripts and the command.

use crate::error::{At, LabError};
use crate::tools::Tools;
use rootfs_builder::archive::{Archive, Content, Entry};
use rootfs_builder::modules::ModuleDirectory;
use std::path::Path;

/// From power-on to a root: what the overlay is made of and how to speak.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "virtiofs", "overlay"];
const INIT: &str = include_str!("guest/init.sh");
const HOST: &str = include_str!("guest/host.sh");

/// Writes the initrd for one run.
///
/// # Errors
/// When a piece is missing or cannot be written.
pub(crate) fn write(
    tools: &Tools,
    configuration: &str,
    command: &str,
    output: &Path,
) -> Result<(), LabError> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "lab", "lower", "new", "proc", "sys", "upper"] {
        let content = Content::Directory;
        let entry = Entry {
            permissions: 0o755,
            content,
        };
        archive.add(directory.parse()?, entry)?;
    }
    let console = Entry {
        permissions: 0o600,
        // Documentation/admin-guide/devices.txt; PID 1's own first output.
        content: Content::CharacterDevice { major: 5, minor: 1 },
    };
    archive.add("dev/console".parse()?, console)?;
    let mut add = |path: &str, permissions, bytes: Vec<u8>| -> Result<(), LabError> {
        let content = Content::File(bytes);
        let entry = Entry {
            permissions,
            content,
        };
        Ok(archive.add(path.parse()?, entry)?)
    };
    let busybox = std::fs::read(&tools.busybox).at("read", &tools.busybox)?;
    add("bin/busybox", 0o755, busybox)?;
    add("init", 0o755, INIT.into())?;
    add("lab/host", 0o644, HOST.into())?;
    add("lab/configuration", 0o644, configuration.into())?;
    add("lab/command", 0o644, command.into())?;
    let mut list = String::new();
    for module in ModuleDirectory::scan(&tools.modules)?.resolve(MODULES)? {
        let path = format!("lab/{}.ko", module.name);
        list.push_str(&module.name);
        list.push('\n');
        add(&path, 0o644, module.bytes)?;
    }
    add("lab/modules", 0o644, list.into())?;
    std::fs::write(output, archive.to_bytes(0)).at("write", output)
}
