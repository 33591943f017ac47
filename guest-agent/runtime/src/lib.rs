//! What the guest runs and how: containers and their processes, cgroups,
//! storage, network, and the steps that make a clone unique.
//!
//! No protobuf type comes in here, and nothing here asks for authorisation:
//! the one caller is the agent's service, which does. [`container`] is the
//! place to start reading.

pub mod container;

pub mod cgroup;
pub mod process;
pub mod remove;

pub mod network;
pub mod shared_files;
pub mod storage;

mod blocking;
pub mod clock;
pub mod entropy;
pub mod guest_file;
pub mod hostname;
pub mod hotplug;
pub mod kernel_word;
pub mod memory;
pub mod metrics;

mod ids;
mod mount_options;

pub use blocking::blocking;
pub use ids::{ContainerId, ExecId, IdError};
