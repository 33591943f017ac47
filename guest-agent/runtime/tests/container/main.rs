//! Containers, made for real and looked at from the inside.

#![expect(
    clippy::unwrap_used,
    reason = "the functions beside the tests are tests as well"
)]

mod fixture;

mod devices;
mod exec;
mod freeze;
mod hooks;
mod life;
mod mounts;
mod namespaces;
mod privileges;
mod promptness;
mod rollback;
mod seccomp;
mod terminal;
