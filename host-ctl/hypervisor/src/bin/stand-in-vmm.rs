//! A stand-in for a VMM with a REST interface, for tests: it plays back a
//! conversation that was recorded with the real one, or records one.
//!
//! A driver starts its VMM without an environment, so what to do is read from a
//! file beside the program: `PROGRAM.json`, an [`Order`]. The driver's argument
//! `--api-socket fd=N` is a listening socket that was inherited; `--api-sock
//! PATH` is one that is made here.
//!
//! Playing back, each request must be the recorded one: method, path, JSON and
//! number of descriptors. Another one is told on standard error, and ends the
//! program. Files and sockets that the VMM had made by its answer are made, with
//! nothing in them but `{}`.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The longest message, in bytes.
const LONGEST: usize = 4 << 20;
/// Most descriptors of a request.
const MOST_DESCRIPTORS: usize = 32;
/// Most header fields of a message.
const MOST_FIELDS: usize = 32;
/// How long the real VMM may take for an answer.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long it may take from a socket's file to its listener.
const MOMENT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};
/// The exit status of a conversation that went otherwise.
const MISMATCH: i32 = 70;

type Failure = Box<dyn Error + Send + Sync>;

/// What to do.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    mode: Mode,
    /// Texts that differ from run to run, and what stands for them in a
    /// recording: the first is the directory in which a VMM's files are noted.
    names: Vec<(String, String)>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Mode {
    /// Plays back: the n-th start of the program is the n-th conversation.
    Replay(Vec<Conversation>),
    /// Has the real program answer. The n-th start writes `PROGRAM.n.json`.
    Record(PathBuf),
    /// Takes connections and never answers.
    Silent,
}

/// What was said between the start of a VMM and its end.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Conversation {
    /// The program's arguments, without the control socket's number or path.
    arguments: Vec<String>,
    exchanges: Vec<Exchange>,
    /// The exit status of a VMM that ended by itself after the last answer.
    exit: Option<i32>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exchange {
    method: String,
    path: String,
    body: Value,
    descriptors: usize,
    status: u16,
    answer: Value,
    /// What was made meanwhile below the first named directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    makes: Vec<Made>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Made {
    File(String),
    Socket(String),
}

fn main() -> ExitCode {
    match run() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("stand-in: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<u8, Failure> {
    let program = std::env::current_exe()?;
    let beside = |end: String| PathBuf::from(format!("{}{end}", program.display()));
    let order: Order = serde_json::from_slice(&fs::read(beside(".json".to_owned()))?)?;
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let socket = take_socket(&mut arguments)?;
    let start = count_start(&beside)?;
    match order.mode {
        Mode::Silent => {
            let mut kept = Vec::new();
            loop {
                kept.push(socket.accept()?);
            }
        }
        Mode::Replay(conversations) => {
            let conversation = conversations.into_iter().nth(start);
            let conversation = conversation.ok_or("it was started once more than recorded")?;
            replay(&socket, &arguments, conversation, &Names(order.names))
        }
        Mode::Record(real) => {
            let recording = Recording {
                file: beside(format!(".{start}.json")),
                names: Names(order.names),
                conversation: Mutex::new(Conversation {
                    arguments: arguments.clone(),
                    ..Conversation::default()
                }),
                answering: Mutex::new(()),
            };
            record(&socket, &arguments, &real, recording)
        }
    }
}

/// The control socket, whose number or path is taken out of the arguments.
fn take_socket(arguments: &mut [String]) -> Result<UnixListener, Failure> {
    let option = arguments
        .iter()
        .position(|word| word.starts_with("--api-sock"));
    let value = option.and_then(|index| arguments.get_mut(index + 1));
    let value = value.ok_or("no control socket among the arguments")?;
    let listener = match value.strip_prefix("fd=") {
        Some(number) => UnixListener::from(inherited(number.parse()?)?),
        None => {
            let listener = UnixListener::bind(&value)?;
            // As Firecracker does: a driver may have come between bind and listen.
            eprintln!("stand-in: it listens");
            listener
        }
    };
    "SOCKET".clone_into(value);
    Ok(listener)
}

fn inherited(number: RawFd) -> Result<OwnedFd, Failure> {
    let ourselves = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(ourselves, number, PidfdGetfdFlags::empty())?)
}

/// Which start of the program this is, from 0.
fn count_start(beside: &dyn Fn(String) -> PathBuf) -> Result<usize, Failure> {
    for start in 0..1000 {
        let mark = beside(format!(".{start}.started"));
        match OpenOptions::new().write(true).create_new(true).open(mark) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => return Ok(made.map(|_| start)?),
        }
    }
    Err("started too often".into())
}

/// Texts and what stands for them in a recording.
struct Names(Vec<(String, String)>);

impl Names {
    fn hide(&self, value: Value) -> Value {
        self.0
            .iter()
            .fold(value, |value, (text, name)| replace(value, text, name))
    }

    fn show(&self, value: Value) -> Value {
        self.0
            .iter()
            .fold(value, |value, (text, name)| replace(value, name, text))
    }

    fn directory(&self) -> &Path {
        Path::new(self.0.first().map_or("/nonexistent", |(text, _)| text))
    }
}

/// Replaces a text in every string.
fn replace(value: Value, from: &str, to: &str) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace(from, to)),
        Value::Array(items) => items
            .into_iter()
            .map(|item| replace(item, from, to))
            .collect(),
        Value::Object(members) => {
            let members = members.into_iter();
            Value::Object(
                members
                    .map(|(key, member)| (key, replace(member, from, to)))
                    .collect(),
            )
        }
        other => other,
    }
}

fn replay(
    socket: &UnixListener,
    arguments: &[String],
    conversation: Conversation,
    names: &Names,
) -> Result<u8, Failure> {
    if arguments != conversation.arguments {
        let wanted = conversation.arguments;
        return mismatch(&format!(
            "arguments {arguments:?}, recorded were {wanted:?}"
        ));
    }
    for exchange in conversation.exchanges {
        let (mut stream, request) = next_request(socket)?;
        let (method, path) = request.asked()?;
        let asked = serde_json::json!({
            "method": method,
            "path": path,
            "body": names.hide(request.json()?),
            "descriptors": request.descriptors.len(),
        });
        let recorded = serde_json::json!({
            "method": exchange.method,
            "path": exchange.path,
            "body": exchange.body,
            "descriptors": exchange.descriptors,
        });
        if let Some(difference) = difference("", &recorded, &asked) {
            return mismatch(&format!("{method} {path}: {difference}"));
        }
        let mut sockets = Vec::new();
        for made in exchange.makes {
            match made {
                Made::File(path) => fs::write(shown(names, path), "{}")?,
                Made::Socket(path) => sockets.push(UnixListener::bind(shown(names, path))?),
            }
        }
        // Held as long as the VMM would.
        std::mem::forget(sockets);
        stream.write_all(&answer(exchange.status, names.show(exchange.answer)))?;
    }
    if let Some(status) = conversation.exit {
        return Ok(u8::try_from(status)?);
    }
    let (_stream, request) = next_request(socket)?;
    let (method, path) = request.asked()?;
    mismatch(&format!("{method} {path}: nothing more was recorded"))
}

/// The next request. A connection on which nothing is said only was to see
/// whether somebody listens.
fn next_request(socket: &UnixListener) -> Result<(UnixStream, Message), Failure> {
    loop {
        let (stream, _) = socket.accept()?;
        let mut first = [0];
        // MSG_PEEK takes nothing, descriptors neither (recv(2), unix(7)).
        let (_, heard) = recv(&stream, &mut first, RecvFlags::PEEK)?;
        if heard > 0 {
            let request = Message::read(&stream)?;
            return Ok((stream, request));
        }
    }
}

fn shown(names: &Names, path: String) -> String {
    let shown = names.show(Value::String(path));
    shown.as_str().unwrap_or_default().to_owned()
}

fn mismatch(what: &str) -> Result<u8, Failure> {
    eprintln!("stand-in: not as recorded: {what}");
    std::process::exit(MISMATCH)
}

/// Where two values first differ.
fn difference(place: &str, recorded: &Value, asked: &Value) -> Option<String> {
    match (recorded, asked) {
        (Value::Object(left), Value::Object(right)) => {
            let keys = left.keys().chain(right.keys());
            keys.into_iter().find_map(|key| {
                let place = format!("{place}/{key}");
                difference(&place, &recorded[key], &asked[key])
            })
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            let pairs = left.iter().zip(right).enumerate();
            pairs.into_iter().find_map(|(index, (left, right))| {
                difference(&format!("{place}/{index}"), left, right)
            })
        }
        _ if recorded == asked => None,
        _ => Some(format!("{place} is {asked}, recorded was {recorded}")),
    }
}

/// An answer as both VMMs write it.
fn answer(status: u16, body: Value) -> Vec<u8> {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let mut head = format!("HTTP/1.1 {status} \r\nServer: stand-in\r\n");
    if !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    format!("{head}\r\n{body}").into_bytes()
}

/// One message of HTTP.
struct Message {
    bytes: Vec<u8>,
    head: usize,
    descriptors: Vec<OwnedFd>,
}

impl Message {
    fn read(stream: &UnixStream) -> Result<Self, Failure> {
        let (mut bytes, mut descriptors) = (Vec::new(), Vec::new());
        loop {
            receive(stream, &mut bytes, &mut descriptors)?;
            if let Some((head, body)) = lengths(&bytes)?
                && bytes.len() >= head + body
            {
                return Ok(Self {
                    bytes,
                    head,
                    descriptors,
                });
            }
            if bytes.len() > LONGEST {
                return Err("a message is too long".into());
            }
        }
    }

    fn json(&self) -> Result<Value, Failure> {
        match &self.bytes[self.head..] {
            [] => Ok(Value::Null),
            body => Ok(serde_json::from_slice(body)?),
        }
    }

    fn asked(&self) -> Result<(String, String), Failure> {
        let mut words = first_line(&self.bytes).split(' ').map(str::to_owned);
        let asked = words.next().zip(words.next());
        asked.ok_or_else(|| "no request".into())
    }

    fn status(&self) -> Result<u16, Failure> {
        let status = first_line(&self.bytes).split(' ').nth(1);
        Ok(status.ok_or("no answer")?.parse()?)
    }
}

fn first_line(bytes: &[u8]) -> &str {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\r')
        .unwrap_or_default();
    std::str::from_utf8(&bytes[..end]).unwrap_or_default()
}

/// The lengths of head and body, once the head is there.
fn lengths(bytes: &[u8]) -> Result<Option<(usize, usize)>, Failure> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let start = first_line(bytes).len() + 2;
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    httparse::parse_headers(&bytes[start..end + 4], &mut fields)?;
    let is_length =
        |field: &&httparse::Header<'_>| field.name.eq_ignore_ascii_case("content-length");
    let body = match fields.iter().find(is_length) {
        Some(field) => std::str::from_utf8(field.value)?.trim().parse()?,
        None => 0,
    };
    Ok(Some((end + 4, body)))
}

fn receive(
    stream: &UnixStream,
    bytes: &mut Vec<u8>,
    descriptors: &mut Vec<OwnedFd>,
) -> Result<(), Failure> {
    let mut part = [0; 16 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut part)];
    let received = recvmsg(stream, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Err("closed in the middle of a message".into());
    }
    bytes.extend_from_slice(&part[..received.bytes]);
    Ok(())
}

/// A conversation that grows, and its file.
struct Recording {
    file: PathBuf,
    names: Names,
    conversation: Mutex<Conversation>,
    /// Held while an answer is under way, which a VMM that ends must not cut.
    answering: Mutex<()>,
}

impl Recording {
    fn write(&self, change: impl FnOnce(&mut Conversation)) -> Result<(), Failure> {
        let mut conversation = self
            .conversation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        change(&mut conversation);
        fs::write(&self.file, serde_json::to_vec_pretty(&*conversation)?)?;
        Ok(())
    }
}

/// Stands between the driver and the real program.
fn record(
    socket: &UnixListener,
    arguments: &[String],
    real: &Path,
    recording: Recording,
) -> Result<u8, Failure> {
    let recording = Arc::new(recording);
    recording.write(|_| {})?;
    let own_socket = recording.file.with_extension("sock");
    let child = start_real(real, arguments, &own_socket)?;
    let (ended, watched) = (Arc::clone(&recording), Mutex::new(child));
    std::thread::spawn(move || {
        let mut child = watched.lock().unwrap_or_else(PoisonError::into_inner);
        let code = child.wait().ok().and_then(|status| status.code());
        let _answered = ended
            .answering
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let noted = ended.write(|conversation| conversation.exit = code);
        std::process::exit(if noted.is_ok() { code.unwrap_or(1) } else { 1 });
    });
    loop {
        let (mut stream, request) = next_request(socket)?;
        let answering = &recording.answering;
        let _answering = answering.lock().unwrap_or_else(PoisonError::into_inner);
        let before = found(&recording.names);
        let reply = forward(&own_socket, &request)?;
        let after = found(&recording.names);
        let (method, path) = request.asked()?;
        let exchange = Exchange {
            method,
            path,
            body: recording.names.hide(request.json()?),
            descriptors: request.descriptors.len(),
            status: reply.status()?,
            answer: recording.names.hide(reply.json()?),
            makes: after
                .into_iter()
                .filter(|made| !before.contains(made))
                .collect(),
        };
        recording.write(|conversation| conversation.exchanges.push(exchange))?;
        stream.write_all(&reply.bytes)?;
    }
}

/// Starts the real program, which ends with this one. Its control socket is its
/// standard input, or one that it makes: it can be connected to then.
fn start_real(real: &Path, arguments: &[String], socket: &Path) -> Result<Child, Failure> {
    let makes_socket = arguments.iter().any(|word| word == "--api-sock");
    let (input, place) = if makes_socket {
        (Stdio::null(), socket.display().to_string())
    } else {
        let listener: OwnedFd = UnixListener::bind(socket)?.into();
        (Stdio::from(listener), "fd=0".to_owned())
    };
    let word = |word: &String| {
        if word == "SOCKET" {
            place.clone()
        } else {
            word.clone()
        }
    };
    let arrival = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    let directory = socket.parent().ok_or("a socket in no directory")?;
    inotify::add_watch(&arrival, directory, inotify::WatchFlags::CREATE)?;
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(real);
    command.args(arguments.iter().map(word));
    let child = command.stdin(input).spawn()?;
    let begun = Instant::now();
    // A socket is there a moment before anybody listens at it.
    while UnixStream::connect(socket).is_err() {
        if begun.elapsed() > DEADLINE {
            return Err("the real program makes no socket".into());
        }
        poll(&mut [PollFd::new(&arrival, PollFlags::IN)], Some(&MOMENT))?;
    }
    Ok(child)
}

fn forward(socket: &Path, request: &Message) -> Result<Message, Failure> {
    use std::os::fd::AsFd;
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let descriptors: Vec<_> = request.descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let bytes = [std::io::IoSlice::new(&request.bytes)];
    let sent = sendmsg(&stream, &bytes, &mut ancillary, SendFlags::NOSIGNAL)?;
    (&stream).write_all(&request.bytes[sent..])?;
    Message::read(&stream)
}

/// Files and sockets below the first named directory.
fn found(names: &Names) -> Vec<Made> {
    use std::os::unix::fs::FileTypeExt;
    let (mut found, mut pending) = (Vec::new(), vec![names.directory().to_owned()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            let path = Value::String(entry.path().display().to_string());
            let path = names.hide(path).as_str().unwrap_or_default().to_owned();
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_socket() {
                found.push(Made::Socket(path));
            } else if kind.is_file() {
                found.push(Made::File(path));
            }
        }
    }
    found
}
