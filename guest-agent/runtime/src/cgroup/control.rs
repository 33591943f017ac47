//! One container's cgroup while it runs: frozen by itself, and limits that are
//! changed, all of them or none.

use super::workload::{read, settings_there, write};
use super::{CgroupError, CgroupPath, Resources, WorkloadCgroup, events};
use std::path::Path;
use std::time::Duration;

impl WorkloadCgroup {
    /// Freezes one container, by the cgroup that only the agent can reach, and
    /// waits until the kernel says so.
    ///
    /// # Errors
    /// [`CgroupError::Deadline`] if it does not within `deadline`: the freeze
    /// is then still wanted, until [`WorkloadCgroup::unfreeze_container`].
    pub async fn freeze_container(
        &self,
        cgroup: &CgroupPath,
        deadline: Duration,
    ) -> Result<(), CgroupError> {
        write(cgroup.outer(), "cgroup.freeze", "1")?;
        events::wait_for(cgroup.outer(), "frozen 1", deadline).await
    }

    /// Lets one container run again.
    ///
    /// # Errors
    /// Those of the write.
    pub fn unfreeze_container(&self, cgroup: &CgroupPath) -> Result<(), CgroupError> {
        write(cgroup.outer(), "cgroup.freeze", "0")
    }

    /// Changes the limits of a container that `resources` has; the others stay.
    /// It may block, while the kernel reclaims memory.
    ///
    /// # Errors
    /// What a limit is refused for; all limits are then as they were.
    pub fn update_container(
        &self,
        cgroup: &CgroupPath,
        resources: &Resources,
    ) -> Result<(), CgroupError> {
        let mut before = Vec::new();
        for path in cgroup.both() {
            let changed = change(path, resources, &mut before);
            if let Err(error) = changed {
                undo(&before);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// A file, and what to write to it to have it as it was.
type Before<'a> = (&'a Path, String, String);

fn change<'a>(
    path: &'a Path,
    resources: &Resources,
    before: &mut Vec<Before<'a>>,
) -> Result<(), CgroupError> {
    for setting in settings_there(path, resources)? {
        // What cannot be read cannot be put back, and is not there to be
        // written either.
        let content = read(path, &setting.file)?;
        write(path, &setting.file, &setting.value)?;
        before.push((path, setting.back_to(&content), setting.file));
    }
    Ok(())
}

/// Puts limits back, the last one first. The failure before is the one to tell.
fn undo(before: &[Before<'_>]) {
    for (path, value, file) in before.iter().rev() {
        let _ = write(path, file, value);
    }
}
