//! A link to an agent in this process.

use std::time::Duration;

use protocols::{Link, Listener, port};
use tokio::net::UnixStream;

/// What must come, comes within this time.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A deadline that passes in a test.
pub(crate) const BRIEF: Duration = Duration::from_millis(300);

/// The host's link and the guest's listener at the two ends of a socket pair
/// that plays a virtio-serial port.
pub(crate) async fn pair() -> (Link, Listener) {
    let (host, guest) = std::os::unix::net::UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let listener = Listener::over_serial(guest.into(), &[port::RPC, port::STREAM]).unwrap();
    let link = Link::over_serial(UnixStream::from_std(host).unwrap()).unwrap();
    link.established(SOON).await.unwrap();
    (link, listener)
}
