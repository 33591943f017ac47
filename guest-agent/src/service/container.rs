//! The recipes of a container's life: create, start, remove. Each commits or
//! leaves nothing behind.

use super::Agent;
use super::error::ServiceError;
use super::oom::OomWatch;
use super::process::{ProcessEntry, ProcessTable};
use super::recipes::blocking;
use authz::Authorized;
use guest_runtime::ContainerId;
use guest_runtime::container::{ContainerSpec, CreatedContainer, HookKind, Resources, StartHandle};
use guest_runtime::remove::remove_directory;
use guest_runtime::storage::{MountedStorage, StorageSpec, mount_storage};
use rustix::io::Errno;
use slog::warn;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Where the bundles of containers lie in the guest; a path clients rely on.
const BUNDLES: &str = "/run/kata-containers";
/// Names below [`BUNDLES`] that are other things than bundles.
const NO_BUNDLES: [&str; 4] = ["shared", "sandbox", "image", "virtual-volumes"];
/// How long a container's `execve` may take once it was told to go on.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long killed processes may take to be gone.
const REMOVE_DEADLINE: Duration = Duration::from_secs(10);

/// A container to create.
#[derive(Debug)]
pub(crate) struct CreateContainer {
    pub(crate) spec: ContainerSpec,
    pub(crate) storages: Vec<StorageSpec>,
    /// After-thaw hooks, run inside the container by Release.
    pub(crate) after_thaw_hooks: Vec<Vec<String>>,
    /// Where in the container it leaves its last words.
    pub(crate) termination_message_path: Option<String>,
}

/// A container to start. One type a call: what was authorised as a start can
/// not be executed as a removal.
#[derive(Debug)]
pub(crate) struct StartContainer {
    pub(crate) id: ContainerId,
}

/// A container to remove.
#[derive(Debug)]
pub(crate) struct RemoveContainer {
    pub(crate) id: ContainerId,
    /// How long its killed processes may take to be gone.
    pub(crate) timeout: Option<Duration>,
}

/// A container that exists.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) spec: ContainerSpec,
    pub(crate) processes: ProcessTable,
    pub(crate) cgroup: guest_runtime::cgroup::CgroupPath,
    pub(crate) after_thaw_hooks: Vec<Vec<String>>,
    pub(crate) termination_message_path: Option<String>,
    pub(super) oom: OomWatch,
    /// Its limits as they were last set.
    pub(super) limits: Mutex<Resources>,
    storages: Arc<[MountedStorage]>,
    state: Mutex<State>,
}

/// What start, pause and remove change.
#[derive(Debug)]
pub(super) struct State {
    start: Option<StartHandle>,
    pub(super) removing: bool,
    pub(super) activity: Activity,
}

/// Whether a container's processes may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    Awake,
    Pausing,
    Paused,
}

impl fmt::Display for Activity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Awake => "not paused",
            Self::Pausing => "being paused",
            Self::Paused => "paused",
        })
    }
}

impl Container {
    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Agent {
    /// Creates a container: name, storages, child. Its init process is ready
    /// and waits for [`Agent::start_container`].
    pub(crate) async fn create_container(
        self: &Arc<Self>,
        request: Authorized<CreateContainer>,
    ) -> Result<(), ServiceError> {
        self.lifecycle.require_running("create container")?;
        let agent = Arc::clone(self);
        self.recipes
            .run(async move { agent.create(request.into_inner()).await })
            .await
    }

    async fn create(&self, request: CreateContainer) -> Result<(), ServiceError> {
        let launcher = self.launcher()?;
        let mut spec = request.spec;
        if spec.changes_shared_namespaces() {
            self.require_guest("a sysctl of a namespace that others are in")?;
        }
        if spec.hooks.run_in_guest() {
            self.require_guest("a hook of the guest's")?;
        }
        self.add_guest_hooks(&mut spec.hooks);
        spec.bundle = bundle(&spec.id);
        let reservation = self.registry.reserve(&spec.id)?;
        refuse_existing_bundle(&spec.id)?;
        spec.identity_files = self.identity.files();
        let storages = mount_all(request.storages).await?;
        let created = match launcher.create(&spec, true).await {
            Ok(created) => created,
            Err(source) => {
                let container = spec.id.clone();
                // The first failure is the one to tell.
                if unmount_all(storages.into()).await.is_ok() {
                    remove_bundle(&spec.id).await.ok();
                }
                return Err(ServiceError::Create { container, source });
            }
        };
        let CreatedContainer {
            process,
            stdio,
            start,
            cgroup,
        } = created;
        let init = ProcessEntry::new(process, stdio);
        reservation.commit(Arc::new(Container {
            id: spec.id.clone(),
            processes: ProcessTable::new(&spec.id, init),
            limits: Mutex::new(spec.resources.clone()),
            spec,
            cgroup,
            after_thaw_hooks: request.after_thaw_hooks,
            termination_message_path: request.termination_message_path,
            oom: OomWatch::default(),
            storages: storages.into(),
            state: Mutex::new(State {
                start: Some(start),
                removing: false,
                activity: Activity::Awake,
            }),
        }));
        Ok(())
    }

    /// Lets the init process execute the workload. Returns once `execve` has
    /// succeeded, or with the error it gave.
    pub(crate) async fn start_container(
        self: &Arc<Self>,
        request: Authorized<StartContainer>,
    ) -> Result<(), ServiceError> {
        self.lifecycle.require_running("start container")?;
        let container = self.registry.get(&request.into_inner().id)?;
        let agent = Arc::clone(self);
        let launcher = Arc::clone(self.launcher()?);
        self.recipes
            .run(async move {
                container.require_awake("start container")?;
                let start = container.state().start.take();
                let start = start.ok_or_else(|| ServiceError::WrongState {
                    call: "start container",
                    reason: format!("container {} was started before", container.id),
                })?;
                agent.watch_for_oom(&container);
                if let Err(source) = start.start(START_DEADLINE).await {
                    // What its hooks have started is not to live on; what kept
                    // the container from its start is the failure to tell. One
                    // whose program cannot be executed ends with a status.
                    if source.exit_status().is_none() {
                        launcher.workload().kill_container(&container.cgroup).ok();
                    }
                    let container = container.id.clone();
                    return Err(ServiceError::Start { container, source });
                }
                let pid = container.processes.init().process.pid();
                let kind = HookKind::Poststart;
                let ran = launcher.run_hooks(&container.spec, kind, Some(pid)).await;
                if ran.is_err() {
                    // The hook's failure is the one to tell.
                    launcher.workload().kill_container(&container.cgroup).ok();
                }
                Ok(ran?)
            })
            .await
    }

    /// Kills what runs, waits until it is gone, and removes cgroup, mounts,
    /// bundle and name.
    pub(crate) async fn remove_container(
        self: &Arc<Self>,
        request: Authorized<RemoveContainer>,
    ) -> Result<(), ServiceError> {
        let agent = Arc::clone(self);
        self.recipes
            .run(async move {
                let RemoveContainer { id, timeout } = request.into_inner();
                agent.remove(&id, timeout.unwrap_or(REMOVE_DEADLINE)).await
            })
            .await
    }

    /// Removes every container. One that cannot be removed does not keep the
    /// others: the first error is told.
    pub(crate) async fn remove_all(&self) -> Result<(), ServiceError> {
        let mut outcome = Ok(());
        for container in self.registry.all() {
            outcome = outcome.and(self.remove(&container.id, REMOVE_DEADLINE).await);
        }
        outcome
    }

    async fn remove(&self, id: &ContainerId, deadline: Duration) -> Result<(), ServiceError> {
        let container = self.registry.get(id)?;
        {
            let mut state = container.state();
            if std::mem::replace(&mut state.removing, true) {
                return Err(ServiceError::WrongState {
                    call: "remove container",
                    reason: format!("container {id} is being removed"),
                });
            }
            // A container that never started has its init waiting for this.
            state.start = None;
        }
        let outcome = self.tear_down(&container, deadline).await;
        match outcome {
            Ok(()) => self.registry.forget(id),
            // Every step may be asked for again.
            Err(_) => container.state().removing = false,
        }
        outcome?;
        self.tell_of_end(&container.spec).await;
        Ok(())
    }

    /// Runs the hooks of the end. The container is gone, whatever becomes of
    /// them: a client that is told of a failure would ask for it again.
    pub(crate) async fn tell_of_end(&self, spec: &ContainerSpec) {
        let Some(launcher) = &self.launcher else {
            return;
        };
        let kind = HookKind::Poststop;
        if let Err(error) = launcher.run_hooks(spec, kind, None).await {
            let id = &spec.id;
            warn!(self.log, "after the removal of a container"; "container" => %id, "error" => %error);
        }
    }

    async fn tear_down(
        &self,
        container: &Container,
        deadline: Duration,
    ) -> Result<(), ServiceError> {
        self.report_last_oom(container);
        self.launcher()?
            .workload()
            .remove_container(&container.cgroup, deadline)
            .await
            .map_err(|source| ServiceError::System {
                call: "remove the container's cgroup",
                source: io::Error::other(source),
            })?;
        unmount_all(container.storages.clone()).await?;
        remove_bundle(&container.id)
            .await
            .map_err(ServiceError::system("remove the container's bundle"))
    }
}

/// Mounts all, in order; when one fails those before it are undone.
pub(super) async fn mount_all(
    specs: Vec<StorageSpec>,
) -> Result<Vec<MountedStorage>, ServiceError> {
    let mut mounted = Vec::with_capacity(specs.len());
    for spec in specs {
        match blocking(move || mount_storage(&spec)).await? {
            Ok(storage) => mounted.push(storage),
            Err(error) => {
                // The first failure is the one to tell.
                unmount_all(mounted.into()).await.ok();
                return Err(error.into());
            }
        }
    }
    Ok(mounted)
}

/// Unmounts in reverse order. A failure keeps no other from being unmounted;
/// the first is told.
pub(super) async fn unmount_all(storages: Arc<[MountedStorage]>) -> Result<(), ServiceError> {
    let unmount = move || {
        let outcomes = storages.iter().rev().map(MountedStorage::unmount);
        outcomes.fold(Ok(()), Result::and)
    };
    Ok(blocking(unmount).await??)
}

fn bundle(id: &ContainerId) -> PathBuf {
    PathBuf::from(BUNDLES).join(id.as_ref())
}

/// A directory that is there already is nobody's bundle: it would be removed
/// with the container, and all that others have in it.
fn refuse_existing_bundle(id: &ContainerId) -> Result<(), ServiceError> {
    let path = bundle(id);
    if NO_BUNDLES.contains(&id.as_ref()) || path.symlink_metadata().is_ok() {
        return Err(ServiceError::AlreadyExists(path.display().to_string()));
    }
    Ok(())
}

/// Removes the container's directory, unless something is mounted below it: a
/// shared storage is not this container's to empty.
async fn remove_bundle(id: &ContainerId) -> io::Result<()> {
    let path = bundle(id);
    let mounts = tokio::fs::read_to_string("/proc/self/mountinfo").await?;
    // The fifth field is the mount point, proc(5).
    let below = |line: &str| {
        let point = line.split(' ').nth(4).unwrap_or_default();
        Path::new(point).starts_with(&path)
    };
    if mounts.lines().any(below) {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let removed = blocking(move || remove_directory(&path)).await;
    match removed.map_err(io::Error::other)? {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
