//! A Cloud Hypervisor virtual machine and its verbs.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::json;

use super::DRIVER;
use super::config::directory_url;
use super::files::{Files, is_free};
use super::launch::Started;
use super::view::files_seen;
use super::vmm::{Vmm, path, refused};
use crate::error::Error;
use crate::process::Process;
use crate::rest::{Request, RestVmm};
use crate::span::{Span, Timeline, now};
use crate::spec::{Backing, VmSpec};
use crate::virtiofsd::{Daemons, exited, kill};
use crate::vm::{Deadlines, Saved, Vm, VmExit, VmInfo, VmRecord, VmState};

/// A virtual machine of Cloud Hypervisor's.
pub(crate) struct ChVm {
    vmm: Vmm,
    daemons: Daemons,
    files: Files,
    /// The same, as the VMM sees them.
    seen: Files,
    record: VmRecord,
    /// Whether the memory file belongs to a saved state now.
    saved: AtomicBool,
}

impl ChVm {
    /// Settles a VMM that was started.
    pub(super) fn new(started: Started, spec: &VmSpec) -> Self {
        let confined = started.confined;
        let (vmm, daemons) = started.settle();
        let process = vmm.rest.process.identity();
        let record = VmRecord::new(DRIVER, process, spec, confined, daemons.records());
        let files = Files::of(&spec.monitor);
        Self {
            seen: files_seen(confined, &files),
            files,
            vmm,
            daemons,
            record,
            saved: AtomicBool::new(false),
        }
    }

    fn shared_memory(&self) -> Option<&Path> {
        match &self.record.memory {
            Backing::FileBacked { path, shared: true } => Some(path),
            _ => None,
        }
    }

    /// The name of the file of RAM that the VMM writes beside its state.
    fn written_memory(&self) -> Option<&'static str> {
        match &self.record.memory {
            Backing::FileBacked { shared: true, .. } => None,
            Backing::FileBacked { shared: false, .. } => Some(super::MAPPED_MEMORY_FILE),
            Backing::Anonymous => Some(super::MEMORY_FILE),
        }
    }

    async fn state(&self, verb: &'static str) -> Result<VmState, Error> {
        let state = self.vmm.state(verb).await?;
        let saved = self.saved.load(Ordering::Acquire) && state == VmState::Paused;
        Ok(if saved { VmState::Saved } else { state })
    }

    /// Has the VMM write its state, and moves it to a directory.
    async fn write_state(&self, directory: &Path) -> Result<(Vec<std::path::PathBuf>, u64), Error> {
        let destination = json!({ "destination_url": directory_url(&self.seen.save())? });
        let request = Request::put(path::SNAPSHOT, Some(destination));
        let deadline = self.vmm.deadlines.save_of(&self.record);
        let written = self.vmm.ask("save", request, deadline).await;
        written.map_err(refused("save"))?;
        let begun = now();
        let (files, directory) = (self.files.clone(), directory.to_owned());
        let memory = self.written_memory();
        // RAM that goes to another file system is copied.
        let moved = tokio::task::spawn_blocking(move || files.collect(&directory, memory));
        let moved = moved.await.map_err(|error| Error::Process {
            call: "spawn_blocking",
            source: error.into(),
        })??;
        self.vmm.timeline.since("check, rename", begun);
        Ok(moved)
    }

    /// Kills it, and removes what only a living VM needs.
    async fn end(&self) -> Result<VmExit, Error> {
        let begun = now();
        let exit = kill(&self.vmm.rest.process, &self.daemons).await?;
        self.files.remove();
        let timeline = &self.vmm.timeline;
        timeline.since("pidfd_send_signal SIGKILL, waitid", begun);
        Ok(exit)
    }
}

#[async_trait]
impl Vm for ChVm {
    async fn pause(&self) -> Result<(), Error> {
        self.vmm.timeline.restart();
        let request = Request::put(path::PAUSE, None);
        self.vmm.change("pause", request, VmState::Paused).await
    }

    async fn resume(&self) -> Result<(), Error> {
        if self.saved.load(Ordering::Acquire) {
            return Err(Error::MemorySaved);
        }
        self.vmm.timeline.restart();
        let request = Request::put(path::RESUME, None);
        self.vmm.change("resume", request, VmState::Running).await
    }

    async fn save(&self, directory: &Path) -> Result<Saved, Error> {
        self.vmm.timeline.restart();
        let started = Instant::now();
        if self.saved.load(Ordering::Acquire) {
            return Err(Error::MemorySaved);
        }
        if !self.record.directories.is_empty() {
            // What could not be restored.
            return Err(Error::Unsupported("saving a vm with a shared directory"));
        }
        // The VMM answers one request after the other: now that it has answered
        // this one, it is not writing any more what an abandoned save began.
        let found = self.state("save").await?;
        if found != VmState::Paused {
            return Err(Error::State {
                verb: "save",
                needed: VmState::Paused,
                found,
            });
        }
        is_free(directory)?;
        self.files.clear_save()?;
        let written = self.write_state(directory).await;
        // What the VMM says of its configuration is not kept.
        let cleared = self.files.clear_save();
        let (files, bytes) = written?;
        let shared = self.shared_memory();
        let noted = cleared.and_then(|()| match shared {
            Some(_) => self.files.note_saved(),
            None => Ok(()),
        });
        if let Err(error) = noted {
            for path in &files {
                // The first error counts.
                let _ = std::fs::remove_file(path);
            }
            return Err(error);
        }
        self.saved.store(shared.is_some(), Ordering::Release);
        let mapped = directory.join(super::MAPPED_MEMORY_FILE);
        let memory_file = match shared {
            Some(path) => Some(path.to_owned()),
            None => files.contains(&mapped).then_some(mapped),
        };
        Ok(Saved {
            path: directory.join(super::STATE_FILE),
            files,
            bytes,
            duration: started.elapsed(),
            memory_file,
        })
    }

    async fn info(&self) -> Result<VmInfo, Error> {
        self.vmm.timeline.restart();
        Ok(VmInfo {
            state: self.state("info").await?,
            pid: self.record.pid,
        })
    }

    async fn wait(&self) -> Result<VmExit, Error> {
        exited(&self.vmm.rest.process, &self.daemons).await
    }

    async fn shutdown(&self, deadline: Duration) -> Result<VmExit, Error> {
        self.vmm.timeline.restart();
        let begun = now();
        let asked = async {
            // A VMM that does not answer is killed like one that takes too long.
            if self.state("shutdown").await.ok()? != VmState::Running {
                return None;
            }
            let request = Request::put(path::POWER_BUTTON, None);
            let deadline = self.vmm.deadlines.command;
            let pressed = self.vmm.ask("shutdown", request, deadline).await;
            pressed.ok().map(drop)
        };
        if let Some(exit) = self.vmm.rest.process.ended_within(deadline, asked).await {
            self.daemons.end().await?;
            self.vmm.timeline.since("exit", begun);
            self.files.remove();
            return Ok(exit);
        }
        self.end().await
    }

    async fn kill(&self) -> Result<(), Error> {
        self.vmm.timeline.restart();
        self.end().await.map(drop)
    }

    async fn agent_port_opened(&self, _deadline: Duration) -> Result<(), Error> {
        Err(Error::Unsupported("telling when a vsock port is opened"))
    }

    fn record(&self) -> VmRecord {
        self.record.clone()
    }

    fn spans(&self) -> Vec<Span> {
        self.vmm.timeline.spans()
    }
}

/// Takes over a VMM whose process was identified.
pub(crate) async fn adopt(
    record: &VmRecord,
    process: Process,
    deadlines: Deadlines,
) -> Result<ChVm, Error> {
    let vmm = Vmm {
        rest: RestVmm {
            process,
            socket: record.monitor.clone(),
            log: record.log.clone(),
        },
        deadlines,
        timeline: Timeline::default(),
    };
    vmm.state("adopt").await?;
    let daemons = Daemons::of_records(&record.directories)?;
    let files = Files::of(&record.monitor);
    let shared = matches!(record.memory, Backing::FileBacked { shared: true, .. });
    Ok(ChVm {
        saved: AtomicBool::new(shared && files.is_saved()),
        vmm,
        daemons,
        seen: files_seen(record.confined, &files),
        files,
        record: record.clone(),
    })
}
