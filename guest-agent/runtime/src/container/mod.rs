//! Containers: how one comes to be, and how a process is added to one.
//!
//! A container's process is made in three steps, each named after who runs it:
//!
//! ```text
//!   agent                     stage                    init
//!   Launcher::create  spawns  stage.rs        clone3   init/
//!     StageOrder ---------->  takes mounts,
//!                             setns, then  ------->
//!     <---- Report::Cloned, pidfd; ends
//!     InitOrder --------------------------------->     mounts
//!     <------------------------------------------      Report::Mounted, if there are hooks
//!     Go      ----------------------------------->     pivot_root, user
//!     <------------------------------------------      Report::Ready
//!     Go      ----------------------------------->
//!     <------------------------------------------      Report::Executing
//!                                                      execve
//!     <---- end of the stream, or Report::ExecFailed
//! ```
//!
//! Stage and init run a sealed copy of the agent in a memory file, so that no
//! container can write the agent through /proc/PID/exe; they are told
//! everything by messages over one socket ([`channel`], [`message`]). Init is
//! the agent's own child, because the stage clones it with CLONE_PARENT, and
//! the agent reaps it by the pidfd that the clone gave.

mod launcher;

mod launch;
mod program;

mod channel;
mod message;

mod destination;
mod error;
mod init;
mod stage;
mod sysctl;

mod capability;
mod hooks;
mod id_mapping;
mod rlimit;
mod scheduling;
mod seccomp;
mod security;
mod spec;
mod validate;

pub use capability::{Capability, CapabilitySets, UnknownCapability};
pub use channel::ChannelError;
pub use error::{CreateError, ExecError, Failure, LaunchError, Refused, StartError, Step};
pub use hooks::{GuestHooksError, HOOK_TIMEOUT, HookError, HookKind, HookSpec, Hooks};
pub use id_mapping::{IdMapping, IdMappings};
pub use launcher::{CreatedContainer, ExecProcess, Launcher, StartHandle};
pub use rlimit::{RlimitKind, RlimitSpec, UnknownRlimit};
pub use scheduling::{
    IoPriority, IoPriorityClass, Scheduler, SchedulerFlag, SchedulerPolicy, UnknownScheduling,
};
pub use seccomp::{
    ArgumentOperator, ArgumentTest, SeccompAction, SeccompArchitecture, SeccompFlag,
    SeccompProfile, SeccompRule, UnknownSeccomp,
};
pub use spec::{
    Clock, ContainerSpec, DeviceNode, DeviceRule, DeviceSpec, IdentityFiles, MountSpec,
    NamespaceKind, NamespaceSpec, ProcessSpec, Resources, RootSpec, TimeOffset, UserSpec,
};
pub use stage::stage_main;

/// The word, as its first argument, by which the agent's program knows that it
/// is to call [`stage_main`] and nothing else.
pub const STAGE_WORD: &str = "container-stage";
