//! A VMM's REST interface: HTTP/1.1 on a Unix socket.
//!
//! Each request has a connection of its own: kept-alive ones were seen to hang
//! in more than one VMM. Nothing of an answer is kept beyond the bounds here.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::answer::answered;
use crate::error::{Error, MonitorError, quote};
use crate::process::Process;
use crate::socket::connect_at;

/// The longest head of an answer, in bytes.
const LONGEST_HEAD: usize = 16 << 10;
/// Most header fields of an answer.
const MOST_FIELDS: usize = 32;
/// The longest body of an answer, in bytes.
const LONGEST_BODY: usize = 1 << 20;
/// Most descriptors of a request (SCM_MAX_FD is 253; no VM of ours has as many
/// devices).
const MOST_DESCRIPTORS: usize = 32;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Request<'a> {
    /// `GET`, `PUT` or `PATCH`.
    pub(crate) method: &'static str,
    /// What is asked for, such as `/api/v1/vm.info`.
    pub(crate) path: &'static str,
    /// What follows the path: the id of the one thing of many that is meant.
    pub(crate) id: String,
    /// What is sent along.
    pub(crate) body: Option<Value>,
    /// Descriptors that are passed with it (SCM_RIGHTS, unix(7)).
    pub(crate) descriptors: &'a [BorrowedFd<'a>],
}

impl Request<'_> {
    /// Asks for something.
    pub(crate) fn get(path: &'static str) -> Self {
        Self::new("GET", path, None)
    }

    /// Has something done.
    pub(crate) fn put(path: &'static str, body: Option<Value>) -> Self {
        Self::new("PUT", path, body)
    }

    /// Has something changed.
    pub(crate) fn patch(path: &'static str, body: Value) -> Self {
        Self::new("PATCH", path, Some(body))
    }

    fn new(method: &'static str, path: &'static str, body: Option<Value>) -> Self {
        Self {
            method,
            path,
            id: String::new(),
            body,
            descriptors: &[],
        }
    }

    /// What is sent on the wire.
    pub(crate) fn text(&self) -> String {
        let Self {
            method, path, id, ..
        } = self;
        let body = self.body.as_ref().map(Value::to_string);
        let mut text =
            format!("{method} {path}{id} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
        if let Some(body) = &body {
            let length = body.len();
            text.push_str("Content-Type: application/json\r\n");
            text.push_str(&format!("Content-Length: {length}\r\n"));
        }
        text.push_str("\r\n");
        text.push_str(body.as_deref().unwrap_or_default());
        text
    }
}

/// A VMM with a REST interface: asking, while watching that it lives.
#[derive(Debug)]
pub(crate) struct RestVmm {
    pub(crate) process: Process,
    pub(crate) socket: PathBuf,
    pub(crate) log: PathBuf,
}

impl RestVmm {
    /// Sends a request and waits for the answer, or for the VMM's end, which is
    /// told with its last words. `Null` is an answer without a body.
    pub(crate) async fn ask(
        &self,
        verb: &'static str,
        request: Request<'_>,
        deadline: Duration,
    ) -> Result<Value, Error> {
        let answer = call(&self.socket, &request, deadline);
        answered(&self.process, &self.log, verb, answer).await
    }
}

/// Sends one request on a connection of its own, and reads its answer.
///
/// # Errors
/// [`MonitorError::Refused`] for any status but 2xx, with the VMM's words.
pub(crate) async fn call(
    socket: &Path,
    request: &Request<'_>,
    deadline: Duration,
) -> Result<Value, MonitorError> {
    let exchange = async {
        // A listener of ours has room for us even before the VMM accepts.
        let mut stream = connect_at(socket).map_err(|_| MonitorError::Closed)?;
        send(&stream, request.text().as_bytes(), request.descriptors).await?;
        read_answer(&mut stream, request.path).await
    };
    timeout(deadline, exchange)
        .await
        .unwrap_or(Err(MonitorError::Silent {
            command: request.path,
            deadline,
        }))
}

/// Writes all bytes; the descriptors go with the first of them.
async fn send(
    stream: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), MonitorError> {
    let (mut rest, mut descriptors) = (bytes, descriptors);
    while !rest.is_empty() {
        let sent = stream.async_io(Interest::WRITABLE, || send_some(stream, rest, descriptors));
        let sent = sent.await.map_err(broken("sendmsg"))?;
        descriptors = &[];
        rest = &rest[sent..];
    }
    Ok(())
}

fn send_some(
    stream: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fits = descriptors.is_empty()
        || (descriptors.len() <= MOST_DESCRIPTORS
            && ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    if !fits {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let bytes = [IoSlice::new(bytes)];
    let flags = SendFlags::NOSIGNAL;
    Ok(sendmsg(stream, &bytes, &mut ancillary, flags)?)
}

/// The head of an answer.
struct Head {
    status: u16,
    /// Bytes of the head itself.
    length: usize,
    /// Bytes of the body.
    body: usize,
}

async fn read_answer(stream: &mut UnixStream, path: &'static str) -> Result<Value, MonitorError> {
    let mut bytes = Vec::with_capacity(1 << 10);
    let head = loop {
        read_more(stream, &mut bytes).await?;
        if let Some(head) = parse(&bytes)? {
            break head;
        }
        if bytes.len() > LONGEST_HEAD {
            return Err(MonitorError::Long(LONGEST_HEAD));
        }
    };
    if head.body > LONGEST_BODY {
        return Err(MonitorError::Long(LONGEST_BODY));
    }
    let end = head.length.saturating_add(head.body);
    while bytes.len() < end {
        read_more(stream, &mut bytes).await?;
    }
    let body = &bytes[head.length..end];
    if !(200..300).contains(&head.status) {
        return Err(MonitorError::Refused {
            command: path,
            class: format!("status {}", head.status),
            reason: words(body),
        });
    }
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(body).map_err(|_| garbage(body))
}

/// The VMM's words in an answer that refuses: one VMM gives a list, from the
/// request to the cause, another wraps them in an object.
fn words(body: &[u8]) -> String {
    let told = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let chain: Option<Vec<&str>> = told
        .as_array()
        .and_then(|chain| chain.iter().map(Value::as_str).collect());
    match (chain, told["fault_message"].as_str()) {
        (Some(chain), _) => quote(&chain.join(": ")),
        (None, Some(text)) => quote(text),
        (None, None) => quote(&String::from_utf8_lossy(body)),
    }
}

async fn read_more(stream: &mut UnixStream, bytes: &mut Vec<u8>) -> Result<(), MonitorError> {
    match stream.read_buf(bytes).await {
        Ok(0) => Err(MonitorError::Closed),
        Ok(_) => Ok(()),
        Err(error) => Err(broken("read")(error)),
    }
}

/// The head, once it is complete.
fn parse(bytes: &[u8]) -> Result<Option<Head>, MonitorError> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let status = response.parse(bytes).map_err(|_| garbage(bytes))?;
    let httparse::Status::Complete(length) = status else {
        return Ok(None);
    };
    let is_length =
        |field: &&httparse::Header<'_>| field.name.eq_ignore_ascii_case("content-length");
    let body = match response.headers.iter().find(is_length) {
        // Neither VMM sends a body in chunks: without a length there is none.
        None => 0,
        Some(field) => std::str::from_utf8(field.value)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| garbage(field.value))?,
    };
    Ok(response.code.map(|status| Head {
        status,
        length,
        body,
    }))
}

fn garbage(bytes: &[u8]) -> MonitorError {
    let beginning = &bytes[..bytes.len().min(64)];
    MonitorError::Garbage(beginning.escape_ascii().to_string())
}

fn broken(call: &'static str) -> impl FnOnce(io::Error) -> MonitorError {
    move |error| match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => MonitorError::Closed,
        kind => MonitorError::Stream { call, kind },
    }
}

#[cfg(test)]
mod tests;
