//! From a spec to a process: the control socket bound, the files there, the VMM
//! started.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::CloudHypervisor;
use super::files::Files;
use super::view::View;
use super::vmm::Vmm;
use crate::error::Error;
use crate::log::open_log;
use crate::process::{Cgroup, Confined, Launch, Needs, Process, User, open_taps, spawn};
use crate::rest::RestVmm;
use crate::socket::{Listener, vacate};
use crate::span::{Timeline, now};
use crate::spec::{AgentDevice, Backing, VmSpec};
use crate::virtiofsd::{Daemons, Offer, Served};

/// A VMM that was started and is not yet a VM: dropped, it takes everything
/// with it that was made for it. The process goes first.
pub(super) struct Started {
    pub(super) vmm: Vmm,
    pub(super) daemons: Daemons,
    /// The interfaces' tap devices, in the order of the spec.
    pub(super) taps: Vec<OwnedFd>,
    pub(super) belongings: Belongings,
    pub(super) confined: Confined,
    /// Those of the directories, which are there until this is settled.
    _sockets: Vec<Listener>,
}

impl Started {
    /// Makes it last.
    pub(super) fn settle(self) -> (Vmm, Daemons) {
        let Self {
            mut vmm,
            mut daemons,
            belongings,
            ..
        } = self;
        belongings.keep();
        vmm.rest.process.release();
        daemons.release();
        (vmm, daemons)
    }
}

/// What is on the file system for a VM. Dropped, it is removed, unless it was
/// kept.
pub(super) struct Belongings {
    monitor: Listener,
    pub(super) files: OwnFiles,
    /// Sockets that the VMM binds, and a memory file that was made.
    others: Vec<RemovedFile>,
}

impl Belongings {
    /// Prepares them.
    pub(super) fn prepare(spec: &VmSpec) -> Result<Self, Error> {
        let monitor = Listener::bind(&spec.monitor)?;
        let files = OwnFiles::create(&spec.monitor)?;
        let mut others = Vec::new();
        let agent = match &spec.agent {
            AgentDevice::HybridVsock { socket, .. } => Some(socket),
            _ => None,
        };
        for socket in std::iter::once(&spec.console).chain(agent) {
            vacate(socket)?;
            others.push(RemovedFile(Some(socket.clone())));
        }
        Ok(Self {
            monitor,
            files,
            others,
        })
    }

    /// Creates the memory file of a new VM.
    pub(super) fn create_memory(
        &mut self,
        spec: &VmSpec,
        user: Option<&User>,
    ) -> Result<(), Error> {
        let made = self.files.create_memory(spec, user)?;
        self.others.extend(made.map(|path| RemovedFile(Some(path))));
        Ok(())
    }

    /// Removes what the VMM makes and is taken elsewhere, as long as it is not.
    pub(super) fn expect(&mut self, made: Option<&Path>) {
        let made = made.map(|path| RemovedFile(Some(path.to_owned())));
        self.others.extend(made);
    }

    fn keep(self) {
        self.monitor.keep();
        self.files.keep();
        self.others.into_iter().for_each(RemovedFile::keep);
    }
}

/// A VM's directory, removed when this is dropped.
pub(super) struct OwnFiles(Option<Files>, Files);

impl OwnFiles {
    fn create(monitor: &Path) -> Result<Self, Error> {
        let files = Files::of(monitor);
        files.create()?;
        Ok(Self(Some(files.clone()), files))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl std::ops::Deref for OwnFiles {
    type Target = Files;

    fn deref(&self) -> &Files {
        &self.1
    }
}

impl Drop for OwnFiles {
    fn drop(&mut self) {
        if let Some(files) = &self.0 {
            files.remove();
        }
    }
}

/// A file that is removed, if it is there, unless it was kept.
struct RemovedFile(Option<PathBuf>);

impl RemovedFile {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RemovedFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Gone already, or never there, is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn memory_size(spec: &VmSpec) -> u64 {
    u64::from(spec.memory.size_mib) << 20
}

/// Checks the memory file of a restored VM: one that is too short would only
/// show when the guest touches what is missing.
pub(super) fn check_memory(spec: &VmSpec) -> Result<(), Error> {
    let Backing::FileBacked { path, .. } = &spec.memory.backing else {
        return Ok(());
    };
    let found = std::fs::metadata(path).map_err(Error::path("stat", path))?;
    if found.is_file() && found.len() == memory_size(spec) {
        return Ok(());
    }
    Err(Error::Spec {
        field: "memory.path",
        reason: format!(
            "{} bytes long, the guest's ram is {}",
            found.len(),
            memory_size(spec)
        ),
    })
}

/// Starts the VMM. Requests can be sent at once: they wait in the socket until
/// it reads.
pub(super) fn launch(
    driver: &CloudHypervisor,
    spec: &VmSpec,
    view: &View,
    belongings: Belongings,
    offer: &Offer<'_>,
    timeline: Timeline,
) -> Result<Started, Error> {
    let user = driver.confinement.user();
    let begun = now();
    for disk in &spec.disks {
        // A clear error, before there is a process.
        let mut options = std::fs::OpenOptions::new();
        let opened = options.read(true).write(!disk.readonly).open(&disk.path);
        opened.map_err(Error::path("open", &disk.path))?;
    }
    let taps = open_taps(spec)?;
    let log = open_log(&spec.log)?;
    let begun = timeline.since("open disks, taps, log", begun);
    let (daemons, sockets) = serve_directories(offer, &belongings.files, user)?;
    let begun = if sockets.is_empty() {
        begun
    } else {
        timeline.since("start virtiofsd", begun)
    };
    let socket = &belongings.monitor.descriptor;
    let arguments = arguments(socket.as_raw_fd());
    let cgroup = Cgroup::of(spec)?;
    let cell = driver.confinement.cell(Needs {
        // It has its taps as descriptors, but asks for their MTU by their names.
        host_network: !spec.nics.is_empty(),
        opens_taps: false,
        writes_by_path: user.is_none(),
    })?;
    let inherited: Vec<_> = std::iter::once(socket.as_fd())
        .chain(user.map(User::lock))
        .collect();
    let pid = spawn(&Launch {
        program: &driver.program,
        arguments: &arguments,
        inherited: &inherited,
        placed: &view.inherited(),
        log: &log,
        output: None,
        keeps: None,
        filter: None,
        cell: cell.as_ref(),
        cgroup: cgroup.as_ref(),
    })?;
    let process = Process::child(pid)?;
    timeline.since("fork, execve", begun);
    Ok(Started {
        vmm: Vmm {
            rest: RestVmm {
                process,
                socket: spec.monitor.clone(),
                log: spec.log.clone(),
            },
            deadlines: driver.deadlines,
            timeline,
        },
        daemons,
        taps,
        belongings,
        confined: driver.confinement.noted(),
        _sockets: sockets,
    })
}

/// Starts what serves the directories, each where the VMM finds its socket.
fn serve_directories(
    offer: &Offer<'_>,
    files: &Files,
    user: Option<&User>,
) -> Result<(Daemons, Vec<Listener>), Error> {
    let Served { daemons, sockets } = offer.serve(&files.directories())?;
    if let Some(user) = user {
        let mut sockets = (0..sockets.len()).map(|index| files.directory_socket(index));
        sockets.try_for_each(|socket| user.show_socket(&socket))?;
    }
    Ok((daemons, sockets))
}

/// The VMM's arguments: all else it is told on its control socket. It kills
/// itself at a system call it does not need.
pub(super) fn arguments(socket: std::os::fd::RawFd) -> [String; 4] {
    ["--api-socket", &format!("fd={socket}"), "--seccomp", "true"].map(str::to_owned)
}
