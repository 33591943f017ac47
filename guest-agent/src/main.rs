//! The agent inside the microVM.
//!
//! One binary, five roles, picked by what it is started as:
//! - PID 1 (`/init` of an initrd, `/sbin/init` of a root disk): mounts, loads modules, reaps; runs no
//!   agent logic ([`boot::init`]);
//! - `guest-agent agent`, its child: serves the RPCs ([`boot::serve`]);
//! - `guest-agent container-stage`: a container's child before its `execve`;
//! - `guest-agent compact-memory`: has the kernel put free memory together, and
//!   ends with it;
//! - `guest-agent --server ADDRESS`: an ordinary process on a development
//!   machine, where calls that would change the machine are refused.

mod boot;
mod rpc;
mod service;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

/// Keeps the memory it has: musl's own gives pages back as soon as it can, and
/// to map and fault them in again is a good part of what a clone that wakes up
/// has to do.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    let role = arguments.next();
    if role.as_deref() == Some(guest_runtime::container::STAGE_WORD.as_ref()) {
        guest_runtime::container::stage_main();
    }
    if role.as_deref() == Some(guest_runtime::memory::COMPACT_WORD.as_ref()) {
        return guest_runtime::memory::compact_main();
    }
    if rustix::process::getpid().is_init() {
        return boot::init::run(name);
    }
    boot::serve::run(role, arguments)
}
