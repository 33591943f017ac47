//! The processes of a container: exec, signal, wait, and their streams.

use super::Agent;
use super::container::Container;
use super::error::ServiceError;
use super::recipes::detached;
use authz::Authorized;
use guest_runtime::container::ProcessSpec;
use guest_runtime::process::{ExitStatus, Process, Stdio, WindowSize};
use guest_runtime::{ContainerId, ExecId};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long output may still arrive after a process has ended, when something
/// else holds the other end of the pipe. The Kata agent's figure.
const DRAIN_WINDOW: Duration = Duration::from_millis(500);
/// The most one read returns, whatever the client asks for.
const READ_LIMIT: usize = 1 << 20;
/// SIGKILL, which with an empty exec id means every process of the container.
const SIGKILL: i32 = 9;

/// Names a process the way the wire does: an empty exec id, or one equal to
/// the container's, is the init process.
#[derive(Debug, Clone)]
pub(crate) struct ProcessName {
    pub(crate) container: ContainerId,
    pub(crate) exec: String,
}

/// A process whose end to wait for.
#[derive(Debug)]
pub(crate) struct WaitProcess(pub(crate) ProcessName);

/// A process whose stdin to close.
#[derive(Debug)]
pub(crate) struct CloseStdin(pub(crate) ProcessName);

/// A process to add to a running container.
#[derive(Debug)]
pub(crate) struct ExecProcess {
    pub(crate) container: ContainerId,
    pub(crate) exec: ExecId,
    pub(crate) process: ProcessSpec,
    /// Whether it has the capabilities of the container's own process: it did
    /// not say which.
    pub(crate) inherits_capabilities: bool,
}

/// A signal for one process.
#[derive(Debug)]
pub(crate) struct SignalProcess {
    pub(crate) name: ProcessName,
    pub(crate) signal: i32,
}

/// Which of a process's two outputs to read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

/// A read of at most `limit` bytes.
#[derive(Debug)]
pub(crate) struct ReadStream {
    pub(crate) name: ProcessName,
    pub(crate) limit: usize,
}

/// Bytes for a process's stdin; none of them closes it.
#[derive(Debug)]
pub(crate) struct WriteStdin {
    pub(crate) name: ProcessName,
    pub(crate) data: Vec<u8>,
}

/// A new size for a process's terminal.
#[derive(Debug)]
pub(crate) struct ResizeTerminal {
    pub(crate) name: ProcessName,
    pub(crate) size: WindowSize,
}

/// A process and its ends of the streams.
#[derive(Debug)]
pub(crate) struct ProcessEntry {
    pub(crate) process: Process,
    pub(crate) stdio: Stdio,
    /// Whether stdout and stderr were read to their ends.
    drained: [AtomicBool; 2],
    /// One write to stdin at a time: two would mix their bytes.
    stdin_turn: Arc<Semaphore>,
}

impl ProcessEntry {
    pub(crate) fn new(process: Process, stdio: Stdio) -> Arc<Self> {
        Arc::new(Self {
            drained: [stdio.stdout.is_none().into(), stdio.stderr.is_none().into()],
            stdin_turn: Arc::new(Semaphore::new(1)),
            process,
            stdio,
        })
    }

    /// Reads what is there, or waits for it; empty is the end of the stream.
    /// A stream that something else keeps open ends a drain window after the
    /// process.
    pub(crate) async fn read(&self, output: Output, limit: usize) -> std::io::Result<Vec<u8>> {
        let (reader, drained) = match output {
            Output::Stdout => (self.stdio.stdout.as_ref(), &self.drained[0]),
            Output::Stderr => (self.stdio.stderr.as_ref(), &self.drained[1]),
        };
        // A terminal has one output: its stderr is at its end at once.
        let Some(reader) = reader else {
            return Ok(Vec::new());
        };
        let limit = limit.min(READ_LIMIT);
        let ended = async {
            self.process.wait().await;
            tokio::time::sleep(DRAIN_WINDOW).await;
        };
        let data = tokio::select! {
            biased;
            data = reader.read(limit) => data?,
            () = ended => Vec::new(),
        };
        if data.is_empty() && limit > 0 {
            drained.store(true, Ordering::Relaxed);
        }
        Ok(data)
    }

    /// Whether nothing but the exit status is left of it.
    fn is_over(&self) -> bool {
        let drained = self.drained.iter().all(|one| one.load(Ordering::Relaxed));
        drained && self.process.has_ended()
    }
}

/// An exec of a container.
#[derive(Debug)]
enum Exec {
    /// A recipe is starting it; the name is taken.
    Reserved,
    Running(Arc<ProcessEntry>),
    /// Its descriptors are closed; its status can still be asked for.
    Ended(ExitStatus),
}

/// What there is under a process's name.
pub(crate) enum Found {
    Entry(Arc<ProcessEntry>),
    Ended(ExitStatus),
}

/// The processes of one container: init and the execs.
#[derive(Debug)]
pub(crate) struct ProcessTable {
    container: ContainerId,
    init: Arc<ProcessEntry>,
    execs: Mutex<HashMap<ExecId, Exec>>,
}

impl ProcessTable {
    pub(crate) fn new(container: &ContainerId, init: Arc<ProcessEntry>) -> Self {
        Self {
            container: container.clone(),
            init,
            execs: Mutex::default(),
        }
    }

    pub(crate) fn init(&self) -> &Arc<ProcessEntry> {
        &self.init
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<ExecId, Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is of that name; an exit status can be asked for until the
    /// container is removed.
    fn find(&self, exec: &str) -> Result<Found, ServiceError> {
        if exec.is_empty() || exec == self.container.as_ref() {
            return Ok(Found::Entry(self.init.clone()));
        }
        let unknown = || ServiceError::UnknownProcess {
            container: self.container.clone(),
            exec: exec.into(),
        };
        let exec: ExecId = exec.parse().map_err(|_| unknown())?;
        match self.execs().get(&exec) {
            Some(Exec::Running(entry)) => Ok(Found::Entry(entry.clone())),
            Some(Exec::Ended(status)) => Ok(Found::Ended(*status)),
            Some(Exec::Reserved) | None => Err(unknown()),
        }
    }

    /// Takes the exec id; [`ProcessTable::commit`] or
    /// [`ProcessTable::release`] must follow.
    fn reserve(&self, exec: &ExecId) -> Result<(), ServiceError> {
        let taken = || Err(ServiceError::AlreadyExists(format!("exec_id '{exec}'")));
        if exec.as_ref() == self.container.as_ref() {
            return taken();
        }
        match self.execs().entry(exec.clone()) {
            Entry::Occupied(_) => taken(),
            Entry::Vacant(entry) => {
                entry.insert(Exec::Reserved);
                Ok(())
            }
        }
    }

    fn commit(&self, exec: ExecId, entry: Arc<ProcessEntry>) {
        self.execs().insert(exec, Exec::Running(entry));
    }

    /// Closes the descriptors of an exec that has ended and was read to its
    /// end; only its status is kept.
    async fn retire(&self, exec: &str, entry: &ProcessEntry) {
        if !entry.is_over() {
            return;
        }
        let status = entry.process.wait().await;
        if let Ok(exec) = exec.parse::<ExecId>()
            && let Some(slot @ Exec::Running(_)) = self.execs().get_mut(&exec)
        {
            *slot = Exec::Ended(status);
        }
    }

    /// Forgets an exec: it never started, or its stream has told its end.
    pub(crate) fn release(&self, exec: &ExecId) {
        self.execs().remove(exec);
    }
}

impl Agent {
    /// Starts a process in a container. Returns once its `execve` succeeded.
    pub(crate) async fn exec_process(
        &self,
        request: Authorized<ExecProcess>,
    ) -> Result<(), ServiceError> {
        self.lifecycle.require_running("exec")?;
        let mut request = request.into_inner();
        let container = self.registry.get(&request.container)?;
        if request.inherits_capabilities {
            let inherited = container.spec.process.capabilities.clone();
            request.process.capabilities = inherited;
        }
        self.exec_in(&container, request.exec, request.process, true)
            .await
            .map(drop)
    }

    /// The recipe behind both ways to exec: name, child, table.
    pub(super) async fn exec_in(
        &self,
        container: &Arc<Container>,
        exec: ExecId,
        mut process: ProcessSpec,
        stdin: bool,
    ) -> Result<Arc<ProcessEntry>, ServiceError> {
        process.follow(&container.spec.process);
        container.require_awake("exec")?;
        container.processes.reserve(&exec)?;
        let container = Arc::clone(container);
        let launcher = Arc::clone(self.launcher()?);
        self.recipes
            .run(async move {
                let init = &container.processes.init().process;
                match launcher
                    .exec(init, &container.cgroup, &process, stdin)
                    .await
                {
                    Ok(started) => {
                        let entry = ProcessEntry::new(started.process, started.stdio);
                        container.processes.commit(exec, entry.clone());
                        Ok(entry)
                    }
                    Err(source) => {
                        container.processes.release(&exec);
                        Err(ServiceError::Exec { exec, source })
                    }
                }
            })
            .await
    }

    /// Sends a signal; to every process of the container if it is SIGKILL for
    /// an unnamed one. A process that has ended already is no error.
    pub(crate) async fn signal_process(
        &self,
        request: Authorized<SignalProcess>,
    ) -> Result<(), ServiceError> {
        let SignalProcess { name, signal } = request.into_inner();
        let container = self.registry.get(&name.container)?;
        if name.exec.is_empty() && signal == SIGKILL {
            return self
                .launcher()?
                .workload()
                .kill_container(&container.cgroup)
                .map_err(|error| ServiceError::System {
                    call: "kill the container's cgroup",
                    source: std::io::Error::other(error),
                });
        }
        match container.processes.find(&name.exec)? {
            Found::Entry(entry) => entry
                .process
                .signal(signal)
                .map_err(ServiceError::system("pidfd_send_signal")),
            Found::Ended(_) => Ok(()),
        }
    }

    /// Waits for the end of a process. The status stays: it can be asked for
    /// again, by anyone, until the container is removed.
    pub(crate) async fn wait_process(
        &self,
        request: Authorized<WaitProcess>,
    ) -> Result<ExitStatus, ServiceError> {
        let name = &request.get().0;
        let container = self.registry.get(&name.container)?;
        match container.processes.find(&name.exec)? {
            Found::Ended(status) => Ok(status),
            Found::Entry(entry) => {
                let status = entry.process.wait().await;
                container.processes.retire(&name.exec, &entry).await;
                Ok(status)
            }
        }
    }

    /// Reads one of a process's outputs; empty is its end.
    pub(crate) async fn read_stream(
        &self,
        request: Authorized<ReadStream>,
        output: Output,
    ) -> Result<Vec<u8>, ServiceError> {
        let ReadStream { name, limit } = request.into_inner();
        let container = self.registry.get(&name.container)?;
        match container.processes.find(&name.exec)? {
            Found::Ended(_) => Ok(Vec::new()),
            Found::Entry(entry) => {
                let data = entry.read(output, limit).await;
                container.processes.retire(&name.exec, &entry).await;
                data.map_err(ServiceError::system("read"))
            }
        }
    }

    /// Writes to a process's stdin, all of it; nothing to write closes it.
    pub(crate) async fn write_stdin(
        &self,
        request: Authorized<WriteStdin>,
    ) -> Result<usize, ServiceError> {
        let request = request.into_inner();
        let entry = self.process(&request.name)?;
        let Some(stdin) = entry.stdio.stdin.as_ref() else {
            return Err(ServiceError::Unavailable { what: "stdin" });
        };
        if request.data.is_empty() {
            stdin.close();
            return Ok(0);
        }
        // A client that vanishes while others write has asked for nothing yet.
        let turn = Arc::clone(&entry.stdin_turn).acquire_owned().await;
        // A task of its own: a write cut in its middle by a vanished client
        // could not be told from one that was never made. Not counted as a
        // recipe: a full pipe shall not hold up a freeze. It ends with the
        // process at the latest.
        let length = request.data.len();
        let entry = entry.clone();
        detached(async move {
            let _turn = turn;
            let Some(stdin) = entry.stdio.stdin.as_ref() else {
                return Ok(());
            };
            tokio::select! {
                written = stdin.write_all(&request.data) => {
                    written.map_err(ServiceError::system("write stdin"))
                }
                _ = entry.process.wait() => Err(ServiceError::Unavailable { what: "reader of stdin" }),
            }
        })
        .await?;
        Ok(length)
    }

    /// Closes a process's stdin; doing it twice is no error.
    pub(crate) fn close_stdin(&self, request: Authorized<CloseStdin>) -> Result<(), ServiceError> {
        let entry = self.process(&request.get().0)?;
        if let Some(stdin) = entry.stdio.stdin.as_ref() {
            stdin.close();
        }
        Ok(())
    }

    /// Tells a process's terminal its new size.
    pub(crate) fn resize_terminal(
        &self,
        request: Authorized<ResizeTerminal>,
    ) -> Result<(), ServiceError> {
        let request = request.into_inner();
        let entry = self.process(&request.name)?;
        let terminal = entry.stdio.terminal.as_ref();
        terminal
            .ok_or(ServiceError::Unavailable { what: "tty" })?
            .resize(request.size)
            .map_err(ServiceError::system("ioctl TIOCSWINSZ"))
    }

    fn process(&self, name: &ProcessName) -> Result<Arc<ProcessEntry>, ServiceError> {
        let container = self.registry.get(&name.container)?;
        match container.processes.find(&name.exec)? {
            Found::Entry(entry) => Ok(entry),
            Found::Ended(_) => Err(ServiceError::UnknownProcess {
                container: name.container.clone(),
                exec: name.exec.clone(),
            }),
        }
    }
}
