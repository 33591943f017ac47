//! What the bare measure of a restore needs to do the same one.

use std::os::fd::RawFd;
use std::path::Path;

use super::CloudHypervisor;
use super::config::{Surroundings, restore as restore_request, restored_vm};
use super::files::{Files, SavedState};
use super::launch::arguments;
use super::view::{Start, View};
use super::vmm::path;
use crate::error::Error;
use crate::floor::RestInput;
use crate::rest::Request;
use crate::spec::VmSpec;

/// The number of the control socket: out of the way of what the program opens.
const SOCKET: RawFd = 900;

impl CloudHypervisor {
    /// What the bare measure of a restore needs to do the same one. Makes the
    /// VM's directory, and in it what the VMM reads.
    ///
    /// # Errors
    /// What the spec asks for and there is not, and any file that can't be read
    /// or made.
    pub fn restore_input(&self, state: &Path, spec: &VmSpec) -> Result<RestInput, Error> {
        self.check(spec)?;
        if !spec.nics.is_empty() || !spec.directories.is_empty() {
            let more = "a bare restore with an interface or a directory";
            return Err(Error::Unsupported(more));
        }
        let mode = self.memory_mode(None, &spec.memory.backing)?;
        let files = Files::of(&spec.monitor);
        files.create()?;
        let around = Surroundings {
            files: &files,
            confines_files: self.confines_files,
        };
        let config = restored_vm(spec, around)?;
        let state = SavedState::read(state)?;
        let view = View::of(spec, &files, Start::Restore(&state), None)?;
        files.prepare_restore(&state, &config, &view, None)?;
        let load = restore_request(spec, &files.restore(), mode)?;
        Ok(RestInput {
            program: self.program.clone(),
            arguments: arguments(SOCKET).into(),
            log: spec.log.clone(),
            monitor: spec.monitor.clone(),
            listener: Some(SOCKET),
            inherited: Vec::new(),
            load: vec![Request::put(path::RESTORE, Some(load)).text()],
            resume: Request::put(path::RESUME, None).text(),
        })
    }
}
