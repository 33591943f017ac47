//! Work that may block the disk or the kernel: beside the agent's one thread.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Runs `work` on a thread of its own. When the caller is dropped, the work
/// still ends by itself.
///
/// # Errors
/// It panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let outcome = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&outcome);
    // One type for all: the runtime's code for a task is in the binary once for
    // each type of it.
    let work: Box<dyn FnOnce() + Send> = Box::new(move || {
        let outcome = work();
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    });
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?;
    let outcome = outcome
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    outcome.ok_or_else(|| io::ErrorKind::Other.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn others_run_meanwhile_and_a_panic_is_an_error() {
        let slow = blocking(|| {
            std::thread::sleep(Duration::from_millis(200));
            7
        });
        tokio::pin!(slow);
        assert!(futures::poll!(&mut slow).is_pending());
        assert_eq!(slow.await.unwrap(), 7);
        let panicked = blocking(|| assert!(std::env::args().count() == 0, "as it shall"));
        assert!(panicked.await.is_err());
    }
}
