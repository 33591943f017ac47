//! Whether the nested host lives: what is sent to it comes back.
//!
//! An emulated machine can stand still for good, with no word of its kernel's.
//! It is told from a busy one by its silence, long before the deadline.

use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

/// How often it is asked.
const BEAT: Duration = Duration::from_secs(1);

/// A task that ends when nothing came back for as long as `silence`.
pub(crate) fn watch(listener: UnixListener, silence: Duration) -> JoinHandle<()> {
    tokio::spawn(async move {
        let Ok((stream, _)) = listener.accept().await else {
            return std::future::pending().await;
        };
        let (from, to) = stream.into_split();
        tokio::select! {
            () = beat(to) => {}
            () = silent(from, silence) => {}
        }
    })
}

async fn beat(mut to: OwnedWriteHalf) {
    let mut clock = interval(BEAT);
    loop {
        clock.tick().await;
        if to.write_all(b"\n").await.is_err() {
            // The emulator is gone: that is told by its exit status.
            std::future::pending::<()>().await;
        }
    }
}

async fn silent(mut from: OwnedReadHalf, silence: Duration) {
    let mut answers = [0; 64];
    loop {
        match timeout(silence, from.read(&mut answers)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => std::future::pending::<()>().await,
            Err(_) => return,
        }
    }
}
