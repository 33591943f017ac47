//! One run: the daemons, the machine, the command in it, and the end of all.

use crate::arguments::RunArguments;
use crate::console::tail;
use crate::error::{At, LabError};
use crate::machine::{PORTS, Size, arguments, memory};
use crate::share::{Share, What};
use crate::tools::Tools;
use crate::{image, pulse, script};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Lines};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The least memory that is worth a start, in MiB.
const LEAST_MEMORY_MIB: u64 = 1024;
/// What is already on its way when a process ends takes no longer.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Runs the command and gives its exit status.
///
/// # Errors
/// See [`LabError`]. Nothing is left of the lab in any case.
pub(crate) async fn run(request: &RunArguments) -> Result<u8, LabError> {
    let started = Instant::now();
    let tools = Tools::find(&request.kernel)?;
    let size = size(request)?;
    let say = |text: &str| {
        if !request.quiet {
            eprintln!("lab: {text}");
        }
    };
    say(&format!(
        "{tools}, {} processors, {} MiB",
        size.cpus, size.memory_mib
    ));
    let directory = tempfile::Builder::new()
        .prefix("lab-")
        .tempdir()
        .at("make a directory in", std::env::temp_dir())?;
    let mut lab = Lab::start(request, &tools, size, directory.path())?;
    let outcome = lab.follow(request, &say, started).await;
    lab.end().await;
    let status = outcome?;
    say(&format!(
        "exit status {status} after {:.1} s",
        started.elapsed().as_secs_f32()
    ));
    Ok(status)
}

fn size(request: &RunArguments) -> Result<Size, LabError> {
    let path = "/proc/meminfo";
    let meminfo = std::fs::read_to_string(path).at("read", path)?;
    let memory_mib = memory(request.memory, &meminfo);
    if memory_mib < LEAST_MEMORY_MIB.min(request.memory) {
        return Err(LabError::Missing(vec![format!(
            "memory: the nested host takes {LEAST_MEMORY_MIB} MiB or more, {memory_mib} MiB are to be had"
        )]));
    }
    Ok(Size {
        memory_mib,
        cpus: request.cpus,
    })
}

/// The processes of a run and what connects them.
struct Lab {
    directory: PathBuf,
    shares: Vec<Share>,
    qemu: Child,
    output: [Output; 2],
    report: UnixListener,
    /// Ends when the nested host is silent for too long.
    silence: JoinHandle<()>,
}

/// One of the command's two streams on its way out.
struct Output {
    task: JoinHandle<()>,
    /// The bytes that were passed on.
    passed: watch::Receiver<u64>,
}

impl Output {
    fn start(listener: UnixListener, to: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        let (count, passed) = watch::channel(0);
        let task = tokio::spawn(copy(listener, to, count));
        Self { task, passed }
    }
}

/// How a machine that is being followed ends, short of an error of the lab's.
enum Event {
    Line(Option<String>),
    Qemu(ExitStatus),
    Share(usize, ExitStatus),
    Silence,
}

impl Lab {
    fn start(
        request: &RunArguments,
        tools: &Tools,
        size: Size,
        directory: &Path,
    ) -> Result<Self, LabError> {
        let program = |source| LabError::Spawn {
            program: "lab child".into(),
            source,
        };
        let own = std::env::current_exe().map_err(program)?;
        let view = directory.join("root");
        std::fs::create_dir(&view).at("create", &view)?;
        let mut shares = vec![Share::start(
            tools,
            &own,
            "root".into(),
            What::Root(&view),
            directory,
        )?];
        let mut mounts = Vec::new();
        for (number, path) in request.shares.iter().enumerate() {
            let path = std::fs::canonicalize(path).at("find", path)?;
            let tag = format!("share{number}");
            mounts.push((tag.clone(), text(&path, "the path of a shared directory")?));
            let what = What::Directory(&path);
            shares.push(Share::start(tools, &own, tag, what, directory)?);
        }
        let modules = std::fs::canonicalize(&tools.modules).at("find", &tools.modules)?;
        let modules = text(&modules, "the path of the kernel's modules")?;
        let here = std::env::current_dir().at("find", ".")?;
        let command = script::command(
            &request.command,
            &text(&here, "the current directory")?,
            &request.environment,
            |name| std::env::var(name).ok(),
        )?;
        let configuration = script::configuration(&modules, &tools.load, &mounts);
        image::write(tools, &configuration, &command, &directory.join("initrd"))?;

        let bind = |name: &str| {
            let path = directory.join(name);
            UnixListener::bind(&path).at("bind", path)
        };
        let [stdout, stderr, report, pulse] = PORTS;
        let output = [
            Output::start(bind(stdout)?, own_output(std::io::stdout())?),
            Output::start(bind(stderr)?, own_output(std::io::stderr())?),
        ];
        let report = bind(report)?;
        let silence = Duration::from_secs(request.silence);
        let silence = pulse::watch(bind(pulse)?, silence);
        let log = directory.join("qemu.log");
        let file = std::fs::File::create(&log).at("create", &log)?;
        let qemu = Command::new(&own)
            .args(["child", "--"])
            .arg(&tools.qemu)
            .args(arguments(tools, size, &shares, directory))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(file))
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(program)?;
        Ok(Self {
            directory: directory.into(),
            shares,
            qemu,
            output,
            report,
            silence,
        })
    }

    /// Waits for the command's end, the deadline, a signal, a standstill, or the
    /// loss of a process, whichever is first.
    async fn follow(
        &mut self,
        request: &RunArguments,
        say: &impl Fn(&str),
        started: Instant,
    ) -> Result<u8, LabError> {
        let deadline = Duration::from_secs(request.deadline);
        let mut up = false;
        let outcome = tokio::select! {
            outcome = self.listen(&mut up, say, started) => Ok(outcome),
            error = interrupted() => Err(error),
            () = tokio::time::sleep(deadline) => Ok(Err(LabError::Deadline {
                deadline,
                up: false,
                tail: String::new(),
            })),
        };
        match outcome? {
            Err(LabError::Deadline { deadline, .. }) => Err(LabError::Deadline {
                deadline,
                up,
                tail: self.tails(),
            }),
            Err(LabError::Silent { .. }) => Err(LabError::Silent {
                silence: Duration::from_secs(request.silence),
                tail: self.tails(),
            }),
            outcome => outcome,
        }
    }

    async fn listen(
        &mut self,
        up: &mut bool,
        say: &impl Fn(&str),
        started: Instant,
    ) -> Result<u8, LabError> {
        let mut lines: Option<Lines<BufReader<UnixStream>>> = None;
        loop {
            let event = tokio::select! {
                biased;
                line = next_line(&self.report, &mut lines) => Event::Line(line?),
                status = self.qemu.wait() => Event::Qemu(status.map_err(|source| LabError::Wait {
                    program: "QEMU",
                    source,
                })?),
                ended = first_to_end(&mut self.shares) => {
                    let (index, status) = ended?;
                    Event::Share(index, status)
                }
                _ = &mut self.silence => Event::Silence,
            };
            match event {
                Event::Line(Some(line)) => match parse(&line)? {
                    Report::Up => {
                        *up = true;
                        say(&format!(
                            "up after {:.1} s",
                            started.elapsed().as_secs_f32()
                        ));
                    }
                    Report::Exit { status, written } => {
                        say("the command has ended");
                        self.passed_on(written).await;
                        return Ok(status);
                    }
                    Report::Failed(step) => {
                        let tail = self.tails();
                        return Err(LabError::Start { step, tail });
                    }
                },
                // QEMU takes the connection and the daemons with it.
                Event::Line(None) => {
                    let how = match tokio::time::timeout(LAST_WORDS, self.qemu.wait()).await {
                        Ok(Ok(status)) => format!("QEMU: {status}"),
                        _ => "it hung up".into(),
                    };
                    return Err(self.ended(how));
                }
                Event::Qemu(status) => return Err(self.ended(format!("QEMU: {status}"))),
                Event::Share(index, status) => {
                    let ended = tokio::time::timeout(LAST_WORDS, self.qemu.wait()).await;
                    if let Ok(Ok(status)) = ended {
                        return Err(self.ended(format!("QEMU: {status}")));
                    }
                    return Err(LabError::Share {
                        how: status.to_string(),
                        tail: tail("its log", &self.shares[index].log),
                    });
                }
                Event::Silence => {
                    return Err(LabError::Silent {
                        silence: Duration::ZERO,
                        tail: String::new(),
                    });
                }
            }
        }
    }

    /// Waits until all that the command wrote is passed on: until then QEMU may
    /// hold some of it, for a reader that takes its time.
    async fn passed_on(&mut self, written: [u64; 2]) {
        for (output, written) in self.output.iter_mut().zip(written) {
            // It fails when QEMU is gone: then nothing more will come.
            let _ = output.passed.wait_for(|passed| *passed >= written).await;
        }
    }

    fn ended(&self, how: String) -> LabError {
        let tail = self.tails();
        LabError::Ended { how, tail }
    }

    fn tails(&self) -> String {
        let mut text = tail("the console's end", &self.directory.join("console"));
        text.push_str(&tail(
            "the emulator's log",
            &self.directory.join("qemu.log"),
        ));
        for share in &self.shares {
            if share.daemon.id().is_none() {
                text.push_str(&tail("the log of an ended virtiofsd", &share.log));
            }
        }
        text.truncate(text.trim_end().len());
        text
    }

    /// Ends every process, then passes on what the command had written.
    async fn end(mut self) {
        // Each of these fails only for a process that has ended.
        let _ = self.qemu.kill().await;
        for share in &mut self.shares {
            let own_end = tokio::time::timeout(LAST_WORDS, share.daemon.wait()).await;
            if own_end.is_err() {
                let _ = share.daemon.kill().await;
            }
        }
        for output in &mut self.output {
            if tokio::time::timeout(LAST_WORDS, &mut output.task)
                .await
                .is_err()
            {
                output.task.abort();
            }
        }
    }
}

/// What the nested host says.
#[derive(Debug, PartialEq, Eq)]
enum Report {
    Up,
    Exit {
        status: u8,
        /// What was written to standard output and standard error, in bytes.
        written: [u64; 2],
    },
    Failed(String),
}

fn parse(line: &str) -> Result<Report, LabError> {
    let report = match line.split_once(' ') {
        None if line == "up" => Some(Report::Up),
        Some(("exit", numbers)) => parse_exit(numbers),
        Some(("failed", step)) => Some(Report::Failed(step.into())),
        _ => None,
    };
    report.ok_or_else(|| LabError::Malformed(line.into()))
}

fn parse_exit(numbers: &str) -> Option<Report> {
    let mut numbers = numbers.split(' ');
    let status = numbers.next()?.parse().ok()?;
    let mut bytes = || numbers.next()?.parse().ok();
    let written = [bytes()?, bytes()?];
    let exit = Report::Exit { status, written };
    numbers.next().is_none().then_some(exit)
}

/// The next line of the report; connected first, and none when QEMU is gone.
/// May be dropped and called again: nothing of a line is lost.
async fn next_line(
    listener: &UnixListener,
    lines: &mut Option<Lines<BufReader<UnixStream>>>,
) -> Result<Option<String>, LabError> {
    if lines.is_none() {
        let (stream, _) = listener.accept().await.map_err(LabError::Report)?;
        *lines = Some(BufReader::new(stream).lines());
    }
    match lines {
        Some(lines) => match lines.next_line().await {
            // A killed QEMU may reset it.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
            line => line.map_err(LabError::Report),
        },
        None => Ok(None),
    }
}

async fn first_to_end(shares: &mut [Share]) -> Result<(usize, ExitStatus), LabError> {
    let mut waits: Vec<_> = shares
        .iter_mut()
        .map(|share| Box::pin(share.daemon.wait()))
        .collect();
    std::future::poll_fn(|context| {
        for (index, wait) in waits.iter_mut().enumerate() {
            if let std::task::Poll::Ready(status) = wait.as_mut().poll(context) {
                let status = status.map_err(|source| LabError::Wait {
                    program: "virtiofsd",
                    source,
                });
                return std::task::Poll::Ready(status.map(|status| (index, status)));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// Passes on all that comes. A reader that has gone away does not stop the
/// command, as a file system that is full would not.
async fn copy(listener: UnixListener, mut to: impl AsyncWrite + Unpin, passed: watch::Sender<u64>) {
    let Ok((mut from, _)) = listener.accept().await else {
        return;
    };
    let mut buffer = vec![0; 64 << 10];
    let mut open = true;
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if open {
            let written = async {
                to.write_all(&buffer[..length]).await?;
                to.flush().await
            };
            open = written.await.is_ok();
        }
        passed.send_modify(|passed| *passed += length as u64);
    }
}

/// One of the lab's own standard streams, without the buffer of the standard
/// library.
fn own_output(stream: impl AsFd) -> Result<tokio::fs::File, LabError> {
    let descriptor = stream.as_fd().try_clone_to_owned();
    let descriptor = descriptor.at("duplicate", "a standard stream")?;
    Ok(tokio::fs::File::from_std(descriptor.into()))
}

/// Waits for a signal that asks the lab to end.
async fn interrupted() -> LabError {
    let listen = |kind| signal(kind).map_err(LabError::Signals);
    let streams = (|| {
        Ok::<_, LabError>((
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ))
    })();
    let (mut interrupt, mut terminate, mut hangup) = match streams {
        Ok(streams) => streams,
        Err(error) => return error,
    };
    let (name, number) = tokio::select! {
        _ = interrupt.recv() => ("SIGINT", 2),
        _ = terminate.recv() => ("SIGTERM", 15),
        _ = hangup.recv() => ("SIGHUP", 1),
    };
    LabError::Interrupted { name, number }
}

fn text(path: &Path, what: &'static str) -> Result<String, LabError> {
    path.to_str()
        .map(ToOwned::to_owned)
        .ok_or(LabError::NotText(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_of_three() {
        assert_eq!(parse("up").unwrap(), Report::Up);
        let exit = Report::Exit {
            status: 137,
            written: [5, 0],
        };
        assert_eq!(parse("exit 137 5 0").unwrap(), exit);
        let failed = Report::Failed("load kvm_amd".into());
        assert_eq!(parse("failed load kvm_amd").unwrap(), failed);
        let bad = [
            "",
            "exit",
            "exit 7",
            "exit 7 1",
            "exit 7 1 -2",
            "exit 7 1 2 3",
            "exit 256 1 2",
            "exit x 1 2",
            "down",
            "up x",
        ];
        for line in bad {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }
}
