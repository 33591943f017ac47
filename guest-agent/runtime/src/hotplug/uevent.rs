//! Waiting for devices: the kernel says when there is one (netlink(7),
//! NETLINK_KOBJECT_UEVENT), and sysfs says which.

use super::{HotplugError, failed};
use netlink_proto::sys::protocols::NETLINK_KOBJECT_UEVENT;
use netlink_proto::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use std::sync::Arc;
use std::time::Duration;

/// The multicast group of the kernel's own events.
const KERNEL: u32 = 1;
/// How long the look after the deadline may take: what is stuck in the kernel is
/// not there.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Looks, and looks again after each event of the kernel's, until `look` finds
/// something. None after `deadline`. What an event says does not matter: whoever
/// sends one can only have us look. To look may block: the kernel takes its time
/// to start a processor.
pub(super) async fn wait_for<T: Send + 'static>(
    deadline: Duration,
    look: impl Fn() -> Result<Option<T>, HotplugError> + Send + Sync + 'static,
) -> Result<Option<T>, HotplugError> {
    // Listening begins before the first look: nothing is missed in between.
    let mut events = TokioSocket::new(NETLINK_KOBJECT_UEVENT)
        .map_err(failed("open", "NETLINK_KOBJECT_UEVENT"))?;
    events
        .socket_mut()
        .bind(&SocketAddr::new(0, KERNEL))
        .map_err(failed("bind", "NETLINK_KOBJECT_UEVENT"))?;
    let look = Arc::new(look);
    let look = || {
        let look = Arc::clone(&look);
        async move {
            let looked = crate::blocking(move || look()).await;
            looked.map_err(failed("look for", "devices"))?
        }
    };
    let wait = async {
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            // An error is one of events that were lost, netlink(7): a reason to
            // look as well.
            let mut event = Vec::with_capacity(4096);
            let _ = events.recv(&mut event).await;
        }
    };
    match tokio::time::timeout(deadline, wait).await {
        Ok(found) => found.map(Some),
        // What came with the last event is found as well.
        Err(_) => match tokio::time::timeout(LAST_LOOK, look()).await {
            Ok(found) => found,
            Err(_) => Ok(None),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_there_is_found_at_once_and_what_is_not_after_the_deadline() {
        let found = wait_for(Duration::from_secs(30), || Ok(Some(7))).await;
        assert_eq!(found.unwrap(), Some(7));
        let brief = Duration::from_millis(20);
        let none: Option<u8> = wait_for(brief, || Ok(None)).await.unwrap();
        assert_eq!(none, None);
    }

    #[tokio::test]
    async fn a_look_that_does_not_end_is_not_waited_for() {
        let (end, stuck) = std::sync::mpsc::channel::<()>();
        let stuck = std::sync::Mutex::new(stuck);
        let look = move || {
            let _ = stuck.lock().map(|stuck| stuck.recv());
            Ok(None::<u8>)
        };
        let waited = wait_for(Duration::from_millis(20), look);
        let waited = tokio::time::timeout(LAST_LOOK * 10, waited).await;
        // The threads end with it.
        drop(end);
        assert_eq!(waited.unwrap().unwrap(), None);
    }

    #[tokio::test]
    async fn what_takes_long_to_look_for_holds_nobody_up() {
        let slow = wait_for(Duration::from_secs(30), || {
            std::thread::sleep(Duration::from_millis(500));
            Ok(Some(()))
        });
        tokio::pin!(slow);
        assert!(futures::poll!(&mut slow).is_pending());
        assert_eq!(slow.await.unwrap(), Some(()));
    }
}
