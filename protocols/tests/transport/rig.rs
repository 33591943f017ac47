//! A socket pair that plays a virtio-serial port: the bytes stay when a host
//! goes and another comes, because the test keeps a copy of the host's end.

use std::os::fd::OwnedFd;
use std::time::Duration;

use protocols::{Link, Listener, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// What must come, comes within this time; a test that waits longer has failed.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A port that echoes in these tests.
pub(crate) const ECHO: u32 = 7;

/// The host's end of the port, which many hosts can use one after the other.
pub(crate) struct HostEnd(std::os::unix::net::UnixStream);

impl HostEnd {
    /// The end as a host that just connected has it.
    pub(crate) fn stream(&self) -> UnixStream {
        UnixStream::from_std(self.0.try_clone().unwrap()).unwrap()
    }

    /// A host that connects and waits for the guest's answer.
    pub(crate) async fn link(&self) -> Link {
        let link = Link::over_serial(self.stream()).unwrap();
        link.established(SOON).await.unwrap();
        link
    }
}

/// Both ends of a port nobody has used yet.
pub(crate) fn port() -> (HostEnd, OwnedFd) {
    let (host, guest) = std::os::unix::net::UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    (HostEnd(host), guest.into())
}

/// A guest that listens on a port.
pub(crate) fn guest(port: OwnedFd, ports: &[u32]) -> Listener {
    Listener::over_serial(port, ports).unwrap()
}

/// Accepts for ever and echoes what comes.
pub(crate) fn echo(mut listener: Listener) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok(incoming) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(incoming.stream);
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    })
}

/// Sends a word and wants it back.
pub(crate) async fn expect_echo(stream: &mut Stream, word: &[u8]) {
    stream.write_all(word).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = vec![0; word.len()];
    soon(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, word);
}

/// Opens the echo port and uses it.
pub(crate) async fn expect_working(link: &Link) {
    let mut stream = link.open(ECHO, SOON).await.unwrap();
    expect_echo(&mut stream, b"ping \xff\x01\xff\x00\xff").await;
}

/// The result of what must come soon.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future)
        .await
        .expect("nothing came in time")
}

/// Says why a test does not run; an error if none may be skipped.
pub(crate) fn skip(why: &str) {
    eprintln!("skipped: {why}");
    assert!(
        std::env::var_os("REQUIRE_ALL").is_none_or(|all| all != "1"),
        "REQUIRE_ALL=1 and a test was skipped: {why}"
    );
}
