//! A QEMU process and the connection to it: asking, while watching that it lives.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::qmp::{Command, Event, Events, Monitor, Reply};
use crate::answer::answered;
use crate::error::{Error, MonitorError, quote};
use crate::process::Process;
use crate::vm::Deadlines;

/// The name QEMU keeps a state's descriptor under.
pub(super) const STATE_NAME: &str = "s";

/// QEMU, running.
pub(super) struct Vmm {
    pub(super) process: Process,
    pub(super) monitor: Monitor,
    pub(super) deadlines: Deadlines,
    log: PathBuf,
}

impl Vmm {
    pub(super) fn new(
        process: Process,
        monitor: Monitor,
        log: &Path,
        deadlines: Deadlines,
    ) -> Self {
        Self {
            process,
            monitor,
            deadlines,
            log: log.to_owned(),
        }
    }

    /// Sends commands and waits for their replies, or for QEMU's end.
    pub(super) async fn ask(
        &self,
        verb: &'static str,
        commands: Vec<Command>,
        deadline: Duration,
    ) -> Result<Vec<Reply>, Error> {
        self.alive(verb, self.monitor.execute(commands, deadline))
            .await
    }

    /// One command with the usual deadline; its returned value.
    pub(super) async fn command(
        &self,
        verb: &'static str,
        command: Command,
    ) -> Result<Value, Error> {
        let replies = self
            .ask(verb, vec![command], self.deadlines.command)
            .await?;
        Ok(replies
            .into_iter()
            .next_back()
            .map(|reply| reply.value)
            .unwrap_or_default())
    }

    /// Waits until an event is the wanted one, or QEMU ends.
    pub(super) async fn event<T>(
        &self,
        verb: &'static str,
        waiting_for: &'static str,
        events: &mut Events<'_>,
        deadline: Duration,
        wanted: fn(&Event) -> Option<T>,
    ) -> Result<T, Error> {
        let wait = async {
            loop {
                if let Some(found) = wanted(&events.next().await?) {
                    return Ok(found);
                }
            }
        };
        let waited = timeout(deadline, self.alive(verb, wait)).await;
        waited.map_err(|_| Error::Deadline {
            waiting_for,
            deadline,
        })?
    }

    async fn alive<T>(
        &self,
        verb: &'static str,
        answer: impl Future<Output = Result<T, MonitorError>> + Send,
    ) -> Result<T, Error> {
        answered(&self.process, &self.log, verb, answer).await
    }

    /// Why the last migration failed, in QEMU's words.
    pub(super) async fn migration_error(&self, verb: &'static str) -> Error {
        let asked = self.command(verb, Command::new("query-migrate")).await;
        match asked {
            Ok(value) => Error::Migration {
                verb,
                reason: quote(value["error-desc"].as_str().unwrap_or("it gives no reason")),
            },
            Err(error) => error,
        }
    }
}

/// The capabilities that saving and loading need: x-ignore-shared leaves shared
/// RAM where it is, and is checked to be equal on both sides; events tell the end.
pub(super) fn migration_capabilities() -> Command {
    let capabilities = json!([
        {"capability": "x-ignore-shared", "state": true},
        {"capability": "events", "state": true},
    ]);
    Command::with(
        "migrate-set-capabilities",
        json!({ "capabilities": capabilities }),
    )
}

/// How a migration ended, from an event that tells.
pub(super) fn migration_end(event: &Event) -> Option<(bool, u64)> {
    if event.name != "MIGRATION" {
        return None;
    }
    match event.data["status"].as_str() {
        Some("completed") => Some((true, event.at)),
        Some("failed" | "cancelled") => Some((false, event.at)),
        _ => None,
    }
}
