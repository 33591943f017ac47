//! From the kernel's first exec to an agent that serves.
//!
//! `init` (PID 1: mounts, modules, the root, reaping) starts `serve` (the agent:
//! configuration, transports, services). The root is a tmpfs, or the disk that
//! the command line names (`root_disk`, over a device of `mapping`); `switch`
//! moves there.

pub(crate) mod command_line;
pub(crate) mod configuration;
pub(crate) mod init;
mod mapping;
mod memory_words;
pub(crate) mod mounts;
mod root_disk;
pub(crate) mod serve;
mod switch;
