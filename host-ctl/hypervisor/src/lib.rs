//! The host's side of a virtual machine: generic verbs over a VMM, and the
//! drivers that carry them out.
//!
//! A driver knows nothing of templates and clones. A template is boot (memory
//! in a shared file), pause, save, kill; a clone is restore (the same file,
//! mapped privately), resume. What a driver cannot do its [`Capabilities`] say,
//! and asking for it is an error, never something silently left out.
//!
//! Every verb has a deadline. A verb whose future is dropped leaves the VM as
//! its documentation says: `boot` and `restore` leave no process and no socket,
//! the verbs of a VM leave it running or paused, which [`Vm::info`] tells.

mod adopt;
mod answer;
pub mod cloud_hypervisor;
mod error;
pub mod firecracker;
pub mod floor;
mod log;
mod process;
mod program;
pub mod qemu;
mod rest;
mod socket;
mod span;
mod spec;
pub mod virtiofsd;
mod vm;

pub use adopt::adopt;
pub use error::{Error, MonitorError};
pub use process::{
    Confined, Confinement, create_passing_tap, create_tap, open_tap, starts_in_cgroups,
};
pub use program::printed;
pub use span::Span;
pub use spec::{
    AgentDevice, Backing, Disk, Memory, MemoryMode, Nic, NicBackend, Rebind, SharedDirectory,
    VmSpec,
};
pub use vm::{
    Accelerator, AgentDevices, Capabilities, Deadlines, DirectoryRecord, Hypervisor, Saved, Vm,
    VmExit, VmInfo, VmRecord, VmState,
};
