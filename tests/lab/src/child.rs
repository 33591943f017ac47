//! What runs between the lab and the programs it starts.
//!
//! The lab starts itself again as `lab child`, which arranges to be killed when
//! the lab is gone, however it went, and then becomes the program.

use crate::arguments::ChildArguments;
use crate::error::{At, LabError};
use crate::mounts;
use rustix::process::{Signal, set_parent_process_death_signal};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Becomes the program; comes back only with a reason why not.
pub(crate) fn become_program(arguments: &ChildArguments) -> LabError {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return LabError::Signals(error.into());
    }
    if let Some(directory) = &arguments.root_view
        && let Err(error) = mounts::bind_root(directory)
    {
        return error;
    }
    let Some((program, rest)) = arguments.command.split_first() else {
        return LabError::NotText("an empty command");
    };
    let error = Command::new(program).args(rest).exec();
    match Err::<(), _>(error).at("start", program) {
        Err(error) => error,
        Ok(()) => LabError::NotText("an impossible success"),
    }
}
