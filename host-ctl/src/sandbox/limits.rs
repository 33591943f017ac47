//! The limits of one sandbox's VMM: its cgroup is recorded before it is made,
//! and removed when the VMM is gone.

use std::path::Path;

use super::network::detach;
use super::record::SandboxRecord;
use crate::host::network::NetworkError;
use crate::host::{
    CallFailed, Cgroups, Limits, RecordError, RecordHead, RunDirectory, Unlimited, explain,
};
use serde::{Deserialize, Serialize};

/// What limits a VMM beyond what the whole host has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limited {
    /// A cgroup of its own.
    Cgroup(Limits),
    /// Nothing; why, for people.
    Nothing(String),
}

/// Why what a sandbox has of the host could not be given back.
#[derive(Debug, thiserror::Error)]
pub enum GiveBackError {
    /// Its tap.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CallFailed),
}

/// Makes the cgroup that a sandbox's VMM is to be started in, or notes why there
/// is none: a VMM without limits is one all the same. What is planned is written
/// down before it is done, what came of it with the rest of the record.
///
/// # Errors
/// When the record cannot be written.
pub fn limit(directory: &RunDirectory, record: &mut SandboxRecord) -> Result<(), RecordError> {
    let limits = Limits::of(record.spec.memory_mib, record.spec.vcpus);
    let mut cgroup = match prepared() {
        Ok(cgroups) => cgroups.plan(&directory.id().vm_name(), limits),
        Err(reason) => {
            record.unlimited = Some(explain(&reason));
            return Ok(());
        }
    };
    record.head.cgroup = Some(cgroup.clone());
    directory.write_record(record)?;
    match cgroup.make() {
        Ok(()) => record.head.cgroup = Some(cgroup),
        Err(reason) => {
            record.head.cgroup = None;
            record.unlimited = Some(explain(&reason));
        }
    }
    Ok(())
}

fn prepared() -> Result<Cgroups, Unlimited> {
    if !hypervisor::starts_in_cgroups() {
        return Err(Unlimited::NoStart);
    }
    let cgroups = Cgroups::find()?;
    cgroups.prepare()?;
    Ok(cgroups)
}

/// Tries whether this user's VMMs can have limits.
///
/// # Errors
/// Why not.
pub fn try_limits() -> Result<(), Unlimited> {
    prepared().map(drop)
}

/// Gives back what a sandbox without a VM has of the host, and forgets it: its
/// tap and its cgroup.
///
/// # Errors
/// The first that could not be removed; it stays in the record, for a sweep.
pub async fn give_back(head: &mut RecordHead) -> Result<(), GiveBackError> {
    let detached = detach(head).await;
    if let Some(cgroup) = &head.cgroup {
        cgroup.remove()?;
        head.cgroup = None;
    }
    Ok(detached?)
}

impl SandboxRecord {
    /// The cgroup to start its VMM in.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Path> {
        self.head
            .cgroup
            .as_ref()
            .map(|cgroup| cgroup.path.as_path())
    }

    /// What limits its VMM.
    #[must_use]
    pub fn limited(&self) -> Limited {
        match (&self.head.cgroup, &self.unlimited) {
            (Some(cgroup), _) => Limited::Cgroup(cgroup.limits),
            (None, Some(reason)) => Limited::Nothing(reason.clone()),
            (None, None) => Limited::Nothing("it was made before there were limits".to_owned()),
        }
    }
}
