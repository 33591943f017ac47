//! cgroup v2: everything the workload runs lies below one directory, which no
//! container can write (Documentation/admin-guide/cgroup-v2.rst).
//!
//! ```text
//!   WorkloadCgroup           frozen and limited as a whole
//!   |- guest.d               processes outside every container
//!   |- hook-N.d              one hook, while it runs: HookCgroup
//!   `- c-NAME                one container: CgroupPath
//!      `- own                what it sees of it, and is in
//! ```

mod control;
mod devices;
mod events;
mod hook;
mod oom;
mod resources;
mod stats;
mod workload;

pub use devices::{DeviceAccess, DeviceKind, DeviceRule, UnknownDeviceRule};
pub use resources::{DeviceNumbers, IoLimitKind, IoResources, RdmaLimit, Resources};
pub use stats::{CgroupStats, CpuStats, HugetlbStats, IoStats, MemoryStats, PidsStats};
pub use workload::{CgroupPath, WorkloadCgroup};

pub(crate) use hook::HookCgroup;

use std::io;
use std::path::PathBuf;

/// Where a cgroup v2 hierarchy is mounted, if one is.
#[must_use]
pub fn hierarchy() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == "cgroup2").then(|| point.into())
    })
}

/// Why a cgroup is not as asked.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file of it cannot be read or written, or its directory not be made or
    /// removed.
    #[error("{call} {path}")]
    File {
        /// What was tried.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A limit needs a controller that this kernel or this hierarchy lacks.
    #[error("limit {limit}: no cgroup controller {controller}")]
    NoController {
        /// The limit asked for.
        limit: String,
        /// What it needs.
        controller: String,
    },
    /// A limit has a value it cannot have.
    #[error("limit {limit}: {value} is not possible: {reason}")]
    Value {
        /// The limit asked for.
        limit: &'static str,
        /// To what.
        value: String,
        /// Why not.
        reason: &'static str,
    },
    /// More rules for devices than there is room for.
    #[error("{0} rules for devices")]
    DeviceRules(usize),
    /// A name that cannot be a cgroup's.
    #[error("no name of a cgroup: {0:?}")]
    Name(String),
    /// There is one of that name.
    #[error("cgroup {} exists", .0.display())]
    Exists(PathBuf),
    /// The kernel did not get there in time.
    #[error("{} does not say \"{wanted}\" within {millis} ms", path.display())]
    Deadline {
        /// The file that was watched.
        path: PathBuf,
        /// What it had to say.
        wanted: &'static str,
        /// How long was waited, in milliseconds.
        millis: u128,
    },
}

pub(crate) fn failed(
    call: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.into();
    move |source| CgroupError::File { call, path, source }
}
