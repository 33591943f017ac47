//! What the agent does, once a request has been authorised and converted.
//!
//! Every function here that has an effect takes an `Authorized` value; a
//! recipe ([`container`]) runs as a task of its own, so that a client that
//! vanishes cannot leave half of it behind. The sandbox as a whole moves
//! through ([`lifecycle`]):
//!
//! ```text
//!            quiesce               thaw               release
//!  Running ----------> Quiesced ----------> Thawed -----------> Running
//!     ^                  |  ^                 | ^
//!     |  (failed step)   |  |  (failed step)  | | (same request again:
//!     +------------------+  +-----------------+ +  the stored receipt)
//! ```
//!
//! Nothing of the workload runs between Quiesce and Release. A copy that the
//! kernel tells of anywhere else is frozen until it has gone through all three.

pub(crate) mod container;
pub(crate) mod control;
pub(crate) mod diagnostics;
pub(crate) mod error;
pub(crate) mod files;
mod hooks;
pub(crate) mod hotplug;
pub(crate) mod identity;
pub(crate) mod lifecycle;
pub(crate) mod machine;
pub(crate) mod memory_agent;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod oom;
pub(crate) mod packet_filter;
pub(crate) mod process;
mod program;
pub(crate) mod recipes;
pub(crate) mod registry;
pub(crate) mod secret;
pub(crate) mod streams;

use error::ServiceError;
use guest_runtime::container::{Hooks, Launcher};
use guest_runtime::entropy::Generator;
use guest_runtime::network::Network;
use guest_runtime::shared_files::SharedFiles;
use identity::IdentityStore;
use slog::{Discard, Logger, o};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// The whole state of the agent; shared by all handlers.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) registry: registry::Registry,
    /// Absent on a development machine without a cgroup v2 hierarchy of ours.
    pub(crate) launcher: Option<Arc<Launcher>>,
    pub(crate) recipes: recipes::Recipes,
    pub(crate) network: Network,
    pub(crate) identity: IdentityStore,
    pub(crate) generator: Generator,
    pub(crate) lifecycle: lifecycle::Lifecycle,
    pub(crate) tokens: Arc<streams::Tokens>,
    pub(crate) shared_files: Arc<SharedFiles>,
    pub(crate) oom_events: Arc<oom::OomEvents>,
    /// Absent unless it was asked for.
    pub(crate) memory_agent: Option<memory_agent::MemoryAgent>,
    pub(crate) scrapes: diagnostics::Scrapes,
    pub(crate) questions: diagnostics::Questions,
    /// The image's, for every container; of the last CreateSandbox that named
    /// some.
    pub(crate) guest_hooks: Mutex<Hooks>,
    /// Told when the sandbox was destroyed and the agent shall end.
    pub(crate) destroyed: Notify,
    /// For failures that are no request's.
    pub(crate) log: Logger,
    /// Whether the machine is ours to change: false on a development machine.
    pub(crate) in_guest: bool,
    /// Whether the network is: of a guest, or of a namespace made for us.
    pub(crate) own_network: bool,
}

impl Agent {
    /// An agent that starts no containers and to which nothing belongs. To be
    /// called in a tokio runtime.
    pub(crate) fn new(identity: IdentityStore) -> io::Result<Self> {
        Ok(Self {
            registry: registry::Registry::default(),
            launcher: None,
            recipes: recipes::Recipes::default(),
            network: Network::new().map_err(io::Error::other)?,
            identity,
            generator: Generator::open()?,
            lifecycle: lifecycle::Lifecycle::running(),
            tokens: Arc::default(),
            shared_files: Arc::new(SharedFiles::below(Path::new(files::SHARED))),
            oom_events: Arc::default(),
            memory_agent: None,
            scrapes: diagnostics::Scrapes::default(),
            questions: diagnostics::Questions::default(),
            guest_hooks: Mutex::default(),
            destroyed: Notify::new(),
            log: Logger::root(Discard, o!()),
            in_guest: false,
            own_network: false,
        })
    }

    /// What starts containers and holds their cgroup.
    pub(crate) fn launcher(&self) -> Result<&Arc<Launcher>, ServiceError> {
        self.launcher.as_ref().ok_or(ServiceError::Unavailable {
            what: "writable cgroup v2 hierarchy",
        })
    }

    /// Refuses, outside a VM, a call that changes the machine.
    pub(crate) fn require_guest(&self, call: &'static str) -> Result<(), ServiceError> {
        if self.in_guest {
            Ok(())
        } else {
            Err(ServiceError::OutsideGuest { call })
        }
    }

    /// Refuses a call that changes a network that is not ours.
    pub(crate) fn require_network(&self, call: &'static str) -> Result<(), ServiceError> {
        if self.own_network {
            Ok(())
        } else {
            Err(ServiceError::OutsideGuest { call })
        }
    }
}
