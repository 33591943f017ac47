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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
}

impl ProcessEntry {
    pub(crate) fn new(process: Process, stdio: Stdio) -> Arc<Self> {
        Arc::new(Self { process, stdio })
    }

    /// Reads what is there, or waits for it; empty is the end of the stream.
    /// A stream that something else keeps open ends a drain window after the
    /// process.
    pub(crate) async fn read(&self, output: Output, limit: usize) -> std::io::Result<Vec<u8>> {
        let reader = match output {
            Output::Stdout => self.stdio.stdout.as_ref(),
            Output::Stderr => self.stdio.stderr.as_ref(),
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
        tokio::select! {
            biased;
            data = reader.read(limit) => data,
            () = ended => Ok(Vec::new()),
        }
    }
}

/// The processes of one container: init and the execs.
#[derive(Debug)]
pub(crate) struct ProcessTable {
    container: ContainerId,
    init: Arc<ProcessEntry>,
    execs: Mutex<HashMap<ExecId, Option<Arc<ProcessEntry>>>>,
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

    fn execs(&self) -> MutexGuard<'_, HashMap<ExecId, Option<Arc<ProcessEntry>>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process of that name; its exit status can be asked for until the
    /// container is removed.
    pub(crate) fn get(&self, exec: &str) -> Result<Arc<ProcessEntry>, ServiceError> {
        if exec.is_empty() || exec == self.container.as_ref() {
            return Ok(self.init.clone());
        }
        exec.parse()
            .ok()
            .and_then(|exec: ExecId| self.execs().get(&exec).cloned().flatten())
            .ok_or_else(|| ServiceError::UnknownProcess {
                container: self.container.clone(),
                exec: exec.into(),
            })
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
                entry.insert(None);
                Ok(())
            }
        }
    }

    fn commit(&self, exec: ExecId, entry: Arc<ProcessEntry>) {
        self.execs().insert(exec, Some(entry));
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
        let request = request.into_inner();
        let container = self.registry.get(&request.container)?;
        self.exec_in(&container, request.exec, request.process, true)
            .await
            .map(drop)
    }

    /// The recipe behind both ways to exec: name, child, table.
    pub(super) async fn exec_in(
        &self,
        container: &Arc<Container>,
        exec: ExecId,
        process: ProcessSpec,
        stdin: bool,
    ) -> Result<Arc<ProcessEntry>, ServiceError> {
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
        container
            .processes
            .get(&name.exec)?
            .process
            .signal(signal)
            .map_err(ServiceError::system("pidfd_send_signal"))
    }

    /// Waits for the end of a process. The status stays: it can be asked for
    /// again, by anyone, until the container is removed.
    pub(crate) async fn wait_process(
        &self,
        request: Authorized<WaitProcess>,
    ) -> Result<ExitStatus, ServiceError> {
        let entry = self.process(&request.get().0)?;
        Ok(entry.process.wait().await)
    }

    /// Reads one of a process's outputs; empty is its end.
    pub(crate) async fn read_stream(
        &self,
        request: Authorized<ReadStream>,
        output: Output,
    ) -> Result<Vec<u8>, ServiceError> {
        let request = request.into_inner();
        let entry = self.process(&request.name)?;
        entry
            .read(output, request.limit)
            .await
            .map_err(ServiceError::system("read"))
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
        // A task of its own: a write cut in its middle by a vanished client
        // could not be told from one that was never made. Not counted as a
        // recipe: a full pipe shall not hold up a freeze.
        let length = request.data.len();
        let entry = entry.clone();
        detached(async move {
            let stdin = entry.stdio.stdin.as_ref();
            match stdin {
                Some(stdin) => stdin
                    .write_all(&request.data)
                    .await
                    .map_err(ServiceError::system("write stdin")),
                None => Ok(()),
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
        self.registry
            .get(&name.container)?
            .processes
            .get(&name.exec)
    }
}
