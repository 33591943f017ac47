//! QEMU's control protocol (QMP): one connection, one task.
//!
//! Commands are written without waiting for the replies of those before, which
//! come in order. That also holds before QEMU has started: the socket keeps them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::line::{Lines, garbage};
use crate::error::{MonitorError, quote};
use crate::span::now;

/// Events kept for a slow reader; a verb reads them as they come.
const EVENTS_KEPT: usize = 64;
/// Batches that may wait to be written.
const BATCHES_KEPT: usize = 8;
/// How long QEMU may refuse to take bytes; its commands fit a socket's buffer.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// A command to QEMU.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) name: &'static str,
    arguments: Option<Value>,
    descriptor: Option<OwnedFd>,
}

impl Command {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            arguments: None,
            descriptor: None,
        }
    }

    pub(super) fn with(name: &'static str, arguments: Value) -> Self {
        Self {
            name,
            arguments: Some(arguments),
            descriptor: None,
        }
    }

    /// `getfd`: leaves a descriptor with QEMU under a name. A batch may have one
    /// only, since QEMU keeps none but the last received.
    pub(super) fn leave(name: &'static str, descriptor: OwnedFd) -> Self {
        Self {
            descriptor: Some(descriptor),
            ..Self::with("getfd", json!({ "fdname": name }))
        }
    }

    fn encoded(&self) -> Vec<u8> {
        let mut message = json!({ "execute": self.name });
        if let Some(arguments) = &self.arguments {
            message["arguments"] = arguments.clone();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(b'\n');
        bytes
    }
}

/// What a command returned, and when (nanoseconds of CLOCK_MONOTONIC).
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) value: Value,
    pub(super) at: u64,
}

/// Something that happened in QEMU.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: Value,
    pub(super) at: u64,
}

/// QEMU's word for a failed command.
struct Refusal {
    class: String,
    reason: String,
}

type Answer = Result<Reply, Refusal>;

struct Batch {
    bytes: Vec<(Vec<u8>, Option<OwnedFd>)>,
    answers: Vec<oneshot::Sender<Answer>>,
}

/// What the connection is known to be.
#[derive(Debug, Clone, Default)]
struct Standing {
    greeted_at: Option<u64>,
    end: Option<MonitorError>,
}

/// A connection to QEMU's control socket. Dropping it disconnects.
pub(super) struct Monitor {
    batches: mpsc::Sender<Batch>,
    events: broadcast::Sender<Event>,
    standing: watch::Receiver<Standing>,
    task: JoinHandle<()>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Monitor {
    /// Takes over a connection; QEMU may not even run yet.
    pub(super) fn start(stream: UnixStream) -> Self {
        let (batches, incoming) = mpsc::channel(BATCHES_KEPT);
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let (standing, watched) = watch::channel(Standing::default());
        let session = Session {
            stream,
            pending: VecDeque::new(),
            events: events.clone(),
            standing,
        };
        Self {
            batches,
            events,
            standing: watched,
            task: tokio::spawn(session.run(incoming)),
        }
    }

    /// Waits for QEMU's first words; says when they came.
    pub(super) async fn greeting(&self, deadline: Duration) -> Result<u64, MonitorError> {
        let mut standing = self.standing.clone();
        let known = standing.wait_for(|now| now.greeted_at.is_some() || now.end.is_some());
        let silent = MonitorError::Silent {
            command: "greeting",
            deadline,
        };
        let known = timeout(deadline, known).await.map_err(|_| silent)?;
        let known = known.map_err(|_| MonitorError::Closed)?;
        match (known.greeted_at, &known.end) {
            (Some(at), _) => Ok(at),
            (None, end) => Err(end.clone().unwrap_or(MonitorError::Closed)),
        }
    }

    /// Sends commands at once and waits for all replies. The first refusal is
    /// the error; QEMU executes the commands after it all the same.
    pub(super) async fn execute(
        &self,
        commands: Vec<Command>,
        deadline: Duration,
    ) -> Result<Vec<Reply>, MonitorError> {
        let last = commands.last().map_or("", |command| command.name);
        let all = self.execute_all(commands);
        let silent = MonitorError::Silent {
            command: last,
            deadline,
        };
        timeout(deadline, all).await.map_err(|_| silent)?
    }

    async fn execute_all(&self, commands: Vec<Command>) -> Result<Vec<Reply>, MonitorError> {
        let mut batch = Batch {
            bytes: Vec::new(),
            answers: Vec::new(),
        };
        let mut waiting = Vec::new();
        for command in commands {
            let (answer, answered) = oneshot::channel();
            waiting.push((command.name, answered));
            batch.answers.push(answer);
            batch.bytes.push((command.encoded(), command.descriptor));
        }
        let sent = self.batches.send(batch).await;
        sent.map_err(|_| self.end())?;
        let mut replies = Vec::new();
        for (command, answered) in waiting {
            let answer = answered.await.map_err(|_| self.end())?;
            replies.push(
                answer.map_err(|Refusal { class, reason }| MonitorError::Refused {
                    command,
                    class,
                    reason,
                })?,
            );
        }
        Ok(replies)
    }

    /// Events from now on.
    pub(super) fn events(&self) -> Events<'_> {
        Events {
            monitor: self,
            receiver: self.events.subscribe(),
        }
    }

    /// Why the connection has ended.
    fn end(&self) -> MonitorError {
        self.standing
            .borrow()
            .end
            .clone()
            .unwrap_or(MonitorError::Closed)
    }
}

/// A view of the events since it was made.
pub(super) struct Events<'a> {
    monitor: &'a Monitor,
    receiver: broadcast::Receiver<Event>,
}

impl Events<'_> {
    /// The next event, as long as it takes.
    pub(super) async fn next(&mut self) -> Result<Event, MonitorError> {
        let mut standing = self.monitor.standing.clone();
        loop {
            let received = tokio::select! {
                biased;
                received = self.receiver.recv() => received,
                _ = standing.wait_for(|now| now.end.is_some()) => return Err(self.monitor.end()),
            };
            match received {
                Ok(event) => return Ok(event),
                // Only a flood overruns a reader; the verb's deadline ends it.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return Err(self.monitor.end()),
            }
        }
    }
}

/// The connection's own side: owned by its task.
struct Session {
    stream: UnixStream,
    pending: VecDeque<oneshot::Sender<Answer>>,
    events: broadcast::Sender<Event>,
    standing: watch::Sender<Standing>,
}

impl Session {
    async fn run(mut self, mut batches: mpsc::Receiver<Batch>) {
        let end = self.serve(&mut batches).await;
        // The reason first: who finds his answer dropped asks for it.
        self.standing
            .send_modify(|standing| standing.end = Some(end));
    }

    async fn serve(&mut self, batches: &mut mpsc::Receiver<Batch>) -> MonitorError {
        let mut lines = Lines::default();
        loop {
            let outcome = tokio::select! {
                batch = batches.recv() => match batch {
                    Some(batch) => self.write(batch).await,
                    None => return MonitorError::Closed,
                },
                line = lines.next(&self.stream) => line.and_then(|line| self.dispatch(&line)),
            };
            if let Err(end) = outcome {
                return end;
            }
        }
    }

    async fn write(&mut self, batch: Batch) -> Result<(), MonitorError> {
        self.pending.extend(batch.answers);
        let all = async {
            for (bytes, descriptor) in &batch.bytes {
                send(&self.stream, bytes, descriptor.as_ref()).await?;
            }
            Ok(())
        };
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let written = timeout(WRITE_DEADLINE, all)
            .await
            .unwrap_or_else(|_| Err(late()));
        written.map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => MonitorError::Closed,
            kind => MonitorError::Stream {
                call: "sendmsg",
                kind,
            },
        })
    }

    fn dispatch(&mut self, line: &[u8]) -> Result<(), MonitorError> {
        let at = now();
        let Ok(Value::Object(mut message)) = serde_json::from_slice(line) else {
            return Err(garbage(line));
        };
        if let Some(value) = message.remove("return") {
            return self.answer(line, Ok(Reply { value, at }));
        }
        if let Some(error) = message.remove("error") {
            let text = |field: &str| quote(error[field].as_str().unwrap_or_default());
            let (class, reason) = (text("class"), text("desc"));
            return self.answer(line, Err(Refusal { class, reason }));
        }
        if let Some(Value::String(name)) = message.remove("event") {
            let data = message.remove("data").unwrap_or_default();
            // Nobody listening is no error.
            let _ = self.events.send(Event { name, data, at });
            return Ok(());
        }
        if message.contains_key("QMP") {
            self.standing
                .send_modify(|standing| standing.greeted_at = Some(at));
            return Ok(());
        }
        Err(garbage(line))
    }

    fn answer(&mut self, line: &[u8], answer: Answer) -> Result<(), MonitorError> {
        let waiting = self.pending.pop_front().ok_or_else(|| garbage(line))?;
        // Who asked may have given up meanwhile.
        let _ = waiting.send(answer);
        Ok(())
    }
}

/// Writes all of `bytes`, the descriptor with the first of them.
async fn send(stream: &UnixStream, bytes: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<()> {
    let mut descriptor = descriptor;
    let mut rest = bytes;
    while !rest.is_empty() {
        let sent = stream.async_io(Interest::WRITABLE, || send_some(stream, rest, descriptor));
        let sent = sent.await?;
        descriptor = None;
        rest = &rest[sent..];
    }
    Ok(())
}

fn send_some(stream: &UnixStream, bytes: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|descriptor| [descriptor.as_fd()]);
    if let Some(descriptors) = &descriptors {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let bytes = [IoSlice::new(bytes)];
    Ok(sendmsg(
        stream,
        &bytes,
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?)
}

#[cfg(test)]
mod tests;
