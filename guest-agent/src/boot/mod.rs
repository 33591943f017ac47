//! From the kernel's first exec to an agent that serves.
//!
//! `init` (PID 1: mounts, modules, switch of the root, reaping) starts
//! `serve` (the agent: configuration, transports, services).

pub(crate) mod configuration;
pub(crate) mod init;
pub(crate) mod mounts;
pub(crate) mod serve;
