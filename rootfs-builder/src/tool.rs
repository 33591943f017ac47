//! Runs a program of the distribution that makes file systems: with a deadline,
//! and with what it said where it fails.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// The most of a tool's complaints that is shown, in bytes.
const MAX_COMPLAINT: usize = 4 << 10;

/// How long a tool that is told to end may take for it: mmdebstrap ends its
/// children then, and removes what it has unpacked.
const GRACE: Duration = Duration::from_secs(10);

/// A program, and what it is run with.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Its name, looked for on PATH.
    pub name: &'static str,
    /// The distribution's package that has it.
    pub package: &'static str,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// What is added to its environment.
    pub environment: Vec<(&'static str, String)>,
}

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It cannot be started: mostly, it is not installed.
    #[error("start {name} (package {package})")]
    Start {
        /// The program.
        name: &'static str,
        /// Its package.
        package: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// It took too long.
    #[error("{0} was killed after {1:?}")]
    Deadline(&'static str, Duration),
    /// It failed.
    #[error("{name}: {status}: {complaint}")]
    Failed {
        /// The program.
        name: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said, escaped.
        complaint: String,
    },
    /// A call failed.
    #[error("{0}")]
    Call(&'static str, #[source] io::Error),
}

impl Tool {
    /// Runs it to its end.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub fn run(&self, deadline: Duration) -> Result<(), ToolError> {
        let mut command = command(self.name);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        let complaints = buffer(self.name)?;
        let output = copy(&complaints)?;
        finish(
            (self.name, self.package),
            command,
            output,
            complaints,
            deadline,
        )
    }
}

/// Which of a program's streams are listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// Its output.
    Output,
    /// Its output and its complaints.
    Both,
}

/// Runs a program to its end, and returns at most `limit` bytes of what it said.
///
/// # Errors
/// See [`ToolError`].
pub fn listen(
    (name, package): (&'static str, &'static str),
    command: Command,
    streams: Streams,
    deadline: Duration,
    limit: usize,
) -> Result<Vec<u8>, ToolError> {
    let mut said = buffer(name)?;
    let complaints = match streams {
        Streams::Output => buffer(name)?,
        Streams::Both => copy(&said)?,
    };
    finish((name, package), command, copy(&said)?, complaints, deadline)?;
    let mut bytes = Vec::new();
    said.rewind()
        .and_then(|()| said.take(limit as u64).read_to_end(&mut bytes))
        .map_err(|source| ToolError::Call("read what it said", source))?;
    Ok(bytes)
}

/// Memory to write to, not a pipe: nothing has to drain it while we wait.
fn buffer(name: &'static str) -> Result<File, ToolError> {
    rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(|source| ToolError::Call("memfd_create", source.into()))
}

fn copy(file: &File) -> Result<File, ToolError> {
    let copy = file.try_clone();
    copy.map_err(|source| ToolError::Call("duplicate a descriptor", source))
}

fn finish(
    (name, package): (&'static str, &'static str),
    mut command: Command,
    output: File,
    mut complaints: File,
    deadline: Duration,
) -> Result<(), ToolError> {
    command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(copy(&complaints)?);
    let mut child = command.spawn().map_err(|source| ToolError::Start {
        name,
        package,
        source,
    })?;
    let status = wait(name, &mut child, deadline)?;
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    complaints
        .rewind()
        .and_then(|()| complaints.read_to_end(&mut text))
        .map_err(|source| ToolError::Call("read what it said", source))?;
    let tail = &text[text.len().saturating_sub(MAX_COMPLAINT)..];
    Err(ToolError::Failed {
        name,
        status,
        complaint: tail.trim_ascii().escape_ascii().to_string(),
    })
}

/// PATH, and where distributions keep such tools out of users' way.
#[must_use]
pub fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// A program that is looked for on [`search_path`].
#[must_use]
pub fn command(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    // LC_ALL: what it sorts by, and says.
    command.env("PATH", search_path()).env("LC_ALL", "C");
    command
}

/// Waits for the child's end. At the deadline it is told to end, and killed
/// where it does not.
fn wait(
    name: &'static str,
    child: &mut Child,
    deadline: Duration,
) -> Result<ExitStatus, ToolError> {
    let ended = end_within(child, deadline);
    if ended.is_err() {
        // Nobody else waits for it. One that is gone is as good as killed.
        let _ = child.kill();
    }
    let status = child
        .wait()
        .map_err(|source| ToolError::Call("wait", source));
    match ended {
        Ok(true) => status,
        Ok(false) => Err(ToolError::Deadline(name, deadline)),
        Err(error) => Err(error),
    }
}

/// Whether it ends by itself in time; else it has been told to end, or killed.
fn end_within(child: &mut Child, deadline: Duration) -> Result<bool, ToolError> {
    let call = |call| move |source| ToolError::Call(call, source);
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())
        .map_err(|source| call("pidfd_open")(source.into()))?;
    let in_time = ends_within(pidfd.as_fd(), deadline)?;
    if !in_time {
        pidfd_send_signal(&pidfd, Signal::TERM)
            .map_err(|source| call("pidfd_send_signal")(source.into()))?;
        if !ends_within(pidfd.as_fd(), GRACE)? {
            child.kill().map_err(call("kill"))?;
        }
    }
    Ok(in_time)
}

fn ends_within(process: BorrowedFd<'_>, limit: Duration) -> Result<bool, ToolError> {
    let timeout = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(source) => return Err(ToolError::Call("poll", source.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells a test's own process from that of all tests.
    const FEW: &str = "TARDIGRADE_TEST_FEW_DESCRIPTORS";

    fn shell(script: &str) -> Tool {
        Tool {
            name: "sh",
            package: "dash",
            arguments: vec!["-c".into(), script.into()],
            environment: vec![("WORD", "hello".into())],
        }
    }

    #[test]
    fn a_child_is_killed_at_the_deadline() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let error = wait("sleep", &mut child, Duration::ZERO).unwrap_err();
        assert!(matches!(error, ToolError::Deadline(..)), "{error}");
        // Reaped as well: its end is known without waiting.
        assert!(child.try_wait().unwrap().is_some());
    }

    #[test]
    fn a_child_that_cannot_be_followed_is_killed_and_reaped() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        // Its limit of descriptors is a process's own.
        if std::env::var_os(FEW).is_none() {
            let own = std::env::current_exe().unwrap();
            let again = Command::new(own)
                .args([
                    "--exact",
                    "tool::tests::a_child_that_cannot_be_followed_is_killed_and_reaped",
                ])
                .env(FEW, "1")
                .output()
                .unwrap();
            assert!(again.status.success(), "{again:?}");
            return;
        }
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let limit = getrlimit(Resource::Nofile);
        let none = Rlimit {
            current: Some(0),
            ..limit
        };
        setrlimit(Resource::Nofile, none).unwrap();
        let error = wait("sleep", &mut child, Duration::MAX);
        setrlimit(Resource::Nofile, limit).unwrap();
        let error = error.unwrap_err();
        assert!(matches!(error, ToolError::Call("pidfd_open", _)), "{error}");
        assert!(child.try_wait().unwrap().is_some());
    }

    #[test]
    fn a_tool_that_is_too_slow_ends_its_own_children_first() {
        let script = "sleep 1000 & trap 'kill $!; echo ended; exit' TERM; echo begun; wait";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = child.stdout.take().unwrap();
        said.read_exact(&mut [0; 6]).unwrap();
        wait("sh", &mut child, Duration::ZERO).unwrap_err();
        // Its child had the same pipe: that ends with the last of them.
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "ended\n");
    }

    #[test]
    fn what_a_failing_tool_said_is_told_escaped() {
        let error = shell("printf '%s\\033[2J' \"$WORD\" >&2; exit 3").run(Duration::MAX);
        let text = error.unwrap_err().to_string();
        assert!(text.ends_with(": 3: hello\\x1b[2J"), "{text}");
        shell("exit 0").run(Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn what_a_tool_said_is_heard_up_to_a_limit() {
        let say = |streams, limit| {
            let mut command = command("sh");
            command.args(["-c", "echo output; echo complaint >&2"]);
            let said = listen(("sh", "dash"), command, streams, Duration::MAX, limit);
            String::from_utf8(said.unwrap()).unwrap()
        };
        assert_eq!(say(Streams::Output, 100), "output\n");
        assert_eq!(say(Streams::Both, 100), "output\ncomplaint\n");
        assert_eq!(say(Streams::Output, 3), "out");
    }

    #[test]
    fn a_tool_that_is_not_there_is_named_with_its_package() {
        let mut tool = shell("");
        tool.name = "no-such-tool";
        let text = tool.run(Duration::MAX).unwrap_err().to_string();
        assert_eq!(text, "start no-such-tool (package dash)");
    }
}
