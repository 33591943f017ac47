//! The workload's cgroup and those of the containers below it.

use super::devices::DeviceProgram;
use super::hook::HookCgroup;
use super::resources::Setting;
use super::{CgroupError, DeviceRule, Resources, events, failed};
use rustix::fs::{Mode, OFlags, open};
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Controllers the limits need; those that are not there are done without
/// until a limit asks for one.
const CONTROLLERS: [&str; 8] = [
    "cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma",
];
/// For processes outside every container. No container's directory has that
/// name: they all begin with [`CONTAINER`].
const GUEST: &str = "guest.d";
/// Before a container's name: the kernel's own files (`cgroup.procs`,
/// `memory.max`) would clash with containers of their names.
const CONTAINER: &str = "c-";
/// Memory that the workload leaves to the agent and the kernel, in bytes.
const RESERVED_MEMORY: u64 = 16 << 20;
/// Processes and threads that the workload leaves to the agent.
const RESERVED_PIDS: u64 = 64;

/// The container's own, in one of its name that is the agent's.
const OWN: &str = "own";

/// The cgroup of one container, in one that only the agent can reach: all
/// limits are those of both. What a container does to its own, as far as it may
/// do that, takes nothing away of what the outer one says; and it is the outer
/// one that is weighed against other containers'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPath {
    outer: PathBuf,
    own: PathBuf,
}

impl AsRef<Path> for CgroupPath {
    /// The container's own.
    fn as_ref(&self) -> &Path {
        &self.own
    }
}

impl CgroupPath {
    /// A directory that plays a cgroup.
    #[cfg(test)]
    pub(super) fn for_tests(path: &Path) -> Self {
        Self {
            outer: path.into(),
            own: path.into(),
        }
    }

    /// The outer one: all that the container uses is counted in it.
    #[must_use]
    pub fn outer(&self) -> &Path {
        &self.outer
    }

    /// Both, the outer one first.
    pub(super) fn both(&self) -> [&Path; 2] {
        [&self.outer, &self.own]
    }

    /// A descriptor for clone3(2) with CLONE_INTO_CGROUP.
    pub(crate) fn open(&self) -> Result<OwnedFd, CgroupError> {
        open_directory(&self.own)
    }

    /// Makes the inner one, and has both limited.
    fn limit(&self, resources: &Resources, devices: &DeviceProgram) -> Result<(), CgroupError> {
        enable_controllers(&self.outer)?;
        fs::create_dir(&self.own).map_err(failed("mkdir", &self.own))?;
        for path in self.both() {
            apply(path, resources)?;
            let directory = open_directory(path)?;
            let attached = devices.attach(directory.as_fd());
            attached.map_err(failed("restrict the devices of", path))?;
        }
        Ok(())
    }
}

pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, CgroupError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|source| failed("open", path)(source.into()))
}

/// The one cgroup that all workload lies below.
#[derive(Debug)]
pub struct WorkloadCgroup {
    path: PathBuf,
    /// How many hooks have had a cgroup.
    hooks: AtomicU64,
}

impl WorkloadCgroup {
    /// Makes the directory `path` in a mounted cgroup v2 hierarchy, if it is
    /// not there, and has its controllers work below it. The workload is kept
    /// from taking the last 16 MiB of memory and the last 64 process ids, which
    /// the agent needs to answer.
    ///
    /// # Errors
    /// Those of mkdir(2), and of writing the hierarchy's files.
    pub fn create(path: &Path) -> Result<Self, CgroupError> {
        make_directory(path)?;
        if let Some(parent) = path.parent() {
            enable_controllers(parent)?;
        }
        enable_controllers(path)?;
        make_directory(&path.join(GUEST))?;
        let workload = Self {
            path: path.into(),
            hooks: AtomicU64::new(0),
        };
        workload.reserve_for_agent()?;
        Ok(workload)
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where processes outside every container live.
    pub(crate) fn guest(&self) -> CgroupPath {
        let path = self.path.join(GUEST);
        CgroupPath {
            outer: path.clone(),
            own: path,
        }
    }

    /// Makes a place for a hook and all that it starts.
    pub(crate) fn create_hook(&self) -> Result<HookCgroup, CgroupError> {
        let number = self.hooks.fetch_add(1, Ordering::Relaxed);
        HookCgroup::create(
            self.path.join(format!("hook-{number}.d")),
            self.path.join(GUEST),
        )
    }

    /// Makes a container's cgroup, with its limits and the devices that may be
    /// used in it; on error there is none.
    ///
    /// # Errors
    /// [`CgroupError::Exists`] if there is one of that name, otherwise what the
    /// name or a limit is refused for.
    pub(crate) fn create_container(
        &self,
        name: &str,
        resources: &Resources,
        devices: &[DeviceRule],
    ) -> Result<CgroupPath, CgroupError> {
        if name.is_empty() || name.contains(['/', '\0', '\n']) {
            return Err(CgroupError::Name(name.into()));
        }
        let program = DeviceProgram::of(devices)?;
        let outer = self.path.join(format!("{CONTAINER}{name}"));
        fs::create_dir(&outer).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => CgroupError::Exists(outer.clone()),
            _ => failed("mkdir", &outer)(source),
        })?;
        let own = outer.join(OWN);
        let cgroup = CgroupPath { outer, own };
        match cgroup.limit(resources, &program) {
            Ok(()) => Ok(cgroup),
            Err(error) => {
                // Nothing ever ran in it.
                let _ = remove_directories(&cgroup.outer);
                Err(error)
            }
        }
    }

    /// Freezes everything below and waits until the kernel says so.
    ///
    /// # Errors
    /// [`CgroupError::Deadline`] if it does not within `deadline`: the freeze
    /// is then still wanted, until [`WorkloadCgroup::unfreeze`].
    pub async fn freeze(&self, deadline: Duration) -> Result<(), CgroupError> {
        write(&self.path, "cgroup.freeze", "1")?;
        events::wait_for(&self.path, "frozen 1", deadline).await
    }

    /// Lets everything below run again.
    ///
    /// # Errors
    /// Those of the write.
    pub fn unfreeze(&self) -> Result<(), CgroupError> {
        write(&self.path, "cgroup.freeze", "0")
    }

    /// Kills everything below with SIGKILL, frozen or not.
    ///
    /// # Errors
    /// Those of the write.
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        write(&self.path, "cgroup.kill", "1")
    }

    /// Kills every process of a container. A cgroup that is gone has none.
    ///
    /// # Errors
    /// Those of the write.
    pub fn kill_container(&self, cgroup: &CgroupPath) -> Result<(), CgroupError> {
        match write(&cgroup.outer, "cgroup.kill", "1") {
            Err(CgroupError::File { source, .. }) if is_gone(&source) => Ok(()),
            outcome => outcome,
        }
    }

    /// Kills every process of a container, waits until they are gone, and
    /// removes the cgroup. One that is gone is no error.
    ///
    /// # Errors
    /// [`CgroupError::Deadline`] if a process outlives the deadline, otherwise
    /// those of the files.
    pub async fn remove_container(
        &self,
        cgroup: &CgroupPath,
        deadline: Duration,
    ) -> Result<(), CgroupError> {
        self.kill_container(cgroup)?;
        remove(&cgroup.outer, deadline).await
    }

    /// Kills everything below, waits until it is gone, and removes the whole
    /// hierarchy.
    ///
    /// # Errors
    /// As [`WorkloadCgroup::remove_container`].
    pub async fn remove(&self, deadline: Duration) -> Result<(), CgroupError> {
        self.kill_all()?;
        remove(&self.path, deadline).await
    }

    /// Without it a fork bomb or a full tmpfs of a container would take the
    /// agent along.
    fn reserve_for_agent(&self) -> Result<(), CgroupError> {
        let controllers = read(&self.path, "cgroup.controllers")?;
        let has = |name| controllers.split_whitespace().any(|one| one == name);
        if let Some(total) = total_memory().filter(|_| has("memory")) {
            let limit = total.saturating_sub(RESERVED_MEMORY);
            write(&self.path, "memory.max", &limit.to_string())?;
        }
        if let Some(total) = total_pids().filter(|_| has("pids")) {
            let limit = total.saturating_sub(RESERVED_PIDS);
            write(&self.path, "pids.max", &limit.to_string())?;
        }
        Ok(())
    }
}

/// In bytes; /proc/meminfo is in kibibytes, proc(5).
fn total_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The lesser of the two limits of proc(5).
fn total_pids() -> Option<u64> {
    ["pid_max", "threads-max"]
        .into_iter()
        .filter_map(|name| fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok())
        .filter_map(|text| text.trim().parse().ok())
        .min()
}

fn make_directory(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(failed("mkdir", path)(error))
        }
        _ => Ok(()),
    }
}

/// Has the controllers that are there work in the children of `path`. One that
/// cannot is missed, by its name, by the limit that needs it.
fn enable_controllers(path: &Path) -> Result<(), CgroupError> {
    let there = read(path, "cgroup.controllers")?;
    for controller in CONTROLLERS {
        if there.split_whitespace().any(|one| one == controller) {
            let _ = write(path, "cgroup.subtree_control", &format!("+{controller}"));
        }
    }
    Ok(())
}

fn apply(path: &Path, resources: &Resources) -> Result<(), CgroupError> {
    for setting in settings_there(path, resources)? {
        write(path, &setting.file, &setting.value)?;
    }
    Ok(())
}

/// What is to be written to the cgroup `path` to have these limits: to files
/// that are there, but for what the kernel cannot do.
pub(super) fn settings_there(
    path: &Path,
    resources: &Resources,
) -> Result<Vec<Setting>, CgroupError> {
    let there = read(path, "cgroup.controllers")?;
    let mut settings = Vec::new();
    for mut setting in resources.settings()? {
        let mut controllers = there.split_whitespace();
        if !controllers.any(|one| one == setting.controller) {
            if setting.is_given() {
                continue;
            }
            return Err(CgroupError::NoController {
                limit: setting.limit,
                controller: setting.controller,
            });
        }
        if let Some((file, value)) = setting.rather.take()
            && path.join(file).exists()
        {
            (setting.file, setting.value) = (file.into(), value);
        }
        if setting.keeps_first {
            let now = read(path, &setting.file)?;
            let first = now.split_whitespace().next().unwrap_or("max");
            setting.value = format!("{first} {}", setting.value);
        }
        if path.join(&setting.file).exists() || !setting.is_given() {
            settings.push(setting);
        }
    }
    Ok(settings)
}

pub(super) async fn remove(path: &Path, deadline: Duration) -> Result<(), CgroupError> {
    match events::wait_for(path, "populated 0", deadline).await {
        Err(CgroupError::File { source, .. }) if is_gone(&source) => return Ok(()),
        outcome => outcome?,
    }
    remove_directories(path)
}

/// Children first; the files in them are the kernel's and go along.
fn remove_directories(path: &Path) -> Result<(), CgroupError> {
    let entries = match fs::read_dir(path) {
        Err(error) if is_gone(&error) => return Ok(()),
        entries => entries.map_err(failed("list", path))?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_directories(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if !is_gone(&error) => Err(failed("rmdir", path)(error)),
        _ => Ok(()),
    }
}

/// `ENODEV` is what a file of a removed cgroup says that was still open.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}

pub(super) fn read(directory: &Path, file: &str) -> Result<String, CgroupError> {
    let path = directory.join(file);
    fs::read_to_string(&path).map_err(failed("read", &path))
}

pub(super) fn write(directory: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let path = directory.join(file);
    // Not fs::write: it would try to make the file, and hide that it is gone.
    let file = fs::OpenOptions::new().write(true).open(&path);
    file.and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(failed("write", &path))
}
