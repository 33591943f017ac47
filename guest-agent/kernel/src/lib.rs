//! System calls of the guest that no safe crate offers, and the few that
//! belong beside them. All unsafe code of the guest is here.
//!
//! Every function does one call (or one inseparable group) and reports its
//! error untouched; policy is the caller's.

#![expect(
    unsafe_code,
    reason = "this package is where the guest's unsafe code lives"
)]

pub mod bpf;
pub mod capability;
pub mod clock;
pub mod clone;
pub mod descriptor;
pub mod device_mapper;
pub mod keyring;
pub mod module;
pub mod mount;
pub mod namespace;
pub mod random;
pub mod readiness;
pub mod reboot;
pub mod scheduling;
pub mod seccomp;
pub mod signal;
pub mod swap;
pub mod user_namespace;
