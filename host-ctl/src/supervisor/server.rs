//! A supervisor at work: one loop that hears of the VMM's exit and of its
//! clients' requests, and is the only one to change the sandbox's state.

use super::control::{Reply, Request, Status};
use super::line;
use super::output;
use super::save::{Save, next_step};
use crate::config::Paths;
use crate::host::{RecordError, RunDirectory, explain};
use crate::sandbox::console::Console;
use crate::sandbox::limits::give_back;
use crate::sandbox::link::AgentLink;
use crate::sandbox::record::SandboxRecord;
use crate::sandbox::state::{Event, State};
use agent_client::AgentClient;
use hypervisor::Vm;
use protocols::peer::is_one_of_ours;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// Control connections served at once; more wait in the socket's queue.
const CONNECTIONS: usize = 16;
/// How long a client may take from one request to the next.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// How long the last answer may take to go out.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// The longest grace a stop may ask for.
const GRACE_MAXIMUM: Duration = Duration::from_secs(3600);

/// Why a supervisor cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A socket cannot be bound.
    #[error("bind {path}")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What bind(2) said.
        #[source]
        source: io::Error,
    },
    /// The record cannot be written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// A sandbox with its VM, its agent link and its run directory, ready to be
/// served.
pub struct Supervised {
    /// The state root it belongs to.
    pub paths: Paths,
    /// The VM.
    pub vm: Arc<dyn Vm>,
    /// The link to its agent.
    pub link: AgentLink,
    /// Its console, when it is read already.
    pub console: Option<Console>,
    /// The run directory, locked.
    pub directory: RunDirectory,
    /// What is on disk about it.
    pub record: SandboxRecord,
}

/// The sockets of a supervisor; removed when dropped.
#[derive(Debug)]
pub struct Sockets {
    control: Socket,
    agent: Socket,
}

#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Sockets {
    /// Binds both sockets in the run directory, in place of those a dead
    /// supervisor left.
    ///
    /// # Errors
    /// [`ServeError::Bind`].
    pub fn bind(directory: &RunDirectory) -> Result<Self, ServeError> {
        Ok(Self {
            control: Socket::bind(directory.paths().control())?,
            agent: Socket::bind(directory.paths().agent())?,
        })
    }
}

impl Socket {
    fn bind(path: PathBuf) -> Result<Self, ServeError> {
        remove_socket(&path);
        match protocols::unix::bind(&path) {
            Ok(listener) => Ok(Self { listener, path }),
            Err(source) => Err(ServeError::Bind { path, source }),
        }
    }

    fn accept_from(&self) -> io::Result<UnixListener> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        remove_socket(&self.path);
    }
}

/// Absent is as good as removed, and bind(2) tells of any other trouble.
pub(super) fn remove_socket(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// A request and the way back to who asked.
#[derive(Debug)]
struct Asked {
    request: Request,
    client: Client,
}

/// Who has asked something and waits for the answer.
#[derive(Debug)]
pub(super) struct Client {
    answer: oneshot::Sender<Reply>,
    /// Resolves when the answer has gone out, or the client has.
    written: oneshot::Receiver<()>,
}

impl Client {
    /// Answers. What it gives resolves when the answer has gone out.
    pub(super) fn tell(self, reply: Reply) -> oneshot::Receiver<()> {
        // A client that has gone needs no answer.
        let _ = self.answer.send(reply);
        self.written
    }
}

impl Supervised {
    /// Serves until the VM has ended, and writes down how.
    ///
    /// # Errors
    /// When the sockets fail or the record cannot be written; the VM is left
    /// as it is then, for the next supervisor.
    pub async fn serve(mut self, sockets: Sockets) -> Result<(), ServeError> {
        let accepting = |socket: &Socket| {
            socket.accept_from().map_err(|source| ServeError::Bind {
                path: socket.path.clone(),
                source,
            })
        };
        let mut tasks = JoinSet::new();
        let (sender, mut asked) = mpsc::channel(CONNECTIONS);
        let control =
            tokio::net::UnixListener::from_std(accepting(&sockets.control)?).map_err(|source| {
                ServeError::Bind {
                    path: sockets.control.path.clone(),
                    source,
                }
            })?;
        tasks.spawn(listen(control, sender));
        let handle = self.link.handle();
        let proxy = accepting(&sockets.agent)?;
        tasks.spawn(async move {
            // Ends only when accept(2) fails for good; then every client sees
            // its connections refused.
            let _ = protocols::hybrid::serve(proxy, move || handle.current()).await;
        });
        let files = self.directory.paths();
        let console = self
            .console
            .take()
            .unwrap_or_else(|| Console::keep(files.console(), files.console_log()));
        let mut guest = self.watch_guest();
        let mut save: Option<Save> = None;
        loop {
            let needs_vm = save.as_ref().is_none_or(Save::needs_vm);
            let mut told = Vec::new();
            tokio::select! {
                exit = self.vm.wait(), if needs_vm => {
                    // In its log before anybody is told to look there.
                    console.last_words().await;
                    return match exit {
                        Ok(exit) => self.write_end(exit.to_string()).await,
                        Err(error) => self.write_lost(explain(&error)).await,
                    };
                }
                Some(asked) = asked.recv() => {
                    told = self.hear(asked, &mut save).await;
                }
                step = next_step(save.as_mut()) => if let Some(current) = save.take() {
                    match self.continue_save(current, step, &mut guest).await {
                        Ok(current) => save = Some(current),
                        Err(answered) => told.push(answered),
                    }
                },
            }
            if self.record.state == State::Stopped {
                // The answers go out before our tasks end with us.
                for written in told {
                    let _ = timeout(ANSWER_DEADLINE, written).await;
                }
                return Ok(());
            }
        }
    }

    /// One request, beside the save that may be under way. Gives what tells that
    /// the answers have gone out.
    async fn hear(&mut self, asked: Asked, save: &mut Option<Save>) -> Vec<oneshot::Receiver<()>> {
        let Asked { request, client } = asked;
        if let Some(reason) = save.as_ref().and_then(|save| save.refuses(&request)) {
            return vec![client.tell(Reply::Failed { reason })];
        }
        match (request, save.take()) {
            (Request::Save { name }, _) => match self.begin_save(name, client) {
                Ok(begun) => {
                    *save = Some(begun);
                    Vec::new()
                }
                Err(answered) => vec![answered],
            },
            (Request::Stop { grace_millis }, Some(current)) => {
                let grace = current.grace(Duration::from_millis(grace_millis));
                let grace_millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                // The VM is gone before its save is given up; a VM that could not
                // be stopped is still being saved.
                let reply = self.answer(Request::Stop { grace_millis }).await;
                if self.record.state != State::Stopped {
                    *save = Some(current);
                    return vec![client.tell(reply)];
                }
                vec![client.tell(reply), current.give_up()]
            }
            (request, current) => {
                *save = current;
                vec![client.tell(self.answer(request).await)]
            }
        }
    }

    /// The tasks that read what the containers say.
    pub(super) fn watch_guest(&self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for container in &self.record.spec.containers {
            let log = output::container_log(self.directory.paths(), &container.id);
            let links = self.link.handle();
            tasks.spawn(output::keep_container(links, container.id.clone(), log));
        }
        tasks
    }

    async fn answer(&mut self, request: Request) -> Reply {
        let outcome = match request {
            // A save is its own answer, and not asked for here.
            Request::Inspect {} | Request::Save { .. } => Ok(()),
            Request::Pause {} => self.pause().await,
            Request::Resume {} => self.resume().await,
            Request::Stop { grace_millis } => {
                self.stop(Duration::from_millis(grace_millis).min(GRACE_MAXIMUM))
                    .await
            }
        };
        match outcome {
            Ok(()) => Reply::Status(Status {
                state: self.record.state,
                agent_connected: self.link.handle().current().is_some(),
                redials: self.link.redials(),
            }),
            Err(reason) => Reply::Failed { reason },
        }
    }

    async fn pause(&mut self) -> Result<(), String> {
        let next = self.next(Event::Paused)?;
        self.vm.pause().await.map_err(|error| explain(&error))?;
        self.write_state(next)
    }

    async fn resume(&mut self) -> Result<(), String> {
        let next = self.next(Event::Resumed)?;
        self.vm.resume().await.map_err(|error| explain(&error))?;
        self.write_state(next)
    }

    /// Asks the guest to power off, and kills the VM when it has not within
    /// `grace`.
    async fn stop(&mut self, grace: Duration) -> Result<(), String> {
        let end = Instant::now() + grace;
        let asked = timeout_at(end, async {
            let link = self.link.handle().current()?;
            let client = AgentClient::connect(&link, grace).await.ok()?;
            // The agent ends while it answers: the reply may be lost, the VM's
            // exit is what counts.
            let _ = client.destroy_sandbox(grace).await;
            self.vm.wait().await.ok()
        });
        let exit = match asked.await {
            Ok(Some(exit)) => exit.to_string(),
            Ok(None) | Err(_) => {
                self.vm.kill().await.map_err(|error| explain(&error))?;
                "killed by stop".to_owned()
            }
        };
        self.write_end(exit).await.map_err(|error| explain(&error))
    }

    pub(super) fn next(&self, event: Event) -> Result<State, String> {
        self.record
            .state
            .after(event)
            .map_err(|refused| refused.to_string())
    }

    pub(super) fn write_state(&mut self, state: State) -> Result<(), String> {
        self.record.set_state(state);
        self.directory
            .write_record(&self.record)
            .map_err(|error| explain(&error))
    }

    pub(super) async fn write_end(&mut self, exit: String) -> Result<(), ServeError> {
        self.record.set_exit(exit);
        // What could not be given back stays in the record, for a sweep.
        let _ = give_back(&mut self.record.head).await;
        Ok(self.directory.write_record(&self.record)?)
    }

    /// See [`SandboxRecord::set_lost`].
    async fn write_lost(&mut self, exit: String) -> Result<(), ServeError> {
        self.record.set_lost(exit);
        // While something of it lives, all that it has is a sweep's.
        if self.record.head.processes().is_empty() {
            let _ = give_back(&mut self.record.head).await;
        }
        Ok(self.directory.write_record(&self.record)?)
    }
}

/// Accepts control connections of processes of ours for ever: no VMM's, though
/// it have our user.
async fn listen(listener: tokio::net::UnixListener, asked: mpsc::Sender<Asked>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => {
                let stream = match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                    // The next command finds nobody here, and revives us.
                    Err(_) => return,
                };
                if is_one_of_ours(&stream).unwrap_or(false) {
                    connections.spawn(converse(stream, asked.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One client: a line asked, a line answered, until it leaves or talks
/// nonsense.
async fn converse(stream: UnixStream, asked: mpsc::Sender<Asked>) {
    let mut stream = BufReader::new(stream);
    loop {
        let request = timeout(REQUEST_DEADLINE, line::read::<Request, _>(&mut stream)).await;
        match request {
            Ok(Ok(Some(request))) => {
                let (answer, answered) = oneshot::channel();
                let (done, written) = oneshot::channel();
                let question = Asked {
                    request,
                    client: Client { answer, written },
                };
                if asked.send(question).await.is_err() {
                    return;
                }
                let Ok(reply) = answered.await else { return };
                if line::write(&mut stream, &reply).await.is_err() {
                    return;
                }
                // Only a supervisor that is about to end listens for this.
                let _ = done.send(());
            }
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => {
                let reason = explain(&error);
                // The stream is of no use after nonsense, whoever hears this.
                let _ = line::write(&mut stream, &Reply::Failed { reason }).await;
                return;
            }
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
