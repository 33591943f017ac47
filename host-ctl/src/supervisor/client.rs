//! The side of the supervisor that the commands see: starting one, reaching
//! one, and reviving a dead one.

use super::control::{Reply, Request, SavedSandbox, Status};
use super::line::{self, LineError};
use super::order::{Handover, Order, Outcome};
use crate::config::{Paths, SandboxId, TemplateName};
use crate::host::{
    Lock, LockError, RecordError, RunDirectory, RunDirectoryError, Stage, TreeError, kill_all,
};
use crate::sandbox::limits::{GiveBackError, give_back};
use crate::sandbox::record::SandboxRecord;
use crate::sandbox::state::State;
use crate::template::save::deadline;
use protocols::AgentAddress;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::time::timeout;

/// How long the making of a sandbox may take; above the deadlines of its steps
/// (a clone that has to be booted and warmed up takes several), so that a
/// supervisor that works is not given up.
pub const MAKE_DEADLINE: Duration = Duration::from_secs(1800);
/// How long a supervisor may take to adopt a VM.
const ADOPT_DEADLINE: Duration = Duration::from_secs(30);
/// How long a supervisor may take to answer, beside what it was told to wait.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// How long a supervisor may take to end after its VM has.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// Why a supervisor did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No sandbox has this id.
    #[error("no sandbox {0}")]
    Unknown(SandboxId),
    /// The sandbox has no VM any more.
    #[error("sandbox {id} is stopped: {reason}")]
    Stopped {
        /// The sandbox.
        id: SandboxId,
        /// How it ended.
        reason: String,
    },
    /// The supervisor program could not be started.
    #[error("start {program}")]
    Start {
        /// The program.
        program: PathBuf,
        /// What execve(2) said.
        #[source]
        source: io::Error,
    },
    /// The supervisor's socket could not be reached.
    #[error("connect to the supervisor of sandbox {id}")]
    Connect {
        /// The sandbox.
        id: SandboxId,
        /// What connect(2) said.
        #[source]
        source: io::Error,
    },
    /// The supervisor and we do not understand each other.
    #[error("the supervisor of sandbox {id}")]
    Line {
        /// The sandbox.
        id: SandboxId,
        /// What went wrong.
        #[source]
        source: LineError,
    },
    /// The supervisor died or closed the connection.
    #[error("the supervisor of sandbox {0} went away")]
    Gone(SandboxId),
    /// The supervisor did not answer in time.
    #[error("the supervisor of sandbox {id} did not answer within {after:?}")]
    Deadline {
        /// The sandbox.
        id: SandboxId,
        /// How long was waited.
        after: Duration,
    },
    /// The supervisor said no.
    #[error("sandbox {id}: {reason}")]
    Failed {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        reason: String,
    },
    /// The record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Somebody else acts on the sandbox.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The run directory is not as it should be.
    #[error(transparent)]
    Directory(#[from] RunDirectoryError),
    /// The run directory cannot be removed.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The sandbox's tap or cgroup cannot be removed.
    #[error(transparent)]
    GiveBack(#[from] GiveBackError),
}

/// A way to all supervisors below one state root.
#[derive(Debug, Clone)]
pub struct Supervisors {
    paths: Paths,
    program: PathBuf,
}

impl Supervisors {
    /// The supervisors of this program, which is host-ctl itself.
    #[must_use]
    pub fn of_this_program(paths: Paths) -> Self {
        // Names the running file, also when it was replaced on disk, proc(5).
        Self::with_program(paths, PathBuf::from("/proc/self/exe"))
    }

    /// The supervisors that `program`, a host-ctl, starts.
    #[must_use]
    pub fn with_program(paths: Paths, program: PathBuf) -> Self {
        Self { paths, program }
    }

    /// Where sandboxes and templates lie.
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Has a sandbox made. Whoever drops this before it is done gets no
    /// sandbox: a supervisor that cannot hand over takes everything back.
    ///
    /// # Errors
    /// [`ClientError::Failed`] with the supervisor's reason; nothing is left.
    pub async fn make(&self, order: &Order) -> Result<Handover, ClientError> {
        let id = &order.sandbox;
        match self.start(id, None, Some(order), MAKE_DEADLINE).await? {
            Outcome::HandedOver { handover } => Ok(*handover),
            Outcome::Failed { reason } => Err(ClientError::Failed {
                id: id.clone(),
                reason,
            }),
            Outcome::Adopted | Outcome::Owned => Err(ClientError::Gone(id.clone())),
        }
    }

    /// The address of a sandbox's agent, with a supervisor behind it.
    ///
    /// # Errors
    /// At once for an unknown or stopped sandbox.
    pub async fn agent(&self, id: &SandboxId) -> Result<AgentAddress, ClientError> {
        drop(self.reach(id).await?);
        Ok(AgentAddress::HybridVsock {
            socket: self.paths.sandbox(id).agent(),
            port: protocols::port::RPC,
        })
    }

    /// Asks the sandbox's supervisor, reviving it when it is dead.
    ///
    /// # Errors
    /// At once for an unknown or stopped sandbox.
    pub async fn ask(&self, id: &SandboxId, request: &Request) -> Result<Status, ClientError> {
        let patience = match request {
            Request::Stop { grace_millis } => Duration::from_millis(*grace_millis),
            _ => Duration::ZERO,
        };
        let deadline = ANSWER_DEADLINE.saturating_add(patience);
        match self.exchange(id, request, deadline).await? {
            Reply::Status(status) => Ok(status),
            Reply::Saved(_) => Err(ClientError::Gone(id.clone())),
            Reply::Failed { reason } => Err(failed(id, reason)),
        }
    }

    /// Makes a template of a sandbox, which ends in it.
    ///
    /// # Errors
    /// When it cannot be saved; the reason says whether it runs on.
    pub async fn save(
        &self,
        id: &SandboxId,
        name: &TemplateName,
    ) -> Result<SavedSandbox, ClientError> {
        let request = Request::Save { name: name.clone() };
        let deadline = deadline(self.record(id)?.spec.memory_mib);
        match self.exchange(id, &request, deadline).await? {
            Reply::Saved(saved) => Ok(*saved),
            Reply::Status(_) => Err(ClientError::Gone(id.clone())),
            Reply::Failed { reason } => Err(failed(id, reason)),
        }
    }

    async fn exchange(
        &self,
        id: &SandboxId,
        request: &Request,
        deadline: Duration,
    ) -> Result<Reply, ClientError> {
        let mut stream = BufReader::new(self.reach(id).await?);
        let exchange = async {
            line::write(&mut stream, request).await?;
            line::read::<Reply, _>(&mut stream).await
        };
        match timeout(deadline, exchange).await {
            Ok(Ok(Some(reply))) => Ok(reply),
            Ok(Ok(None) | Err(LineError::Io { .. } | LineError::Cut)) => Err(self.why_gone(id)),
            Ok(Err(source)) => Err(ClientError::Line {
                id: id.clone(),
                source,
            }),
            Err(_) => Err(ClientError::Deadline {
                id: id.clone(),
                after: deadline,
            }),
        }
    }

    /// Ends a sandbox; one that has ended already is no error.
    ///
    /// # Errors
    /// When it is unknown or cannot be ended.
    pub async fn stop(&self, id: &SandboxId, grace: Duration) -> Result<(), ClientError> {
        let grace_millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        match self.ask(id, &Request::Stop { grace_millis }).await {
            Ok(_) | Err(ClientError::Stopped { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends a sandbox without grace and removes its run directory.
    ///
    /// # Errors
    /// When it is unknown, cannot be ended or cannot be removed.
    pub async fn remove(&self, id: &SandboxId) -> Result<(), ClientError> {
        self.stop(id, Duration::ZERO).await?;
        // The supervisor lets go of the lock as its last act. Whoever takes it
        // between these two lines has a reason to.
        drop(Lock::acquire(
            &self.paths.sandbox(id).lock(),
            "rm",
            END_DEADLINE,
        )?);
        let directory = RunDirectory::open(&self.paths, id, "rm")?;
        // A removal that is killed is a sweep's to finish.
        let mut record = self.record(id)?;
        record.head.stage = Stage::Ending;
        directory.write_record(&record)?;
        // A VMM that ended while nobody watched left its virtiofsds to us, and one
        // that could not be ended in time itself.
        for killed in kill_all(&record.head.processes(), END_DEADLINE) {
            killed.map_err(|error| failed(id, error.to_string()))?;
        }
        // While its tap and its cgroup are there, its directory says whose they are.
        give_back(&mut record.head).await?;
        directory.remove()?;
        Ok(())
    }

    /// Connects to the sandbox's supervisor, reviving it when it is dead.
    async fn reach(&self, id: &SandboxId) -> Result<UnixStream, ClientError> {
        let record = self.record(id)?;
        if record.present_state() == State::Stopped {
            return Err(stopped(&record));
        }
        let control = self.paths.sandbox(id).control();
        if let Ok(stream) = protocols::unix::connect(&control).await {
            return Ok(stream);
        }
        // One reviver at a time: the others find its supervisor at work.
        let path = self.paths.sandbox(id).directory().join("revive.lock");
        let _lock = Lock::acquire(&path, "revive the supervisor", ADOPT_DEADLINE)?;
        if let Ok(stream) = protocols::unix::connect(&control).await {
            return Ok(stream);
        }
        match self.start(id, Some(id), None, ADOPT_DEADLINE).await? {
            Outcome::Adopted => {}
            Outcome::Owned => return Err(self.why_unreachable(id)),
            Outcome::Failed { reason } => {
                let record = self.record(id)?;
                return Err(if record.present_state() == State::Stopped {
                    stopped(&record)
                } else {
                    ClientError::Failed {
                        id: id.clone(),
                        reason,
                    }
                });
            }
            Outcome::HandedOver { .. } => return Err(ClientError::Gone(id.clone())),
        }
        protocols::unix::connect(&control)
            .await
            .map_err(|source| ClientError::Connect {
                id: id.clone(),
                source,
            })
    }

    /// Why a supervisor left in the middle of a conversation: most likely
    /// because its VM has ended.
    fn why_gone(&self, id: &SandboxId) -> ClientError {
        match self.record(id) {
            Ok(record) if record.present_state() == State::Stopped => stopped(&record),
            Ok(_) => ClientError::Gone(id.clone()),
            Err(error) => error,
        }
    }

    /// Why somebody owns the sandbox and does not listen.
    fn why_unreachable(&self, id: &SandboxId) -> ClientError {
        match self.record(id) {
            Ok(record) if record.state == State::Stopped => stopped(&record),
            Ok(record) => ClientError::Failed {
                id: id.clone(),
                reason: format!("is {}, and somebody is at work on it", record.state),
            },
            Err(error) => error,
        }
    }

    fn record(&self, id: &SandboxId) -> Result<SandboxRecord, ClientError> {
        match SandboxRecord::read(&self.paths, id) {
            Err(RecordError::Missing(_)) => Err(ClientError::Unknown(id.clone())),
            outcome => Ok(outcome?),
        }
    }

    /// Starts a supervisor and waits for its outcome. The process lives on
    /// after that, if it has something to supervise.
    async fn start(
        &self,
        id: &SandboxId,
        adopt: Option<&SandboxId>,
        order: Option<&Order>,
        deadline: Duration,
    ) -> Result<Outcome, ClientError> {
        let line_error = |source| ClientError::Line {
            id: id.clone(),
            source,
        };
        let failed = |source| ClientError::Start {
            program: self.program.clone(),
            source,
        };
        let mut command = Command::new(&self.program);
        command.arg0("host-ctl").arg("supervise");
        if let Some(id) = adopt {
            command.arg("--adopt").arg(id.as_str());
        }
        command
            .env("TARDIGRADE_HOME", self.root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let stdin = child.stdin.take().map(OwnedFd::from);
        let stdout = child.stdout.take().map(OwnedFd::from);
        let (Some(stdin), Some(stdout)) = (stdin, stdout) else {
            return Err(ClientError::Gone(id.clone()));
        };
        let exchange = async {
            let mut stdin = pipe::Sender::from_owned_fd(stdin).map_err(failed)?;
            if let Some(order) = order {
                line::write(&mut stdin, order).await.map_err(line_error)?;
            }
            let stdout = pipe::Receiver::from_owned_fd(stdout).map_err(failed)?;
            let outcome = line::read(&mut BufReader::new(stdout)).await;
            outcome.map_err(line_error)
        };
        let outcome = timeout(deadline, exchange).await;
        // It is a session leader of its own by now; should it be dead, this
        // takes it out of the process table.
        let _ = child.try_wait();
        match outcome {
            Ok(outcome) => outcome?.ok_or_else(|| ClientError::Gone(id.clone())),
            Err(_) => Err(ClientError::Deadline {
                id: id.clone(),
                after: deadline,
            }),
        }
    }

    fn root(&self) -> &OsStr {
        self.paths
            .run
            .parent()
            .unwrap_or(Path::new("/"))
            .as_os_str()
    }
}

fn failed(id: &SandboxId, reason: String) -> ClientError {
    ClientError::Failed {
        id: id.clone(),
        reason,
    }
}

fn stopped(record: &SandboxRecord) -> ClientError {
    ClientError::Stopped {
        id: record.id.clone(),
        reason: record
            .exit
            .clone()
            .unwrap_or_else(|| "its VM is gone".into()),
    }
}
