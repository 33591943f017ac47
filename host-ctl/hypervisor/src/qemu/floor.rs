//! What the bare measure of a restore is given; the program that takes it is
//! `restore-floor`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::command_line::Platform;
use crate::spec::VmSpec;

/// One restore, to be done with as little as possible around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreInput {
    /// QEMU.
    pub program: PathBuf,
    /// What its command line is for.
    pub platform: Platform,
    /// The directory of the saved state.
    pub state: PathBuf,
    /// The VM to restore, with the sockets and the memory of its own.
    pub spec: VmSpec,
}
