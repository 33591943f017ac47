//! The host side of Tardigrade: boots, freezes and clones microVMs.
//!
//! The program `host-ctl` is a thin command line over these modules.

pub mod cli;
pub mod config;
pub mod host;
pub mod sandbox;
pub mod store;
pub mod supervisor;
pub mod template;
pub mod timeline;

#[cfg(test)]
mod own_root;
