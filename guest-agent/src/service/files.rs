//! Files that the host copies into the guest.

use super::Agent;
use super::error::ServiceError;
use super::recipes::blocking;
use authz::Authorized;
use guest_runtime::shared_files::SharedFile;
use std::sync::Arc;

/// Where they go: a path clients rely on.
pub(crate) const SHARED: &str = "/run/kata-containers/shared/containers";

/// A file, or a piece of one.
#[derive(Debug)]
pub(crate) struct CopyFile(pub(crate) SharedFile);

impl Agent {
    /// Puts a file in its place, or keeps a piece of it until it is whole.
    pub(crate) async fn copy_file(
        self: &Arc<Self>,
        request: Authorized<CopyFile>,
    ) -> Result<(), ServiceError> {
        self.lifecycle.require_running("copy a file")?;
        let files = Arc::clone(&self.shared_files);
        let place = move || files.place(&request.into_inner().0);
        self.recipes
            .run(async move { Ok(blocking(place).await??) })
            .await
    }
}
