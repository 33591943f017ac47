//! What the bare measure of a restore needs to do the same one.

use std::path::Path;

use serde_json::json;

use super::launch::{agent_of, place};
use super::request::{
    AGENT_DIRECTORY, CONSOLE, FIRST_DISK, MEMORY, MONITOR_DIRECTORY, STATE, arguments, restore,
};
use super::{Firecracker, STATE_FILE, check_restored_memory};
use crate::error::Error;
use crate::floor::{Inherited, RestInput, What};
use crate::rest::Request;
use crate::spec::{Backing, VmSpec};

impl Firecracker {
    /// What the bare measure of a restore needs to do the same one.
    ///
    /// # Errors
    /// What the spec asks for and Firecracker has not.
    pub fn restore_input(&self, state: &Path, spec: &VmSpec) -> Result<RestInput, Error> {
        self.check(spec)?;
        check_restored_memory(None, &spec.memory.backing)?;
        let (directory, name) = place("monitor", &spec.monitor)?;
        let (agent_directory, agent) = agent_of(spec)?;
        let read = |path: &Path| What::Read(path.to_owned());
        let mut inherited = vec![
            (MONITOR_DIRECTORY, read(directory)),
            (AGENT_DIRECTORY, read(agent_directory)),
            (CONSOLE, What::Pipe),
            (STATE, read(&state.join(STATE_FILE))),
        ];
        if let Backing::FileBacked { path, .. } = &spec.memory.backing {
            inherited.push((MEMORY, read(path)));
        }
        for (disk, number) in spec.disks.iter().zip(FIRST_DISK..) {
            let what = if disk.readonly {
                read(&disk.path)
            } else {
                What::ReadWrite(disk.path.clone())
            };
            inherited.push((number, what));
        }
        let load = restore(spec, agent)?;
        let resume = Request::patch("/vm", json!({ "state": "Resumed" }));
        Ok(RestInput {
            program: self.program.clone(),
            arguments: arguments(spec, name),
            log: spec.log.clone(),
            monitor: spec.monitor.clone(),
            listener: None,
            inherited: inherited
                .into_iter()
                .map(|(number, what)| Inherited { number, what })
                .collect(),
            load: load.iter().map(Request::text).collect(),
            resume: resume.text(),
        })
    }
}
