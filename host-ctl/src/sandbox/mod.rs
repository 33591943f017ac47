//! A sandbox: one VM, its agent and its containers, from cold boot or from a
//! template to its end.
//!
//! ```text
//!             handed over              paused              saved
//!  [created] -------------> [running] --------> [paused] --------> [saved]
//!      |                        |    <--------     |                  |
//!      |                        |     resumed      |                  |
//!      |                        | exited           |                  |
//!      +------------------------+--------+---------+------------------+
//!                                        v
//!                                    [stopped]
//! ```
//!
//! *created*: the record is on disk, the recipe ([`boot`] or [`restore`]) is
//! at work; a recipe that fails leaves *stopped*. *running*: handed over.
//! *paused*: the vCPUs stand still on purpose. *saved*: its memory was written
//! out and never runs again on those files. *stopped*: no VM, final.
//!
//! [`state`] is that drawing as a pure function, [`record`] what is kept on
//! disk of it, [`agent`] how an agent is reached at all, [`link`](mod@link) the
//! one connection to it, [`console`] what the guest says.

pub mod agent;
pub mod boot;
pub mod console;
pub mod containers;
pub mod driver;
pub mod identity;
pub mod limits;
pub mod link;
mod made;
pub mod network;
pub mod record;
pub mod restore;
mod silence;
pub mod spec;
#[cfg(test)]
pub(crate) mod stand_in;
pub mod state;
pub mod vmm;

pub use made::{Made, Moments, Site};
