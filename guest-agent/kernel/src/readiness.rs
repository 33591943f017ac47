//! Descriptors watched by the asynchronous runtime.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the tokio runtime it is called in watch `descriptor` (epoll(7)).
///
/// # Errors
/// Those of epoll_ctl(2): `EPERM` for a file that cannot be waited for.
pub fn watch(descriptor: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the number an `OwnedFd` gives is always the same, and names an
    // open descriptor for as long as the `Arc` lives, which the registration
    // holds.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}
