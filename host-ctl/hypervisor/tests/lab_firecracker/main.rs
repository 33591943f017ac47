//! The Firecracker driver against the real one, in the nested host: KVM is real
//! there, and emulated, so that a guest takes seconds.
//!
//! Needed are Firecracker, a guest kernel as an ELF image and an initrd with the
//! agent ($TARDIGRADE_TEST_VMLINUX and $TARDIGRADE_INITRD, or target/guest of
//! the workspace). A test that lacks one of them fails and says so.
//!
//! `RECORD=DIRECTORY` has the conversations with it written there, for
//! `tests/recordings`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that can't go on fails there, also in what tests share"
)]

mod firecracker;
mod lab;
mod scenario;
#[path = "../replay/stand_in.rs"]
mod stand_in;
