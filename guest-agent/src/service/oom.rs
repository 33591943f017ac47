//! Containers the kernel has killed something of for want of memory: told one
//! a call, each to one caller, and to none that is gone.

use super::Agent;
use super::container::Container;
use super::error::ServiceError;
use authz::Authorized;
use guest_runtime::ContainerId;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// Events kept for a client that does not ask; what comes then is lost.
const KEPT_MAX: usize = 1024;

/// A question for the next event.
#[derive(Debug)]
pub(crate) struct GetOomEvent;

/// Events that nobody was told yet.
#[derive(Debug)]
pub(crate) struct OomEvents {
    queue: Mutex<VecDeque<ContainerId>>,
    /// A permit for each; closed when there will be no more.
    ready: Semaphore,
}

impl Default for OomEvents {
    fn default() -> Self {
        Self {
            queue: Mutex::default(),
            ready: Semaphore::new(0),
        }
    }
}

impl OomEvents {
    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<ContainerId>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, id: &ContainerId) {
        let mut queue = self.queue();
        if queue.len() < KEPT_MAX {
            queue.push_back(id.clone());
            self.ready.add_permits(1);
        }
    }

    /// Waits for the oldest. A caller dropped while it waits takes none.
    async fn next(&self) -> Result<ContainerId, ServiceError> {
        const ENDED: ServiceError = ServiceError::Unavailable {
            what: "OOM event: the sandbox is destroyed",
        };
        let permit = self.ready.acquire().await.map_err(|_| ENDED)?;
        permit.forget();
        self.queue().pop_front().ok_or(ENDED)
    }

    /// There will be no more: whoever waits is told so.
    pub(super) fn close(&self) {
        self.ready.close();
    }
}

/// What was told of one container so far; watching ends with it.
#[derive(Debug, Default)]
pub(crate) struct OomWatch {
    known: AtomicU64,
    task: Mutex<Option<AbortHandle>>,
}

impl OomWatch {
    /// Tells, once, that the count has grown.
    fn report(&self, count: u64, id: &ContainerId, events: &OomEvents) {
        if self.known.fetch_max(count, Ordering::Relaxed) < count {
            events.push(id);
        }
    }

    fn set_task(&self, task: Option<AbortHandle>) {
        let mut slot = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = std::mem::replace(&mut *slot, task) {
            before.abort();
        }
    }
}

impl Drop for OomWatch {
    fn drop(&mut self) {
        self.set_task(None);
    }
}

impl Agent {
    /// Waits for the next event: the container it happened in.
    pub(crate) async fn oom_event(
        &self,
        _request: Authorized<GetOomEvent>,
    ) -> Result<ContainerId, ServiceError> {
        self.oom_events.next().await
    }

    /// Watches a container from now on. Without a memory controller there is
    /// nothing to see.
    pub(super) fn watch_for_oom(&self, container: &Arc<Container>) {
        let events = Arc::clone(&self.oom_events);
        let watched = Arc::downgrade(container);
        let (cgroup, id) = (container.cgroup.clone(), container.id.clone());
        let task = tokio::spawn(async move {
            let mut known = 0;
            while let Ok(count) = cgroup.oom_kills_beyond(known).await {
                let Some(container) = watched.upgrade() else {
                    return;
                };
                container.oom.report(count, &id, &events);
                known = count;
            }
        });
        container.oom.set_task(Some(task.abort_handle()));
    }

    /// Tells what was not told yet, before the container's cgroup is gone.
    pub(super) fn report_last_oom(&self, container: &Container) {
        if let Ok(count) = container.cgroup.oom_kills() {
            container.oom.report(count, &container.id, &self.oom_events);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ContainerId {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn a_caller_that_vanishes_takes_no_event_along() {
        let events = OomEvents::default();
        {
            let next = events.next();
            tokio::pin!(next);
            assert!(futures::poll!(&mut next).is_pending());
            events.push(&id("one"));
        }
        events.push(&id("two"));
        assert_eq!(events.next().await.unwrap(), id("one"));
        assert_eq!(events.next().await.unwrap(), id("two"));
    }

    #[tokio::test]
    async fn each_growth_of_the_count_is_one_event_whoever_sees_it_first() {
        let events = OomEvents::default();
        let watch = OomWatch::default();
        for count in [0, 1, 1, 3, 2, 4] {
            watch.report(count, &id("web"), &events);
        }
        assert_eq!(events.queue().len(), 3);
    }

    #[tokio::test]
    async fn events_that_nobody_asks_for_are_bounded_and_their_end_is_told() {
        let events = OomEvents::default();
        for _ in 0..2 * KEPT_MAX {
            events.push(&id("web"));
        }
        assert_eq!(events.queue().len(), KEPT_MAX);
        events.close();
        assert!(events.next().await.is_err());
    }
}
