//! What a container and a process are to be: the part of the OCI runtime
//! specification that is supported, in types of our own.
//!
//! It carries no wire type and no behaviour but [`ContainerSpec::validate`].
//! It travels to the container's child as it is.

use super::capability::CapabilitySets;
use super::hooks::Hooks;
use super::id_mapping::IdMappings;
use super::rlimit::RlimitSpec;
use super::scheduling::{IoPriority, Scheduler};
use super::seccomp::SeccompProfile;
use crate::ContainerId;
use crate::process::WindowSize;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

pub use crate::cgroup::{DeviceRule, Resources};

/// A container to create (OCI `config.md`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its name in the sandbox.
    pub id: ContainerId,
    /// Its init process.
    pub process: ProcessSpec,
    /// Its root file system.
    pub root: RootSpec,
    /// The hostname of its UTS namespace, which must then be a new one.
    pub hostname: Option<String>,
    /// The SELinux label of what is in file systems that are made for it.
    pub mount_label: Option<String>,
    /// What is mounted in it, in this order.
    pub mounts: Vec<MountSpec>,
    /// Its namespaces. Mount, pid and cgroup are always its own, asked for or
    /// not; a kind that is not named otherwise is shared with the guest.
    pub namespaces: Vec<NamespaceSpec>,
    /// Those of its user namespace. Of one that is joined they may be left out;
    /// if they are given they must be what it has.
    pub id_mappings: IdMappings,
    /// How far its clocks are ahead of the guest's, by their names; for a new
    /// time namespace only.
    pub time_offsets: BTreeMap<Clock, TimeOffset>,
    /// Kernel parameters of its namespaces, sysctl(8): names and values.
    pub sysctl: BTreeMap<String, String>,
    /// The name of its cgroup below the workload's.
    pub cgroup_name: String,
    /// The limits of its cgroup.
    pub resources: Resources,
    /// Its device nodes, beside those that every container has.
    pub devices: Vec<DeviceSpec>,
    /// Which devices may be used in it, beside those that every container may;
    /// of those that are about one device the last counts.
    pub device_rules: Vec<DeviceRule>,
    /// What is hidden from it: files read as empty, directories are empty.
    /// Absolute; what does not exist is skipped.
    pub masked_paths: Vec<PathBuf>,
    /// What it can not write. Absolute; what does not exist is skipped.
    pub readonly_paths: Vec<PathBuf>,
    /// Programs to run around its life.
    pub hooks: Hooks,
    /// Where its bundle lies in the guest, for the hooks.
    pub bundle: PathBuf,
    /// What is said of it beside, for the hooks.
    pub annotations: BTreeMap<String, String>,
    /// The agent's files that give it its identity.
    pub identity_files: IdentityFiles,
}

impl ContainerSpec {
    /// Whether its UTS namespace is not the guest's.
    #[must_use]
    pub fn has_own_hostname(&self) -> bool {
        self.has_own(NamespaceKind::Uts)
    }

    /// Whether it is in another namespace of that kind than the guest's.
    pub(super) fn has_own(&self, kind: NamespaceKind) -> bool {
        self.makes(kind) || self.joins(kind)
    }

    /// Whether it gets a namespace of that kind that nobody else is in.
    pub(super) fn makes(&self, kind: NamespaceKind) -> bool {
        let mut all = self.namespaces.iter();
        all.any(|namespace| namespace.kind == kind && namespace.is_new())
    }

    /// Whether it gets a namespace of that kind that is there already.
    pub(super) fn joins(&self, kind: NamespaceKind) -> bool {
        let mut all = self.namespaces.iter();
        all.any(|namespace| namespace.kind == kind && !namespace.is_new())
    }
}

/// A root file system (OCI `config.md`, "Root").
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RootSpec {
    /// An absolute path in the guest, without symbolic links.
    pub path: PathBuf,
    /// Whether it is read-only for the container.
    pub readonly: bool,
    /// How mounts in it are passed on (OCI `config-linux.md`, "Rootfs Mount
    /// Propagation"); none is `private`.
    pub propagation: Option<String>,
}

/// A mount (OCI `config.md`, "Mounts").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// An absolute path in the container; missing components are made.
    pub destination: PathBuf,
    /// A path of the guest for a bind mount; ignored by the kernel otherwise.
    pub source: Option<PathBuf>,
    /// `proc`, `sysfs`, `tmpfs`, `devpts`, `mqueue`, `cgroup`/`cgroup2`, or
    /// `bind`; none needs the option `bind` or `rbind`.
    pub fstype: Option<String>,
    /// As for mount(8).
    pub options: Vec<String>,
    /// Whose files are shown as whose, if they are not to be mapped (`idmap`) as
    /// the container's user namespace does it.
    pub id_mappings: Option<IdMappings>,
}

impl MountSpec {
    /// How failures name it.
    pub(super) fn name(&self) -> String {
        let fstype = self.fstype.as_deref().unwrap_or("bind");
        format!("{fstype} on {}", self.destination.display())
    }
}

/// A device node (OCI `config-linux.md`, "Devices").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// An absolute path in the container; missing components are made.
    pub path: PathBuf,
    /// What it leads to.
    pub node: DeviceNode,
    /// Its permission bits.
    pub mode: u32,
    /// Its user, in the container.
    pub uid: u32,
    /// Its group, in the container.
    pub gid: u32,
}

/// What a node leads to, mknod(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceNode {
    /// A character device, by major and minor number.
    Character(u32, u32),
    /// A block device, by major and minor number.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A kind of namespace (namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NamespaceKind {
    /// Process ids.
    Pid,
    /// Mounts.
    Mount,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Hostname.
    Uts,
    /// Links, addresses, routes.
    Network,
    /// The view of the cgroup hierarchy.
    Cgroup,
    /// Users, groups and what they may.
    User,
    /// The clocks that count since the boot.
    Time,
}

/// A clock of a time namespace, time_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// `CLOCK_MONOTONIC` and its kin.
    Monotonic,
    /// `CLOCK_BOOTTIME` and its kin.
    Boottime,
}

impl fmt::Display for Clock {
    /// The kernel's name and OCI's.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Monotonic => "monotonic",
            Self::Boottime => "boottime",
        })
    }
}

/// How far a clock is ahead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeOffset {
    /// Seconds; may be negative.
    pub secs: i64,
    /// And nanoseconds, less than a second.
    pub nanosecs: u32,
}

/// A namespace to be in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceSpec {
    /// Of which kind.
    pub kind: NamespaceKind,
    /// The one to join; none makes a new one. Mount and cgroup namespaces
    /// cannot be joined.
    pub path: Option<PathBuf>,
}

/// Files of the agent that are bind-mounted read-only into a container. They
/// are rewritten in place when a clone thaws; the mounts show it at once.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct IdentityFiles {
    /// Seen as `/etc/machine-id`, machine-id(5).
    pub machine_id: Option<PathBuf>,
    /// Seen as `/proc/sys/kernel/random/boot_id`.
    pub boot_id: Option<PathBuf>,
    /// Seen as `/run/tardigrade/generation`.
    pub generation: Option<PathBuf>,
}

impl IdentityFiles {
    /// Each, and where in the container it is seen.
    pub(super) fn places(&self) -> [(Option<&Path>, &'static str); 3] {
        [
            (self.machine_id.as_deref(), "/etc/machine-id"),
            (self.boot_id.as_deref(), BOOT_ID),
            (self.generation.as_deref(), "/run/tardigrade/generation"),
        ]
    }
}

/// Where a container reads its boot id.
pub(super) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A process to run (OCI `config.md`, "Process").
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Whether it gets a terminal of its own.
    pub terminal: bool,
    /// The terminal's first size.
    pub console_size: Option<WindowSize>,
    /// As whom it runs.
    pub user: UserSpec,
    /// Its arguments; the first is searched in the `PATH` of `env` unless it
    /// holds a `/`.
    pub args: Vec<String>,
    /// The program, if it is not what the first argument says.
    pub program: Option<PathBuf>,
    /// Its environment, `NAME=VALUE`, passed on untouched.
    pub env: Vec<String>,
    /// Its working directory, absolute; made if it is missing.
    pub cwd: PathBuf,
    /// Its capabilities.
    pub capabilities: CapabilitySets,
    /// Its resource limits; what is not named is the agent's.
    pub rlimits: Vec<RlimitSpec>,
    /// Whether execve(2) may never give it more privileges.
    pub no_new_privileges: bool,
    /// The AppArmor profile it is held to, if any.
    pub apparmor_profile: Option<String>,
    /// The SELinux label it is held to, if any.
    pub selinux_label: Option<String>,
    /// Which system calls it may make; none is all.
    pub seccomp: Option<SeccompProfile>,
    /// Whether it may make sockets of the transport, `AF_VSOCK`.
    pub vsock: bool,
    /// -1000 to 1000, proc(5); none is 0, not what the agent has.
    pub oom_score_adj: Option<i32>,
    /// Its file mode creation mask; none is 022.
    pub umask: Option<u32>,
    /// How it gets its time; none is as the agent does.
    pub scheduler: Option<Scheduler>,
    /// Its place before disks; none is the agent's.
    pub io_priority: Option<IoPriority>,
}

/// As whom a process runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups; all others are dropped.
    pub additional_gids: Vec<u32>,
}

impl ProcessSpec {
    /// Takes what is a container's, and not said again of each process that is
    /// added to it, from the container's own process.
    pub fn follow(&mut self, init: &Self) {
        self.seccomp.clone_from(&init.seccomp);
        self.umask = init.umask;
        // What does not say by what it is held is held as the container is.
        for (own, inits) in [
            (&mut self.apparmor_profile, &init.apparmor_profile),
            (&mut self.selinux_label, &init.selinux_label),
        ] {
            if own.is_none() {
                own.clone_from(inits);
            }
        }
        self.vsock = init.vsock;
    }

    /// Root with all capabilities and nothing else, for processes outside every
    /// container: arguments are to be filled in.
    #[must_use]
    pub fn guest_root() -> Self {
        Self {
            terminal: false,
            console_size: None,
            user: UserSpec::default(),
            args: Vec::new(),
            program: None,
            env: vec![
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
                "HOME=/root".into(),
            ],
            cwd: "/".into(),
            capabilities: CapabilitySets::own(),
            rlimits: vec![RlimitSpec::open_files()],
            no_new_privileges: false,
            apparmor_profile: None,
            selinux_label: None,
            seccomp: None,
            vsock: true,
            oom_score_adj: None,
            umask: None,
            scheduler: None,
            io_priority: None,
        }
    }
}

impl NamespaceSpec {
    /// Whether this asks for a new namespace.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.path.is_none()
    }
}
