//! What the bare measure of a restore is given, whatever the VMM; the program
//! that takes it is `restore-floor`. A driver's `restore_input` makes it.

use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::qemu;

/// One restore, to be done with as little as possible around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreInput {
    /// By QEMU.
    Qemu(Box<qemu::RestoreInput>),
    /// By a VMM that is driven over HTTP.
    Rest(RestInput),
}

/// A restore by a VMM that is driven over HTTP: its process, and what it is
/// sent, to the byte. All files are there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestInput {
    /// The VMM.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its standard output and error.
    pub log: PathBuf,
    /// Its control socket.
    pub monitor: PathBuf,
    /// The number under which it inherits its control socket, bound for it; none
    /// where it binds the socket itself.
    pub listener: Option<RawFd>,
    /// What else it inherits.
    pub inherited: Vec<Inherited>,
    /// The requests that make a paused VM of the saved state.
    pub load: Vec<String>,
    /// The request that resumes it.
    pub resume: String,
}

/// A descriptor that a VMM inherits under a number of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inherited {
    /// The number.
    pub number: RawFd,
    /// What it is.
    pub what: What,
}

/// What a VMM inherits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A file or a directory, opened for reading.
    Read(PathBuf),
    /// A file, opened for reading and writing.
    ReadWrite(PathBuf),
    /// The end of a pipe that is written to. Nobody reads the other.
    Pipe,
}
