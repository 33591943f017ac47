//! Typed calls to the agent of a sandbox.
//!
//! [`AgentClient`] speaks over a [`protocols::Link`]. Protobuf types do not
//! pass its public API: requests are plain configuration types, replies are
//! checked and bounded before anyone sees them, because whoever answers may be
//! hostile. Every call takes a deadline, and every failure says which of four
//! things happened: the connection is dead, the agent said no, the deadline
//! passed, the reply made no sense.

mod call;
mod client;
mod clock;
mod container;
mod error;
mod exec;
mod id;
mod lifecycle;
mod memory;
mod network;
mod process;
mod reply;
mod sandbox;

pub use client::{AgentClient, Connecting};
pub use clock::{Exchange, Moment, Offset};
pub use container::{ContainerConfig, DEFAULT_CAPABILITIES, HostDirectory, Rootfs, User};
pub use error::{ClientError, StatusCode};
pub use exec::{ExecConfig, ExecEvent, ExecInput, ExecOutput, ExecStream, ExecTicket};
pub use id::{Generation, IdError, QuiesceId};
pub use lifecycle::{
    GuestFile, HookResult, Identity, Purpose, Quiesced, Receipt, Released, Step, ThawOrder,
};
pub use memory::{MemoryCompaction, MemoryReclaim};
pub use network::{Interface, Neighbor, Network, Prefix, Route};
pub use process::ProcessName;
pub use protocols::text::escape_untrusted;
pub use sandbox::{AgentVersion, GuestDetails, SandboxConfig};
