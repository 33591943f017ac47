//! An IGVM file: a kernel, its command line and its initrd as the pages of a
//! guest's memory, and the processor's state to enter the kernel with, for a
//! guest whose memory the host can't read. What the processor's firmware will
//! measure of it is known beforehand.
//!
//! - [`kernel`], [`boot`], [`tables`], [`layout`] and [`context`] say what lies
//!   where;
//! - [`measure`] is what the firmware does, [`identity`] what it is told to
//!   insist on;
//! - [`read`] reads a file from whatever source, and [`expected`] says what is
//!   measured of it;
//! - [`reference`] is what a file's maker says of it, for who verifies reports.

mod boot;
mod context;
pub mod expected;
pub mod identity;
mod kernel;
mod layout;
pub mod measure;
pub mod read;
pub mod reference;
mod tables;
mod words;

use crate::digest::Digest;
use crate::input::{self, InputError};
use crate::manifest::{Input, Role};
use crate::output::{self, OutputError};
use crate::verify::{self, VerifyError};
use context::Entry;
use identity::{IdentityKey, KeyError};
use igvm::{Arch, IgvmDirectiveHeader, IgvmFile, IgvmInitializationHeader};
use igvm::{IgvmPlatformHeader, IgvmRevision};
use igvm_defs::{IGVM_VHS_SUPPORTED_PLATFORM, IgvmPlatformType, SnpPolicy};
use igvm_defs::{IgvmPageDataFlags, IgvmPageDataType};
use layout::{GuestMemory, Page};
use reference::Reference;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

pub use expected::Expected;
pub use kernel::KernelError;
pub use layout::{MAX_MEMORY, MIN_MEMORY, PlaceError};
pub use words::WordsError;

/// The largest kernel, initrd and file that are read, in bytes.
const MAX_KERNEL_BYTES: usize = 512 << 20;
const MAX_INITRD_BYTES: usize = 2 << 30;
/// See [`MAX_KERNEL_BYTES`].
pub const MAX_FILE_BYTES: usize = 3 << 30;
/// A key has some hundred.
const MAX_KEY_BYTES: usize = 64 << 10;
/// The one bit of all platforms' that a file for one platform needs.
const MASK: u32 = 1;
/// Where KVM says that a processor's state is when it has it measured.
pub(crate) const KVM_CONTEXT: u64 = 0xffff_ffff_f000;

/// What keeps the host from the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// AMD SEV-SNP.
    SevSnp,
    /// Intel TDX.
    Tdx,
    /// Nothing.
    Native,
}

/// Whose loader the file is for: they want one address in it otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vmm {
    /// QEMU 10.1 or newer.
    Qemu,
    /// Cloud Hypervisor with the features kvm, igvm and `sev_snp`.
    CloudHypervisor,
}

/// What becomes an IGVM file.
#[derive(Clone, Debug)]
pub struct Request {
    /// A bzImage.
    pub kernel: PathBuf,
    /// An initrd.
    pub initrd: Option<PathBuf>,
    /// Words of the kernel's command line.
    pub command_line: String,
    /// The manifest of a root disk with a hash tree; its words go first.
    pub root_disk: Option<PathBuf>,
    /// The disk as the guest will see it.
    pub device: String,
    /// The guest's memory, in bytes.
    pub memory: u64,
    /// [`Platform::SevSnp`] or [`Platform::Native`].
    pub platform: Platform,
    /// Whose loader it is for.
    pub vmm: Vmm,
    /// The security version number.
    pub svn: u32,
    /// What SEV-SNP lets the host do, as its ABI has it.
    pub policy: u64,
    /// What signs the identity, if there is to be one.
    pub id_key: Option<PathBuf>,
    /// The file.
    pub output: PathBuf,
}

/// Why no file was written. What had been written is gone again.
#[derive(Debug, thiserror::Error)]
pub enum IgvmError {
    /// An input cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The kernel cannot be entered directly.
    #[error("enter the kernel {path}")]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KernelError,
    },
    /// The root disk's manifest cannot be read.
    #[error("take the words of the root disk")]
    RootDisk(#[from] VerifyError),
    /// The command line cannot be what is asked for.
    #[error("put the kernel's command line together")]
    Words(#[from] WordsError),
    /// Memory of a size that no guest of ours has.
    #[error(
        "give the guest {0} bytes of memory: it has {least} MiB to {most} MiB, and whole pages",
        least = MIN_MEMORY >> 20,
        most = MAX_MEMORY >> 20
    )]
    Memory(u64),
    /// Something does not fit into it.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A policy that no firmware takes.
    #[error("set the policy {0:#x}: bit 17 is always set, and bits 26 to 63 never are")]
    Policy(u64),
    /// The key cannot be used.
    #[error("read the key {path}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KeyError,
    },
    /// What can be asked for only where there is a report.
    #[error("sign an identity for a guest that nothing isolates: no report will show it")]
    Identity,
    /// Trust domains are entered at an address of the firmware's.
    #[error(
        "build for tdx: a trust domain does not start at a kernel; `measure` knows files of others"
    )]
    Tdx,
    /// The file is not well-formed.
    #[error("lay the file out")]
    File(#[from] igvm::Error),
    /// What was laid out is not what a reader finds in it.
    #[error("read back what was laid out")]
    ReadBack(#[from] expected::MeasureError),
    /// The file cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Writes an IGVM file and says what it is.
///
/// # Errors
/// See [`IgvmError`].
pub fn build(request: &Request) -> Result<Reference, IgvmError> {
    check(request)?;
    let kernel_bytes = input::read_regular(&request.kernel, MAX_KERNEL_BYTES)?;
    let kernel = kernel::Kernel::parse(&kernel_bytes).map_err(|source| IgvmError::Kernel {
        path: request.kernel.clone(),
        source,
    })?;
    let mut inputs = vec![Input::new(Role::Kernel, "kernel", &kernel_bytes)];
    let initrd = match &request.initrd {
        Some(path) => Some(input::read_regular(path, MAX_INITRD_BYTES)?),
        None => None,
    };
    inputs.extend(
        initrd
            .iter()
            .map(|bytes| Input::new(Role::Initrd, "initrd", bytes)),
    );
    let disk = match &request.root_disk {
        Some(path) => Some(verify::read_manifest(path)?),
        None => None,
    };
    let limit = kernel.command_line.min(layout::PAGE as usize - 1);
    let command_line =
        words::command_line(&request.command_line, disk.as_ref(), &request.device, limit)?;
    let confidential = request.platform == Platform::SevSnp;
    let mut memory = GuestMemory::new(request.memory, kernel.address, kernel.memory)?;
    memory.put(kernel.address, kernel.code);
    let initrd = match &initrd {
        Some(bytes) if !bytes.is_empty() => {
            Some((memory.put_high("the initrd", bytes)?, bytes.len() as u64))
        }
        _ => None,
    };
    let zero_page = boot::boot_params(&kernel, initrd, request.memory, confidential);
    memory.put(layout::BOOT_PARAMS, &zero_page);
    memory.put(layout::DESCRIPTORS, &boot::descriptors());
    let mark = if confidential { boot::ENCRYPTED } else { 0 };
    memory.put(layout::PAGE_TABLES, &boot::page_tables(mark));
    // With its NUL: an empty one, too, has a page.
    memory.put(layout::COMMAND_LINE, format!("{command_line}\0").as_bytes());
    memory.put(layout::TABLES, &tables::tables());
    if confidential {
        memory.put(layout::CONFIDENTIAL, &boot::confidential_blob());
        memory.put_page(layout::CPUID, Page::Cpuid);
        memory.put_page(layout::SECRETS, Page::Secrets);
    }
    let entry = Entry {
        instruction: kernel.entry(),
    };
    let (bytes, expected) = lay_out(request, &memory, &entry)?;
    output::write_whole(&request.output, &bytes)?;
    Ok(Reference {
        format: reference::FORMAT,
        image: reference::File {
            sha256: Digest::of(&bytes),
            size: bytes.len() as u64,
        },
        platform: request.platform,
        vmm: request.vmm,
        vcpus: 1,
        memory: request.memory,
        command_line,
        root_hash: disk
            .and_then(|disk| disk.disk?.verity)
            .map(|tree| tree.root_hash),
        svn: request.svn,
        inputs,
        expected,
    })
}

/// What can be said before anything is read.
fn check(request: &Request) -> Result<(), IgvmError> {
    let memory = request.memory;
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&memory) || !memory.is_multiple_of(layout::PAGE) {
        return Err(IgvmError::Memory(memory));
    }
    let policy = SnpPolicy::from(request.policy);
    if policy.reserved_must_be_one() != 1 || request.policy >> 26 != 0 {
        return Err(IgvmError::Policy(request.policy));
    }
    match request.platform {
        Platform::Tdx => Err(IgvmError::Tdx),
        Platform::Native if request.id_key.is_some() => Err(IgvmError::Identity),
        Platform::Native | Platform::SevSnp => Ok(()),
    }
}

/// The file's bytes, and what is measured of them, if anything is.
fn lay_out(
    request: &Request,
    memory: &GuestMemory,
    entry: &Entry,
) -> Result<(Vec<u8>, Option<Expected>), IgvmError> {
    let (platform_type, revision, policy, context) = match request.platform {
        Platform::SevSnp => {
            let gpa = match request.vmm {
                Vmm::Qemu => KVM_CONTEXT,
                Vmm::CloudHypervisor => layout::CONTEXT,
            };
            let context = IgvmDirectiveHeader::SnpVpContext {
                gpa,
                compatibility_mask: MASK,
                vp_index: 0,
                vmsa: Box::new(entry.vmsa()),
            };
            let policy = IgvmInitializationHeader::GuestPolicy {
                policy: request.policy,
                compatibility_mask: MASK,
            };
            let revision = IgvmRevision::V1;
            (IgvmPlatformType::SEV_SNP, revision, Some(policy), context)
        }
        _ => {
            let context = IgvmDirectiveHeader::X64NativeVpContext {
                compatibility_mask: MASK,
                vp_index: 0,
                context: Box::new(entry.native()),
            };
            let revision = IgvmRevision::V2 {
                arch: Arch::X64,
                page_size: layout::PAGE as u32,
            };
            (IgvmPlatformType::NATIVE, revision, None, context)
        }
    };
    let platform = IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
        compatibility_mask: MASK,
        highest_vtl: 0,
        platform_type,
        platform_version: 1,
        shared_gpa_boundary: 0,
    });
    // The zeros of empty pages are made anew for each file that is laid out.
    let serialize = |identity: Option<IgvmDirectiveHeader>| -> Result<Vec<u8>, IgvmError> {
        let pages = memory.pages().map(directive);
        let directives = pages.chain([context.clone()]).chain(identity).collect();
        let policy = policy.clone().into_iter().collect();
        let file = IgvmFile::new(revision, vec![platform.clone()], policy, directives)?;
        let mut bytes = Vec::new();
        file.serialize(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = serialize(None)?;
    let expected = expected::expected(&bytes)?.pop();
    let (Some(path), Some(measured)) = (&request.id_key, &expected) else {
        return Ok((bytes, expected));
    };
    let key = input::read_regular(path, MAX_KEY_BYTES)?;
    let key = IdentityKey::from_pem(&key).map_err(|source| IgvmError::Key {
        path: path.clone(),
        source,
    })?;
    let identity = key.sign(measured.measurement, request.svn, request.policy, MASK);
    let bytes = serialize(Some(identity))?;
    let expected = expected::expected(&bytes)?.pop();
    Ok((bytes, expected))
}

/// A page as the file has it. An empty page has its zeros in the file, once for
/// all: loaders do not agree on what a page without data is to the firmware.
fn directive((gpa, page): (u64, &Page)) -> IgvmDirectiveHeader {
    let (data_type, data) = match page {
        Page::Data(data) => {
            let mut data = data.clone();
            data.resize(layout::PAGE as usize, 0);
            (IgvmPageDataType::NORMAL, data)
        }
        Page::Empty => (IgvmPageDataType::NORMAL, vec![0; layout::PAGE as usize]),
        Page::Cpuid => (IgvmPageDataType::CPUID_DATA, Vec::new()),
        Page::Secrets => (IgvmPageDataType::SECRETS, Vec::new()),
    };
    IgvmDirectiveHeader::PageData {
        gpa,
        compatibility_mask: MASK,
        flags: IgvmPageDataFlags::new(),
        data_type,
        data,
    }
}
