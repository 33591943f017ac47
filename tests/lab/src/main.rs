//! `lab`: runs a command in the nested host.
//!
//! The nested host is a machine that QEMU emulates, AMD's virtualisation
//! included, so that /dev/kvm, /dev/vhost-vsock and taps are real in it
//! whatever the machine below can do. It boots the distribution's cloud kernel
//! and sees the root of this machine through virtio-fs, read-only, below an
//! overlay in memory: the command finds every program and file where it is
//! here, and what it writes vanishes, except in the shared directories.
//!
//! Exit status: the command's own; 125 when the lab could not run it to its
//! end, 128 and the number of a signal that ended the lab.

mod arguments;
mod child;
mod console;
mod error;
mod image;
mod machine;
mod mounts;
mod pulse;
mod run;
mod script;
mod share;
mod tools;

use arguments::{Arguments, Command};
use clap::Parser;
use error::{LabError, chain};
use std::process::ExitCode;
use std::time::Duration;

/// The lab's own failures.
const FAILED: u8 = 125;
/// The emulated machine's failure: the command may do better on the next.
const STOOD_STILL: u8 = 124;
/// How long what is still unread on this side may hold up the end.
const SHUTDOWN: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Child(child) => fail(&child::become_program(&child)),
        Command::Check(check) => match tools::Tools::find(&check.kernel) {
            Ok(tools) => {
                println!("{tools}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error),
        },
        Command::Run(request) => {
            let runtime = match tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
            {
                Ok(runtime) => runtime,
                Err(source) => return fail(&LabError::Runtime(source)),
            };
            let outcome = runtime.block_on(run::run(&request));
            runtime.shutdown_timeout(SHUTDOWN);
            match outcome {
                Ok(status) => ExitCode::from(status),
                Err(error) => fail(&error),
            }
        }
    }
}

fn fail(error: &LabError) -> ExitCode {
    eprintln!("lab: {}", chain(error));
    ExitCode::from(match error {
        LabError::Interrupted { number, .. } => 128 + number,
        LabError::Silent { .. } => STOOD_STILL,
        _ => FAILED,
    })
}
