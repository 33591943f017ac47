//! From a spec to a process: the sockets bound, the files opened, QEMU started.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::command_line::{Descriptors, HandedFiles, Start, arguments};
use super::qmp::Monitor;
use super::vmm::Vmm;
use super::{MEMORY_FILE, Qemu, STATE_FILE};
use crate::error::Error;
use crate::log::open_log;
use crate::process::{
    Cgroup, Confined, Confinement, Keeps, Launch, Needs, Process, User, open_taps, spawn,
};
use crate::socket::{Listener, connect_at};
use crate::span::{Timeline, now};
use crate::spec::{AgentDevice, Backing, VmSpec};
use crate::virtiofsd::{Daemons, Offer, Served, socket_path};

/// What QEMU opens for a vsock device.
pub(super) const VSOCK_DEVICE: &str = "/dev/vhost-vsock";

/// A QEMU that was started and is not yet a VM: dropped, it takes everything
/// with it that was made for it.
pub(super) struct Started {
    pub(super) vmm: Vmm,
    pub(super) timeline: Timeline,
    /// When QEMU began to run.
    pub(super) at: u64,
    pub(super) confined: Confined,
    daemons: Daemons,
    sockets: Sockets,
    memory: CreatedFile,
}

impl Started {
    /// Makes it last.
    pub(super) fn settle(self) -> (Vmm, Daemons, Timeline) {
        let Self {
            mut vmm,
            mut daemons,
            timeline,
            sockets,
            memory,
            ..
        } = self;
        sockets.keep();
        memory.keep();
        vmm.process.release();
        daemons.release();
        (vmm, daemons, timeline)
    }

    /// The work of making a VM of it, given up when a directory is lost.
    pub(super) async fn making<T>(
        &self,
        log: &Path,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.daemons.beside(log, work).await
    }
}

struct Sockets {
    monitor: Listener,
    console: Listener,
    agent: Option<Listener>,
}

impl Sockets {
    fn bind(spec: &VmSpec) -> Result<Self, Error> {
        Ok(Self {
            monitor: Listener::bind(&spec.monitor)?,
            console: Listener::bind(&spec.console)?,
            agent: match &spec.agent {
                AgentDevice::Serial { socket, .. } => Some(Listener::bind(socket)?),
                AgentDevice::Vsock { .. } | AgentDevice::HybridVsock { .. } => None,
            },
        })
    }

    fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let agent = self.agent.as_ref();
        [&self.monitor, &self.console]
            .into_iter()
            .chain(agent)
            .map(|socket| socket.descriptor.as_fd())
    }

    fn keep(self) {
        self.monitor.keep();
        self.console.keep();
        self.agent.into_iter().for_each(Listener::keep);
    }
}

/// Starts QEMU for a spec that was checked. The commands to come can be sent at
/// once: they wait in the socket until QEMU reads.
pub(super) fn launch(
    driver: &Qemu,
    spec: &VmSpec,
    start: Start,
    offer: &Offer<'_>,
) -> Result<Started, Error> {
    let timeline = Timeline::default();
    let begun = now();
    let sockets = Sockets::bind(spec)?;
    let stream = connect_at(&spec.monitor)?;
    let begun = timeline.since("bind, listen, connect", begun);
    let user = driver.confinement.user();
    let memory = prepare_memory(spec, start, user)?;
    let handed = match &driver.confinement {
        Confinement::Insecure => Handed::default(),
        _ => Handed::open(driver, spec, start, user)?,
    };
    let disks = open_disks(spec)?;
    let taps = open_taps(spec)?;
    let log = open_log(&spec.log)?;
    let begun = timeline.since("open memory, disks, taps, log", begun);
    let (daemons, directories) = connect_directories(spec, offer)?;
    let begun = if directories.is_empty() {
        begun
    } else {
        timeline.since("start virtiofsd", begun)
    };

    let descriptors = Descriptors {
        monitor: sockets.monitor.descriptor.as_raw_fd(),
        console: sockets.console.descriptor.as_raw_fd(),
        agent: sockets
            .agent
            .as_ref()
            .map(|socket| socket.descriptor.as_raw_fd()),
        disks: disks.iter().map(AsRawFd::as_raw_fd).collect(),
        taps: taps.iter().map(AsRawFd::as_raw_fd).collect(),
        directories: directories.iter().map(AsRawFd::as_raw_fd).collect(),
        handed: handed.numbers(),
    };
    let arguments = arguments(spec, driver.platform, start, &descriptors)?;
    let inherited: Vec<BorrowedFd<'_>> = sockets
        .all()
        .chain(disks.iter().map(AsFd::as_fd))
        .chain(taps.iter().map(AsFd::as_fd))
        .chain(directories.iter().map(AsFd::as_fd))
        .chain(handed.all().map(AsFd::as_fd))
        .chain(user.map(User::lock))
        .collect();
    let cgroup = Cgroup::of(spec)?;
    let cell = driver.confinement.cell(Needs::default())?;
    let pid = spawn(&Launch {
        program: &driver.program,
        arguments: &arguments,
        inherited: &inherited,
        placed: &[],
        log: &log,
        output: None,
        keeps: (cell.is_none() && opens_for_writing(driver, spec))
            .then_some(Keeps::OverridingModes),
        filter: None,
        cell: cell.as_ref(),
        cgroup: cgroup.as_ref(),
    })?;
    let process = Process::child(pid)?;
    let at = timeline.since("fork, execve", begun);
    Ok(Started {
        vmm: Vmm::new(process, Monitor::start(stream), &spec.log, driver.deadlines),
        timeline,
        at,
        confined: driver.confinement.noted(),
        daemons,
        sockets,
        memory,
    })
}

/// Starts what serves the directories, and connects to each: QEMU inherits the
/// connections, and no socket is left.
fn connect_directories(spec: &VmSpec, offer: &Offer<'_>) -> Result<(Daemons, Vec<OwnedFd>), Error> {
    let Served { daemons, sockets } = offer.serve(&spec.monitor)?;
    let connections = (0..sockets.len()).map(|index| {
        let path = socket_path(&spec.monitor, index);
        let stream = connect_at(&path)?.into_std();
        stream
            .map(OwnedFd::from)
            .map_err(Error::path("connect", path))
    });
    let connections = connections.collect::<Result<Vec<_>, _>>()?;
    Ok((daemons, connections))
}

/// Whether it opens a memory file for writing that it maps privately.
fn opens_for_writing(driver: &Qemu, spec: &VmSpec) -> bool {
    let private = matches!(
        spec.memory.backing,
        Backing::FileBacked { shared: false, .. }
    );
    private && !driver.platform.maps_read_only()
}

/// What a confined QEMU could not open by its path: to it that is read-only, and
/// with a user of its own not to be reached at all.
#[derive(Default)]
struct Handed {
    memory: Option<File>,
    kernel: Option<File>,
    initrd: Option<File>,
    vsock: Option<File>,
}

impl Handed {
    fn open(
        driver: &Qemu,
        spec: &VmSpec,
        start: Start,
        user: Option<&User>,
    ) -> Result<Self, Error> {
        let mut handed = Self::default();
        if let Backing::FileBacked { path, shared } = &spec.memory.backing {
            let writes = *shared || opens_for_writing(driver, spec);
            handed.memory = Some(match user {
                Some(user) => user.open("memory.path", path, writes)?,
                None => File::open(path).map_err(Error::path("open", path))?,
            });
        }
        let Some(user) = user else {
            return Ok(handed);
        };
        if start == Start::Boot {
            handed.kernel = Some(user.open_or_copy(&spec.kernel)?);
            handed.initrd = Some(user.open_or_copy(&spec.initrd)?);
        }
        if matches!(spec.agent, AgentDevice::Vsock { .. }) {
            let opened = OpenOptions::new().read(true).write(true).open(VSOCK_DEVICE);
            handed.vsock = Some(opened.map_err(Error::path("open", VSOCK_DEVICE))?);
        }
        Ok(handed)
    }

    fn all(&self) -> impl Iterator<Item = &File> {
        [&self.memory, &self.kernel, &self.initrd, &self.vsock]
            .into_iter()
            .flatten()
    }

    fn numbers(&self) -> HandedFiles {
        let number = |file: &Option<File>| file.as_ref().map(AsRawFd::as_raw_fd);
        HandedFiles {
            memory: number(&self.memory),
            kernel: number(&self.kernel),
            initrd: number(&self.initrd),
            vsock: number(&self.vsock),
        }
    }
}

/// A file that is removed again unless it was kept.
struct CreatedFile(Option<PathBuf>);

impl CreatedFile {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for CreatedFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Creates the memory file of a new VM; checks that of a restored one, since
/// QEMU would silently create a missing file and lengthen a short one.
fn prepare_memory(spec: &VmSpec, start: Start, user: Option<&User>) -> Result<CreatedFile, Error> {
    let Backing::FileBacked { path, .. } = &spec.memory.backing else {
        return Ok(CreatedFile(None));
    };
    let size = u64::from(spec.memory.size_mib) << 20;
    if start == Start::Boot {
        let file = create_exclusively(path).map_err(Error::path("create", path))?;
        let created = CreatedFile(Some(path.clone()));
        file.set_len(size).map_err(Error::path("ftruncate", path))?;
        let shared = user.map_or(Ok(()), |user| user.share(&file));
        shared.map_err(Error::path("fchown", path))?;
        return Ok(created);
    }
    let found = std::fs::metadata(path).map_err(Error::path("stat", path))?;
    if !found.is_file() || found.len() != size {
        return Err(Error::Spec {
            field: "memory.path",
            reason: format!("{} bytes long, the guest's ram is {size}", found.len()),
        });
    }
    Ok(CreatedFile(None))
}

fn open_disks(spec: &VmSpec) -> Result<Vec<File>, Error> {
    let open = |disk: &crate::spec::Disk| {
        let opened = OpenOptions::new()
            .read(true)
            .write(!disk.readonly)
            .open(&disk.path);
        opened.map_err(Error::path("open", &disk.path))
    };
    spec.disks.iter().map(open).collect()
}

fn create_exclusively(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Creates the file that a state is written to.
pub(super) fn create_state(directory: &Path) -> Result<(PathBuf, File), Error> {
    let path = directory.join(STATE_FILE);
    let file = create_exclusively(&path).map_err(Error::path("create", &path))?;
    Ok((path, file))
}

/// Creates the file that private RAM is written to.
pub(super) fn create_memory(directory: &Path) -> Result<(PathBuf, File), Error> {
    let path = directory.join(MEMORY_FILE);
    let file = create_exclusively(&path).map_err(Error::path("create", &path))?;
    Ok((path, file))
}

/// Opens a saved state.
pub(super) fn open_state(directory: &Path) -> Result<File, Error> {
    let path = directory.join(STATE_FILE);
    File::open(&path).map_err(Error::path("open", &path))
}
