//! The driver against a real QEMU, under emulation.
//!
//! A guest kernel is needed: $TARDIGRADE_TEST_KERNEL, or target/guest/vmlinuz of
//! the workspace. Without one, or without QEMU, each test says that it was
//! skipped; with $REQUIRE_ALL=1 it fails instead.

#![expect(
    clippy::unwrap_used,
    reason = "a test that can't go on fails there, also in what tests share"
)]

mod booting;
mod lab;
mod measuring;
mod owning;
mod saving;
