//! The drivers' requests, checked without the VMMs: conversations that were
//! recorded with the real ones are played back by a stand-in, which accepts no
//! request that is another.
//!
//! A recording is made in the lab: `RECORD=DIRECTORY` has the lab's tests of a
//! driver write it there.

#![expect(
    clippy::unwrap_used,
    reason = "a test that can't go on fails there, also in what tests share"
)]

mod cloud_hypervisor;
#[path = "../lab_cloud_hypervisor/scenario.rs"]
mod cloud_hypervisor_scenario;
mod firecracker;
#[path = "../lab_firecracker/scenario.rs"]
mod firecracker_scenario;
mod playback;
mod stand_in;
