//! A virtio-serial port as a link: a session layer below yamux.
//!
//! The port keeps bytes nobody read, across a reconnect and across a save into
//! every clone, and a disconnect followed at once by a connect is invisible to
//! the guest. So a session begins in band: host-to-guest bytes are escaped,
//! and a reset with a nonce of the host ends the old session at any offset;
//! the guest answers with that nonce, and the host discards all before it. The
//! nonce is the host's because clones of one guest would draw equal ones.

pub mod codec;
mod device;
mod find;
mod guest;
mod host;

pub use find::find_port;
pub use guest::{SerialPort, Session};
pub use host::HostSession;
