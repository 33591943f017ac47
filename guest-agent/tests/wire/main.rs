//! The agent driven as a client would drive it: over its Unix socket, in
//! mount, pid and network namespaces of its own. Each test has an agent of its
//! own, and the root file system of its containers is a busybox.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the functions beside the tests are tests as well"
)]

mod harness;

mod concurrency;
mod control;
mod files;
mod life;
mod machine;
mod ordinary;
mod questions;
