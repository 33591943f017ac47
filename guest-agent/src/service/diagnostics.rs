//! Questions for what is in the guest: figures, a container's last words, the
//! room on a volume.

use super::Agent;
use super::error::ServiceError;
use super::recipes::blocking;
use authz::Authorized;
use guest_runtime::ContainerId;
use guest_runtime::guest_file::{self, Room};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;

/// The annotation that says where a container leaves its last words.
const TERMINATION_MESSAGE: &str = "io.kubernetes.container.terminationMessagePath";
/// How much of them is told, in bytes.
const TERMINATION_MESSAGE_MAX: u64 = 4096;
/// How many questions are answered at once.
const QUESTIONS_MAX: usize = 32;

/// A question for all figures.
#[derive(Debug)]
pub(crate) struct GetMetrics;

/// A question for what a container left as its last words.
#[derive(Debug)]
pub(crate) struct GetTerminationLog {
    pub(crate) id: ContainerId,
}

/// A question for the room on a volume.
#[derive(Debug)]
pub(crate) struct GetVolumeStats {
    pub(crate) path: PathBuf,
}

/// How often the figures were asked for.
#[derive(Debug, Default)]
pub(crate) struct Scrapes(AtomicU64);

/// Questions being answered: one that a dead file system never answers keeps
/// its thread, and there are only so many for all the agent does.
#[derive(Debug)]
pub(crate) struct Questions(Arc<Semaphore>);

impl Default for Questions {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(QUESTIONS_MAX)))
    }
}

impl Questions {
    /// Answers one on a thread of its own, whether or not it is still waited
    /// for.
    pub(super) async fn answer<T: Send + 'static>(
        &self,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ServiceError> {
        let turn = Arc::clone(&self.0).try_acquire_owned();
        let turn = turn.map_err(|_| ServiceError::TooManyQuestions)?;
        blocking(move || {
            let _turn = turn;
            look()
        })
        .await
    }
}

impl Agent {
    /// All figures, as Prometheus takes them.
    pub(crate) async fn metrics(
        &self,
        _request: Authorized<GetMetrics>,
    ) -> Result<String, ServiceError> {
        let scrape = self.scrapes.0.fetch_add(1, Ordering::Relaxed) + 1;
        let figures = move || guest_runtime::metrics::text(scrape);
        self.questions.answer(figures).await
    }

    /// The head of the file that a container leaves its last words in; nothing
    /// if it has left none.
    pub(crate) async fn termination_log(
        &self,
        request: Authorized<GetTerminationLog>,
    ) -> Result<String, ServiceError> {
        let container = self.registry.get(&request.get().id)?;
        let lacks = |what: &str| ServiceError::WrongState {
            call: "get diagnostic data",
            reason: format!("container {} has no {what}", container.id),
        };
        let path = container.termination_message_path.as_deref();
        let path = path.ok_or_else(|| lacks(TERMINATION_MESSAGE))?;
        let mut mounts = container.spec.mounts.iter();
        let source = mounts
            .find(|mount| mount.destination == Path::new(path))
            .and_then(|mount| mount.source.clone())
            .ok_or_else(|| lacks(&format!("mount at {path}")))?;
        let read = move || guest_file::read_head(&source, TERMINATION_MESSAGE_MAX);
        let head = self.questions.answer(read).await?;
        let head = head.map_err(ServiceError::system("read the termination log"))?;
        Ok(String::from_utf8_lossy(&head.unwrap_or_default()).into_owned())
    }

    /// The room on the file system that a path of the guest is on.
    pub(crate) async fn volume_stats(
        &self,
        request: Authorized<GetVolumeStats>,
    ) -> Result<Room, ServiceError> {
        let look = move || guest_file::room(&request.get().path);
        let room = self.questions.answer(look).await?;
        room.map_err(ServiceError::system("statvfs of the volume"))
    }
}
