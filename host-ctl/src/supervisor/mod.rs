//! One small process a sandbox: it owns the VMM, the link to the agent, the
//! console and the logs, and every command is its client.
//!
//! [`process`] is that process: it takes an [`order`] (or adopts a VM whose
//! supervisor died), reports how that went, and then is a [`server`] that
//! speaks the [`control`] protocol until the VM has ended. [`client`] is what
//! commands use; it revives a supervisor that is dead. Nothing in the guest
//! notices either death or revival.

pub mod client;
pub mod control;
pub mod line;
mod make;
pub mod order;
pub mod output;
pub mod process;
mod save;
pub mod server;

pub use make::CLONE_STEPS;
