//! What the fuzz targets share, and the guest's side of them.
//!
//! The conversions of `guest-agent` are private to that program. Its modules
//! are compiled into this crate as well, from the same files, so that nothing
//! of the program is made public for the sake of a fuzzer.
//!
//! A panic, an input that takes longer than `make fuzz` allows, and memory
//! that is lost or asked for without measure are failures.

#![expect(
    dead_code,
    reason = "most of the agent's program is not what is fuzzed"
)]

#[path = "../../../guest-agent/src/rpc/convert/arbitrary.rs"]
mod arbitrary;
#[path = "../../../guest-agent/src/rpc/mod.rs"]
mod rpc;
#[path = "../../../guest-agent/src/service/mod.rs"]
mod service;

pub mod containers;
pub mod replies;
pub mod requests;
pub mod seeds;
pub mod structure;
