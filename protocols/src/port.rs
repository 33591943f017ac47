//! The ports of the agent; they mean the same on every transport.

/// ttrpc: `grpc.AgentService`, `grpc.Health`, `tardigrade.v1.Lifecycle`. The
/// number is the Kata agent's.
pub const RPC: u32 = 1024;

/// The agent's own log, one JSON object a line. The number is the Kata agent's.
pub const LOG: u32 = 1025;

/// Raw streams; the first frame is the token that a call of the lifecycle
/// service answered with.
pub const STREAM: u32 = 1028;
