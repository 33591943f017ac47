//! What is added to the guest while it runs: processors and memory to be taken
//! into use, devices that are waited for.

mod online;
mod pci;
mod swap;
mod uevent;

pub use online::{online_memory, online_processors, probe_memory};
pub use pci::wait_for_link;
pub use swap::{add_swap, add_swap_device};

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why the guest has not more of something.
#[derive(Debug, thiserror::Error)]
pub enum HotplugError {
    /// A file or device cannot be used.
    #[error("{call} {}", path.display())]
    File {
        /// What was tried.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The processors did not come.
    #[error("{online} of {wanted} processors are online after {after:?}")]
    Processors {
        /// How many there are.
        online: usize,
        /// How many there are to be.
        wanted: usize,
        /// How long was waited.
        after: Duration,
    },
    /// The device did not come.
    #[error("no device of class {class} at PCI path {path} after {after:?}")]
    Device {
        /// What it is to be, by the kernel's word for it.
        class: &'static str,
        /// Its slots, as text.
        path: String,
        /// How long was waited.
        after: Duration,
    },
}

fn failed(call: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> HotplugError {
    let path = path.into();
    move |source| HotplugError::File { call, path, source }
}
