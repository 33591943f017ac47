//! From a spec to a process: the files opened, Firecracker started, its control
//! socket there.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use tokio::time::timeout;

use super::arrival::Arrival;
use super::console::Console;
use super::request::{
    AGENT_DIRECTORY, Agent, CONSOLE, FIRST_DISK, INITRD, KERNEL, MEMORY, MONITOR_DIRECTORY, STATE,
    arguments, inherited,
};
use super::{Firecracker, MEMORY_FILE, STATE_FILE};
use crate::answer::ended;
use crate::error::Error;
use crate::log::open_log;
use crate::process::{Cgroup, Confined, Launch, Needs, Process, User, share_with, spawn};
use crate::rest::RestVmm;
use crate::socket::{connect_at, vacate};
use crate::span::{Timeline, now};
use crate::spec::{AgentDevice, Backing, VmSpec, clean_path};

/// How an image begins that Firecracker can boot (elf(5)).
const ELF: [u8; 4] = *b"\x7fELF";

/// How the VM begins.
pub(super) enum Start<'a> {
    /// With its kernel.
    Boot,
    /// Paused, with the state in a directory.
    Restore(&'a Path),
}

/// A Firecracker that was started and is not yet a VM: dropped, it takes
/// everything with it that was made for it.
pub(super) struct Started {
    pub(super) vmm: RestVmm,
    pub(super) timeline: Timeline,
    pub(super) console: Console,
    pub(super) confined: Confined,
    sockets: Sockets,
}

impl Started {
    /// Makes it last.
    pub(super) fn settle(self) -> (RestVmm, Timeline, Console) {
        let Self {
            mut vmm,
            timeline,
            console,
            sockets,
            ..
        } = self;
        sockets.keep();
        vmm.process.release();
        (vmm, timeline, console)
    }
}

/// The sockets Firecracker binds itself, and does not remove. Dropped after it
/// has ended, they are removed.
pub(super) struct Sockets(Vec<PathBuf>);

impl Sockets {
    pub(super) fn new(monitor: &Path, agent: &AgentDevice) -> Self {
        let mut paths = vec![monitor.to_owned()];
        if let AgentDevice::HybridVsock { socket, .. } = agent {
            paths.push(socket.clone());
        }
        Self(paths)
    }

    /// Removes what an ended Firecracker has left, and nothing of a live one.
    pub(super) fn vacate(&self) -> Result<(), Error> {
        self.0.iter().try_for_each(|path| vacate(path))
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // What is in use again belongs to somebody else.
        let _ = self.vacate();
    }
}

/// What Firecracker inherits.
#[derive(Default)]
struct Files(Vec<(OwnedFd, RawFd)>);

impl Files {
    fn add(&mut self, file: impl Into<OwnedFd>, number: RawFd) {
        self.0.push((file.into(), number));
    }

    fn add_directory(&mut self, directory: &Path, number: RawFd) -> Result<(), Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = open(directory, flags, Mode::empty());
        let opened = opened.map_err(|errno| Error::path("open", directory)(errno.into()))?;
        self.add(opened, number);
        Ok(())
    }
}

/// The directory of the agent's socket, and the agent's device.
///
/// # Errors
/// [`Error::Unsupported`] for any device but Firecracker's own vsock.
pub(super) fn agent_of(spec: &VmSpec) -> Result<(&Path, Agent<'_>), Error> {
    match &spec.agent {
        AgentDevice::HybridVsock { socket, cid } => {
            let (directory, socket) = place("agent.socket", socket)?;
            Ok((directory, Agent { socket, cid: *cid }))
        }
        AgentDevice::Serial { .. } => Err(Error::Unsupported("a virtio-serial port")),
        AgentDevice::Vsock { .. } => Err(Error::Unsupported("the host kernel's vsock")),
    }
}

/// The directory and the name of a socket.
pub(super) fn place<'a>(field: &'static str, path: &'a Path) -> Result<(&'a Path, &'a str), Error> {
    let name = path.file_name().and_then(|name| name.to_str());
    path.parent().zip(name).ok_or_else(|| Error::Spec {
        field,
        reason: format!("{path:?} names no file"),
    })
}

/// Starts Firecracker for a spec that was checked, and returns once its control
/// socket can be connected to.
pub(super) async fn launch(
    driver: &Firecracker,
    spec: &VmSpec,
    start: Start<'_>,
) -> Result<Started, Error> {
    let timeline = Timeline::default();
    let begun = now();
    let (directory, name) = place("monitor", &spec.monitor)?;
    let (agent_directory, _) = agent_of(spec)?;

    let confinement = &driver.confinement;
    let user = confinement.user();
    let mut files = Files::default();
    match start {
        Start::Boot => open_kernel(spec, user, &mut files)?,
        Start::Restore(state) => open_saved(spec, state, user, &mut files)?,
    }
    open_disks(spec, user, &mut files)?;
    // One with a user of its own may make files in the agent's directory only.
    let socket_directory = if user.is_some() {
        agent_directory
    } else {
        directory
    };
    files.add_directory(socket_directory, MONITOR_DIRECTORY)?;
    files.add_directory(agent_directory, AGENT_DIRECTORY)?;
    let log = open_log(&spec.log)?;
    let begun = timeline.since("open kernel or state, disks, log", begun);

    // Dropped after Firecracker, which is killed then.
    let sockets = Sockets::new(&spec.monitor, &spec.agent);
    sockets.vacate()?;
    let (console, guest) = Console::bind(&spec.console)?;
    if let Some(user) = user {
        user.give(&guest).map_err(|source| Error::Process {
            call: "fchown pipe",
            source,
        })?;
        user.share_directory(agent_directory)?;
        user.give_taps(spec)?;
    }
    let made_at = socket_directory.join(name);
    vacate(&made_at)?;
    files.add(guest, CONSOLE);
    let mut arrival = Arrival::watch(socket_directory, &log)?;
    let begun = timeline.since("bind, listen, inotify_add_watch", begun);

    let placed: Vec<_> = files
        .0
        .iter()
        .map(|(file, at)| (file.as_fd(), *at))
        .collect();
    let held: Vec<_> = user.map(User::lock).into_iter().collect();
    let cgroup = Cgroup::of(spec)?;
    let cell = confinement.cell(Needs {
        // It opens a tap by its name only; of sockets, its filter of system
        // calls lets it make Unix ones only.
        host_network: !spec.nics.is_empty(),
        opens_taps: !spec.nics.is_empty(),
        writes_by_path: user.is_none(),
    })?;
    let pid = spawn(&Launch {
        program: &driver.program,
        arguments: &arguments(spec, name),
        inherited: &held,
        placed: &placed,
        log: &log,
        output: None,
        keeps: None,
        filter: None,
        cell: cell.as_ref(),
        cgroup: cgroup.as_ref(),
    })?;
    let process = Process::child(pid)?;
    let mut started = Started {
        vmm: RestVmm {
            process,
            socket: made_at.clone(),
            log: spec.log.clone(),
        },
        timeline,
        console,
        confined: confinement.noted(),
        sockets,
    };
    let begun = started.timeline.since("fork, execve", begun);
    wait_for_socket(driver, &started.vmm, &mut arrival).await?;
    arrival.leave();
    started.timeline.since("control socket listens", begun);
    if made_at != spec.monitor {
        // Out of the VMM's reach; who listens is the same.
        std::fs::rename(&made_at, &spec.monitor).map_err(Error::path("rename", &made_at))?;
        started.vmm.socket.clone_from(&spec.monitor);
    }
    Ok(started)
}

/// Opens a small file that it reads; where a user of its own may not, a copy.
fn open_for(user: Option<&User>, path: &Path) -> Result<File, Error> {
    match user {
        Some(user) => user.open_or_copy(path),
        None => File::open(path).map_err(Error::path("open", path)),
    }
}

async fn wait_for_socket(
    driver: &Firecracker,
    vmm: &RestVmm,
    arrival: &mut Arrival,
) -> Result<(), Error> {
    let listens = async {
        while connect_at(&vmm.socket).is_err() {
            tokio::select! {
                happened = arrival.next() => happened?,
                exit = vmm.process.exited() => return Err(ended(&vmm.log, "start", exit?)),
            }
        }
        Ok(())
    };
    let deadline = driver.deadlines.start;
    let waiting_for = "firecracker's control socket";
    timeout(deadline, listens)
        .await
        .map_err(|_| Error::Deadline {
            waiting_for,
            deadline,
        })?
}

fn open_kernel(spec: &VmSpec, user: Option<&User>, files: &mut Files) -> Result<(), Error> {
    let kernel = open_for(user, &spec.kernel)?;
    let mut beginning = ELF.map(|_| 0);
    let read = kernel.read_exact_at(&mut beginning, 0);
    if read.is_err() || beginning != ELF {
        return Err(Error::Spec {
            field: "kernel",
            reason: format!(
                "{} is no elf image, and firecracker unpacks no bzimage: give its vmlinux",
                spec.kernel.display()
            ),
        });
    }
    files.add(kernel, KERNEL);
    files.add(open_for(user, &spec.initrd)?, INITRD);
    Ok(())
}

fn open_saved(
    spec: &VmSpec,
    directory: &Path,
    user: Option<&User>,
    files: &mut Files,
) -> Result<(), Error> {
    files.add(open_for(user, &directory.join(STATE_FILE))?, STATE);
    let Backing::FileBacked { path, .. } = &spec.memory.backing else {
        return Err(Error::Unsupported("restoring without a memory file"));
    };
    let memory = match user {
        Some(user) => user.open("memory.path", path, false)?,
        None => File::open(path).map_err(Error::path("open", path))?,
    };
    let found = memory.metadata().map_err(Error::path("stat", path))?;
    let size = u64::from(spec.memory.size_mib) << 20;
    if !found.is_file() || found.len() != size {
        return Err(Error::Spec {
            field: "memory.path",
            reason: format!("{} bytes long, the guest's ram is {size}", found.len()),
        });
    }
    files.add(memory, MEMORY);
    Ok(())
}

fn open_disks(spec: &VmSpec, user: Option<&User>, files: &mut Files) -> Result<(), Error> {
    for (disk, number) in spec.disks.iter().zip(FIRST_DISK..) {
        if let Some(user) = user {
            // It opens what it is given again.
            user.open("disks.path", &disk.path, !disk.readonly)?;
        }
        let opened = OpenOptions::new()
            .read(true)
            .write(!disk.readonly)
            .open(&disk.path);
        files.add(opened.map_err(Error::path("open", &disk.path))?, number);
    }
    Ok(())
}

/// The files of a save, while they are not complete: dropped, they are removed.
pub(super) struct Saving {
    pub(super) state: PathBuf,
    pub(super) memory: PathBuf,
    created: Vec<PathBuf>,
    links: Links,
}

/// Names of the files of a save where a VMM with a user of its own finds them.
/// Dropped, they are removed.
#[derive(Default)]
struct Links(Vec<PathBuf>);

impl Drop for Links {
    fn drop(&mut self) {
        for path in &self.0 {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Saving {
    /// Creates both files, which must not be there: Firecracker would write over
    /// them.
    ///
    /// A VMM with a user of its own, whose number is given with the directory
    /// of its agent's socket, is shown them there.
    pub(super) fn create(directory: &Path, user: Option<(u32, &Path)>) -> Result<Self, Error> {
        let mut saving = Self {
            state: directory.join(STATE_FILE),
            memory: directory.join(MEMORY_FILE),
            created: Vec::new(),
            links: Links::default(),
        };
        for (path, name) in [
            (saving.state.clone(), STATE_FILE),
            (saving.memory.clone(), MEMORY_FILE),
        ] {
            let file = create_exclusively(&path)?;
            saving.created.push(path.clone());
            if let Some((uid, shown)) = user {
                share_with(uid, &file).map_err(Error::path("fchown", &path))?;
                let link = shown.join(name);
                std::fs::hard_link(&path, &link).map_err(Error::path("link", &link))?;
                saving.links.0.push(link);
            }
        }
        Ok(saving)
    }

    /// Where the VMM is to write state and memory.
    pub(super) fn targets(&self) -> Result<[String; 2], Error> {
        if self.links.0.is_empty() {
            let state = clean_path("state", &self.state)?;
            return Ok([state, clean_path("memory", &self.memory)?].map(str::to_owned));
        }
        let shown = inherited(AGENT_DIRECTORY);
        Ok([STATE_FILE, MEMORY_FILE].map(|name| format!("{shown}/{name}")))
    }

    /// They are complete.
    pub(super) fn keep(mut self) {
        self.created.clear();
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        for path in &self.created {
            // The first error counts; a file that can't be removed is part of it.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn create_exclusively(path: &Path) -> Result<File, Error> {
    use std::os::unix::fs::OpenOptionsExt;
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    created.map_err(Error::path("create", path))
}
