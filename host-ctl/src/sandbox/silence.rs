//! A guest that does not answer: what its console says is all there is to know
//! why. A clone that answers in time is not listened to, and waits for nothing.

use super::console::Console;
use super::made::Made;
use super::restore::RestoreError;
use crate::host::RunDirectory;
use std::pin::pin;
use std::time::Duration;
use tokio::time::timeout;

/// How long a clone may take before its console is read.
const PATIENCE: Duration = Duration::from_secs(1);

/// Waits for a clone, and tells with its failure what its console says from the
/// end of the patience on. Whatever has failed has ended its VM.
pub(super) async fn listening(
    directory: &RunDirectory,
    clone: impl Future<Output = Result<Made, RestoreError>>,
) -> Result<Made, RestoreError> {
    let mut clone = pin!(clone);
    if let Ok(made) = timeout(PATIENCE, &mut clone).await {
        return made;
    }
    let files = directory.paths();
    let console = Console::keep(files.console(), files.console_log());
    match clone.await {
        Ok(made) => Ok(Made {
            console: Some(console),
            ..made
        }),
        // Its VM may talk for ever.
        Err(error @ RestoreError::Lingers { .. }) => Err(error),
        Err(first) => Err(RestoreError::Silent {
            first: Box::new(first),
            console: console.last_words().await,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Paths, SandboxId};
    use crate::host::explain;
    use tokio::io::AsyncWriteExt;

    /// Why there is no clone of a guest that says something, once it is heard.
    fn failure(first: RestoreError) -> RestoreError {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(&root.path().join("state")).unwrap();
        let id = SandboxId::random().unwrap();
        let directory = RunDirectory::create(&paths, &id, "test", &"a record").unwrap();
        let console = protocols::unix::bind(&directory.paths().console()).unwrap();
        console.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let made = runtime.block_on(async {
            let console = tokio::net::UnixListener::from_std(console).unwrap();
            let clone = async {
                let (mut console, _) = console.accept().await.unwrap();
                console.write_all(b"rcu: stall \x1b\r\n").await.unwrap();
                // The VM is killed, and its end of the console with it.
                Err(first)
            };
            listening(&directory, clone).await
        });
        made.err().unwrap()
    }

    #[test]
    fn a_clone_that_does_not_answer_is_quoted() {
        let text = explain(&failure(RestoreError::Identity));
        assert!(text.starts_with("the receipt"), "{text}");
        let end = "console ends with: rcu: stall \\u{1b}";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn a_vm_that_is_still_there_is_not_listened_to() {
        let lingers = RestoreError::Lingers {
            first: Box::new(RestoreError::Identity),
            kill: hypervisor::Error::MemorySaved,
        };
        let error = failure(lingers);
        assert!(matches!(error, RestoreError::Lingers { .. }), "{error}");
    }
}
