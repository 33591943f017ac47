//! The list: every kernel option the guest relies on, and why.
//!
//! Option names are those of the kernel's Kconfig files without `CONFIG_`;
//! module names are those of `modprobe(8)`, with underscores. Requirements that
//! may be modules stand in the order in which the guest loads them, each after
//! what it depends on.

use crate::config::{KernelConfig, Setting};
use crate::nested_host::NESTED_HOST;
use Necessity::{Dependency, Optional, Preferred, Required};
use Presence::{BuiltIn, BuiltInOrModules};
use serde::Serialize;

/// How an option may be present in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// Only `=y`: it is needed before PID 1 can load a module, or has no
    /// module.
    BuiltIn,
    /// `=y`, or `=m` with these modules in the initrd, in this order.
    BuiltInOrModules(&'static [&'static str]),
}

/// Whether the guest can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Necessity {
    /// A kernel without it does not run our guest.
    Required,
    /// Not needed for itself: where a kernel has it as a module, a required
    /// module depends on it.
    Dependency,
    /// The guest runs without it; where a kernel has it as a module, that is
    /// loaded.
    Preferred,
    /// The guest runs without it and uses it where it is. Optional modules are
    /// put into an initrd only when asked for by name.
    Optional,
}

/// One kernel option the guest relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Requirement {
    /// The Kconfig name without `CONFIG_`.
    pub option: &'static str,
    /// How it may be present.
    pub presence: Presence,
    /// Whether the guest can do without.
    pub necessity: Necessity,
    /// What it is for, in one line.
    pub why: &'static str,
}

pub(crate) const fn built_in(option: &'static str, why: &'static str) -> Requirement {
    Requirement {
        option,
        presence: BuiltIn,
        necessity: Required,
        why,
    }
}

pub(crate) const fn module(
    option: &'static str,
    modules: &'static [&'static str],
    why: &'static str,
) -> Requirement {
    Requirement {
        option,
        presence: BuiltInOrModules(modules),
        necessity: Required,
        why,
    }
}

const fn dependency(mut requirement: Requirement) -> Requirement {
    requirement.necessity = Dependency;
    requirement
}

const fn preferred(mut requirement: Requirement) -> Requirement {
    requirement.necessity = Preferred;
    requirement
}

pub(crate) const fn optional(mut requirement: Requirement) -> Requirement {
    requirement.necessity = Optional;
    requirement
}

/// Everything the guest relies on.
pub const GUEST: &[Requirement] = &[
    // From power-on to PID 1.
    built_in("BLK_DEV_INITRD", "the agent is /init of an initrd"),
    optional(built_in(
        "RD_GZIP",
        "an initrd may be compressed with gzip; by default it is not",
    )),
    optional(built_in("RD_LZ4", "an initrd may be compressed with lz4")),
    optional(built_in("RD_ZSTD", "an initrd may be compressed with zstd")),
    built_in("BINFMT_ELF", "the agent is an ELF file"),
    built_in(
        "BINFMT_SCRIPT",
        "container entry points are often #! scripts",
    ),
    built_in(
        "ACPI",
        "the VMM describes the machine by it, and power-off needs it",
    ),
    built_in("PCI", "the virtio devices sit on the PCI bus"),
    built_in("PCI_MSI", "virtio interrupts without sharing a line"),
    built_in(
        "SERIAL_8250_CONSOLE",
        "kernel and PID 1 speak on the first serial port",
    ),
    optional(built_in(
        "KVM_GUEST",
        "the paravirtual clock, where the host has KVM",
    )),
    optional(built_in(
        "MODULES",
        "a distribution's kernel has its drivers as modules",
    )),
    optional(built_in(
        "RANDOM_TRUST_CPU",
        "getrandom(2) does not wait for entropy at the first boot",
    )),
    // File systems of the guest itself.
    built_in(
        "DEVTMPFS",
        "device nodes of virtio ports and disks appear by themselves",
    ),
    built_in(
        "PROC_FS",
        "the agent reads the command line, containers get /proc",
    ),
    built_in("SYSFS", "devices are found in it, containers get /sys"),
    built_in("TMPFS", "the guest's root, /run and /dev/shm"),
    built_in(
        "TMPFS_XATTR",
        "an overlay's upper directory on tmpfs keeps its marks in attributes",
    ),
    built_in("UNIX98_PTYS", "terminals of containers"),
    // What the agent calls.
    built_in(
        "MULTIUSER",
        "containers run as users and with capabilities of their own",
    ),
    built_in("EPOLL", "the agent's event loop"),
    built_in("EVENTFD", "the agent's event loop"),
    built_in("SIGNALFD", "programs in containers"),
    built_in("TIMERFD", "programs in containers"),
    built_in("FUTEX", "every threaded program"),
    built_in(
        "MEMFD_CREATE",
        "containers start from a sealed copy of the agent in memory",
    ),
    built_in(
        "UNIX",
        "stages of a container's start talk over a socket pair",
    ),
    built_in("INET", "interfaces and routes of the sandbox"),
    optional(built_in("IPV6", "addresses and routes of the second kind")),
    // Containers.
    built_in("NAMESPACES", "containers"),
    built_in("UTS_NS", "a hostname for each container"),
    built_in("IPC_NS", "IPC objects are a container's own"),
    built_in("PID_NS", "a container sees its own processes only"),
    built_in("NET_NS", "a container may have a network of its own"),
    optional(built_in(
        "USER_NS",
        "a container may map its users to others",
    )),
    built_in(
        "CGROUPS",
        "the workload is frozen, limited and killed by cgroup",
    ),
    built_in("MEMCG", "memory limits"),
    built_in("CGROUP_PIDS", "limits on processes"),
    built_in("CFS_BANDWIDTH", "processor quotas"),
    optional(built_in("CPUSETS", "processors by number")),
    optional(built_in("BLK_CGROUP", "limits on disk traffic")),
    built_in("CGROUP_BPF", "device access of a container (cgroup v2)"),
    built_in("BPF_SYSCALL", "loads the device access programs"),
    built_in("SECCOMP_FILTER", "seccomp profiles of containers"),
    built_in("SYSVIPC", "databases and the like expect it"),
    optional(built_in(
        "POSIX_MQUEUE",
        "/dev/mqueue of the OCI default mounts",
    )),
    // Devices, in load order.
    module(
        "VIRTIO",
        &["virtio_ring", "virtio"],
        "the bus of all devices below",
    ),
    module(
        "VIRTIO_PCI_LIB",
        &["virtio_pci_modern_dev"],
        "virtio 1.0 over PCI",
    ),
    dependency(module(
        "VIRTIO_PCI_LIB_LEGACY",
        &["virtio_pci_legacy_dev"],
        "virtio_pci uses it where the kernel also drives legacy devices",
    )),
    module("VIRTIO_PCI", &["virtio_pci"], "virtio over PCI"),
    module(
        "VIRTIO_CONSOLE",
        &["virtio_console"],
        "the serial transport to the agent",
    ),
    module(
        "VIRTIO_BLK",
        &["virtio_blk"],
        "disks: container images and volumes",
    ),
    module("FAILOVER", &["failover"], "net_failover is built on it"),
    module(
        "NET_FAILOVER",
        &["net_failover"],
        "virtio_net is built on it",
    ),
    module("VIRTIO_NET", &["virtio_net"], "network interfaces"),
    module(
        "CRYPTO_CRC32C",
        &["crc32c_generic"],
        "what libcrc32c computes with",
    ),
    module("LIBCRC32C", &["libcrc32c"], "EROFS checks its superblock"),
    module(
        "EROFS_FS",
        &["erofs"],
        "container images are read-only EROFS disks",
    ),
    module(
        "OVERLAY_FS",
        &["overlay"],
        "a container's writable layer over its image",
    ),
    module("VSOCKETS", &["vsock"], "the vsock transport to the agent"),
    module(
        "VIRTIO_VSOCKETS_COMMON",
        &["vmw_vsock_virtio_transport_common"],
        "the vsock transport to the agent",
    ),
    module(
        "VIRTIO_VSOCKETS",
        &["vmw_vsock_virtio_transport"],
        "the vsock transport to the agent",
    ),
    preferred(module(
        "VMGENID",
        &["vmgenid"],
        "a copy that nobody has thawed is frozen, where the VMM tells of it",
    )),
    optional(built_in(
        "EFI_PARTITION",
        "a root disk with its hash tree has a GUID partition table",
    )),
    optional(module("EXT4_FS", &["ext4"], "a root disk may be ext4")),
    optional(module(
        "BLK_DEV_DM",
        &["dm_mod"],
        "a root disk that is checked while it is read",
    )),
    optional(module(
        "DM_VERITY",
        &["dm_verity"],
        "a root disk that is checked while it is read",
    )),
    optional(module(
        "HW_RANDOM_VIRTIO",
        &["virtio_rng"],
        "entropy from the host, where the VM has such a device",
    )),
    optional(module("FUSE_FS", &["fuse"], "virtio-fs is built on it")),
    optional(module(
        "VIRTIO_FS",
        &["virtiofs"],
        "directories shared by the host",
    )),
];

/// Something no guest image may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Forbidden {
    /// The Kconfig name without `CONFIG_`; it must not be built in.
    pub option: &'static str,
    /// The module; it must not lie in the image.
    pub module: &'static str,
    /// Why not.
    pub why: &'static str,
}

/// What would let a workload reach the agent as if it were the host.
pub const FORBIDDEN: &[Forbidden] = &[
    Forbidden {
        option: "VSOCKETS_LOOPBACK",
        module: "vsock_loopback",
        why: "a container could dial the agent's ports from inside the guest",
    },
    Forbidden {
        option: "VHOST_VSOCK",
        module: "vhost_vsock",
        why: "a workload could play the host (CID 2) to a machine nested in the guest",
    },
];

/// Why `module` may not lie in a guest image, if it may not.
#[must_use]
pub fn forbidden_module(module: &str) -> Option<&'static Forbidden> {
    FORBIDDEN
        .iter()
        .find(|forbidden| forbidden.module == module)
}

/// The modules the guest loads, in order: without a configuration all that may
/// be modules, with one those that are. Optional ones are left out, and without
/// a configuration preferred ones, too.
pub fn modules_in_load_order(
    config: Option<&KernelConfig>,
) -> impl Iterator<Item = &'static str> + use<'_> {
    in_load_order(GUEST, config)
}

/// The same for the nested host.
pub fn nested_host_modules(config: Option<&KernelConfig>) -> impl Iterator<Item = &'static str> {
    in_load_order(NESTED_HOST, config)
}

fn in_load_order<'a>(
    requirements: &'static [Requirement],
    config: Option<&'a KernelConfig>,
) -> impl Iterator<Item = &'static str> + use<'a> {
    requirements
        .iter()
        .filter(move |requirement| match (requirement.necessity, config) {
            (Optional, _) | (Preferred, None) => false,
            (_, None) => true,
            (_, Some(config)) => config.get(requirement.option) == Some(&Setting::Module),
        })
        .flat_map(|requirement| match requirement.presence {
            BuiltIn => [].iter(),
            BuiltInOrModules(modules) => modules.iter(),
        })
        .copied()
}
