//! The process that serves a directory of the host to a guest: the crate
//! virtiofsd, one for each directory of a VM.
//!
//! It is started as a VMM is, and confined as its VM's VMM is, with a user of its
//! own where that has one. By itself it would change its root and run as root,
//! to act for every user of the guest; here it has no capability, and one user:
//! all of the guest's users are that one to the host, which the guest sees as
//! root. Where root shares the directory, that user is its owner there.
//!
//! It is handed a socket that listens already: the VMM connects at once and waits
//! in it. When the VMM is gone it ends by itself; it is killed all the same, and
//! a VM whose virtiofsd has ended is killed, for its guest would wait for ever.
//!
//! QEMU's program of the same name, in its package until 8.0, is none of these:
//! it serves as root only.

mod daemon;
mod probe;

pub use probe::{Virtiofsd, at, find};

pub(crate) use daemon::{Daemons, Offer, Served, exited, kill, socket_path};
