//! The Cloud Hypervisor driver against the real VMM. It needs KVM that runs
//! guests, so these run in the nested host: `make test-lab`.
//!
//! A guest kernel and an initrd with the agent are needed: $TARDIGRADE_KERNEL
//! and $TARDIGRADE_INITRD, or target/guest of the workspace. Run by hand without
//! one of all these, each test fails and says what is missing.
//!
//! `RECORD=DIRECTORY` has the conversations with the VMM written there, for
//! `tests/recordings`.

#![expect(
    clippy::unwrap_used,
    reason = "a test that can't go on fails there, also in what tests share"
)]

mod agent;
mod cloud_hypervisor;
mod scenario;
#[path = "../replay/stand_in.rs"]
mod stand_in;
