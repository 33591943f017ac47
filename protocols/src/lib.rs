//! The wire between host and guest: generated messages and services, the
//! addresses an agent is reached at, the transports of both ends and the
//! frames of raw streams.
//!
//! Host side: [`Link::connect`] and [`Link::open`]. Guest side:
//! [`Listener::bind`] and [`Listener::accept`]. A port means the same on every
//! transport; what differs is below those two types.

pub mod address;
pub mod destination;
pub mod frame;
pub mod hybrid;
pub mod link;
pub mod listen;
mod mux;
pub mod peer;
pub mod port;
pub mod serial;
pub mod stream;
pub mod text;
pub mod unix;
pub mod vsock;

pub use address::{AddressError, AgentAddress, GuestAddress};
pub use destination::Destination;
pub use frame::{Frame, FrameReader, FrameWriter};
pub use link::{Link, LinkError, Opening};
pub use listen::{Incoming, ListenError, Listener};
pub use stream::{Duplex, Stream};
pub use vsock::VsockPeers;

/// Messages and ttrpc services generated from `proto/`.
#[expect(
    clippy::all,
    clippy::restriction,
    clippy::pedantic,
    reason = "generated code"
)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/wire/mod.rs"));
}

include!(concat!(env!("OUT_DIR"), "/wire/messages.rs"));
