//! What a template says about itself. These are saved types: they are written
//! to disk and never used to run anything, so that neither side can drift into
//! the other unnoticed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Sha256, StoreError};
use crate::config::{SandboxId, TemplateDigest};

/// The only format this program reads and writes.
pub const FORMAT: u32 = 3;

/// Everything that must be the same for a template to serve a wish; its digest
/// is the template's name on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirements {
    /// [`FORMAT`].
    pub format: u32,
    /// Numeric user id of who made it: nobody else may wake it.
    pub owner: u32,
    /// The program that saved it.
    pub vmm: SavedVmm,
    /// The machine.
    pub machine: SavedMachine,
    /// Digest of the policy in force before the freeze.
    pub policy: String,
    /// The containers that run in it, in the order they were started.
    pub containers: Vec<SavedContainer>,
    /// What was done in them before the freeze.
    pub warm_up: SavedWarmUp,
    /// The sandbox that was saved, with what was done in it; none for a template
    /// that its other fields say how to build.
    pub origin: Option<SavedOrigin>,
}

/// Where a template comes from that was a sandbox in use. No two are equal: a
/// sandbox ends when it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedOrigin {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// The UUID of its VM.
    pub uuid: String,
    /// The template it was a clone of; none for one that was booted.
    pub parent: Option<TemplateDigest>,
    /// How many saves lie between it and the boot: 2 for a clone of a template
    /// that was built.
    pub generation: u32,
}

/// A virtual machine monitor, as far as its saved state depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedVmm {
    /// Which one, such as `qemu`.
    pub kind: String,
    /// Its version, as it gives it.
    pub version: String,
    /// Its program: two builds of a version need not save alike.
    pub program: Sha256,
    /// What runs the guest's instructions, such as `kvm` or `tcg`.
    pub accelerator: String,
    /// The versioned machine type, and the firmware.
    pub machine_type: String,
    /// The CPU model the guest sees.
    pub cpu_model: String,
    /// The host's CPU, where the guest runs on it: maker, model and flags.
    pub cpu: Option<Sha256>,
    /// The frequency of its time stamp counter in kHz, where the guest runs on
    /// it and the host tells.
    pub tsc_khz: Option<u64>,
}

/// A machine, with digests in place of paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedMachine {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// The kernel.
    pub kernel: Sha256,
    /// The initrd.
    pub initrd: Sha256,
    /// The kernel's command line.
    pub cmdline: String,
    /// Disks, in the order of their slots.
    pub disks: Vec<SavedDisk>,
    /// How the agent is reached.
    pub agent: SavedAgentDevice,
    /// Network interfaces, in the order of their slots.
    pub nics: Vec<SavedNic>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedDisk {
    /// Device id.
    pub id: String,
    /// The image; none for a slot, in which each clone has one of its own.
    pub image: Option<Sha256>,
    /// Whether the guest may not write it.
    pub readonly: bool,
}

/// The device that carries the agent's link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SavedAgentDevice {
    /// A virtio-serial port.
    Serial {
        /// Name of the port in the guest.
        port_name: String,
    },
    /// A vsock device; each clone has a context id of its own.
    Vsock {
        /// Whether the agent takes none but the host's privileged processes.
        privileged: bool,
    },
    /// A vsock device of the VMM's own; each clone has a socket of its own.
    HybridVsock {
        /// The guest's context id.
        cid: u32,
    },
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedNic {
    /// Device id.
    pub id: String,
    /// Hardware address the device was made with; each clone has its own.
    pub mac: String,
}

/// A container in the template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedContainer {
    /// Its id.
    pub id: String,
    /// Index of its root filesystem in the machine's disks.
    pub disk: usize,
    /// Its command.
    pub args: Vec<String>,
    /// Its environment, `NAME=VALUE`.
    pub env: Vec<String>,
    /// Its working directory.
    pub cwd: PathBuf,
}

/// What was run in the first container before the freeze.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedWarmUp {
    /// Run until it succeeded.
    pub ready: Option<Vec<String>>,
    /// Run once each, in this order.
    pub warm: Vec<Vec<String>>,
}

/// A template on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What must match.
    pub requirements: Requirements,
    /// Version of the agent inside; the initrd's digest already pins it.
    pub agent_version: String,
    /// Names the freeze: 32 hexadecimal digits that each thaw must give.
    pub quiesce_id: String,
    /// When it was published, in seconds since 1970.
    pub created: u64,
    /// Bytes of RAM that were not zero at the freeze.
    pub touched_bytes: u64,
    /// The files in the template's directory, the manifest excepted.
    pub files: Vec<SavedFile>,
    /// The blobs it needs; their names are their digests.
    pub blobs: Vec<SavedFile>,
    /// Where it comes from, if it was not made in this store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<SavedImport>,
}

/// What is known of a template that an archive has brought. Its requirements say
/// what it claims to be, and not what its memory holds: it is woken by who asks
/// for it, and never in place of one that would have been made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedImport {
    /// Numeric user id of who made it.
    pub owner: u32,
}

/// How a file's digest is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hashing {
    /// SHA-256 of its bytes.
    Whole,
    /// SHA-256 over the pages that are not zero.
    Pages,
}

/// A published file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedFile {
    /// File name.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// How `sha256` is made.
    pub hashing: Hashing,
    /// Digest of the content.
    pub sha256: Sha256,
    /// Inode number.
    pub inode: u64,
    /// Last change of the content, in nanoseconds since 1970 (inode(7)).
    pub mtime_nanos: i128,
    /// Last change of the inode, which nobody can set (inode(7)).
    pub ctime_nanos: i128,
}

impl Requirements {
    /// The digest that names a template of these requirements.
    ///
    /// # Errors
    /// Never for values that came from a manifest or a spec: every field is
    /// plain JSON.
    pub fn digest(&self) -> Result<TemplateDigest, StoreError> {
        // Through a value: its keys are sorted, whatever the order of fields.
        let value = serde_json::to_value(self).map_err(StoreError::Serialize)?;
        let text = serde_json::to_vec(&value).map_err(StoreError::Serialize)?;
        Ok(Sha256::of(&text).as_str().parse()?)
    }
}
