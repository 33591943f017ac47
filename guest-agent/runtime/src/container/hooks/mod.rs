//! Hooks (OCI `config.md`, "POSIX-platform Hooks"): programs around a
//! container's life. A hook that fails, or is not done in time, fails what it
//! belongs to.
//!
//! ```text
//!   prestart, createRuntime   in the guest, when all is mounted     guest.rs
//!   createContainer           in the container, before pivot_root   inside.rs
//!   startContainer            in the container, before its program  inside.rs
//!   poststart                 in the guest, once the program runs   guest.rs
//!   poststop                  in the guest, once all is removed     guest.rs
//! ```

mod directory;
mod guest;
pub(super) mod inside;

use super::error::Refused;
use super::spec::ContainerSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use directory::GuestHooksError;
pub use guest::HookError;

/// The version of the specification whose state hooks are shown.
const VERSION: &str = "1.0.2";

/// How long a hook may take that does not say: what clients of the Kata agent
/// are used to.
pub const HOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest a hook may take: the container waits for it.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookSpec {
    /// The program, an absolute path.
    pub path: PathBuf,
    /// All its arguments, the name it is called by included.
    pub args: Vec<String>,
    /// Its whole environment, `NAME=VALUE`.
    pub env: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// Which hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookKind {
    /// See OCI; once the container's place is there.
    Prestart,
    /// The same, by its later name; run after those.
    CreateRuntime,
    /// In the container's namespaces and the guest's tree.
    CreateContainer,
    /// In the container.
    StartContainer,
    /// When the container's program runs.
    Poststart,
    /// When nothing is left of the container.
    Poststop,
}

/// The hooks of a container, each kind in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// [`HookKind::Prestart`]
    pub prestart: Vec<HookSpec>,
    /// [`HookKind::CreateRuntime`]
    pub create_runtime: Vec<HookSpec>,
    /// [`HookKind::CreateContainer`]
    pub create_container: Vec<HookSpec>,
    /// [`HookKind::StartContainer`]
    pub start_container: Vec<HookSpec>,
    /// [`HookKind::Poststart`]
    pub poststart: Vec<HookSpec>,
    /// [`HookKind::Poststop`]
    pub poststop: Vec<HookSpec>,
}

/// The state of a container as a hook finds it on its stdin (OCI `runtime.md`,
/// "State").
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'a> {
    oci_version: &'static str,
    id: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    bundle: &'a Path,
    annotations: &'a BTreeMap<String, String>,
}

impl fmt::Display for HookKind {
    /// The OCI name.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        })
    }
}

impl HookKind {
    const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];

    fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => "creating",
            Self::StartContainer => "created",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }
}

impl Hooks {
    /// Those of a kind.
    #[must_use]
    pub fn of(&self, kind: HookKind) -> &[HookSpec] {
        match kind {
            HookKind::Prestart => &self.prestart,
            HookKind::CreateRuntime => &self.create_runtime,
            HookKind::CreateContainer => &self.create_container,
            HookKind::StartContainer => &self.start_container,
            HookKind::Poststart => &self.poststart,
            HookKind::Poststop => &self.poststop,
        }
    }

    fn of_mut(&mut self, kind: HookKind) -> &mut Vec<HookSpec> {
        match kind {
            HookKind::Prestart => &mut self.prestart,
            HookKind::CreateRuntime => &mut self.create_runtime,
            HookKind::CreateContainer => &mut self.create_container,
            HookKind::StartContainer => &mut self.start_container,
            HookKind::Poststart => &mut self.poststart,
            HookKind::Poststop => &mut self.poststop,
        }
    }

    /// Adds others, each kind behind those that are there.
    pub fn extend(&mut self, others: &Self) {
        for kind in HookKind::ALL {
            self.of_mut(kind).extend_from_slice(others.of(kind));
        }
    }

    /// Whether any runs outside the container.
    #[must_use]
    pub fn run_in_guest(&self) -> bool {
        [
            &self.prestart,
            &self.create_runtime,
            // Its program is the guest's.
            &self.create_container,
            &self.poststart,
            &self.poststop,
        ]
        .iter()
        .any(|hooks| !hooks.is_empty())
    }

    /// Whether the container is to wait for some when all is mounted.
    pub(super) fn run_when_mounted(&self) -> bool {
        !self.prestart.is_empty() || !self.create_runtime.is_empty()
    }

    /// How long those of a kind may take, all together.
    pub(super) fn time(&self, kind: HookKind) -> Duration {
        self.of(kind).iter().map(|hook| hook.timeout).sum()
    }

    pub(super) fn validate(&self) -> Result<(), Refused> {
        for hook in HookKind::ALL.iter().flat_map(|kind| self.of(*kind)) {
            let refused = |reason| {
                let path = hook.path.display();
                Err(Refused(format!("hook {path}{reason}")))
            };
            if !super::validate::is_plain(&hook.path) {
                return refused("");
            }
            let mut strings = hook.args.iter().chain(&hook.env);
            if strings.any(|string| string.contains('\0')) {
                return refused(" with a zero byte");
            }
            if hook.timeout > TIMEOUT_MAX {
                return refused(" with more than an hour");
            }
            let named = |variable: &String| variable.find('=').is_some_and(|at| at > 0);
            if !hook.env.iter().all(named) {
                return refused(" with a variable without a name");
            }
        }
        Ok(())
    }
}

/// What the hooks of a kind are told, in JSON.
fn state(spec: &ContainerSpec, kind: HookKind, pid: Option<i32>) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&State {
        oci_version: VERSION,
        id: spec.id.as_ref(),
        status: kind.status(),
        pid,
        bundle: &spec.bundle,
        annotations: &spec.annotations,
    })
}
