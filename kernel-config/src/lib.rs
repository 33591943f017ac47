//! What the guest needs of a kernel, and a check of a kernel's configuration
//! against it.
//!
//! [`requirement::GUEST`] is the list, one line of reason each. [`check`] holds
//! a kernel's configuration file against it. The modules the guest loads, and
//! those no guest image may carry, are here too: rootfs-builder asks for them.
//! [`fragment`] is what our own kernel is asked to have, and [`settled`] tells
//! whether it has. [`image::vmlinux`] unpacks a kernel for a VMM that does not.
//! [`nested_host::NESTED_HOST`] is the list of the machine in which the tests
//! run guests for real.

pub mod check;
pub mod config;
pub mod fragment;
pub mod image;
pub mod nested_host;
pub mod requirement;
pub mod settled;

pub use check::{Report, check, check_nested_host};
pub use config::{ConfigError, KernelConfig, Setting};
pub use fragment::{Architecture, Composition, FragmentError};
pub use image::{ImageError, vmlinux};
pub use requirement::{
    Forbidden, Necessity, Presence, Requirement, modules_in_load_order, nested_host_modules,
};
