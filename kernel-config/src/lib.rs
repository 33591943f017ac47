//! What the guest needs of a kernel, and a check of a kernel's configuration
//! against it.
//!
//! [`requirement::GUEST`] is the list, one line of reason each. [`check`] holds
//! a kernel's configuration file against it. The modules the guest loads, and
//! those no guest image may carry, are here too: rootfs-builder asks for them.

pub mod check;
pub mod config;
pub mod requirement;

pub use check::{Report, check};
pub use config::{ConfigError, KernelConfig, Setting};
pub use requirement::{Forbidden, Necessity, Presence, Requirement, modules_in_load_order};
