//! Recipes: work that commits or leaves nothing behind, whoever still waits
//! for it.

use super::error::ServiceError;
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
    tokio::spawn(work)
        .await
        .map_err(|_| ServiceError::RecipePanicked)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

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
