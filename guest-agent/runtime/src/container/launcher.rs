//! The agent's side: making containers and adding processes to them.

use super::channel::Channel;
use super::error::{CreateError, ExecError, LaunchError, Refused, StartError};
use super::hooks::{HookError, HookKind};
use super::launch::{Launch, Newborn, executed};
use super::message::{Go, InitOrder, Place, StageOrder};
use super::program::Program;
use super::spec::{ContainerSpec, NamespaceKind, ProcessSpec};
use crate::cgroup::{CgroupPath, HookCgroup, WorkloadCgroup};
use crate::process::{Process, Stdio, pipes};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a child may take to be set up. Ample: an emulated machine that
/// clones eight at once takes a second.
const LAUNCH_DEADLINE: Duration = Duration::from_secs(30);
/// How long what is left of a failed container may take to be gone.
const UNDO_DEADLINE: Duration = Duration::from_secs(10);

/// Makes containers and processes, all of them below one cgroup.
#[derive(Debug)]
pub struct Launcher {
    workload: WorkloadCgroup,
    program: Arc<Program>,
}

/// A container whose init process is set up and waits for its start. Dropping
/// the handle ends it; it is then still to be removed with its cgroup.
#[derive(Debug)]
pub struct CreatedContainer {
    /// Its init process.
    pub process: Process,
    /// The init process's streams.
    pub stdio: Stdio,
    /// Lets it run.
    pub start: StartHandle,
    /// Its cgroup.
    pub cgroup: CgroupPath,
}

/// A process that was added, and runs.
#[derive(Debug)]
pub struct ExecProcess {
    /// The process.
    pub process: Process,
    /// Its streams.
    pub stdio: Stdio,
}

/// Lets a created container run; once.
#[derive(Debug)]
pub struct StartHandle {
    channel: Channel,
    program: String,
    /// What its hooks may take.
    hooks: Duration,
}

impl StartHandle {
    /// Has the init process execute its program, after its hooks, and returns
    /// when it has.
    ///
    /// # Errors
    /// [`StartError::Execute`] if it could not: it has then ended, with the
    /// status of [`StartError::exit_status`]. Another error says that it did
    /// not answer within `deadline` and its hooks' own time, or was killed.
    pub async fn start(self, deadline: Duration) -> Result<(), StartError> {
        let Self {
            mut channel,
            program,
            hooks,
        } = self;
        let deadline = Instant::now() + deadline + hooks;
        blocking(move || {
            channel.set_deadline(deadline);
            channel.send(&Go, &[]).map_err(LaunchError::from)?;
            executed(&mut channel, program)
        })
        .await?
    }
}

impl Launcher {
    /// A launcher whose children run a copy of the calling program, which must
    /// call [`super::stage_main`] first thing when its first argument is
    /// [`super::STAGE_WORD`].
    ///
    /// # Errors
    /// Those of open(2) of /proc/self/exe.
    pub fn new(workload: WorkloadCgroup) -> Result<Self, LaunchError> {
        let program =
            File::open("/proc/self/exe").map_err(LaunchError::system("open /proc/self/exe"))?;
        Ok(Self::with_program(workload, program))
    }

    /// As [`Launcher::new`], with another program.
    #[must_use]
    pub fn with_program(workload: WorkloadCgroup, program: File) -> Self {
        Self {
            workload,
            program: Arc::new(Program::new(program)),
        }
    }

    /// The cgroup all of it lives below.
    #[must_use]
    pub fn workload(&self) -> &WorkloadCgroup {
        &self.workload
    }

    /// Makes a container: its cgroup, its namespaces, its mounts, and its init
    /// process, which then waits. `stdin` says whether that gets one other than
    /// /dev/null.
    ///
    /// To be run to its end: a caller that may be dropped runs it in a task of
    /// its own.
    ///
    /// # Errors
    /// What is not supported, and what failed; nothing is left then.
    pub async fn create(
        &self,
        spec: &ContainerSpec,
        stdin: bool,
    ) -> Result<CreatedContainer, CreateError> {
        validated(spec, |spec| {
            spec.validate()?;
            spec.require_modules()
        })
        .await??;
        let cgroup = self.workload.create_container(
            &spec.cgroup_name,
            &spec.resources,
            &spec.device_rules,
        )?;
        match self.create_in(&cgroup, spec, stdin).await {
            Ok((process, stdio, start)) => Ok(CreatedContainer {
                process,
                stdio,
                start,
                cgroup,
            }),
            Err(error) => {
                // The first failure is the one to tell.
                let _ = self.workload.remove_container(&cgroup, UNDO_DEADLINE).await;
                // The specification's end of a creation that a hook fails.
                let _ = self.run_hooks(spec, HookKind::Poststop, None).await;
                Err(error)
            }
        }
    }

    async fn create_in(
        &self,
        cgroup: &CgroupPath,
        spec: &ContainerSpec,
        stdin: bool,
    ) -> Result<(Process, Stdio, StartHandle), CreateError> {
        let place = Place::Create(Box::new(spec.clone()));
        let descriptors = vec![cgroup.open()?];
        let hooks = spec.hooks.time(HookKind::CreateContainer);
        let order = InitOrder::Create;
        let (mut newborn, ours) = self
            .launch(place, descriptors, order, &spec.process, stdin, hooks)
            .await?;
        if newborn.is_waiting {
            if let Err(error) = self.run_creation_hooks(spec, newborn.pid()).await {
                // It is killed, and waited for.
                blocking(move || drop(newborn)).await?;
                return Err(error.into());
            }
            let deadline = Instant::now() + LAUNCH_DEADLINE + hooks;
            newborn = blocking(move || newborn.proceed(deadline)).await??;
        }
        let (process, stdio, channel) = adopt(newborn, ours, stdin)?;
        let program = spec.process.args.first().cloned().unwrap_or_default();
        let start = StartHandle {
            channel,
            program,
            hooks: spec.hooks.time(HookKind::StartContainer),
        };
        Ok((process, stdio, start))
    }

    async fn run_creation_hooks(&self, spec: &ContainerSpec, pid: i32) -> Result<(), HookError> {
        for kind in [HookKind::Prestart, HookKind::CreateRuntime] {
            self.run_hooks(spec, kind, Some(pid)).await?;
        }
        Ok(())
    }

    /// Adds a process to the container of `init`, in all its namespaces and in
    /// its cgroup. Returns once its program was executed.
    ///
    /// # Errors
    /// [`ExecError::Execute`] if the program cannot be executed; otherwise what
    /// is not supported or failed. No process is left then.
    pub async fn exec(
        &self,
        init: &Process,
        cgroup: &CgroupPath,
        process: &ProcessSpec,
        stdin: bool,
    ) -> Result<ExecProcess, ExecError> {
        // Whoever has its number, the stage finds the process itself by its
        // pidfd, or none.
        let differs = |kind| {
            has_other_namespace(init.pid(), kind).map_err(LaunchError::system(
                "look at the namespaces of the init process",
            ))
        };
        let place = Place::Enter {
            users: differs("user")?,
            time: differs("time")?,
        };
        let init = init
            .pidfd()
            .try_clone_to_owned()
            .map_err(LaunchError::system("dup the pidfd"))?;
        self.add(place, vec![cgroup.open()?, init], process, stdin)
            .await
    }

    /// Runs a process outside every container, in the guest's own namespaces,
    /// but still below the workload's cgroup.
    ///
    /// # Errors
    /// As [`Launcher::exec`].
    pub async fn exec_in_guest(
        &self,
        process: &ProcessSpec,
        stdin: bool,
    ) -> Result<ExecProcess, ExecError> {
        let cgroup = self.workload.guest().open()?;
        self.add(Place::Guest, vec![cgroup], process, stdin).await
    }

    /// The same in a hook's own cgroup.
    pub(super) async fn exec_hook(
        &self,
        process: &ProcessSpec,
        cgroup: &HookCgroup,
    ) -> Result<ExecProcess, ExecError> {
        self.add(Place::Guest, vec![cgroup.open()?], process, true)
            .await
    }

    async fn add(
        &self,
        place: Place,
        descriptors: Vec<OwnedFd>,
        process: &ProcessSpec,
        stdin: bool,
    ) -> Result<ExecProcess, ExecError> {
        validated(process, |process| {
            process.validate()?;
            process.require_modules()
        })
        .await??;
        let order = InitOrder::Process(Box::new(process.clone()));
        let (mut newborn, ours) = self
            .launch(place, descriptors, order, process, stdin, Duration::ZERO)
            .await?;
        let program = process.args.first().cloned().unwrap_or_default();
        let newborn = blocking(move || {
            executed(&mut newborn.channel, program)?;
            Ok::<_, StartError>(newborn)
        })
        .await??;
        let (process, stdio, _channel) = adopt(newborn, ours, stdin)?;
        Ok(ExecProcess { process, stdio })
    }

    /// Gives a child that is ready, and the agent's ends of its pipes unless it
    /// has opened a terminal.
    async fn launch(
        &self,
        place: Place,
        descriptors: Vec<OwnedFd>,
        init_order: InitOrder,
        process: &ProcessSpec,
        stdin: bool,
        hooks: Duration,
    ) -> Result<(Newborn, Option<Stdio>), LaunchError> {
        let (theirs, ours) = if process.terminal {
            (None, None)
        } else {
            let (theirs, ours) = pipes(stdin).map_err(LaunchError::system("pipe2"))?;
            (Some(theirs), Some(ours))
        };
        let has_own_users = match &place {
            Place::Create(spec) => spec.has_own(NamespaceKind::User),
            Place::Enter { users, .. } => *users,
            Place::Guest => false,
        };
        let launch = Launch {
            mapped_user: has_own_users.then_some(process.user.uid),
            stage_order: StageOrder {
                oom_score_adj: process.oom_score_adj.unwrap_or(0),
                rlimits: process.rlimits.clone(),
                is_held: process.is_held(),
                place,
            },
            descriptors,
            init_order,
            stdio: theirs,
        };
        let program = Arc::clone(&self.program);
        let deadline = Instant::now() + LAUNCH_DEADLINE + hooks;
        let newborn = blocking(move || launch.run(&program, deadline)).await??;
        Ok((newborn, ours))
    }
}

/// Watches the child from now on.
fn adopt(
    mut newborn: Newborn,
    ours: Option<Stdio>,
    stdin: bool,
) -> Result<(Process, Stdio, Channel), LaunchError> {
    let stdio = match (ours, newborn.master.take()) {
        (Some(ours), None) => ours,
        (None, Some(master)) => {
            Stdio::of_terminal(master, stdin).map_err(LaunchError::system("epoll_ctl"))?
        }
        _ => return Err(LaunchError::Protocol),
    };
    let (process, channel) = newborn
        .into_process()
        .map_err(LaunchError::system("epoll_ctl"))?;
    Ok((process, stdio, channel))
}

/// Whether a process is in another namespace of the kind (/proc/PID/ns) than
/// the agent. Where the kernel has none of the kind, it is not.
fn has_other_namespace(pid: i32, kind: &str) -> io::Result<bool> {
    let of = |process: &str| {
        let file = std::fs::metadata(format!("/proc/{process}/ns/{kind}"))?;
        io::Result::Ok((file.dev(), file.ino()))
    };
    match of("self") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        own => Ok(own? != of(&pid.to_string())?),
    }
}

/// Whether it can be done at all. To find out, files are looked at, and a system
/// call filter is made, of whatever the host has sent: that is not for the
/// agent's one thread.
async fn validated<T: Clone + Send + 'static>(
    wanted: &T,
    validate: fn(&T) -> Result<(), Refused>,
) -> Result<Result<(), Refused>, LaunchError> {
    let wanted = wanted.clone();
    blocking(move || validate(&wanted)).await
}

/// Runs what blocks, for a while and with a deadline of its own, on another
/// thread than the agent's one.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, LaunchError> {
    let outcome = crate::blocking(work).await;
    outcome.map_err(LaunchError::system("run a blocking task"))
}
