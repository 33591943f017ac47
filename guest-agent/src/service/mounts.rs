//! Mounts that the sandbox's containers share, changed while they are used.

use super::Agent;
use super::error::ServiceError;
use super::files::SHARED;
use super::recipes::blocking;
use authz::Authorized;
use guest_runtime::storage::{StorageSpec, detach_stale, update_ephemeral};
use std::path::Path;
use std::sync::Arc;

/// Memory file systems to mount, or to give other options.
#[derive(Debug)]
pub(crate) struct UpdateEphemeralMounts {
    pub(crate) storages: Vec<StorageSpec>,
}

/// A request to look for mounts that the host has nothing behind any more.
#[derive(Debug)]
pub(crate) struct RemoveStaleMounts;

impl Agent {
    /// Changes one after the other; the first that fails is told, and those
    /// after it are as they were.
    pub(crate) async fn update_ephemeral_mounts(
        self: &Arc<Self>,
        request: Authorized<UpdateEphemeralMounts>,
    ) -> Result<(), ServiceError> {
        self.lifecycle.require_running("update ephemeral mounts")?;
        let update = move || {
            let storages = &request.get().storages;
            storages.iter().try_for_each(update_ephemeral)
        };
        self.recipes
            .run(async move { Ok(blocking(update).await??) })
            .await
    }

    /// Has the host asked again for what is behind each shared mount.
    pub(crate) async fn remove_stale_mounts(
        self: &Arc<Self>,
        _request: Authorized<RemoveStaleMounts>,
    ) -> Result<(), ServiceError> {
        // Not counted as a recipe: a host that does not answer shall not hold
        // up a freeze.
        let look = || detach_stale(Path::new(SHARED));
        Ok(self.questions.answer(look).await??)
    }
}
