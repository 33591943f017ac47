//! The verbs: what a VMM must be able to do, whatever it is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::process::{Confined, Identity};
use crate::span::Span;
use crate::spec::{AgentDevice, Backing, MemoryMode, Rebind, VmSpec};

/// A VMM of one kind on this host.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// What it can do, and what a saved state depends on.
    fn capabilities(&self) -> &Capabilities;

    /// Starts a VM that does not exist yet, and returns once its CPUs run. A
    /// shared memory file is created, and must not exist before. The guest's
    /// first output is not lost if the console is connected at once: a kernel
    /// repeats it when its console driver is ready.
    ///
    /// # Errors
    /// When it could not be started; then no process, socket or memory file is
    /// left. The same holds when the future is dropped.
    async fn boot(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, Error>;

    /// Makes a VM from the state that [`Vm::save`] left in a directory. It is
    /// always left paused. `spec` is the one the saved VM was made from, since
    /// devices must match one by one; `rebind` names what is the new VM's own.
    /// A VMM may well accept a spec with devices the saved VM did not have: who
    /// keeps a state keeps its spec with it, and compares.
    /// The guest's kernel and initrd are in the saved memory and not read again.
    ///
    /// # Errors
    /// When it could not be restored; then no process and no socket is left.
    /// The same holds when the future is dropped.
    async fn restore(
        &self,
        state: &Path,
        spec: &VmSpec,
        rebind: &Rebind,
    ) -> Result<Box<dyn Vm>, Error>;
}

/// A VM. Dropping it leaves the VM as it is; its record adopts it again.
#[async_trait]
pub trait Vm: Send + Sync {
    /// Stops its CPUs. Nothing happens to a paused VM.
    ///
    /// # Errors
    /// When the VMM is gone or does not answer.
    async fn pause(&self) -> Result<(), Error>;

    /// Lets its CPUs run. Nothing happens to a running VM.
    ///
    /// # Errors
    /// [`Error::MemorySaved`] after a save that left the RAM in a shared file:
    /// running on would write into what was saved.
    async fn resume(&self) -> Result<(), Error>;

    /// Writes the state of a paused VM to files of the driver's choice in a
    /// directory, which must not have them. RAM in a shared file is not copied:
    /// that file is part of the saved state from then on. All other RAM is
    /// written too. Nothing is fsynced here: who publishes the directory must
    /// fsync the files, the memory file and the directory.
    ///
    /// # Errors
    /// When it could not be saved; then none of the files is there, and the VM is still
    /// paused and may run on. Dropping the future may leave a part of them.
    /// A VM that was not saved, or not with its memory file, may have to run
    /// before it can be saved again; then [`Error::Unsupported`] says so.
    async fn save(&self, directory: &Path) -> Result<Saved, Error>;

    /// What it is doing now.
    ///
    /// # Errors
    /// When the VMM is gone or does not answer.
    async fn info(&self) -> Result<VmInfo, Error>;

    /// Waits for its end, as long as that takes. Many may wait, and ask again.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    async fn wait(&self) -> Result<VmExit, Error>;

    /// Presses the power button, waits for the VM to end and kills it when it
    /// has not by the deadline. A paused VM can't react and is killed at once.
    ///
    /// # Errors
    /// When it could not even be killed.
    async fn shutdown(&self, deadline: Duration) -> Result<VmExit, Error>;

    /// Kills and reaps it. A VM that is gone is no error.
    ///
    /// # Errors
    /// When it is still there some seconds after the signal.
    async fn kill(&self) -> Result<(), Error>;

    /// Waits until software in the guest has opened the agent's port; at once
    /// when it has it open. Without it, the host would have to dial and retry. A
    /// restored VM whose agent had it open tells so once it was resumed.
    ///
    /// # Errors
    /// [`Error::Deadline`]; [`Error::Unsupported`] for an agent device that
    /// does not tell; [`Error::Ended`] when the VM ends before.
    async fn agent_port_opened(&self, deadline: Duration) -> Result<(), Error>;

    /// What must be kept to adopt it later.
    fn record(&self) -> VmRecord;

    /// The leaf steps of the last verb, for a new VM those of its making.
    fn spans(&self) -> Vec<Span>;
}

/// How long a verb may take inside the VMM. Generous: they only decide when a
/// VMM counts as hung, and a host may itself be an emulated one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From execve to the first answer on the control socket.
    pub start: Duration,
    /// Any single command that is not one of the others.
    pub command: Duration,
    /// Loading kernel and initrd, making the devices, starting the CPUs, where
    /// that is a command.
    pub boot: Duration,
    /// Writing a state without RAM; that of RAM is added where it is written, by
    /// its size.
    pub save: Duration,
    /// Loading a state. RAM that is copied is read, so this grows with it.
    pub load: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(30),
            command: Duration::from_secs(10),
            boot: Duration::from_secs(60),
            save: Duration::from_secs(120),
            load: Duration::from_secs(60),
        }
    }
}

/// What a disk has to write of RAM in a second, in MiB: one that is slow and has
/// other work too.
const SLOWEST_DISK: u32 = 16;

impl Deadlines {
    /// That of a VM's save, with the RAM that it writes.
    pub(crate) fn save_of(&self, record: &VmRecord) -> Duration {
        match &record.memory {
            Backing::FileBacked { shared: true, .. } => self.save,
            Backing::FileBacked { shared: false, .. } | Backing::Anonymous => {
                let seconds = record.memory_mib / SLOWEST_DISK;
                self.save
                    .saturating_add(Duration::from_secs(seconds.into()))
            }
        }
    }
}

/// How guest code is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the CPU.
    Kvm,
    /// By emulation.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// What a driver can do here. All of it but the reason must be equal where a
/// state is saved and where it is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Name of the VMM.
    pub vmm: String,
    /// Its version, as it gives it.
    pub version: String,
    /// How guest code is executed.
    pub accelerator: Accelerator,
    /// Why it is this accelerator.
    pub accelerator_reason: String,
    /// The versioned machine type and firmware.
    pub machine: String,
    /// The CPU model of a spec that names none.
    pub default_cpu_model: String,
    /// Whether a privately mapped memory file is opened read-only. Where not,
    /// a hijacked VMM could write into the file, so that a template must serve
    /// one owner only, and the file must be writable for the VMM's user unless
    /// that is root.
    pub private_memory_is_read_only: bool,
    /// Which devices can carry the agent's link.
    pub agent_devices: AgentDevices,
    /// Whether RAM can lie in a shared file from the boot on, so that a save
    /// need not write it. Where not, a VM boots with anonymous RAM and a save
    /// writes the memory file next to the state.
    pub boots_on_memory_file: bool,
    /// Whether RAM can be saved within the state, without a memory file.
    pub saves_anonymous_memory: bool,
    /// The ways RAM gets into a restored VM.
    pub memory_modes: Vec<MemoryMode>,
    /// Whether the console outlives whoever booted or restored the VM.
    pub console_outlives_owner: bool,
    /// Whether a guest can mount directories of the host. It takes a virtiofsd,
    /// which is looked for where a VM has one.
    pub shared_directories: bool,
}

/// Which [`AgentDevice`]s a driver has here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentDevices {
    /// [`AgentDevice::Serial`].
    pub serial: bool,
    /// [`AgentDevice::Vsock`].
    pub vsock: bool,
    /// [`AgentDevice::HybridVsock`].
    pub hybrid_vsock: bool,
}

impl AgentDevices {
    /// Whether a VM can have this one.
    #[must_use]
    pub fn has(self, device: &AgentDevice) -> bool {
        match device {
            AgentDevice::Serial { .. } => self.serial,
            AgentDevice::Vsock { .. } => self.vsock,
            AgentDevice::HybridVsock { .. } => self.hybrid_vsock,
        }
    }
}

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum VmState {
    /// Its CPUs run.
    Running,
    /// Its CPUs are stopped; alive all the same.
    Paused,
    /// Paused, and its memory file is part of a saved state.
    Saved,
    /// Its state is being loaded or written.
    Moving,
    /// The guest has crashed or powered off, or the VMM had an internal error.
    Halted,
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Saved => "saved",
            Self::Moving => "moving",
            Self::Halted => "halted",
        })
    }
}

/// The present of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// What it is doing.
    pub state: VmState,
    /// The VMM's process.
    pub pid: i32,
}

/// How a VMM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmExit {
    /// By itself, with this exit status. 0: the guest has powered off, or has
    /// reset; a VMM that would start it again gives another status for that.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// Somehow: an adopted process is not our child, and only a parent is told.
    Unknown,
    /// By us: a virtiofsd of its VM had ended, and what the guest asks of that
    /// directory would never be answered.
    LostDirectory,
}

impl fmt::Display for VmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exit status {status}"),
            // mmap(2): what is given for a page of a mapped file that the file
            // does not have, or that finds no place on the disk.
            Self::Signalled(signal) if *signal == Signal::BUS.as_raw() => f.write_str(
                "SIGBUS: the disk of its memory file is full, or the file was cut short",
            ),
            Self::Signalled(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("exit status unknown"),
            Self::LostDirectory => f.write_str("killed: the virtiofsd of a directory had ended"),
        }
    }
}

/// What a save has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The file with the state.
    pub path: PathBuf,
    /// All files that were written, that one among them.
    pub files: Vec<PathBuf>,
    /// Their size.
    pub bytes: u64,
    /// How long the save took.
    pub duration: Duration,
    /// Whether the VM's shared memory file is part of the saved state.
    pub memory_file: Option<PathBuf>,
}

/// What is kept of a VM on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmRecord {
    /// Name of the driver.
    pub driver: String,
    /// The VMM's process.
    pub pid: i32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5), field 22).
    pub start_time: u64,
    /// The host's boot, from /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// Its control socket.
    pub monitor: PathBuf,
    /// Its console socket.
    pub console: PathBuf,
    /// How its agent is reached.
    pub agent: AgentDevice,
    /// Where its RAM lies.
    pub memory: Backing,
    /// The size of its RAM in MiB; 0 in a record that was written before this was
    /// kept.
    #[serde(default)]
    pub memory_mib: u32,
    /// Its standard error.
    pub log: PathBuf,
    /// How far it is confined.
    #[serde(default)]
    pub confined: Confined,
    /// The virtiofsds of its directories, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<DirectoryRecord>,
}

impl VmRecord {
    /// The last line that the VMM has written on its standard error, escaped;
    /// empty when there is none, or it cannot be read.
    #[must_use]
    pub fn last_words(&self) -> String {
        crate::log::last_line(&self.log)
    }
}

/// What is kept of a directory's virtiofsd on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryRecord {
    /// The directory.
    pub path: PathBuf,
    /// The virtiofsd's process.
    pub pid: i32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5), field 22).
    pub start_time: u64,
    /// The host's boot, from /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// How far it is confined.
    pub confined: Confined,
}

impl VmRecord {
    /// The record of a VM of this driver that was just made from a spec.
    pub(crate) fn new(
        driver: &str,
        process: &Identity,
        spec: &VmSpec,
        confined: Confined,
        directories: Vec<DirectoryRecord>,
    ) -> Self {
        Self {
            driver: driver.to_owned(),
            pid: process.pid,
            start_time: process.start_time,
            boot_id: process.boot_id.clone(),
            monitor: spec.monitor.clone(),
            console: spec.console.clone(),
            agent: spec.agent.clone(),
            memory: spec.memory.backing.clone(),
            memory_mib: spec.memory.size_mib,
            log: spec.log.clone(),
            confined,
            directories,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_save_may_take_longer_the_more_ram_it_writes() {
        let record = |memory_mib, memory| VmRecord {
            driver: "none".into(),
            pid: 1,
            start_time: 1,
            boot_id: String::new(),
            monitor: PathBuf::new(),
            console: PathBuf::new(),
            agent: AgentDevice::Vsock { cid: 3 },
            memory,
            memory_mib,
            log: PathBuf::new(),
            confined: Confined::default(),
            directories: Vec::new(),
        };
        let file = |shared| Backing::FileBacked {
            path: "/memory".into(),
            shared,
        };
        let deadlines = Deadlines::default();
        let large = 64 << 10;
        assert_eq!(
            deadlines.save_of(&record(large, file(true))),
            deadlines.save
        );
        for memory in [file(false), Backing::Anonymous] {
            let found = deadlines.save_of(&record(large, memory.clone()));
            assert_eq!(found, deadlines.save + Duration::from_secs(4096));
            let small = deadlines.save_of(&record(128, memory));
            assert!(small < deadlines.save + Duration::from_secs(10));
        }
    }
}
