//! Why the lab could not do what it was asked to.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A failure of the lab itself; what the command does is an exit status.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LabError {
    /// Something has to be installed or built first.
    #[error("the nested host cannot run here:{}", .0.iter().fold(String::new(), |text, missing| text + "\n  - " + missing))]
    Missing(Vec<String>),
    /// A file or directory.
    #[error("{action} {path}")]
    Path {
        /// The call, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A mount of the child's own view of the root.
    #[error("{action} {path}")]
    Mount {
        /// The call, as a verb.
        action: &'static str,
        /// The mount point.
        path: PathBuf,
        /// The system's answer.
        source: rustix::io::Errno,
    },
    /// The initrd cannot be put together.
    #[error("collect the nested host's kernel modules")]
    Modules(#[from] rootfs_builder::modules::ModuleError),
    /// The initrd cannot be put together.
    #[error("put the nested host's initrd together")]
    Archive(#[from] rootfs_builder::archive::ArchiveError),
    /// The initrd cannot be put together.
    #[error("put the nested host's initrd together")]
    ArchivePath(#[from] rootfs_builder::archive::PathError),
    /// A variable that a shell cannot set.
    #[error("pass the variable {0:?} on: it is no name of a variable")]
    Variable(String),
    /// Something the command needs is not UTF-8 text.
    #[error("pass {0} on: it is not UTF-8 text")]
    NotText(&'static str),
    /// The runtime.
    #[error("start the event loop")]
    Runtime(#[source] io::Error),
    /// Signals cannot be waited for.
    #[error("wait for signals")]
    Signals(#[source] io::Error),
    /// The processes that make up the lab.
    #[error("start {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A process of the lab cannot be waited for.
    #[error("wait for {program}")]
    Wait {
        /// The program.
        program: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The connection on which the nested host reports.
    #[error("read the nested host's report")]
    Report(#[source] io::Error),
    /// A report that is none.
    #[error("read the nested host's report: {0:?} is none")]
    Malformed(String),
    /// A step of the nested host's start.
    #[error("start the nested host: {step}\n{tail}")]
    Start {
        /// What failed.
        step: String,
        /// The end of the console.
        tail: String,
    },
    /// The machine is gone and the command had not ended.
    #[error("the nested host ended before the command did ({how})\n{tail}")]
    Ended {
        /// The emulator's exit status.
        how: String,
        /// The end of the console and of the emulator's log.
        tail: String,
    },
    /// A file system daemon is gone and the machine is not.
    #[error("virtiofsd ended before the command did ({how})\n{tail}")]
    Share {
        /// Its exit status.
        how: String,
        /// The end of its log.
        tail: String,
    },
    /// The time is up.
    #[error("the deadline of {} s has passed{}\n{tail}", .deadline.as_secs(), if *.up { ", the command was running" } else { ", the nested host was not up yet" })]
    Deadline {
        /// What was allowed.
        deadline: Duration,
        /// Whether the command had been started.
        up: bool,
        /// The end of the console.
        tail: String,
    },
    /// It answers nothing: an emulated machine can stand still for good.
    #[error("the nested host has given no sign of life for {} s\n{tail}", .silence.as_secs())]
    Silent {
        /// What was allowed.
        silence: Duration,
        /// The end of the console.
        tail: String,
    },
    /// A signal.
    #[error("ended by {name}")]
    Interrupted {
        /// Its name.
        name: &'static str,
        /// Its number.
        number: u8,
    },
}

/// An error and what caused it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// Puts the name of a file to what the system answers.
pub(crate) trait At<T> {
    /// The value, or an error that names the call and the file.
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, LabError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, LabError> {
        self.map_err(|source| LabError::Path {
            action,
            path: path.into(),
            source,
        })
    }
}
