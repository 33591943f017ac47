//! Programs that stand in for a VMM: copies of `stand-in-vmm`, each with its
//! order beside it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// What stands for the directory of a test's VMs in a recording.
const RUN: &str = "$RUN";

/// A program to give to a driver.
pub(crate) struct StandIn {
    pub(crate) program: PathBuf,
}

impl StandIn {
    /// One that follows this order; `run` is the directory of the VMs' files.
    pub(crate) fn with(directory: &Path, run: &Path, mode: &Value) -> Self {
        let program = directory.join("vmm");
        fs::copy(env!("CARGO_BIN_EXE_stand-in-vmm"), &program).unwrap();
        let order = json!({ "mode": mode, "names": [[run, RUN]] });
        fs::write(directory.join("vmm.json"), order.to_string()).unwrap();
        Self { program }
    }

    /// A file it has left, by what comes after the number of its start.
    pub(crate) fn left(&self, start: usize, end: &str) -> PathBuf {
        self.program.with_file_name(format!("vmm.{start}.{end}"))
    }
}
