//! A VMM that is driven over HTTP.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use hypervisor::floor::{RestInput, What};
use rustix::fs::inotify;

use super::{DEADLINE, Failure, Inheritance, Running, Times};

/// How an answer that is no refusal begins.
const DONE: &str = "HTTP/1.1 2";
/// What ends the head of an answer.
const HEAD_END: &str = "\r\n\r\n";

/// Does the restore once.
pub(super) fn measure(input: &RestInput) -> Result<(Running, Times), Failure> {
    let mut inheritance = Inheritance::default();
    // A pipe that nobody could read is another thing for the VMM.
    let mut readers = Vec::new();
    for file in &input.inherited {
        inheritance.place(open(&file.what, &mut readers)?, file.number)?;
    }
    if let Some(number) = input.listener {
        inheritance.place(UnixListener::bind(&input.monitor)?.into(), number)?;
    }
    let log = File::create(&input.log)?;
    let mut command = Command::new(&input.program);
    command
        .args(&input.arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let arrival = Arrival::watch(&input.monitor)?;

    let begun = Instant::now();
    let mut vm = Running(command.spawn()?);
    let mut first = Some(if input.listener.is_some() {
        UnixStream::connect(&input.monitor)?
    } else {
        arrival.connect(&mut vm)?
    });
    let mut greeted = None;
    for request in &input.load {
        let stream = first
            .take()
            .map_or_else(|| UnixStream::connect(&input.monitor), Ok)?;
        ask(stream, request)?;
        greeted.get_or_insert_with(|| begun.elapsed());
    }
    let loaded = begun.elapsed();
    ask(UnixStream::connect(&input.monitor)?, &input.resume)?;
    let ran = begun.elapsed();
    Ok((vm, [greeted.unwrap_or_default(), loaded, ran]))
}

fn open(what: &What, readers: &mut Vec<OwnedFd>) -> io::Result<OwnedFd> {
    Ok(match what {
        What::Read(path) => File::open(path)?.into(),
        What::ReadWrite(path) => OpenOptions::new().read(true).write(true).open(path)?.into(),
        What::Pipe => {
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            readers.push(reader);
            writer
        }
    })
}

/// Sends a request and reads the answer, on a connection of their own.
fn ask(mut stream: UnixStream, request: &str) -> Result<(), Failure> {
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    while !is_whole(&answer)? {
        let mut bytes = [0; 1 << 10];
        let length = stream.read(&mut bytes)?;
        if length == 0 {
            return Err("the vmm has hung up".into());
        }
        answer.push_str(std::str::from_utf8(&bytes[..length])?);
    }
    if answer.starts_with(DONE) {
        Ok(())
    } else {
        Err(answer.into())
    }
}

/// Whether the head of an answer is there, and as much after it as it says.
fn is_whole(answer: &str) -> Result<bool, Failure> {
    let Some((head, body)) = answer.split_once(HEAD_END) else {
        return Ok(false);
    };
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.map_or(Ok(0), |(_, length)| length.trim().parse::<usize>())?;
    Ok(body.len() >= length)
}

/// Tells when a socket's file appears.
struct Arrival<'a> {
    socket: &'a Path,
    queue: OwnedFd,
}

impl<'a> Arrival<'a> {
    fn watch(socket: &'a Path) -> Result<Self, Failure> {
        let directory = socket.parent().ok_or("a socket in no directory")?;
        let queue = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&queue, directory, inotify::WatchFlags::CREATE)?;
        Ok(Self { socket, queue })
    }

    /// Connects at the first moment at which that can be done: from the file's
    /// appearance to listen(2) nothing is told, and it is tried at once again.
    fn connect(&self, vm: &mut Running) -> Result<UnixStream, Failure> {
        let deadline = Instant::now() + DEADLINE;
        while !self.socket.exists() {
            let mut events = [rustix::event::PollFd::new(
                &self.queue,
                rustix::event::PollFlags::IN,
            )];
            let left = deadline.saturating_duration_since(Instant::now());
            let left = rustix::event::Timespec::try_from(left)?;
            if rustix::event::poll(&mut events, Some(&left))? == 0 {
                return Err("the vmm has made no control socket".into());
            }
            rustix::io::read(&self.queue, &mut [0; 4 << 10])?;
        }
        loop {
            match UnixStream::connect(self.socket) {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    if vm.0.try_wait()?.is_some() || Instant::now() > deadline {
                        return Err(error.into());
                    }
                    std::thread::yield_now();
                }
            }
        }
    }
}
