//! A QEMU virtual machine and its verbs.

use std::fs::File;
use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::DRIVER;
use super::command_line::AGENT_ID;
use super::launch::{Started, create_memory, create_state};
use super::qmp::{Command, Event, Monitor};
use super::ram::{SplitError, split};
use super::vmm::{STATE_NAME, Vmm, migration_capabilities, migration_end};
use crate::error::Error;
use crate::process::Process;
use crate::socket::connect_at;
use crate::span::{Span, Timeline, now};
use crate::spec::{AgentDevice, Backing, VmSpec};
use crate::virtiofsd::{Daemons, exited, kill};
use crate::vm::{Deadlines, Saved, Vm, VmExit, VmInfo, VmRecord, VmState};

/// Bytes a second for writing a state: without a limit in effect, since nothing
/// else waits for the disk and the guest is stopped (QEMU's own limit is 128 MiB).
const MOST_BANDWIDTH: u64 = 1 << 40;

/// The state QEMU is in between a save, also a failed one, and running on. It
/// does not save again in it.
const AFTER_SAVE: &str = "postmigrate";

/// A virtual machine of QEMU's.
pub(crate) struct QemuVm {
    vmm: Vmm,
    daemons: Daemons,
    record: VmRecord,
    /// Whether the memory file belongs to a saved state now.
    saved: AtomicBool,
    timeline: Timeline,
}

impl QemuVm {
    /// Settles a QEMU that was started.
    pub(super) fn new(started: Started, spec: &VmSpec) -> Self {
        let confined = started.confined;
        let (vmm, daemons, timeline) = started.settle();
        let directories = daemons.records();
        let record = VmRecord::new(DRIVER, vmm.process.identity(), spec, confined, directories);
        Self {
            vmm,
            daemons,
            record,
            saved: AtomicBool::new(false),
            timeline,
        }
    }

    /// One command that is the verb's only step.
    async fn single(&self, verb: &'static str, command: &'static str) -> Result<Value, Error> {
        self.timeline.restart();
        let begun = now();
        let value = self.vmm.command(verb, Command::new(command)).await?;
        self.timeline.since(command, begun);
        Ok(value)
    }

    /// QEMU's word for its state.
    async fn status(&self, verb: &'static str) -> Result<String, Error> {
        let value = self.vmm.command(verb, Command::new("query-status")).await?;
        Ok(value["status"].as_str().unwrap_or_default().to_owned())
    }

    async fn state(&self, verb: &'static str) -> Result<VmState, Error> {
        let state = state_of(&self.status(verb).await?);
        let saved = self.saved.load(Ordering::Acquire) && state == VmState::Paused;
        Ok(if saved { VmState::Saved } else { state })
    }

    fn shared_memory(&self) -> Option<&Path> {
        match &self.record.memory {
            Backing::FileBacked { path, shared: true } => Some(path),
            _ => None,
        }
    }

    /// Writes the state, and RAM that is private to a file of its own: such RAM
    /// came from a template's file, and goes to that of another.
    async fn write_files(&self, files: &SavedFiles) -> Result<(), Error> {
        let duplicate = |file: &File| {
            let duplicated = file.try_clone();
            duplicated.map_err(process("fcntl F_DUPFD"))
        };
        let (state, state_path) = (duplicate(&files.state.1)?, files.state.0.clone());
        let Some((memory_path, memory)) = &files.memory else {
            return self.write_state(state.into()).await;
        };
        let (memory, memory_path) = (duplicate(memory)?, memory_path.clone());
        let (reader, writer) = std::io::pipe().map_err(process("pipe2"))?;
        let splitting = {
            let size = u64::from(self.record.memory_mib) << 20;
            tokio::task::spawn_blocking(move || take_apart(reader, size, &memory, &state))
        };
        let written = self.write_state(writer.into()).await;
        // QEMU lets go of its end when it is done, or could not be.
        let deadline = self.vmm.deadlines.command;
        let late = |_| Error::Deadline {
            waiting_for: "the end of the saved state",
            deadline,
        };
        let begun = now();
        let split = timeout(deadline, splitting).await.map_err(late)?;
        self.timeline.since("write ram and state", begun);
        let split = split.map_err(|error| Error::Process {
            call: "spawn_blocking",
            source: error.into(),
        })?;
        match (written, split) {
            (written, Ok(())) => written,
            // QEMU knows only that nobody listened any more.
            (_, Err(SplitError::Memory(source))) => Err(Error::path("write", memory_path)(source)),
            (_, Err(SplitError::State(source))) => Err(Error::path("write", state_path)(source)),
            (Err(error), Err(_)) => Err(error),
            (Ok(()), Err(error)) => Err(Error::Migration {
                verb: "save",
                reason: error.to_string(),
            }),
        }
    }

    /// Has QEMU write its state to an open file.
    async fn write_state(&self, file: OwnedFd) -> Result<(), Error> {
        let mut events = self.vmm.monitor.events();
        let begun = now();
        let commands = vec![
            migration_capabilities(),
            Command::with(
                "migrate-set-parameters",
                json!({ "max-bandwidth": MOST_BANDWIDTH }),
            ),
            Command::leave(STATE_NAME, file),
            Command::with("migrate", json!({ "uri": format!("fd:{STATE_NAME}") })),
        ];
        let replies = self
            .vmm
            .ask("save", commands, self.vmm.deadlines.command)
            .await?;
        let names = [
            "migrate-set-capabilities",
            "migrate-set-parameters",
            "getfd",
            "migrate",
        ];
        let mut before = begun;
        for (name, reply) in names.into_iter().zip(&replies) {
            before = self.timeline.between(name, before, reply.at);
        }
        let written = self.vmm.event(
            "save",
            "writing the state",
            &mut events,
            self.vmm.deadlines.save_of(&self.record),
            migration_end,
        );
        let (complete, at) = match written.await {
            Err(error @ Error::Deadline { .. }) => {
                // It must not go on writing to a file that is about to vanish.
                self.vmm
                    .command("save", Command::new("migrate_cancel"))
                    .await?;
                return Err(error);
            }
            written => written?,
        };
        let name = "MIGRATION completed";
        let before = self.timeline.between(name, before, at.max(before));
        self.settle().await?;
        self.timeline.since("query-status until settled", before);
        if complete {
            Ok(())
        } else {
            Err(self.vmm.migration_error("save").await)
        }
    }

    /// Waits until QEMU has left the state in which it writes: it tells the end
    /// of a migration a moment before, and there is no event for leaving. Each
    /// answer gives it the time it needs; one or two are enough.
    async fn settle(&self) -> Result<(), Error> {
        let settled = async {
            while self.state("save").await? == VmState::Moving {
                tokio::task::yield_now().await;
            }
            Ok(())
        };
        let deadline = self.vmm.deadlines.command;
        let waiting_for = "the end of a save";
        let late = |_| Error::Deadline {
            waiting_for,
            deadline,
        };
        timeout(deadline, settled).await.map_err(late)?
    }

    async fn agent_port_is_open(&self) -> Result<bool, Error> {
        let devices = self
            .vmm
            .command("agent_port_opened", Command::new("query-chardev"))
            .await?;
        let is_ours = |device: &&Value| device["label"] == AGENT_ID;
        let ours = devices
            .as_array()
            .and_then(|devices| devices.iter().find(is_ours));
        Ok(ours.is_some_and(|device| device["frontend-open"] == true))
    }
}

#[async_trait]
impl Vm for QemuVm {
    async fn pause(&self) -> Result<(), Error> {
        self.single("pause", "stop").await.map(drop)
    }

    async fn resume(&self) -> Result<(), Error> {
        if self.saved.load(Ordering::Acquire) {
            return Err(Error::MemorySaved);
        }
        self.single("resume", "cont").await.map(drop)
    }

    async fn save(&self, directory: &Path) -> Result<Saved, Error> {
        self.timeline.restart();
        let started = Instant::now();
        let begun = now();
        if self.saved.load(Ordering::Acquire) {
            return Err(Error::MemorySaved);
        }
        if !self.record.directories.is_empty() {
            return Err(Error::Unsupported("saving a vm with a shared directory"));
        }
        let status = self.status("save").await?;
        let begun = self.timeline.since("query-status", begun);
        match state_of(&status) {
            VmState::Paused if status == AFTER_SAVE => {
                return Err(Error::Unsupported(
                    "saving twice without running in between",
                ));
            }
            VmState::Paused => {}
            found => {
                return Err(Error::State {
                    verb: "save",
                    needed: VmState::Paused,
                    found,
                });
            }
        }
        let is_private = matches!(
            self.record.memory,
            Backing::FileBacked { shared: false, .. }
        );
        if is_private && self.record.memory_mib == 0 {
            return Err(Error::Unsupported("saving ram of a size that is not known"));
        }
        let files = SavedFiles::create(directory, is_private)?;
        self.timeline.since("open O_EXCL", begun);
        if let Err(error) = self.write_files(&files).await {
            files.remove();
            return Err(error);
        }
        let shared = self.shared_memory().map(Path::to_owned);
        self.saved.store(shared.is_some(), Ordering::Release);
        files.describe(shared, started.elapsed())
    }

    async fn info(&self) -> Result<VmInfo, Error> {
        Ok(VmInfo {
            state: self.state("info").await?,
            pid: self.record.pid,
        })
    }

    async fn wait(&self) -> Result<VmExit, Error> {
        exited(&self.vmm.process, &self.daemons).await
    }

    async fn shutdown(&self, deadline: Duration) -> Result<VmExit, Error> {
        self.timeline.restart();
        let begun = now();
        let asked = async {
            // A VMM that does not answer is killed like one that takes too long.
            if self.state("shutdown").await.ok()? != VmState::Running {
                return None;
            }
            let button = Command::new("system_powerdown");
            self.vmm.command("shutdown", button).await.ok().map(drop)
        };
        if let Some(exit) = self.vmm.process.ended_within(deadline, asked).await {
            self.daemons.end().await?;
            self.timeline.since("system_powerdown, exit", begun);
            return Ok(exit);
        }
        let begun = self.timeline.since("system_powerdown", begun);
        let exit = kill(&self.vmm.process, &self.daemons).await?;
        self.timeline
            .since("pidfd_send_signal SIGKILL, waitid", begun);
        Ok(exit)
    }

    async fn kill(&self) -> Result<(), Error> {
        self.timeline.restart();
        let begun = now();
        kill(&self.vmm.process, &self.daemons).await?;
        self.timeline
            .since("pidfd_send_signal SIGKILL, waitid", begun);
        Ok(())
    }

    async fn agent_port_opened(&self, deadline: Duration) -> Result<(), Error> {
        if !matches!(self.record.agent, AgentDevice::Serial { .. }) {
            return Err(Error::Unsupported("telling when a vsock port is opened"));
        }
        self.timeline.restart();
        let begun = now();
        // The events first: the port may be opened while the state is asked for.
        let mut events = self.vmm.monitor.events();
        if !self.agent_port_is_open().await? {
            let name = "VSERPORT_CHANGE open";
            self.vmm
                .event(
                    "agent_port_opened",
                    name,
                    &mut events,
                    deadline,
                    agent_opened,
                )
                .await?;
        }
        self.timeline.since("VSERPORT_CHANGE open", begun);
        Ok(())
    }

    fn record(&self) -> VmRecord {
        self.record.clone()
    }

    fn spans(&self) -> Vec<Span> {
        self.timeline.spans()
    }
}

/// What a save writes.
struct SavedFiles {
    state: (PathBuf, File),
    memory: Option<(PathBuf, File)>,
}

impl SavedFiles {
    fn create(directory: &Path, with_memory: bool) -> Result<Self, Error> {
        let mut files = Self {
            state: create_state(directory)?,
            memory: None,
        };
        if with_memory {
            match create_memory(directory) {
                Ok(memory) => files.memory = Some(memory),
                Err(error) => {
                    files.remove();
                    return Err(error);
                }
            }
        }
        Ok(files)
    }

    fn all(&self) -> impl Iterator<Item = &(PathBuf, File)> {
        [&self.state].into_iter().chain(&self.memory)
    }

    /// The first error counts; a file that can't be removed is part of it.
    fn remove(&self) {
        for (path, _) in self.all() {
            let _ = std::fs::remove_file(path);
        }
    }

    fn describe(self, shared: Option<PathBuf>, duration: Duration) -> Result<Saved, Error> {
        let mut bytes = 0;
        for (path, file) in self.all() {
            bytes += file.metadata().map_err(Error::path("stat", path))?.len();
        }
        let memory = self.memory.as_ref().map(|(path, _)| path.clone());
        Ok(Saved {
            files: self.all().map(|(path, _)| path.clone()).collect(),
            path: self.state.0,
            bytes,
            duration,
            memory_file: shared.or(memory),
        })
    }
}

fn take_apart(
    stream: PipeReader,
    size: u64,
    memory: &File,
    state: &File,
) -> Result<(), SplitError> {
    split(stream, size, memory, state).map(drop)
}

fn process(call: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Process { call, source }
}

fn agent_opened(event: &Event) -> Option<()> {
    let ours = event.name == "VSERPORT_CHANGE" && event.data["id"] == AGENT_ID;
    (ours && event.data["open"] == true).then_some(())
}

/// QEMU's run states (qapi/run-state.json) as ours.
pub(super) fn state_of(status: &str) -> VmState {
    match status {
        "running" => VmState::Running,
        "paused" | "prelaunch" | AFTER_SAVE | "suspended" | "debug" => VmState::Paused,
        "inmigrate" | "finish-migrate" | "save-vm" | "restore-vm" | "colo" => VmState::Moving,
        _ => VmState::Halted,
    }
}

/// Connects to a QEMU whose process was identified.
pub(crate) async fn adopt(
    record: &VmRecord,
    process: Process,
    deadlines: Deadlines,
) -> Result<QemuVm, Error> {
    let timeline = Timeline::default();
    let begun = now();
    let monitor = Monitor::start(connect_at(&record.monitor)?);
    let vmm = Vmm::new(process, monitor, &record.log, deadlines);
    let daemons = Daemons::of_records(&record.directories)?;
    let commands = vec![
        Command::new("qmp_capabilities"),
        Command::new("query-status"),
    ];
    let replies = vmm.ask("adopt", commands, deadlines.command).await?;
    timeline.since("connect, qmp greeting, query-status", begun);
    // Only a finished save leaves this state, until the VM runs on.
    let status = replies
        .last()
        .and_then(|reply| reply.value["status"].as_str());
    let shared = matches!(record.memory, Backing::FileBacked { shared: true, .. });
    Ok(QemuVm {
        vmm,
        daemons,
        record: record.clone(),
        saved: AtomicBool::new(shared && status == Some(AFTER_SAVE)),
        timeline,
    })
}
