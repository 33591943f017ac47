//! Recipes: work that commits or leaves nothing behind, whoever still waits
//! for it.

use super::error::ServiceError;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// The recipes under way. A freeze waits until there are none: a container
/// half made is no state to keep.
#[derive(Debug)]
pub(crate) struct Recipes {
    active: watch::Sender<usize>,
}

/// Counts one recipe as long as it lives.
struct Active(watch::Sender<usize>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.send_modify(|active| *active -= 1);
    }
}

impl Default for Recipes {
    fn default() -> Self {
        Self {
            active: watch::Sender::new(0),
        }
    }
}

impl Recipes {
    /// Runs `recipe` in a task of its own, counted, and waits for it.
    pub(crate) async fn run<T, F>(&self, recipe: F) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        self.active.send_modify(|active| *active += 1);
        let counted = Active(self.active.clone());
        detached(async move {
            let outcome = recipe.await;
            drop(counted);
            outcome
        })
        .await
    }

    /// Waits until no recipe is under way.
    pub(crate) async fn idle(&self, deadline: Duration) -> Result<(), ServiceError> {
        let mut active = self.active.subscribe();
        let idle = active.wait_for(|active| *active == 0);
        match tokio::time::timeout(deadline, idle).await {
            // The sender lives in self: it cannot be gone.
            Ok(_) => Ok(()),
            Err(_) => Err(ServiceError::Deadline {
                call: "wait for the calls under way",
            }),
        }
    }
}

/// Runs `work` as a task of its own and waits for it: when the caller is
/// dropped, as the ttrpc server does with the handlers of a vanished client,
/// the work still ends by itself.
pub(crate) async fn detached<T, F>(work: F) -> Result<T, ServiceError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ServiceError>> + Send + 'static,
{
    let outcome = Slot::default();
    let slot = outcome.clone();
    let task: Task = Box::pin(async move { slot.put(work.await) });
    tokio::spawn(task)
        .await
        .map_err(|_| ServiceError::RecipePanicked)?;
    outcome.take()?
}

/// Runs what may block the disk or the kernel on a thread of its own: the
/// agent's one runtime thread answers Health meanwhile.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ServiceError> {
    let outcome = guest_runtime::blocking(work).await;
    outcome.map_err(|_| ServiceError::RecipePanicked)
}

/// One type for the tasks of all recipes: the runtime's code for a task is in
/// the binary once for each type of it, and was 80 KB more of the agent.
type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where a task leaves what it came to.
struct Slot<T>(Arc<Mutex<Option<T>>>);

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, outcome: T) {
        *self.lock() = Some(outcome);
    }

    fn take(&self) -> Result<T, ServiceError> {
        self.lock().take().ok_or(ServiceError::RecipePanicked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_recipe_outlives_its_caller() {
        let recipes = Arc::new(Recipes::default());
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let go = Arc::new(tokio::sync::Notify::new());
        let caller = tokio::spawn({
            let (recipes, go) = (recipes.clone(), go.clone());
            async move {
                recipes
                    .run(async move {
                        go.notified().await;
                        sender.send(()).ok();
                        Ok(())
                    })
                    .await
            }
        });
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        caller.abort();
        go.notify_one();
        receiver.await.unwrap();
        recipes.idle(Duration::from_secs(5)).await.unwrap();
    }

    #[tokio::test]
    async fn waiting_for_a_stuck_recipe_ends_at_its_deadline() {
        let recipes = Recipes::default();
        let stuck = recipes.run(std::future::pending::<Result<(), ServiceError>>());
        tokio::pin!(stuck);
        assert!(futures::poll!(&mut stuck).is_pending());
        let waited = recipes.idle(Duration::from_millis(10)).await;
        assert!(matches!(waited, Err(ServiceError::Deadline { .. })));
    }
}
