//! An answer of a VMM's, or the news that it has ended.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use crate::error::{Error, MonitorError};
use crate::log::last_line;
use crate::process::Process;
use crate::vm::VmExit;

/// How long a VMM that hung up may take to end.
const HANG_UP: Duration = Duration::from_secs(2);

/// Waits for an answer, or for the VMM's end, which is told with its last words.
pub(crate) async fn answered<T>(
    process: &Process,
    log: &Path,
    verb: &'static str,
    answer: impl Future<Output = Result<T, MonitorError>> + Send,
) -> Result<T, Error> {
    let exit = tokio::select! {
        biased;
        answered = answer => match answered {
            // It hangs up a moment before it ends.
            Err(MonitorError::Closed) => match timeout(HANG_UP, process.exited()).await {
                Ok(exit) => exit?,
                Err(_) => return Err(MonitorError::Closed.into()),
            },
            answered => return Ok(answered?),
        },
        exit = process.exited() => exit?,
    };
    Err(ended(log, verb, exit))
}

/// The error of a VMM that has ended.
pub(crate) fn ended(log: &Path, verb: &'static str, exit: VmExit) -> Error {
    let log = last_line(log);
    Error::Ended { verb, exit, log }
}
