//! What a VM is made of, and which of it may be handed to a VMM.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A VM. Saved and restored VMs must have equal specs but for what [`Rebind`]
/// can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Its name: 1 to 128 letters, digits, `.`, `-` and `_`.
    pub name: String,
    /// Its UUID, as 8-4-4-4-12 hexadecimal digits.
    pub uuid: String,
    /// Its CPUs, 1 to 32.
    pub vcpus: u8,
    /// Its RAM.
    pub memory: Memory,
    /// The guest's kernel, a bzImage.
    pub kernel: PathBuf,
    /// The guest's initrd.
    pub initrd: PathBuf,
    /// The kernel's command line, at most 2047 bytes (COMMAND_LINE_SIZE of x86).
    pub cmdline: String,
    /// Its disks, in the order the guest sees them.
    pub disks: Vec<Disk>,
    /// How its agent is reached.
    pub agent: AgentDevice,
    /// Socket of its console (the first UART); created by the driver. One
    /// client at a time. A connected client must read: the guest waits for it.
    pub console: PathBuf,
    /// The VMM's control socket; created by the driver and for it alone.
    pub monitor: PathBuf,
    /// Its network interfaces.
    pub nics: Vec<Nic>,
    /// Directories of the host that it may mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<SharedDirectory>,
    /// Its CPU model; `None` is the driver's default for the accelerator.
    pub cpu_model: Option<String>,
    /// File for the VMM's standard error, which is appended to.
    pub log: PathBuf,
    /// The directory of the cgroup that the VMM is started in (cgroup v2); made
    /// by the caller, who also sets its limits. `None` is the caller's own.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
}

/// A guest's RAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Its size in MiB, at least 32.
    pub size_mib: u32,
    /// Where it lies.
    pub backing: Backing,
}

/// Where a guest's RAM lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Backing {
    /// In anonymous memory.
    Anonymous,
    /// In a file.
    FileBacked {
        /// The file, exactly as long as the RAM.
        path: PathBuf,
        /// Whether the guest's writes go to the file. If not, the mapping is
        /// private: the file must not change while the VM lives.
        shared: bool,
    },
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its id, and the serial number the guest sees: 1 to 20 letters, digits,
    /// `-` and `_` (20 bytes is what virtio-blk has for it).
    pub id: String,
    /// Its raw image.
    pub path: PathBuf,
    /// Whether the guest can only read it; the VMM then can't write either.
    pub readonly: bool,
}

/// How the agent in the guest is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum AgentDevice {
    /// A virtio-serial port.
    Serial {
        /// The host's end; created by the driver. One client at a time.
        socket: PathBuf,
        /// The port's name in the guest, 1 to 31 letters, digits, `.`, `-`, `_`.
        port_name: String,
    },
    /// The host kernel's vsock.
    Vsock {
        /// The guest's context id, at least 3 (vsock(7)).
        cid: u32,
    },
    /// A vsock device of the VMM's own. The host's end is a Unix socket: who
    /// connects writes `CONNECT <port>` and reads `OK <n>` before the stream
    /// begins. Many clients at a time.
    HybridVsock {
        /// The host's end; created by the VMM.
        socket: PathBuf,
        /// The guest's context id, at least 3. It means nothing to the host:
        /// a restored VM keeps it, and the socket tells clones apart.
        cid: u32,
    },
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Its id: 1 to 20 letters, digits, `-` and `_`.
    pub id: String,
    /// Its hardware address, `xx:xx:xx:xx:xx:xx`, no multicast address.
    pub mac: String,
    /// What it is connected to.
    pub backend: NicBackend,
}

/// What a network interface is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NicBackend {
    /// Nothing.
    None,
    /// The VMM's user-mode network, closed: no way to the host or beyond.
    User,
    /// A tap device of the network namespace the caller is in; made by the
    /// caller, who also decides when its frames go anywhere.
    Tap {
        /// Its name, 1 to 15 bytes (IFNAMSIZ).
        name: String,
    },
}

/// A directory of the host's that a guest may mount (virtio-fs). A virtiofsd
/// serves it, which gets at the guest's RAM: that is shared with it, and never a
/// private mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedDirectory {
    /// What the guest mounts it by: 1 to 36 letters, digits, `-` and `_` (36
    /// bytes is what virtio-fs has for it).
    pub tag: String,
    /// The directory. Where it is shared and its files belong to others, their
    /// modes decide: a virtiofsd has no capability.
    pub path: PathBuf,
    /// Whether the guest can only read it; its virtiofsd then can't write either.
    pub readonly: bool,
}

/// How a restored VM gets the RAM it was saved with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryMode {
    /// A private mapping of the memory file: clones share what none of them
    /// has written.
    CopyOnWrite,
    /// Read in full before the restore ends.
    Copy,
    /// Read page by page, when the guest first touches them.
    OnDemand,
}

/// What is a restored VM's own; `None` keeps what the spec says. What is not
/// here can't be changed by a restore.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rebind {
    /// Its name.
    pub name: Option<String>,
    /// Its UUID, as the VMM's process knows it; the guest still has the old one
    /// in its firmware tables.
    pub uuid: Option<String>,
    /// Its control socket.
    pub monitor: Option<PathBuf>,
    /// Its console socket.
    pub console: Option<PathBuf>,
    /// The file for the VMM's standard error.
    pub log: Option<PathBuf>,
    /// The socket or context id of its agent; the kind can't change.
    pub agent: Option<AgentDevice>,
    /// Where its RAM lies.
    pub memory: Option<Backing>,
    /// How its RAM gets there. `None` is what fits where it lies: a private
    /// mapping of a memory file, or a copy of what was saved with the state.
    pub memory_mode: Option<MemoryMode>,
    /// New images of disks, by the disk's id. The guest goes on taking a disk for
    /// as long as it was when the guest found it: of a shorter image nothing can
    /// be read beyond its end, of a longer one nothing beyond what was there.
    pub disks: BTreeMap<String, PathBuf>,
    /// What network interfaces are connected to, by the interface's id.
    pub nics: BTreeMap<String, NicBackend>,
    /// Where directories are, by their tags. What the guest has open of the saved
    /// VM's must be there by the same names.
    pub directories: BTreeMap<String, PathBuf>,
    /// The cgroup that its VMM is started in. None is the caller's own: that of
    /// the saved VM is never this one's.
    pub cgroup: Option<PathBuf>,
}

/// The longest kernel command line: COMMAND_LINE_SIZE is 2048 on x86, with the
/// closing zero byte.
const LONGEST_COMMAND_LINE: usize = 2047;
/// Disks, interfaces and directories together: each has a PCI slot, and slots 0
/// to 3 and 31 are taken.
const MOST_DEVICES: usize = 26;

impl VmSpec {
    /// The spec of a VM restored from this one's state.
    ///
    /// # Errors
    /// [`Error::Spec`] for a disk that isn't there or an agent device of
    /// another kind.
    pub fn rebound(&self, rebind: &Rebind) -> Result<Self, Error> {
        let mut spec = self.clone();
        spec.cgroup.clone_from(&rebind.cgroup);
        fn set<T: Clone>(old: &mut T, new: Option<&T>) {
            if let Some(new) = new {
                old.clone_from(new);
            }
        }
        set(&mut spec.name, rebind.name.as_ref());
        set(&mut spec.uuid, rebind.uuid.as_ref());
        set(&mut spec.monitor, rebind.monitor.as_ref());
        set(&mut spec.console, rebind.console.as_ref());
        set(&mut spec.log, rebind.log.as_ref());
        set(&mut spec.memory.backing, rebind.memory.as_ref());
        match (&mut spec.agent, rebind.agent.as_ref()) {
            (_, None) => {}
            (
                AgentDevice::Serial { socket, port_name },
                Some(AgentDevice::Serial {
                    socket: new,
                    port_name: same,
                }),
            ) if port_name == same => socket.clone_from(new),
            (AgentDevice::Vsock { cid }, Some(AgentDevice::Vsock { cid: new })) => *cid = *new,
            (
                AgentDevice::HybridVsock { socket, cid },
                Some(AgentDevice::HybridVsock {
                    socket: new,
                    cid: same,
                }),
            ) if cid == same => socket.clone_from(new),
            _ => return Err(wrong("agent", "another device than the saved vm's")),
        }
        for (id, path) in &rebind.disks {
            let disk = spec.disks.iter_mut().find(|disk| disk.id == *id);
            let disk =
                disk.ok_or_else(|| wrong("disks", format!("no disk {id:?} in the saved vm")))?;
            disk.path.clone_from(path);
        }
        for (id, backend) in &rebind.nics {
            let nic = spec.nics.iter_mut().find(|nic| nic.id == *id);
            let nic =
                nic.ok_or_else(|| wrong("nics", format!("no interface {id:?} in the saved vm")))?;
            nic.backend.clone_from(backend);
        }
        for (tag, path) in &rebind.directories {
            let directories = &mut spec.directories;
            let directory = directories
                .iter_mut()
                .find(|directory| directory.tag == *tag);
            let missing = || wrong("directories", format!("no {tag:?} in the saved vm"));
            directory.ok_or_else(missing)?.path.clone_from(path);
        }
        Ok(spec)
    }

    /// Checks all of it: what passes can't break out of a VMM's command line.
    ///
    /// # Errors
    /// [`Error::Spec`] with the first field that is wrong.
    pub fn validate(&self) -> Result<(), Error> {
        word("name", &self.name, 128, ".-_")?;
        uuid(&self.uuid)?;
        if !(1..=32).contains(&self.vcpus) {
            return Err(wrong("vcpus", format!("{} is not 1 to 32", self.vcpus)));
        }
        if self.memory.size_mib < 32 {
            return Err(wrong(
                "memory.size_mib",
                format!("{} is below 32", self.memory.size_mib),
            ));
        }
        if self.cmdline.len() > LONGEST_COMMAND_LINE || has_control(&self.cmdline) {
            return Err(wrong(
                "cmdline",
                "longer than 2047 bytes, or a control character in it",
            ));
        }
        if let Some(model) = &self.cpu_model {
            word("cpu_model", model, 512, ".-_+,=")?;
        }
        self.validate_paths()?;
        self.validate_devices()
    }

    fn validate_paths(&self) -> Result<(), Error> {
        let fixed = [
            ("kernel", self.kernel.as_path()),
            ("initrd", &self.initrd),
            ("console", &self.console),
            ("monitor", &self.monitor),
            ("log", &self.log),
        ];
        let memory = match &self.memory.backing {
            Backing::FileBacked { path, .. } => Some(("memory.path", path.as_path())),
            Backing::Anonymous => None,
        };
        let agent = match &self.agent {
            AgentDevice::Serial { socket, .. } | AgentDevice::HybridVsock { socket, .. } => {
                Some(("agent.socket", socket.as_path()))
            }
            AgentDevice::Vsock { .. } => None,
        };
        let cgroup = self.cgroup.as_deref().map(|path| ("cgroup", path));
        let disks = self
            .disks
            .iter()
            .map(|disk| ("disks.path", disk.path.as_path()));
        let directories = self
            .directories
            .iter()
            .map(|directory| ("directories.path", directory.path.as_path()));
        let mut all = fixed
            .into_iter()
            .chain(memory)
            .chain(agent)
            .chain(cgroup)
            .chain(disks)
            .chain(directories);
        all.try_for_each(|(field, path)| clean_path(field, path).map(drop))
    }

    fn validate_devices(&self) -> Result<(), Error> {
        match &self.agent {
            AgentDevice::Serial { port_name, .. } => word("agent.port_name", port_name, 31, ".-_")?,
            AgentDevice::Vsock { cid } | AgentDevice::HybridVsock { cid, .. } => {
                if *cid < 3 || *cid == u32::MAX {
                    return Err(wrong("agent.cid", format!("{cid} is reserved (vsock(7))")));
                }
            }
        }
        if self.disks.len() + self.nics.len() + self.directories.len() > MOST_DEVICES {
            return Err(wrong(
                "disks",
                "more than 26 disks, interfaces and directories",
            ));
        }
        let mut ids = BTreeSet::new();
        let disks = self.disks.iter().map(|disk| ("disks.id", &disk.id));
        for (field, id) in disks.chain(self.nics.iter().map(|nic| ("nics.id", &nic.id))) {
            word(field, id, 20, "-_")?;
            if !ids.insert(id) {
                return Err(wrong(field, format!("{id} is there twice")));
            }
        }
        for directory in &self.directories {
            word("directories.tag", &directory.tag, 36, "-_")?;
            if !ids.insert(&directory.tag) {
                let tag = &directory.tag;
                return Err(wrong("directories.tag", format!("{tag} is there twice")));
            }
        }
        self.nics.iter().try_for_each(|nic| {
            hardware_address(&nic.mac)?;
            match &nic.backend {
                NicBackend::Tap { name } => word("nics.backend", name, 15, "-_."),
                NicBackend::None | NicBackend::User => Ok(()),
            }
        })
    }
}

fn wrong(field: &'static str, reason: impl Into<String>) -> Error {
    let reason = reason.into();
    Error::Spec { field, reason }
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

/// A word of ASCII letters, digits and `others`, the first letter or digit.
fn word(field: &'static str, text: &str, longest: usize, others: &str) -> Result<(), Error> {
    let fits = (1..=longest).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || others.contains(c));
    if fits {
        Ok(())
    } else {
        Err(wrong(
            field,
            format!("{text:?} is not 1 to {longest} letters, digits and any of {others}"),
        ))
    }
}

/// An absolute path that can be written on a command line: the VMM's working
/// directory is not ours, and its log and option parsers know lines.
pub(crate) fn clean_path<'a>(field: &'static str, path: &'a Path) -> Result<&'a str, Error> {
    match path.to_str() {
        Some(text) if path.is_absolute() && !has_control(text) => Ok(text),
        _ => Err(wrong(
            field,
            format!("{path:?} is not an absolute utf-8 path without control characters"),
        )),
    }
}

fn uuid(text: &str) -> Result<(), Error> {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths = groups.iter().map(|group| group.len());
    let digits = groups
        .iter()
        .all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if digits && lengths.eq([8, 4, 4, 4, 12]) {
        Ok(())
    } else {
        Err(wrong(
            "uuid",
            format!("{text:?} is not 8-4-4-4-12 hexadecimal digits"),
        ))
    }
}

fn hardware_address(text: &str) -> Result<(), Error> {
    let octets: Vec<&str> = text.split(':').collect();
    let pair =
        |octet: &&str| octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit());
    let first = octets
        .first()
        .and_then(|octet| u8::from_str_radix(octet, 16).ok());
    if octets.len() == 6 && octets.iter().all(pair) && first.is_some_and(|octet| octet & 1 == 0) {
        Ok(())
    } else {
        Err(wrong(
            "nics.mac",
            format!("{text:?} is no unicast hardware address"),
        ))
    }
}

#[cfg(test)]
mod tests;
